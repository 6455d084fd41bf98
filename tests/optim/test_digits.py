"""The exchange of counts alone, over ranks that are threads (`forms.by_counts`; see `test_selection`, too)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab.optim.ranks import digits
from gsm_lab.optim.ranks.group import agreed, mean, signature
from tests.optim.forms import BUDGET, by_counts, oracle
from tests.optim.test_ranks import USUAL
from tests.optim.test_selection import values

untimed = settings(deadline=None)


@settings(deadline=None, max_examples=1000)
@given(st.lists(values, min_size=1, max_size=60), st.integers(1, 4), st.data())
def test_however_many_ranks_there_are(entries: list[float], ranks: int, data: st.DataObject) -> None:
    metric = np.array(entries, dtype=np.float32)
    q = data.draw(st.integers(1, metric.size))
    mask = by_counts(metric, q, ranks)[1]
    np.testing.assert_array_equal(mask, np.ones_like(mask) if q == metric.size else oracle(metric, q)[1])


@untimed
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30, unique=True), st.data())
def test_the_last_position_that_stays(positions: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(positions)))
    got = digits.last_kept(torch.tensor(positions), keep, 2**63 - 1, lambda counts: counts)
    assert got == sorted(positions)[keep - 1]


@untimed
@given(st.lists(st.integers(0, 2**60 - 1), min_size=1, max_size=6))
def test_signatures_tell_whether_all_agree(numbers: list[int]) -> None:
    sums = [sum(column) for column in zip(*(signature(x, 3) for x in numbers), strict=True)]
    assert agreed(sums, len(numbers)) == (numbers[0] if len(set(numbers)) == 1 else None)
    assert mean(sums, len(numbers)) == pytest.approx(sum(numbers) / len(numbers))


def test_the_most_a_rank_sends() -> None:
    """The sum in the module's account: header and digits, 63 bits of positions, a word."""
    most = sum(USUAL) + 8 * (9 * 128 + 1)
    assert most <= BUDGET and most == pytest.approx(41.1 * 1024, rel=1e-3)
