"""Data sets of numbers to be predicted: what is stored, what is split off, and what could be labels as well."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.datasets import load_diabetes

from gsm_lab import Dataset

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0.5, -1.0, 2.25, 7.0, 0.0, 1e-3])


def made(train_y: object = Y, test_y: object = Y, **more: object) -> Dataset:
    return Dataset(X, train_y, X, test_y, **more)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f8", torch.float64, torch.bfloat16])
def test_targets_are_stored_as_float32_rows(kind) -> None:
    y = torch.tensor(Y).to(kind) if isinstance(kind, torch.dtype) else Y.astype(kind)
    data = made(y, y)
    assert data.train_y.dtype == data.test_y.dtype == torch.float32 and data.train_y.shape == (6, 1)
    np.testing.assert_array_equal(data.train_y[:, 0], np.asarray(torch.as_tensor(np.asarray(y.tolist())).float()))
    assert data.regression and data.outputs == 1
    assert repr(data) == "Dataset('mine': 6 training and 6 test samples of 2, 1 target)"
    assert repr(made(np.stack([Y, Y], 1), np.stack([Y, Y], 1))).endswith("2 targets)")


def test_ready_targets_are_shared_and_moved_with_the_rest() -> None:
    y = torch.tensor(Y, dtype=torch.float32)[:, None]
    data = made(y, y.clone())
    assert data.train_y.data_ptr() == y.data_ptr()
    digest = data.digest
    moved = data.to("cpu", torch.float64)
    assert moved.train_x.dtype == torch.float64 and moved.train_y.dtype == torch.float32 and moved.digest == digest
    assert data.to("meta").train_y.device.type == "meta"


def test_whole_numbers_that_are_no_labels_are_numbers() -> None:
    x, y = load_diabetes(return_X_y=True)
    data = Dataset(x[:300], y[:300], x[300:], y[300:], name="diabetes")
    assert (y == y.round()).all() and data.regression and data.outputs == 1 and data.shape == (10,)
    np.testing.assert_array_equal(data.test_y[:, 0], y[300:])


def test_the_digest_tells_targets_apart() -> None:
    other = Y.copy()
    other[5] = np.nextafter(np.float32(1e-3), np.float32(1))
    assert made().digest == made(name="other").digest != made(other).digest
    assert made(Y[:, None], Y[:, None]).digest == made().digest


def test_there_are_no_classes() -> None:
    with pytest.raises(AttributeError, match="'mine' has no classes: its targets are numbers, 1 a sample"):
        made().classes  # noqa: B018
    labelled = Dataset(X, [0, 1, 2, 0, 1, 2], X, [0, 0, 0, 0, 0, 1])
    assert not labelled.regression and labelled.outputs == labelled.classes == 3


@given(st.integers(2, 60), st.data())
def test_a_validation_set_is_part_of_the_training_set_in_its_order(count: int, data) -> None:
    n, seed = data.draw(st.integers(1, count - 1)), data.draw(st.integers(0, 5))
    x = np.arange(count, dtype=np.float32)[:, None]
    y = np.stack([x[:, 0] + 0.5, -x[:, 0]], axis=1)
    split = Dataset(x, y, x, y, name="all").validation(n, seed)
    held, left = split.test_x[:, 0].tolist(), split.train_x[:, 0].tolist()
    assert (
        len(held) == n and held == sorted(held) and left == sorted(left) and sorted(held + left) == list(range(count))
    )
    for part, of in ((split.test_x, split.test_y), (split.train_x, split.train_y)):
        np.testing.assert_array_equal(of, np.concatenate([part + 0.5, -part], axis=1))
    assert split.name == "all-validation" and split.digest == Dataset(x, y, x, y).validation(n, seed).digest


def test_a_validation_set_leaves_a_sample() -> None:
    with pytest.raises(ValueError, match=r"n is 6; valid: an integer in 1 \.\. 5"):
        made().validation(6)


REFUSED = {
    "mixed": ({"train_y": [0, 1, 2, 3, 4, 5]}, TypeError, ["train_y has dtype int64", "test_y has float64", "in both"]),
    "mixed otherwise": ({"test_y": [0, 1, 2, 3, 4, 5]}, TypeError, ["train_y has dtype float64", "test_y has int64"]),
    "flags": ({"train_y": Y > 0, "test_y": Y > 0}, TypeError, ["train_y has dtype bool"]),
    "labels as floats": (
        {"train_y": [0.0, 1, 2, 0, 1, 2]},
        TypeError,
        ["train_y", "0 .. 2", 'astype("int64")', ".reshape(-1, 1)"],
    ),
    "one label": ({"train_y": np.zeros(6)}, TypeError, ["train_y", "0 .. 0"]),
    "one-hot": ({"train_y": np.eye(3)[[0, 1, 2, 0, 1, 2]]}, ValueError, ["train_y", "(6, 3)", "argmax(1)"]),
    "cube": ({"train_y": np.ones((6, 2, 2))}, ValueError, ["train_y has shape (6, 2, 2)", "[n, k]"]),
    "number": ({"test_y": 0.5}, ValueError, ["test_y has shape ()"]),
    "no columns": ({"train_y": np.ones((6, 0))}, ValueError, ["train_y is empty"]),
    "length": ({"train_y": Y[:5]}, ValueError, ["train_x has 6 samples", "train_y has 5"]),
    "columns": ({"test_y": np.ones((6, 2))}, ValueError, ["test_y has 2 numbers a sample", "as train_y, 1"]),
    "nan": ({"test_y": np.where(Y == 7, np.nan, Y)}, ValueError, ["test_y has nan at index [3]", "finite"]),
    "infinity": ({"train_y": np.where(Y == 7, -np.inf, Y)}, ValueError, ["train_y has -inf at index [3]"]),
    "too large": ({"train_y": np.where(Y == 7, 1e39, Y)}, ValueError, ["train_y has inf at index [3]", "float32"]),
    "complex": ({"train_y": Y + 1j, "test_y": Y + 1j}, TypeError, ["train_y has dtype complex128"]),
    "text": ({"train_y": Y.astype(str)}, TypeError, ["train_y"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    changes, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        made(**{"train_y": Y, "test_y": Y} | changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.one_of(st.tuples(st.integers(1, 6)), st.tuples(st.integers(1, 6), st.integers(1, 3))),
        elements=st.one_of(st.integers(0, 3).map(float), st.floats(width=32)),
    )
)
def test_floats_are_numbers_unless_they_could_be_labels(y: np.ndarray) -> None:
    """Whatever is given is stored as it is, to the bit, or refused for one of three reasons, told here anew."""
    x = np.zeros((len(y), 1), np.float32)
    finite = all(np.isfinite(v) for v in y.ravel().tolist())
    rows = y.tolist()
    kinds = set(rows) if y.ndim == 1 else set()
    labels = bool(kinds) and sorted(kinds) == list(range(len(kinds)))
    labels = labels or (0 < 2 * len(kinds) <= len(rows) and all(float(v).is_integer() and abs(v) <= 100 for v in kinds))
    one_hot = y.ndim == 2 and y.shape[1] > 1 and all(sorted(row) == [0.0] * (len(row) - 1) + [1.0] for row in rows)
    try:
        data = Dataset(x, y, x, y)
    except (TypeError, ValueError) as error:
        assert (labels and isinstance(error, TypeError)) or one_hot or not finite
        return
    assert finite and not labels and not one_hot
    np.testing.assert_array_equal(data.train_y, y.reshape(len(y), -1).astype(np.float32))


@pytest.mark.parametrize(("values", "listed"), [((1, 2, 3), "1, 2, 3"), ((-1, 1), "-1, 1"), ((0, 10), "0, 10")])
def test_labels_that_do_not_begin_with_0_are_no_numbers_either(values: tuple[int, ...], listed: str) -> None:
    x, y = np.zeros((30, 1), np.float32), np.resize(values, 30).astype(np.float32)
    with pytest.raises(TypeError, match=rf"only the whole numbers {listed} in it, as labels have; .*np\.unique"):
        Dataset(x, y, x, y)
    assert Dataset(x, y[:, None], x, y[:, None]).regression
    counts = np.arange(30).astype(np.float32) + 5  # each but once: a measurement, such as an age
    assert Dataset(x, counts, x, counts).regression
