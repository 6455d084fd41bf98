"""What the history counts, in numpy and compiled, against a plain loop."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab.optim.fused import loader
from gsm_lab.training import history


@pytest.fixture(autouse=True, scope="module", params=["compiled", "numpy"])
def way(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(loader, "compiled", lambda name: None)
        elif not loader.compiled(history.COMPILED):
            pytest.skip("numba is not installed")
        yield


@settings(deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_flags_by_layer(sizes: list[int], share: float, seed: int) -> None:
    bounds = np.cumsum([0, *sizes])
    now, before = np.random.default_rng(seed).random((2, bounds[-1])) < share
    layers = [list(zip(now[a:b], before[a:b], strict=True)) for a, b in pairwise(bounds)]
    held, came = history.flags(now, before, bounds)
    assert held.tolist() == [sum(bool(x) for x, _ in layer) for layer in layers]
    assert came.tolist() == [sum(bool(x and not y) for x, y in layer) for layer in layers]
    held, came = history.flags(now, None, bounds)
    assert held.tolist() == [sum(bool(x) for x, _ in layer) for layer in layers] and not came.any()


@settings(deadline=None)
@given(st.integers(0, 200_000), st.integers(0, 99))
def test_near_zero(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-8, 0, n)).astype(np.float32)
    w[rng.random(n) < 0.2] = 0
    limits = (1e-3, 1e-4)
    assert history.near_zero(w, limits) == [sum((abs(w) < np.float32(limit)).tolist()) for limit in limits]


def test_near_zero_is_strictly_below_and_not_a_number_is_not() -> None:
    w = np.array([1e-3, -1e-3, np.nextafter(np.float32(1e-3), 0), np.nan, np.inf, -0.0, 1e-45], np.float32)
    assert history.near_zero(w, (1e-3, 1e-4)) == [3, 2]
