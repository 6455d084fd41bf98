"""Ten thousand cases of the selection, in all its forms, against a stable sort: too many for every run of the tests."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsm_lab.optim import accelerator as device
from gsm_lab.optim import blocks, pieces, top_q
from gsm_lab.optim.fused import step as compiled
from gsm_lab.optim.selection import chosen
from tests.optim.test_fused import KINDS, check, contents
from tests.optim.test_selection import oracle


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few weights are several blocks."""
    monkeypatch.setattr(pieces, "BLOCK", 1040)


@pytest.mark.parametrize("threads", [1, 2])
@settings(deadline=None, max_examples=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.data())
def test_ten_thousand_cases(case: st.DataObject, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [*case.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=4)), 2]
    n = sum(sizes)
    q = case.draw(st.integers(1, n - 1))
    w, g = contents(case.draw(st.sampled_from(KINDS)), case.draw(st.integers(0, 10**6)), n)
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        if threads > 1:
            patch.setattr(compiled, "SHARED", 0)
            patch.setattr(blocks, "SHARED", 0)
            patch.setattr(torch, "get_num_threads", lambda: threads)
        check(w, g, q, sizes)
        metric = np.abs(w * g)
    threshold, mask = oracle(metric, q)
    top = top_q(metric, q)
    np.testing.assert_equal(top.threshold, threshold)
    np.testing.assert_array_equal(chosen(metric, top), mask)
    found, passed = device.top_q(torch.from_numpy(metric), q)
    np.testing.assert_equal(found.item(), threshold)
    np.testing.assert_array_equal(passed.numpy(), mask)
