"""The recorders of trajectories, `Paths` and `ActiveSets`, against a naive log of everything."""

import copy

import numpy as np
import pytest
import torch

from gsm_lab import Run
from gsm_lab.optim import keep_masks
from gsm_lab.studies import trajectories as study
from tests.studies.test_trajectories import made, run

NAMES = ["0.weight", "2.weight"]


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
