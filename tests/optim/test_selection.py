"""The exact top Q against a stable sort, on what breaks selections: ties, zeros, NaN, inputs that mislead a sample."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsm_lab.optim import budget, selection, top_q
from gsm_lab.optim.selection import Top, chosen

untimed = settings(deadline=None)
INF, NAN = np.float32(np.inf), np.float32(np.nan)
DENORMAL = np.float32(1e-45)
LARGE = selection.SAMPLE * 6 + 5  # the sampled path runs, and the last run of eight is incomplete


def oracle(metric: np.ndarray, q: int) -> tuple[float, np.ndarray]:
    """Smallest chosen value and mask, by the definition: sort by descending value (NaN first), then by position."""
    rank = metric.astype(np.float64)
    rank[np.isposinf(rank)] = 1e300  # above all float32
    rank[np.isnan(rank)] = 1e301
    first = np.argsort(-rank, kind="stable")[:q]
    first = first[rank[first] > 0]
    mask = np.zeros(metric.size, dtype=bool)
    mask[first] = True
    return (float(metric[first[-1]]) if first.size else 0.0), mask


def check(metric: np.ndarray, q: int) -> Top:
    """Holds `top_q` and `chosen` against the oracle."""
    before = metric.copy()
    top = top_q(metric, q)
    np.testing.assert_array_equal(metric, before)  # the input is only read
    threshold, mask = oracle(metric, q)
    np.testing.assert_equal(top.threshold, threshold)
    np.testing.assert_array_equal(chosen(metric, top), mask)
    assert mask.sum() == min(q, np.count_nonzero(~(metric <= 0)))
    assert top.finite == bool(np.isfinite(metric[mask]).all())
    reached = np.isnan(metric) if math.isnan(threshold) else ~(metric < np.float32(threshold)) & ~(metric <= 0)
    assert top.ties_left_out == reached.sum() - mask.sum()
    return top


# ------------------------------------------------------------------------------------------------ top_q


values = st.one_of(
    st.sampled_from(
        [0.0, float(DENORMAL), 1.1754943508222875e-38, 1.0, 2.0, 3.4028234663852886e38, math.inf, math.nan]
    ),
    st.floats(0, width=32),
)


@untimed
@given(st.lists(values, min_size=1, max_size=80), st.data())
def test_equals_a_stable_sort_whatever_the_values(metric: list[float], data: st.DataObject) -> None:
    check(np.abs(np.array(metric, dtype=np.float32)), data.draw(st.integers(1, len(metric))))


def arrangements() -> dict[str, np.ndarray]:
    """Metrics of the length LARGE, by name."""
    rng = np.random.default_rng(0)
    smooth = rng.lognormal(0, 4, LARGE).astype(np.float32)
    sparse = np.where(rng.random(LARGE) < 0.05, smooth, 0).astype(np.float32)
    few = np.zeros(LARGE, dtype=np.float32)
    few[rng.choice(LARGE, 40, replace=False)] = 1 + rng.random(40)
    bf16 = torch.from_numpy(rng.normal(size=LARGE)).bfloat16().float().abs().numpy()
    sprinkled = smooth.copy()
    sprinkled[rng.choice(LARGE, 30, replace=False)] = NAN
    sprinkled[rng.choice(LARGE, 30, replace=False)] = INF
    return {
        "log-normal": smooth,
        "rising": np.arange(LARGE, dtype=np.float32),
        "falling": np.arange(LARGE, dtype=np.float32)[::-1].copy(),
        "all zero": np.zeros(LARGE, dtype=np.float32),
        "95% zero": sparse,
        "40 positive": few,
        "the last positive": np.eye(1, LARGE, LARGE - 1, dtype=np.float32)[0],
        "constant": np.full(LARGE, 0.25, dtype=np.float32),
        "all denormal": (rng.integers(0, 5, LARGE) * np.float64(DENORMAL)).astype(np.float32),
        "denormal and normal": (smooth * np.float32(1e-38)).astype(np.float32),
        "huge": (np.float32(3e38) * rng.random(LARGE, dtype=np.float32)),
        "bf16 ties": bf16,
        "three values": rng.integers(0, 3, LARGE).astype(np.float32),
        "NaN and inf": sprinkled,
        "all NaN": np.full(LARGE, NAN),
        "all inf": np.full(LARGE, INF),
        "NaN or zero": np.where(rng.random(LARGE) < 0.5, NAN, 0).astype(np.float32),
        "NaN, inf, one": rng.choice(np.array([NAN, INF, 1], dtype=np.float32), LARGE),
    }


@pytest.mark.parametrize("name", arrangements())
def test_equals_a_stable_sort_where_a_sample_is_taken(name: str) -> None:
    metric = arrangements()[name]
    for q in (1, 2, 30, 41, LARGE // 300, LARGE // 60, LARGE // 10, LARGE // 2, LARGE - 1, LARGE):
        check(metric, q)


@pytest.mark.parametrize("name", ["log-normal", "95% zero", "bf16 ties", "three values", "NaN, inf, one"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 1000, 4096, 8191, 8192, 8193, 8200, 12_288])
def test_every_length_is_handled(name: str, size: int) -> None:
    metric = arrangements()[name][:size].copy()
    for q in {1, max(1, size // 60), max(1, size // 2), max(1, size - 1), size}:
        check(metric, q)


@pytest.mark.parametrize("q", [1, 100, LARGE // 60, LARGE // 3])
@pytest.mark.parametrize("small", [0.0, 0.5])
@pytest.mark.parametrize("offset", [0, 1])
def test_exact_when_the_sample_misleads(q: int, small: float, offset: int) -> None:
    """Everything large lies where the sample looks (its bound is too high), or next to it (it sees nothing)."""
    stride, above = selection.sampling(LARGE, q)
    assert stride > 1 and above
    rng = np.random.default_rng(1)
    metric = (small * rng.random(LARGE)).astype(np.float32)
    metric[offset::stride] = 1 + rng.random(metric[offset::stride].size)
    check(metric, q)
    metric[offset::stride] = 1
    check(metric, q)


def test_a_bound_that_too_few_reach_is_noticed() -> None:
    """Fewer than Q reach it, in whole runs of eight, at places where the sample looks."""
    q = 1990
    stride, above = selection.sampling(LARGE, q)
    metric = np.ones(LARGE, dtype=np.float32)
    metric[LARGE // 8 * 8 :] = 9
    for i in range(0, stride * 230, stride):
        metric[i // 8 * 8 : i // 8 * 8 + 8] = 9
    assert np.sort(metric[::stride])[-above] == 9 and (metric == 9).sum() < q
    check(metric, q)


def test_realistic_metrics_rarely_need_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    top_of = selection.top_of
    monkeypatch.setattr(selection, "top_of", lambda candidates, q: looks.append(q) or top_of(candidates, q))
    rng = np.random.default_rng(2)
    for _ in range(50):
        metric = np.abs(rng.normal(size=100_000) * rng.normal(size=100_000)).astype(np.float32)
        top_q(metric, 100_000 // 60)
    assert len(looks) <= 53


@untimed
@given(st.integers(8192, 3_000_000), st.data())
@example(266_200, None)
@example(430_500, None)
def test_the_sample_is_spread_over_everything(size: int, data: st.DataObject | None) -> None:
    q = size // 60 if data is None else data.draw(st.integers(1, size))
    stride, above = selection.sampling(size, q)
    assert stride % 2 and stride % 3 and stride % 5 and stride % 7  # no factor in common with usual layer widths
    sampled = len(range(0, size, stride))
    assert selection.SAMPLE / 8 <= sampled <= selection.SAMPLE * 1.1
    assert above == 0 or above > sampled * q / size - 1e-6  # the bound lies below the expected place of the threshold


def test_denormals_flushed_to_zero() -> None:
    """With denormals flushed (a setting some people train with) those count as zeros, and nothing breaks."""
    rng = np.random.default_rng(3)
    normal = rng.random(LARGE, dtype=np.float32) + np.float32(0.1)
    for scale in (1e-37, 1e-38, 3e-39):
        metric = (normal * np.float32(scale)).astype(np.float32)
        flushed = np.where(metric < np.finfo(np.float32).tiny, 0, metric).astype(np.float32)
        _, mask = oracle(flushed, 500)
        if not torch.set_flush_denormal(True):
            pytest.skip("this CPU cannot flush denormals")
        try:
            found = chosen(flushed, top_q(flushed, 500))
        finally:
            torch.set_flush_denormal(False)
        np.testing.assert_array_equal(found, mask)


# ------------------------------------------------------------------------------------------------ budget


@untimed
@given(st.integers(1, 10**8), st.integers(1, 10**9))
@example(266_200, 60)
def test_whole_compression_is_a_whole_division(n: int, c: int) -> None:
    assert budget(n, compression=c) == budget(n, compression=float(c)) == max(1, n // c)


@untimed
@given(st.integers(1, 10**8), st.floats(1, 1e6))
def test_compression_rounds_down(n: int, c: float) -> None:
    exact = Fraction(n) / Fraction(c)
    assert (
        max(1, math.floor(exact)) <= budget(n, compression=c) <= max(1, math.floor(exact * (1 + Fraction(1, 10**11))))
    )


@untimed
@given(st.integers(1, 10**7), st.data())
@example(266_200, None)
def test_the_compression_of_a_q_gives_that_q(n: int, data: st.DataObject | None) -> None:
    for q in range(1, 60) if data is None else [data.draw(st.integers(1, n))]:
        assert budget(n, nonzeros=q) == q
        assert budget(n, compression=n / q) == q


def test_numbers_of_numpy_are_taken_and_the_result_is_a_plain_int() -> None:
    assert budget(600, compression=np.float32(60)) == budget(600, compression=np.int64(60)) == 10
    assert budget(600, nonzeros=np.int32(10)) == budget(600, nonzeros=10.0) == 10
    assert type(budget(600, nonzeros=np.int32(10))) is type(budget(600, nonzeros=10.0)) is int
    assert budget(0, compression=60) == budget(0, nonzeros=1) == 0
    assert budget(600, compression=10**400) == 1


@pytest.mark.parametrize("c", [0, 0.999, -60, math.nan, math.inf, -math.inf, True, "60", [60], 60j, np.True_, {}])
def test_a_bad_compression_is_named(c: object) -> None:
    with pytest.raises(ValueError, match="compression must be a finite number >= 1") as error:
        budget(600, compression=c)
    assert repr(c) in str(error.value)


@pytest.mark.parametrize("q", [0, -1, 601, 1.5, math.nan, math.inf, True, "10", [10], 2j, 10**400])
def test_a_bad_q_is_named(q: object) -> None:
    with pytest.raises(ValueError, match="nonzeros must be a whole number from 1 to 600") as error:
        budget(600, nonzeros=q)
    assert repr(q) in str(error.value)


@pytest.mark.parametrize("given_", [{}, {"compression": 60, "nonzeros": 10}])
def test_one_of_the_two_is_needed(given_: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one of compression and nonzeros"):
        budget(600, **given_)


@untimed
@given(st.integers(0, 99), st.integers(0, 2000), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_picked_is_compress(seed: int, size: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values, flags = rng.normal(size=size).astype(np.float32), rng.random(size) < share
    found = selection.picked(values, flags)
    assert np.array_equal(found, values[flags]) and not np.shares_memory(found, values)
