"""The selection that an accelerator does by itself: against the sort, and without a look from the host."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from gsm_lab.optim import device
from tests.test_selection import LARGE, arrangements, oracle, values

untimed = settings(deadline=None)


def check(metric: np.ndarray, q: int) -> None:
    threshold, mask = oracle(metric, q)
    found, chosen = device.top_q(torch.from_numpy(metric), q)
    np.testing.assert_equal(found.item(), threshold)
    np.testing.assert_array_equal(chosen.numpy(), mask)


@untimed
@given(st.lists(values, min_size=1, max_size=80), st.data())
def test_equals_a_stable_sort_whatever_the_values(metric: list[float], data: st.DataObject) -> None:
    check(np.abs(np.array(metric, dtype=np.float32)), data.draw(st.integers(1, len(metric))))


@pytest.mark.parametrize("name", arrangements())
def test_equals_a_stable_sort_of_many(name: str) -> None:
    metric = arrangements()[name]
    for q in (1, 30, LARGE // 60, LARGE // 2, LARGE - 1, LARGE):
        check(metric, q)


def test_nothing_depends_on_a_value_that_the_host_would_have_to_fetch() -> None:
    """Tensors without values go through; whoever asks for one fails."""
    with FakeTensorMode():
        metric = torch.rand(1000)
        threshold, chosen = device.top_q(metric, 10)
        assert threshold.shape == () and threshold.dtype == torch.float32
        assert chosen.shape == (1000,) and chosen.dtype == torch.bool
        with pytest.raises(Exception, match="local_scalar_dense"):
            threshold.item()
        assert device.Watch().bad([metric, None]).shape == ()


def test_a_watch_says_whose_gradient_was_bad_once() -> None:
    watch = device.Watch()
    assert watch.first() is None
    assert watch.bad([torch.ones(3), None, torch.ones(2)]) == 0 and watch.first() is None
    assert watch.bad([torch.ones(3), None, torch.tensor([1.0, float("nan")])]) == 1
    assert watch.first() == 2 and watch.first() is None
