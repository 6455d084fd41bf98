"""The re-activation study against a naive log of all masks and weights, hand-made masks, and runs that forbid it."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gsm_lab import Dataset, Run
from gsm_lab.studies import reactivation, scan
from gsm_lab.studies.control_runs import _Gatekeeper
from gsm_lab.studies.recording import Recorder
from gsm_lab.studies.scan import length_bin, length_bins
from tests.test_run import mine, net, tiny

PASSES = ["compiled", "numpy"]


@pytest.fixture(params=PASSES)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(scan, "compiled", lambda: None)
    elif not scan.compiled():
        pytest.skip("numba is not installed")
    return request.param


class Log:
    """All masks and magnitudes of a run."""

    def __init__(self, run: Run) -> None:
        self.masks: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        run.recorders.append(self)

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        self.masks.append(active.copy())
        self.sizes.append(np.concatenate([np.abs(w).reshape(-1) for w in weights]))


def naive(masks: list[np.ndarray], sizes: list[np.ndarray], patience: int, first: int = 0) -> dict[str, object]:
    """Everything a recorder knows, weight by weight and step by step, as its docstring says."""
    n, per_step, ended = masks[0].size, [], []
    last, smallest = np.full(n, first), np.full(n, np.inf)
    longest, times = np.zeros(n, int), np.zeros(n, int)
    for k, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
        step, counts = first + 1 + k, np.zeros((4, n), int)
        for i in range(n):
            if k and not masks[k - 1][i]:
                counts[0, i] = 1
                if mask[i]:
                    length = step - 1 - last[i]
                    counts[1:, i] = 1, length >= patience, smallest[i] < 1e-3
                    longest[i], times[i] = max(longest[i], length), times[i] + 1
                    ended.append((i, length))
            if mask[i]:
                last[i] = step
            else:
                smallest[i] = min(smallest[i], size[i])
        if k:
            per_step.append(counts)
    stretch = first + len(masks) - last
    return dict(
        last_active=last, smallest=smallest.astype(np.float32), longest=longest, reactivations=times, stretch=stretch,
        woken=longest >= patience, active=masks[-1], per_step=np.array(per_step).reshape(-1, 4, n), ended=ended,
    )  # fmt: skip


def same(recorder: Recorder, expected: dict[str, object]) -> None:
    for name in ("last_active", "longest", "reactivations", "stretch", "woken", "active"):
        np.testing.assert_array_equal(getattr(recorder, name), expected[name], err_msg=name)
    rounded(recorder.smallest, expected["smallest"])
    per_step, bounds, every = expected["per_step"], recorder.bounds, recorder.every
    for row in range(len(recorder.sums)):
        for i in range(len(bounds) - 1):
            part = per_step[row * every : (row + 1) * every, :, bounds[i] : bounds[i + 1]]
            np.testing.assert_array_equal(recorder.sums[row, :, i], part.sum(axis=(0, 2)))
    ended = np.zeros_like(recorder.ended)
    for i, length in expected["ended"]:
        bin_ = np.searchsorted(length_bins(), length, side="right") - 1
        ended[np.searchsorted(bounds, i, side="right") - 1, bin_] += 1
    np.testing.assert_array_equal(recorder.ended, ended)


def rounded(found: np.ndarray, exact: np.ndarray) -> None:
    """Found is what `Recorder.smallest` may say of sizes (float32) that are not as tiny or huge as to be 0 or inf."""
    assert found.dtype == exact.dtype == np.float32
    np.testing.assert_array_equal(np.isinf(found), np.isinf(exact))
    x, y = (a[np.isfinite(exact)].astype(np.float64) for a in (found, exact))
    assert (x <= y).all() and ((y - x < y / 512) | (y == 0)).all()
    for limit in (1e-3, 1e-4):
        np.testing.assert_array_equal(found < limit, exact < limit)


def lowered(weights: np.ndarray, passes: str) -> np.ndarray:
    """The codes that passive weights leave, float32 [n] -> uint16 [n]."""
    codes = np.full(weights.size, scan.NEVER, np.uint16)
    if passes == "numpy":
        scan.lower(codes, weights)
    else:
        scan.compiled().lower(codes, weights, np.zeros(weights.size, np.uint8))
    return codes


def fed(masks: np.ndarray, sizes: np.ndarray | None = None, patience: int = 2) -> Recorder:
    """A recorder that was shown hand-made masks, bool [steps, 5 weights in two layers of 3 and 2]."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    data = Dataset(np.zeros((4, 3), np.float32), [0, 1, 0, 1], np.zeros((4, 3), np.float32), [0, 1, 0, 1], name="none")
    run = Run(model, data, compression=2.0, pretrain=0, epochs=2, batch_size=2)
    recorder = Recorder(run, patience)
    sizes = np.ones(masks.shape) if sizes is None else sizes
    for step, (mask, size) in enumerate(zip(masks, sizes, strict=True), 1):
        size = size.astype(np.float32)
        recorder(step, np.ascontiguousarray(mask), [size[:3].reshape(1, 3), -size[3:].reshape(2, 1)])
    return recorder


# -- the recorder ------------------------------------------------------------------------------------------------------


def test_500_steps_equal_a_naive_log_of_all_masks(passes: str) -> None:
    run = tiny(epochs=50, evaluate_every=100, weight_decay=0.02)
    log, recorder = Log(run), Recorder(run, patience=7)
    run.step(500)
    assert recorder.every == 8  # the table was full three times
    assert recorder.woken.any() and (recorder.smallest < 1e-3).any() and recorder.sums[:, 3].any()
    same(recorder, naive(log.masks, log.sizes, 7))


def test_a_recorder_may_come_later_and_two_do_not_mind_each_other(passes: str) -> None:
    run = tiny(weight_decay=0.02)
    run.step(13)
    first, log, second = Recorder(run, 3), Log(run), Recorder(run, 11)
    run.step(40)
    same(first, naive(log.masks, log.sizes, 3, first=13))
    same(second, naive(log.masks, log.sizes, 11, first=13))


def test_a_recorder_changes_nothing() -> None:
    runs = [tiny(), tiny()]
    Recorder(runs[0])
    for run in runs:
        run.step(30)
    a, b = (torch.cat([p.detach().reshape(-1) for p in run.model.parameters()]) for run in runs)
    assert torch.equal(a, b)


def test_hand_made_masks_with_known_answers(passes: str) -> None:
    o, x = True, False
    masks = np.array([[o, o, x, x, x], [o, x, x, x, x], [o, x, o, x, x], [o, o, x, x, x], [o, x, x, o, x]])
    sizes = np.array([[9, 9, 3, 5e-4, 1], [9, 2, 1, 4, 1], [9, 3, 5e-5, 4, 1], [9, 1e-9, 2, 4, 1], [9, 8, 7, 0, 1]])
    recorder = fed(masks, sizes, patience=3)
    assert recorder.last_active.tolist() == [5, 4, 3, 5, 0]
    assert recorder.reactivations.tolist() == [0, 1, 1, 1, 0]
    assert recorder.longest.tolist() == [0, 2, 2, 4, 0]
    assert recorder.stretch.tolist() == [0, 1, 2, 0, 5]
    assert recorder.woken.tolist() == [x, x, x, o, x]
    rounded(recorder.smallest, np.float32([np.inf, 2, 1, 5e-4, 1]))  # what an active weight is does not count
    table = reactivation.per_step(recorder)
    assert table["step"].tolist() == [2, 3, 4, 5] and table["epoch"].tolist() == [1, 1.5, 2, 2.5]
    assert table["pool"].tolist() == [3, 4, 3, 3] and table["reactivated"].tolist() == [0, 1, 1, 1]
    assert table["woken"].tolist() == [0, 0, 0, 1] and table["near_zero"].tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(table["share"], [0, 1 / 4, 1 / 3, 1 / 3])
    assert reactivation.per_step(recorder, layer="1")["reactivated"].tolist() == [0, 0, 0, 1]
    assert reactivation.per_step(recorder, rows=2)["reactivated"].tolist() == [1, 2]


@pytest.mark.parametrize("passes_", PASSES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_masks_equal_a_naive_log(passes_: str, data: st.DataObject) -> None:
    if passes_ == "compiled" and not scan.compiled():
        pytest.skip("numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if passes_ == "numpy":
            patch.setattr(scan, "compiled", lambda: None)
        steps, patience = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        masks = rng.random((steps, 5)) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
        sizes = 10 ** rng.uniform(-5, 0, (steps, 5))
        same(fed(masks, sizes, patience), naive(list(masks), list(sizes.astype(np.float32)), patience))


@given(
    n=st.integers(1, 700), seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0, 0.01, 0.3, 1]),
    flips=st.sampled_from([0, 0.004, 0.2, 1]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_both_passes_equal_the_obvious(n: int, seed: int, density: float, flips: float) -> None:
    rng = np.random.default_rng(seed)
    before = rng.random(n) < density
    active = before ^ (rng.random(n) < flips)
    weights, least = rng.normal(size=(2, n)).astype(np.float32)
    least = scan.codes(least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CHUNK", 64)
        on, off = scan.moved(active, before)
        np.testing.assert_array_equal(on, np.flatnonzero(active & ~before))
        np.testing.assert_array_equal(off, np.flatnonzero(before & ~active))
        lower = least.copy()
        scan.lower(lower, weights)
        np.testing.assert_array_equal(lower, np.minimum(least, scan.codes(weights)))
    if scan.compiled() is None:
        return
    left, right = [], []
    for passes, found in ((None, left), (scan.compiled(), right)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scan, "compiled", lambda passes=passes: passes)
            bounds = np.array([0, n // 3, n // 3, n])  # one layer is empty
            pair = np.stack([np.full(n, 3, np.int32), np.arange(n, dtype=np.int32) % 9], axis=1)
            found += [pair, least.copy(), np.arange(n).astype(np.uint16) + np.uint16(65530 - n // 2)]
            found += [np.zeros((3, scan.BINS), np.int64), np.zeros((4, 3), np.int64)]
            found.append(np.add.reduceat(np.append(before, False), bounds[:-1], dtype=np.int64))
            found[-1][1] = 0
            layers = [np.ascontiguousarray(weights[a:b]) for a, b in itertools.pairwise(bounds)]
            for now, (one, other) in ((20, (active, before)), (21, (before, active))):
                scan.step(one, other, layers, bounds, now, *found, 9)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_order_as_sizes_do_and_both_limits_begin_one(passes: str) -> None:
    # the 999 float32 on either side of where the rule changes (limits, ends, powers of two), and three a code
    near = [0, 1e-3, 1e-4, *scan.sizes(np.uint16([1, scan.NEVER - 1])), 2.0**64, 1, 2, 2**-11, 2**-13, 2**-126]
    near = np.float32([*near, np.finfo(np.float32).max]).view(np.int32)[:, None] + np.arange(-999, 1000)
    infinity = int(np.float32(np.inf).view(np.int32))
    bits = np.unique(np.r_[near.ravel(), np.arange(0, infinity, 4999), infinity].clip(0, infinity))
    sizes = bits.astype(np.int32).view(np.float32)
    codes = lowered(sizes, passes)
    assert (codes[1:] >= codes[:-1]).all() and codes[0] == 0 and codes[-1] == scan.NEVER
    np.testing.assert_array_equal(np.unique(codes), np.arange(scan.NEVER + 1))
    for limit, least in ((1e-3, scan.NEAR), (1e-4, scan.codes(np.float32([1e-4]))[0])):
        np.testing.assert_array_equal(codes < least, sizes < np.float32(limit))
    np.testing.assert_array_equal(lowered(-sizes, passes), codes)
    kept = (codes > 0) & (codes < scan.NEVER)
    assert (sizes[codes == 0] < 5.5e-20).all() and (sizes[codes == scan.NEVER] > 1.8e19).all()
    rounded(scan.sizes(codes)[kept], sizes[kept])
    every = np.arange(scan.NEVER + 1).astype(np.uint16)
    np.testing.assert_array_equal(lowered(scan.sizes(every), passes), every)
    assert scan.sizes(every)[[0, -1]].tolist() == [0, np.inf]
    assert {np.float32(1e-3), np.float32(1e-4)} < set(scan.sizes(every))


@given(st.lists(st.floats(width=32), min_size=1, max_size=60))  # NaN, infinities and denormals, too
def test_both_passes_give_any_float_its_code(weights: list[float]) -> None:
    weights = np.float32(weights)
    codes = lowered(weights, "numpy")
    if scan.compiled():
        np.testing.assert_array_equal(lowered(weights, "compiled"), codes)
    assert (codes[np.isnan(weights)] == scan.NEVER).all()
    order = np.abs(weights).argsort(kind="stable")  # NaN comes last
    assert (np.diff(codes[order].astype(int)) >= 0).all()
    usual = (codes > 0) & (codes < scan.NEVER)
    rounded(scan.sizes(codes)[usual], np.abs(weights)[usual])


def test_bins_hold_what_they_say() -> None:
    lowest, lengths = (
        length_bins(),
        np.unique(np.r_[np.arange(1, 5000), 2 ** np.arange(13, 24), 2 ** np.arange(13, 24) - 1]),
    )
    bins = length_bin(lengths.astype(np.int32))
    assert (lowest[bins] <= lengths).all() and (lengths < np.append(lowest, np.inf)[bins + 1]).all()
    assert len(set(bins[:64].tolist())) == 64  # each of the first 64 lengths has its own
    assert (np.diff(lowest) / lowest[:-1] <= 1 / 32).all()


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[Recorder, Log]:
    run = tiny(epochs=20, weight_decay=0.02)
    log, recorder = Log(run), Recorder(run, patience=7)
    run.train(progress=False)
    return recorder, log


def test_the_history_counts_the_same(trained: tuple[Recorder, Log]) -> None:
    recorder, _ = trained
    frame = recorder.run.history.frame()
    table = reactivation.per_step(recorder, rows=10**6)
    assert table["reactivated"].sum() == frame["reactivated"].sum()
    assert table["pool"].sum() == (recorder.run.opt.weights - frame["active"].iloc[:-1]).sum()
    assert table["steps"].sum() == len(frame) - 1 and table["step"].iloc[-1] == len(frame)
    for layer in recorder.layers:
        part = reactivation.per_step(recorder, layer)
        assert part["reactivated"].sum() == frame[f"reactivated/{layer}.weight"].sum()


def test_layers_add_up_and_kept_weights_are_those_the_cut_leaves(trained: tuple[Recorder, Log]) -> None:
    recorder, log = trained
    table = reactivation.per_layer(recorder)
    assert table["layer"].tolist() == [*recorder.layers, "all"]
    counts = table.drop(columns=["layer", "share"])
    pd.testing.assert_series_equal(counts.iloc[:-1].sum(), counts.iloc[-1], check_names=False)
    size = log.sizes[-1]
    stays = size >= np.sort(size)[-recorder.run.nonzeros]
    know = naive(log.masks, log.sizes, 7)
    near = know["smallest"] < 1e-3
    last = table.iloc[-1]
    assert last["kept"] == stays.sum() == recorder.run.nonzeros
    assert last["kept_woken"] == (stays & know["woken"]).sum() and last["returned"] == (stays & near).sum()
    assert last["active"] == np.any(log.masks, axis=0).sum()
    assert last["share"] == pytest.approx(know["per_step"][:, 1].sum() / know["per_step"][:, 0].sum())
    what = reactivation.kept(recorder).set_index("what")
    assert what.loc["woken", "kept"] == last["kept_woken"] and what.loc["once under 1e-3", "kept"] == last["returned"]
    assert what.loc["once under 1e-4", "weights"] == (know["smallest"] < 1e-4).sum()
    assert what.loc["all weights", ["share", "kept_share"]].tolist() == [1, 1]


def test_survival_is_kaplan_meier(trained: tuple[Recorder, Log]) -> None:
    recorder, log = trained
    know, table = naive(log.masks, log.sizes, 7), reactivation.survival(recorder)
    ended = np.array([length for _, length in know["ended"]])
    running = know["stretch"][know["stretch"] > 0]
    alive = 1.0
    for k, row in enumerate(table[table["steps"] < 64].itertuples(), 1):
        assert row.steps == k
        alive *= 1 - (ended == k).sum() / ((ended >= k).sum() + (running >= k).sum())
        assert row.longer == pytest.approx(alive) and row.longer_ended == pytest.approx((ended > k).mean())
        assert (row.ended, row.running) == ((ended == k).sum(), (running == k).sum())
    assert table["ended"].sum() == len(ended) and table["running"].sum() == len(running)
    assert table["longer"].is_monotonic_decreasing and table["longer"].between(0, 1).all()
    layers = [reactivation.survival(recorder, layer) for layer in recorder.layers]
    assert sum(t["ended"].sum() for t in layers) == len(ended)


def test_survival_of_stretches_that_never_end_and_of_none() -> None:
    never = reactivation.survival(fed(np.zeros((9, 5), bool)))
    assert never["longer"].tolist() == [1.0] * 9 and never["running"].tolist() == [0] * 8 + [5]
    assert never["longer_ended"].isna().all()
    assert reactivation.survival(fed(np.ones((9, 5), bool))).empty


# -- runs to compare ---------------------------------------------------------------------------------------------------

SMALL = {"batch_size": 8, "pretrain": 1, "epochs": 6, "compression": 4.0, "weight_decay": 0.02}


def test_watch_scales_the_rate_and_leaves_the_model_alone() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    recorders = reactivation.watch({"model": model, "data": mine(), "lr": 0.1, **SMALL}, [0.5, 0.9], progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    table = reactivation.per_momentum(recorders)
    assert table["momentum"].tolist() == [0.5, 0.9] and np.allclose(table["lr"], [0.5, 0.1])
    alone = tiny(epochs=6, weight_decay=0.02, lr=0.1)
    recorder = Recorder(alone)
    alone.step(alone.planned)
    np.testing.assert_array_equal(recorders[0.9].reactivations, recorder.reactivations)
    same_rate = reactivation.watch({"model": model, "data": mine(), **SMALL}, [0.5], matched=False, progress=False)
    assert same_rate[0.5].run.knobs["lr"] == tiny().knobs["lr"]


def test_controls_forbid_what_they_say() -> None:
    settings = {"model": net(), "data": mine(), **SMALL}
    table = reactivation.controls(settings, after=[1, 3], seeds=[0, 1], patience=4, progress=False)
    assert table["variant"].tolist() == ["plain", "frozen", "frozen", "forbidden", "forbidden"] * 2
    plain = table[table["variant"] == "plain"].set_index("seed")["cut"]
    np.testing.assert_allclose(table["lost"], plain[table["seed"]].to_numpy() - table["cut"])
    alone = tiny(epochs=6, weight_decay=0.02)
    alone.step(alone.planned)
    assert table["cut"][0] == alone.evaluate(cut=True) and table["live"][0] == alone.evaluate()
    frozen = tiny(epochs=6, weight_decay=0.02)  # the dense epochs of a seed are done once: as if each did its own
    seen: list[np.ndarray] = []
    frozen.recorders.append(lambda step, active, weights: seen.append(active.copy()))
    frozen.step(frozen.epoch_steps)
    frozen.opt.candidates = torch.from_numpy(seen[-1])
    frozen.step(frozen.planned - frozen.steps)
    assert table["cut"][1] == frozen.evaluate(cut=True) and table["live"][1] == frozen.evaluate()


@pytest.mark.parametrize("patience", [None, 4])
def test_the_gatekeeper_against_the_masks(patience: int | None) -> None:
    run = tiny(epochs=10)
    log = Log(run)
    run.recorders.append(_Gatekeeper(run, closes=20, patience=patience))
    run.step(80)
    masks = np.array(log.masks)
    if patience is None:
        assert not (masks[20:] & ~masks[19]).any() and masks[20:].any()
        return
    streak, barred = np.zeros(masks.shape[1], int), np.zeros(masks.shape[1], bool)
    for mask in masks[20:]:
        assert not (mask & barred).any()
        streak = np.where(mask, 0, streak + 1)
        barred |= streak >= patience
    assert barred.any() and not barred.all()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_is_checked(patience: object) -> None:
    run = tiny()
    with pytest.raises(ValueError, match="patience must be a whole number of steps >= 1, got"):
        Recorder(run, patience)
    assert not run.recorders


def test_what_cannot_be_answered_is_refused(trained: tuple[Recorder, Log]) -> None:
    recorder, _ = trained
    with pytest.raises(ValueError, match=r"layer must be one of all, body\.0, .*got 'fc9'"):
        reactivation.per_step(recorder, layer="fc9")
    with pytest.raises(ValueError, match="rows must be a whole number >= 1, got 0"):
        reactivation.per_step(recorder, rows=0)
    with pytest.raises(TypeError, match=r"run must be a gsm_lab\.Run, got Net"):
        Recorder(net())
    empty = Recorder(tiny())
    for table in (reactivation.per_step, reactivation.per_layer, reactivation.survival, reactivation.kept):
        with pytest.raises(ValueError, match="recorder must have watched at least"):
            table(empty)
    with pytest.raises(ValueError, match="momenta must hold at least one"):
        reactivation.watch({}, momenta=[])
    with pytest.raises(ValueError, match="seeds must hold at least one"):
        reactivation.controls({}, seeds=[])
    with pytest.raises(ValueError, match="recorders must hold at least one"):
        reactivation.per_momentum({})
    with pytest.raises(ValueError, match="after must hold epochs between 0 and 6, got 9"):
        reactivation.controls({"model": net(), "data": mine(), **SMALL}, after=[9], progress=False)
    with pytest.raises(ValueError, match="momentum must be"):
        reactivation.watch({"model": net(), "data": mine(), **SMALL}, [2.0], progress=False)
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match="no prunable weights"):
        reactivation.watch({"model": flat, "data": mine(), **SMALL}, [0.9], progress=False)


def test_a_step_that_was_missed_is_noticed() -> None:
    run = tiny()
    recorder = Recorder(run)
    run.step(5)
    run.recorders.clear()
    run.step()
    run.recorders.append(recorder)
    with pytest.raises(ValueError, match=r"step must be 6, .*got 7"):
        run.step()


def test_a_run_that_went_on_without_the_recorder_is_noticed() -> None:
    run = tiny()
    recorder = Recorder(run)
    run.step(5)
    run.recorders.clear()
    run.step(2)
    with pytest.raises(ValueError, match="to where it stands, step 7; it was there up to step 5"):
        reactivation.kept(recorder)
    run.reset()
    run.step(5)
    with pytest.raises(ValueError, match="before the run was reset"):
        reactivation.per_layer(recorder)
