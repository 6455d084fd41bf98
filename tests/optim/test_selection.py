"""Every form of the exact top Q against a stable sort, on what breaks selections: ties, zeros, NaN, lengths."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from gsm_lab.optim import budget, top_q
from gsm_lab.optim.selection import chosen, top_q_on_device
from tests.optim.forms import FORMS, check, oracle

untimed = settings(deadline=None)
INF, NAN = np.float32(np.inf), np.float32(np.nan)
DENORMAL = np.float32(1e-45)
LARGE = 24_581  # so many that `fused` takes a sample; the last run of eight is incomplete
every_form = pytest.mark.parametrize("form", FORMS)


# ------------------------------------------------------------------------------------------------ top_q


values = st.one_of(
    st.sampled_from(
        [0.0, float(DENORMAL), 1.1754943508222875e-38, 1.0, 2.0, 3.4028234663852886e38, math.inf, math.nan]
    ),
    st.floats(0, width=32),
)


@every_form
@untimed
@given(metric=st.lists(values, min_size=1, max_size=80), data=st.data())
def test_equals_a_stable_sort_whatever_the_values(form: str, metric: list[float], data: st.DataObject) -> None:
    check(form, np.abs(np.array(metric, dtype=np.float32)), data.draw(st.integers(1, len(metric))))


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


@every_form
@pytest.mark.parametrize("name", arrangements())
def test_equals_a_stable_sort_of_many(form: str, name: str) -> None:
    metric = arrangements()[name]
    for q in (1, 2, 30, 41, LARGE // 300, LARGE // 60, LARGE // 10, LARGE // 2, LARGE - 1, LARGE):
        check(form, metric, q)


@every_form
@pytest.mark.parametrize("name", ["log-normal", "95% zero", "bf16 ties", "three values", "NaN, inf, one"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 1000, 4096, 8191, 8192, 8193, 8200, 12_288])
def test_every_length_is_handled(form: str, name: str, size: int) -> None:
    metric = arrangements()[name][:size].copy()
    for q in {1, max(1, size // 60), max(1, size // 2), max(1, size - 1), size}:
        check(form, metric, q)


@pytest.mark.parametrize("name", arrangements())
def test_what_is_said_beside_the_threshold(name: str) -> None:
    metric = arrangements()[name]
    for q in (1, 41, LARGE // 60, LARGE // 2, LARGE - 1, LARGE):
        top = top_q(metric, q)
        threshold, mask = oracle(metric, q)
        assert mask.sum() == min(q, np.count_nonzero(~(metric <= 0)))
        assert top.finite == bool(np.isfinite(metric[mask]).all())
        reached = np.isnan(metric) if math.isnan(threshold) else ~(metric < np.float32(threshold)) & ~(metric <= 0)
        assert top.ties_left_out == reached.sum() - mask.sum()


@pytest.mark.parametrize("metric", [[1.0], np.ones(3), np.ones((2, 2), np.float32), torch.ones(3)], ids=str)
def test_a_metric_of_another_kind_is_refused(metric: object) -> None:
    with pytest.raises(TypeError, match=r"metric must be a float32 array \[N\]"):
        top_q(metric, 1)


@pytest.mark.parametrize("q", [0, 4, -1, 1.0, "2"])
def test_a_q_out_of_range_is_refused(q: object) -> None:
    with pytest.raises(ValueError, match="q must be a whole number from 1 to 3"):
        top_q(np.ones(3, np.float32), q)


def test_nothing_on_a_device_depends_on_a_value_that_the_host_would_have_to_fetch() -> None:
    """Tensors without values go through; whoever asks for one fails."""
    with FakeTensorMode():
        threshold, passes = top_q_on_device(torch.rand(1000), 10)
        assert threshold.shape == () and threshold.dtype == torch.float32
        assert passes.shape == (1000,) and passes.dtype == torch.bool
        with pytest.raises(Exception, match="local_scalar_dense"):
            threshold.item()


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
