"""`Recorder` against a naive log of all masks and weights, compiled and in numpy, and hand-made masks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gsm_lab import Dataset, Run
from gsm_lab.optim.fused import loader
from gsm_lab.studies import reactivation, scan
from gsm_lab.studies.recording import Recorder
from gsm_lab.studies.scan import length_bin, length_bins
from tests.runs import tiny

PASSES = ["compiled", "numpy"]


@pytest.fixture(params=PASSES)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(loader, "compiled", lambda name: None)
    elif not loader.compiled(scan.COMPILED):
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
        loader.compiled(scan.COMPILED).lower(codes, weights, np.zeros(weights.size, np.uint8))
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
    if passes_ == "compiled" and not loader.compiled(scan.COMPILED):
        pytest.skip("numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if passes_ == "numpy":
            patch.setattr(loader, "compiled", lambda name: None)
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
    if loader.compiled(scan.COMPILED) is None:
        return
    left, right = [], []
    for passes, found in ((None, left), (loader.compiled(scan.COMPILED), right)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "compiled", lambda name, passes=passes: passes)
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
    if loader.compiled(scan.COMPILED):
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
