"""The order of batches: a pure function of seed and step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsm_lab.data import Batches
from tests.data.files import small, untimed


@untimed
@given(n=st.integers(1, 60), part=st.floats(0, 1), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_each_sample_at_most_once(n: int, part: float, seed: int, epoch: int) -> None:
    size = max(1, round(part * n))
    batches = Batches(small(n, classes=1), size, seed)
    assert len(batches) == n // size
    steps = [batches.indices(epoch * len(batches) + i) for i in range(len(batches))]
    assert all(step.shape == (size,) and step.dtype == torch.int64 for step in steps)
    visited = torch.cat(steps).tolist()
    assert len(set(visited)) == len(visited) == size * (n // size)
    assert set(visited) <= set(range(n))


@untimed
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(0, 2**40))
def test_any_order_of_access_equals_the_sequential_one(steps: list[int], seed: int) -> None:
    data = small(23)
    sequential = Batches(data, 5, seed)
    expected = [sequential.indices(step).tolist() for step in range(201)]
    jumping = Batches(data, 5, seed)
    assert [jumping.indices(step).tolist() for step in steps] == [expected[step] for step in steps]


def test_batch_is_rows_of_the_training_set() -> None:
    data = small(20, shape=(1, 2, 2))
    batches = Batches(data, 6, seed=3)
    for step in (0, 2, 3, 100):
        x, y = batches.batch(step)
        rows = batches.indices(step)
        assert torch.equal(x, data.train_x[rows]) and torch.equal(y, data.train_y[rows])


def test_a_caller_cannot_change_the_order() -> None:
    batches = Batches(small(20), 6, seed=3)
    expected = batches.indices(1).tolist()
    batches.indices(1).zero_()
    assert batches.indices(1).tolist() == expected


def test_epochs_and_seeds_differ_also_where_they_could_be_mixed_up() -> None:
    data = small(200)
    orders = {
        tuple(Batches(data, 200, seed).indices(epoch).tolist())
        for seed in (0, 1, 2, 2**32, 2**64)
        for epoch in range(5)
    }
    assert len(orders) == 25
    plain = np.random.SeedSequence(0)  # what others make of the same seed
    for other in (plain, *plain.spawn(3), np.random.SeedSequence([0, 1])):
        assert tuple(np.random.default_rng(other).permutation(200).tolist()) not in orders


def test_batches_leave_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Batches(small(), 4, 0).batch(50)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_positions_are_uniform() -> None:
    first = [int(Batches(small(10), 1, seed).indices(epoch * 10)[0]) for seed in range(30) for epoch in range(30)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 90) ** 2 / 90).sum() < 27.9  # chi-square with 9 degrees of freedom, 99.9%; the draw is fixed


@pytest.mark.parametrize(
    ("batch_size", "seed", "error", "message"),
    [
        (31, 0, ValueError, "batch_size is 31; valid: an integer in 1 .. 30"),
        (0, 0, ValueError, "batch_size is 0; valid: an integer in 1 .. 30"),
        (2.0, 0, TypeError, "batch_size is 2.0; valid: an integer in 1 .. 30"),
        (True, 0, TypeError, "batch_size is True; valid: an integer in 1 .. 30"),
        (4, -1, ValueError, "seed is -1; valid: an integer >= 0"),
        (4, None, TypeError, "seed is None; valid: an integer >= 0"),
    ],
)
def test_batches_refuse(batch_size: int, seed: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Batches(small(), batch_size, seed)
    assert str(caught.value) == message


def test_step_is_checked_and_may_be_numpys() -> None:
    batches = Batches(small(), np.int64(4), np.uint32(1))
    assert torch.equal(batches.indices(np.int64(3)), batches.indices(3))
    with pytest.raises(ValueError, match="step is -1; valid: an integer >= 0"):
        batches.batch(-1)
