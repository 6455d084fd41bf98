"""Ten thousand cases of the selection, in all its forms, against a stable sort: too many for every run of the tests."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsm_lab.optim.fused import step
from tests.optim.forms import FORMS, check
from tests.optim.test_step import KINDS, contents
from tests.optim.test_step import check as check_fused


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
            patch.setattr(step, "SHARED", 0)
            patch.setattr(torch, "get_num_threads", lambda: threads)
        check_fused(w, g, q, sizes)
        for form in FORMS:
            check(form, np.abs(w * g), q)
