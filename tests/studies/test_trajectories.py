"""The study of trajectories against loops in Python floats, torch.optim.SGD, naive logs and hand-made histories."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsm_lab import Dataset, Run
from gsm_lab.knobs import KNOBS, half_life, oscillates
from gsm_lab.optim import keep_masks
from gsm_lab.studies import trajectories as study
from gsm_lab.training.history import History

NAMES = ["0.weight", "2.weight"]


def data(seed: int = 0) -> Dataset:
    """Two clouds of 6 numbers each, easy to tell apart."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(60) % 2
    x = torch.randn(60, 6, generator=g) + 2.0 * y[:, None]
    return Dataset(x[:40], y[:40], x[40:], y[40:], name="clouds")


def model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))


def run(**knobs) -> Run:
    own = {"compression": 8, "lr": 0.05, "weight_decay": 0.02, "batch_size": 8, "pretrain": 1, "hold": 1.0}
    return Run(model=model(), data=data(), **(own | {"evaluate_every": 7} | knobs))


def loop(steps, lr, momentum, decay, w=1.0, z=0.0) -> list[float]:
    """A passive weight, one step after the other."""
    values = [w]
    for _ in range(steps):
        z = momentum * z + decay * w
        w = w - lr * z
        values.append(w)
    return values


# ------------------------------------------------------------------------------------------------ one passive weight

rates = st.floats(1e-4, 1.0), st.floats(0.0, 0.999), st.floats(0.0, 0.5)


@settings(deadline=None)
@given(*rates, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 400))
def test_the_exact_solution_is_the_loop(lr, momentum, decay, w, z, steps):
    expected = loop(steps, lr, momentum, decay, w, z)
    got = study.passive(np.arange(steps + 1), lr, momentum, decay, w, z)
    assert got.dtype == np.float64 and got.shape == (steps + 1,)
    np.testing.assert_allclose(got, expected, atol=1e-7 * (abs(w) + abs(z) + 1), rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.98, 0.99, 0.999])
@pytest.mark.parametrize("of_critical", [0.01, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5])
def test_the_exact_solution_holds_on_both_sides_of_the_critical_point(momentum, of_critical):
    product = of_critical * study.critical(momentum)
    got = study.passive(np.arange(300), product, momentum, 1.0, w=0.3)
    np.testing.assert_allclose(got, loop(299, product, momentum, 1.0, 0.3), atol=1e-8)


@pytest.mark.parametrize(
    ("lr", "momentum", "decay"), [(0.1, 0.9, 3e-3), (0.02, 0.98, 3e-3), (0.01, 0.99, 3e-2), (0.3, 0.0, 0.1)]
)
def test_the_exact_solution_is_torch_sgd_with_zero_gradients(lr, momentum, decay):
    w = torch.nn.Parameter(torch.tensor([0.7, -0.2], dtype=torch.float64))
    sgd = torch.optim.SGD([w], lr=lr, momentum=momentum, weight_decay=decay)
    for _ in range(500):
        w.grad = torch.zeros_like(w)
        sgd.step()
    expected = np.array([0.7, -0.2]) * study.passive(500, lr, momentum, decay)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-9, atol=1e-15)


@given(*rates)
def test_the_rate_is_the_larger_eigenvalue_and_the_fastest_at_the_critical_point(lr, momentum, decay):
    assume(lr * decay > 1e-12)
    p = 1 + momentum - lr * decay
    largest = np.abs(np.linalg.eigvals(np.array([[p, -momentum], [1.0, 0.0]]))).max()
    # close to the critical point an eigenvalue knows half of its digits
    assert study.decay_rate(lr, momentum, decay) == pytest.approx(-math.log(largest), abs=1e-6)
    if oscillates(lr, momentum, decay) and p >= -2 * math.sqrt(momentum):
        assert study.decay_rate(lr, momentum, decay) == pytest.approx(-0.5 * math.log(momentum), rel=1e-9)


@given(st.floats(0, 0.99), st.floats(1e-4, 0.02))
def test_far_below_the_critical_point_the_closed_form_holds(momentum, share):
    product = share * study.critical(momentum)
    assume(product > 0)
    closed, exact = study.closed_form_rate(product, momentum, 1.0), study.decay_rate(product, momentum, 1.0)
    assert exact == pytest.approx(closed, rel=0.011)
    assert closed == pytest.approx(math.log(2) / half_life(product, momentum, 1.0), rel=1e-12)


@given(st.floats(0.5, 0.999), st.floats(0.001, 0.99))
def test_momentum_has_settled_after_the_warm_up(momentum, share):
    product = share * study.critical(momentum)
    k = study.settling_steps(product, momentum, 1.0)
    assert 0 < k <= math.ceil(10 / (1 - momentum))
    assume(k < 10 / (1 - momentum))
    before, after = study.passive([k, k + 1], product, momentum, 1.0)
    assert math.log(before / after) == pytest.approx(study.decay_rate(product, momentum, 1.0), rel=0.05)


def test_bad_settings_are_named():
    for call in (study.decay_rate, study.closed_form_rate, study.settling_steps):
        with pytest.raises(ValueError, match=r"momentum must be .* below 1, got 1.0"):
            call(0.1, 1.0, 0.1)
        with pytest.raises(ValueError, match=r"lr \* weight_decay must be below .* = 3.8.*got 50 \* 0.5"):
            call(50.0, 0.9, 0.5)
    for steps in (-1, [0, -3], 2.5):
        with pytest.raises(ValueError, match="steps must be whole numbers >= 0"):
            study.passive(steps, 0.1, 0.9, 0.1)


# ------------------------------------------------------------------------------------------------ the speed in a run


@pytest.fixture(scope="module")
def speeds():
    """Real training on the digits, with the paper's weight decay, at three momenta, also past the critical point."""
    digits = {"model": "lenet300", "data": "digits", "pretrain": 1, "seed": 0}
    usual = study.zero_out_speed(digits | {"weight_decay": 5e-4}, window=30)
    return usual, study.zero_out_speed(digits, (0.9, 0.98), of_critical=(0.5, 3.0), window=30)


def test_measured_speed_is_the_closed_form_within_5_percent(speeds):
    usual, _ = speeds
    assert usual["momentum"].tolist() == [0.9, 0.98, 0.99]
    assert usual["lr"].tolist() == [0.1, 0.02, 0.01]
    assert (usual["off_closed_form"].abs() < 0.05).all()
    assert (usual["off_exact"].abs() < 0.01).all()
    assert (usual["weights"] > 1000).all() and not usual["oscillates"].any()
    for _, row in usual.iterrows():
        assert row["exact"] == pytest.approx(study.decay_rate(row["lr"], row["momentum"], row["weight_decay"]))
        assert row["off_exact"] == pytest.approx(row["exact"] / row["measured"] - 1)
        assert row["low"] <= row["measured"] <= row["high"]


def test_past_the_critical_point_the_exact_root_holds_and_the_closed_form_does_not(speeds):
    _, critical = speeds
    assert critical["of_critical"].tolist() == pytest.approx([0.5, 3.0, 0.5, 3.0])
    assert critical["oscillates"].tolist() == [False, True, False, True]
    assert (critical["off_exact"].abs() < 0.01).all()
    assert (critical["off_closed_form"].abs() > 0.1).all()


def test_weights_that_were_active_do_not_count_and_settle_before():
    one = run(momentum=0.8, compression=4)
    one.step(20)
    log = []
    one.recorders.append(lambda step, active, weights: log.append(
        (active.copy(), np.concatenate([w.reshape(-1) for w in weights]).astype(np.float64))))  # fmt: skip
    table = study.zero_out_speed(one, window=10, weights=1000)
    warm = study.settling_steps(0.05, 0.8, 0.02)
    assert len(log) == warm + 20 == int(table["warm_up"][0]) + 20
    never = ~np.any([active for active, _ in log], axis=0)
    values = np.array([w[never] for _, w in log])[warm:]
    rates = np.log((values[:10] ** 2).sum(0) / (values[10:] ** 2).sum(0)) / 20
    assert table["weights"][0] == never.sum() > 5
    assert table["measured"][0] == pytest.approx(np.median(rates), rel=1e-9)
    assert len(one.recorders) == 1  # its own is gone


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="weight_decay must be > 0"):
        study.zero_out_speed(run(weight_decay=0))
    with pytest.raises(ValueError, match=r"hold must be 1 for the learning rate to stay 0.05, got 0.5"):
        study.zero_out_speed(run(hold=0.5, epochs=2))
    with pytest.raises(ValueError, match=r"no weight stayed passive .* compression = 1 "):
        study.zero_out_speed(run(compression=1))
    with pytest.raises(ValueError, match="window must be a whole number >= 1, got 0"):
        study.zero_out_speed(run(), window=0)
    with pytest.raises(ValueError, match=r"of_critical must hold numbers > 0, got \(0.1, -1\)"):
        study.zero_out_speed({}, of_critical=(0.1, -1))
    with pytest.raises(ValueError, match="of_critical needs settings instead of a run"):
        study.zero_out_speed(run(), of_critical=(0.1,))


# ------------------------------------------------------------------------------------------------ several runs


def test_runs_per_momentum_differ_in_momentum_and_if_asked_in_learning_rate():
    net = model()
    base = {"model": net, "data": data(), "lr": 0.1, "momentum": 0.9, "batch_size": 8, "pretrain": 0}
    equal, matched = study.per_momentum(base), study.per_momentum(base, (0.0, 0.5, 0.9), matched=True)
    assert list(equal) == [0.9, 0.98, 0.99] and list(matched) == [0.0, 0.5, 0.9]
    assert {r.knobs["lr"] for r in equal.values()} == {0.1}
    assert [r.knobs["lr"] for r in matched.values()] == [1.0, 0.5, 0.1]
    for momentum, one in equal.items():
        assert one.knobs["momentum"] == momentum and one.steps == 0
        assert one.model is not net
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), net.parameters(), strict=True))


def test_bad_momenta_and_models_are_refused():
    with pytest.raises(ValueError, match="momenta must hold at least one momentum"):
        study.per_momentum({}, ())
    with pytest.raises(ValueError, match=r"momentum must be .* below 1, got 1.0"):
        study.per_momentum({}, (0.9, 1.0))
    with pytest.raises(ValueError, match="no prunable weights"):
        study.per_momentum({"model": torch.nn.LayerNorm(6), "data": data(), "batch_size": 8}, (0.9,))


def test_training_several_runs_is_training_each():
    base = {"model": model(), "data": data(), "batch_size": 8, "pretrain": 1, "epochs": 6, "evaluate_every": 7}
    runs = study.per_momentum(base, (0.5, 0.9))
    study.train(runs, progress=False)
    for momentum, one in runs.items():
        alone = Run(**(base | {"model": model(), "momentum": momentum}))
        alone.train(progress=False)
        assert one.steps == alone.steps == 30
        assert one.history.evaluation_frame().equals(alone.history.evaluation_frame())
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), alone.model.parameters(), strict=True))
    study.train(runs[0.5], epochs=2, progress=False)
    assert runs[0.5].steps == 40


def test_training_says_which_run_diverged_and_refuses_bad_epochs():
    good, bad = run(), run(lr=100.0, momentum=0.99)
    with pytest.raises(FloatingPointError) as caught:
        study.train({"good": good, "bad": bad}, epochs=200, progress=False)
    assert caught.value.__notes__ == ["in run 'bad'"]
    for epochs in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="epochs must be a finite number >= 0"):
            study.train(good, epochs=epochs)
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        study.train({})


# ------------------------------------------------------------------------------------------------ tables


def made(gaps, every=10, layers=None) -> History:
    """A history with these live minus cut accuracies, one after every 10 steps, the first at step 0."""
    history = History(layers or {"a.weight": 60, "b.weight": 40})
    for name, knob in KNOBS.items():
        if knob.live:
            history.moved(0, name, None, 20.0 if name == "compression" else knob.default)
    random = np.random.default_rng(0)
    sizes = list(history.layers.values())
    history.evaluated(0, 0.9, 0.9 - gaps[0], [4, 1])
    for look, gap in enumerate(gaps[1:], 1):
        for step in range((look - 1) * every + 1, look * every + 1):
            active = random.random(sum(sizes)) < 0.1
            w = [np.float32(10) ** random.uniform(-6, 0, n).astype(np.float32) for n in sizes]
            history.record(step, step / 5, 1.0 / step, 0.1, 0.1, active, w)
        history.evaluated(look * every, 0.9, 0.9 - gap, [5 - look % 2, look % 2])
    return history


@pytest.mark.parametrize(
    ("gaps", "tolerance", "step"),
    [
        ([0.3, 0.2, 0.01, 0.0], 0.01, 20),
        ([0.3, 0.005, 0.02, 0.0, 0.0], 0.01, 30),  # it was lossless for a moment: that does not count
        ([0.3, 0.2, 0.1], 0.01, None),
        ([0.3, 0.2, 0.0], 0.0, 20),
        ([0.0, -0.1, 0.0], 0.0, 0),  # a cut may also help
        ([0.3, 0.2, 0.01, 0.0], 0.0099, 30),
    ],
)
def test_lossless_from_the_evaluation_after_the_last_one_that_costs(gaps, tolerance, step):
    row = study.lossless_from(made(gaps), tolerance).iloc[0]
    end = 10 * (len(gaps) - 1)
    assert math.isnan(row["step"]) if step is None else row["step"] == step
    assert math.isnan(row["share"]) if step is None else row["share"] == pytest.approx(step / end)
    assert row["gap"] == pytest.approx(gaps[-1], abs=1e-6)


@given(st.lists(st.floats(-0.2, 0.8), min_size=1, max_size=12), st.floats(0, 0.5))
@settings(deadline=None, max_examples=30)
def test_lossless_means_that_every_later_gap_is_within_and_the_one_before_is_not(gaps, tolerance):
    history = made(gaps, every=1)
    table, row = study.cut_gap(history), study.lossless_from(history, tolerance).iloc[0]
    within = table["gap"].to_numpy() <= tolerance + 1e-6
    if math.isnan(row["step"]):
        assert not within[-1]
    else:
        first = int(np.flatnonzero(table["step"] == row["step"])[0])
        assert within[first:].all() and (first == 0 or not within[first - 1])


def test_the_gap_table_has_accuracies_and_the_mean_loss_between():
    table = study.cut_gap({"x": made([0.3, 0.2, 0.1]), "y": made([0.1, 0.0])})
    assert table["run"].tolist() == ["x"] * 3 + ["y"] * 2
    assert table["step"].tolist() == [0, 10, 20, 0, 10]
    np.testing.assert_allclose(table["gap"], [0.3, 0.2, 0.1, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(table["live"] - table["cut"], table["gap"])
    early, late = np.mean([1 / k for k in range(1, 11)]), np.mean([1 / k for k in range(11, 21)])
    np.testing.assert_allclose(table["loss"], [np.nan, early, late, np.nan, early], rtol=1e-5)


def test_density_is_kept_over_size():
    table = study.density(made([0.3, 0.2, 0.1]))
    assert table["layer"].tolist() == ["a.weight"] * 3 + ["b.weight"] * 3
    assert table["kept"].tolist() == [4, 4, 5, 1, 1, 0]
    np.testing.assert_allclose(table["density"], np.array([4, 4, 5, 1.5, 1.5, 0]) / 60)
    assert len(study.density(made([0.3, 0.2]), layer="b.weight")) == 2
    with pytest.raises(ValueError, match=r"layer must be one of a.weight, b.weight, got 'c'"):
        study.density(made([0.3]), layer="c")


def test_near_zero_counts_what_the_history_counted():
    history = made([0.3] + [0.1] * 90)  # 900 steps: thinned out to 300 rows
    table, frame = study.near_zero({"x": history}), history.frame()
    assert len(table) == 300 and table["step"].tolist() == list(range(3, 901, 3))
    rows = frame.set_index("step").loc[table["step"]]
    for name in ("under_1e-3", "under_1e-4"):
        np.testing.assert_allclose(table[name], rows[name] / 100)
    turnover = (frame["reactivated"] / frame["active"].clip(lower=1)).to_numpy().reshape(300, 3).mean(axis=1)
    np.testing.assert_allclose(table["turnover"], turnover)
    assert (table["target"] == 0.95).all()


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 4000, 4321])
def test_rows_shown_are_spread_evenly_and_end_at_the_end(count):
    shown = study._rows_shown(count)
    assert len(shown) <= study.POINTS and shown[-1] == count - 1 and shown[0] >= 0
    assert len(set(np.diff(shown))) <= 1


def test_tables_refuse_what_has_nothing_to_show():
    empty = run()
    for table in (study.near_zero, study.cut_gap, study.lossless_from, study.density):
        with pytest.raises(ValueError, match="runs must hold at least one run, got an empty mapping"):
            table({})
        with pytest.raises(ValueError, match=r"run 0.9 has .*; call run.step\(n\)"):
            table(empty)
        with pytest.raises(TypeError, match=r"runs must be .* got int"):
            table({"x": 3})
    for tolerance in (-0.1, math.nan):
        with pytest.raises(ValueError, match="tolerance must be a finite number >= 0"):
            study.lossless_from(made([0.1]), tolerance)
    with pytest.raises(ValueError, match="paths must hold at least one recorder"):
        study.falls({})


# ------------------------------------------------------------------------------------------------ recorders


@pytest.fixture(scope="module")
def watched():
    """A run with both recorders, and a naive log of everything beside them."""
    one = run(momentum=0.9, compression=8, hold=0.5, epochs=60)
    log = []
    one.recorders.append(lambda step, active, weights: log.append(
        (active.copy(), np.concatenate([w.reshape(-1) for w in weights]), keep(one))))  # fmt: skip
    paths, sets = study.Paths(one, 40, seed=3), study.ActiveSets(one, every=6)
    one.step(300)
    active, weights, kept = (np.array(column) for column in zip(*log, strict=True))
    return one, paths, sets, active, weights, kept


def keep(one: Run) -> np.ndarray:
    return torch.cat([m.reshape(-1) for m in keep_masks(one.model, nonzeros=one.nonzeros).values()]).numpy()


def test_paths_are_the_weights(watched):
    one, paths, _, active, weights, kept = watched
    table = paths.frame()
    assert len(paths.chosen) == table["weight"].nunique() == 40
    for weight, rows in table.groupby("weight"):
        assert rows["step"].tolist() == list(range(1, 301))
        np.testing.assert_array_equal(rows["w"], weights[:, weight])
        np.testing.assert_array_equal(rows["magnitude"], np.abs(weights[:, weight]))
        np.testing.assert_array_equal(rows["active"], active[:, weight])
        kind = "kept" if kept[-1, weight] else "switched" if active[:, weight].any() else "passive"
        assert set(rows["kind"]) == {kind}
        assert set(rows["layer"]) == {NAMES[0] if weight < 60 else NAMES[1]}
    assert one.history.layers == dict(zip(NAMES, (60, 20), strict=True))


def test_paths_are_drawn_alike_from_layers_and_from_active_and_passive(watched):
    _, paths, _, active, *_ = watched
    first = active[0]
    in_second = paths.chosen >= 60
    assert in_second.sum() == 20
    on = first[paths.chosen]
    for layer, here in ((first[:60], ~in_second), (first[60:], in_second)):
        assert on[here].sum() == min(10, layer.sum()) or layer.sum() > 10
    again = run(momentum=0.9, compression=8, hold=0.5, epochs=60)
    same, other = study.Paths(again, 40, seed=3), study.Paths(again, 40, seed=4)
    again.step(1)
    np.testing.assert_array_equal(same.chosen, paths.chosen)
    assert not np.array_equal(other.chosen, paths.chosen)


def test_a_recorder_full_of_rows_thins_out_and_loses_no_active_step(watched):
    _, _, _, active, weights, _ = watched
    one = run(momentum=0.9, compression=8, hold=0.5, epochs=60)
    paths = study.Paths(one, 40, seed=3, limit=100 * (4 + 8 * 40))
    one.step(300)
    table = paths.frame()
    steps = table["step"].unique()
    assert len(steps) <= 100 and set(np.diff(steps)) == {4} and steps[0] == 1
    for weight, rows in table.groupby("weight"):
        np.testing.assert_array_equal(rows["w"], weights[steps - 1, weight])
        passed = np.diff(steps, prepend=0)
        np.testing.assert_allclose((rows["active"] * passed).sum(), active[: steps[-1], weight].sum())


def test_paths_of_one_layer_and_of_none(watched):
    _, paths, *_ = watched
    assert set(paths.frame("2.weight")["layer"]) == {"2.weight"}
    with pytest.raises(ValueError, match=r"layer must be one of 0.weight, 2.weight, got 'fc9'"):
        paths.frame("fc9")
    for weights in (0, 2.5, True):
        with pytest.raises(ValueError, match="weights must be a whole number >= 1"):
            study.Paths(run(), weights)
    with pytest.raises(TypeError, match=r"run must be a gsm_lab.Run, got History"):
        study.Paths(made([0.1]))
    assert study.Paths(one := run(), 10_000) and (one.step(1) is None) and len(one.recorders[0].chosen) == 80


def test_weights_never_active_fall_as_the_recurrence_says_also_under_a_schedule(watched):
    one, paths, _, active, weights, _ = watched
    never = ~active.any(axis=0)[paths.chosen]
    assert never.sum() > 3
    table = paths.falls()
    expected, w, z = [], 1.0, 0.0
    for lr in one.history.steps.array()["lr_scheduled"].tolist():
        z = 0.9 * z + 0.02 * w
        w -= lr * z
        expected.append(w)
    np.testing.assert_allclose(table["exact"], np.array(expected) / expected[0], rtol=1e-12)
    np.testing.assert_allclose(table["measured"], table["exact"], rtol=1e-4)
    ratios = np.abs(weights[:, paths.chosen[never]] / weights[0, paths.chosen[never]])
    np.testing.assert_allclose(table["low"], np.percentile(ratios, 10, axis=1), rtol=1e-6)
    assert table["exact"].iloc[-1] < 0.2


def test_shares_expected_near_zero_are_those_of_weights_shrunk_by_the_recurrence(watched):
    one, paths, _, _, weights, _ = watched
    table = study.near_zero({"x": one}, {"x": paths})
    first, factors = np.abs(weights[0]), np.abs(paths.falls()["exact"].to_numpy())
    for step in (1, 100, 300):
        row = table[table["step"] == step].iloc[0]
        # quantiles of few weights are coarse: within one weight in 80
        assert row["expected_1e-3"] == pytest.approx((first * factors[step - 1] < 1e-3).mean(), abs=0.02)
    full = paths.expected_near_zero()
    assert full["step"].tolist() == list(range(1, 301)) and not full.isna().any(axis=None)
    again = run(momentum=0.9, compression=8, hold=0.5, epochs=60)
    again.step(2)
    late = study.Paths(again, 40, limit=20 * (4 + 8 * 40))  # thinned out, to other steps than those of the table
    again.step(500)
    table = study.near_zero(again, late)
    assert table.iloc[1:].notna().all(axis=None) and table["expected_1e-3"].iloc[-1] > 0.01
    assert late.expected_near_zero(np.array([1, 2, 3]))["expected_1e-3"].isna().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="paths must hold the recorder of run 'y'"):
        study.near_zero({"y": one}, {"x": paths})


def test_active_sets_are_those_of_a_naive_log(watched):
    _, _, sets, active, weights, kept = watched
    table, final = sets.frame(), kept[-1]
    assert table["step"].tolist() == list(range(6, 301, 6))
    for _, row in table.iterrows():
        k = int(row["step"])
        asked = active[k - 6 : k].any(axis=0)
        w = weights[k - 1].astype(np.float64)
        assert row["active"] == pytest.approx((active[k - 1] & final).sum() / final.sum())
        assert row["ever"] == pytest.approx((active[:k].any(axis=0) & final).sum() / final.sum())
        assert row["kept"] == pytest.approx((kept[k - 1] & final).sum() / final.sum())
        assert row["asked"] == pytest.approx(asked.sum() / final.sum())
        norm = np.linalg.norm(w)
        assert row["removed"] == pytest.approx(np.linalg.norm(w[~kept[k - 1]]) / norm, rel=1e-5)
        assert row["contested"] == pytest.approx(np.linalg.norm(w[asked & ~kept[k - 1]]) / norm, rel=1e-5, abs=1e-9)


def test_joining_is_the_first_active_step(watched):
    _, _, sets, active, _, kept = watched
    final, joined = kept[-1], sets.joining()
    first = np.where(active.any(axis=0), active.argmax(axis=0) + 1, 0)[final]
    assert joined["weights"] == final.sum() == 10
    assert joined["never"] == (first == 0).sum()
    assert joined["last"] == first.max()
    assert (first[first > 0] <= joined["half"]).mean() >= 0.5
    assert (first[first > 0] < joined["half"]).mean() < 0.5


def test_many_sets_are_thinned_out():
    one = run()
    sets = study.ActiveSets(one, every=2, limit=20 * (16 + 20))
    one.step(100)
    table = sets.frame()
    assert len(table) <= 20 and len(set(np.diff(table["step"]))) == 1
    with pytest.raises(ValueError, match="every must be a whole number of steps >= 1, got 0"):
        study.ActiveSets(one, every=0)
    assert study.ActiveSets(one).every == one.epoch_steps


@pytest.mark.parametrize("make", [study.Paths, study.ActiveSets])
def test_recorders_without_steps_or_of_a_run_that_was_reset_say_so(make):
    one = run()
    recorder = make(one)
    with pytest.raises(ValueError, match=r"run has taken no gated step .* call run.step\(n\) first"):
        recorder.frame()
    one.step(10)
    assert len(recorder.frame())
    one.reset()
    with pytest.raises(ValueError, match=r"run was reset after .* was attached"):
        recorder.frame()


def test_falls_need_the_beginning_and_a_passive_weight():
    one = run()
    one.step(3)
    late = study.Paths(one)
    one.step(3)
    with pytest.raises(ValueError, match="attached before the first gated step, got it after 3"):
        late.falls()
    everyone = run(compression=1)
    paths = study.Paths(everyone, 10)
    everyone.step(2)
    with pytest.raises(ValueError, match="weights = 10 sampled ones were all active"):
        paths.falls()


def test_recorders_change_nothing():
    plain, seen = run(), run()
    study.Paths(seen)
    study.ActiveSets(seen)
    before = copy.deepcopy(plain.model.state_dict())
    plain.step(30)
    seen.step(30)
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), plain.model.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), seen.model.parameters(), strict=True))
