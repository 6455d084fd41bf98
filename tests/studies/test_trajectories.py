"""The study of trajectories: several runs, and its tables against hand-made histories."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab import Dataset, Run
from gsm_lab.knobs import KNOBS
from gsm_lab.studies import trajectories as study
from gsm_lab.training.history import History


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
