"""What a `Dataset` takes as labels, and what as numbers to be predicted; and what could be either, which it refuses."""

from __future__ import annotations

import numpy as np

_FEW = 20  # whole numbers, each of which comes twice or more in the mean, are more likely labels than measurements
_LARGEST = 100  # such as 1 .. 10, or -1 and 1; not prices


def are_targets(train_y: np.ndarray, test_y: np.ndarray) -> bool:
    """Whether they are numbers to be predicted, which are floats, and not labels, which are integers.

    Raises TypeError or ValueError for floats that are labels or one-hot rows, and for one of each.
    """
    kinds = {"train_y": train_y, "test_y": test_y}
    floats = [name for name, y in kinds.items() if y.dtype.kind == "f"]
    for name in floats:
        if len(floats) == 1 or name == "train_y":
            _refuse_labels(name, kinds[name])
    if len(floats) == 1:
        raise TypeError(
            f"train_y has dtype {train_y.dtype} but test_y has {test_y.dtype}; valid: integer labels in both, see "
            '.astype("int64") or .long(), or floats in both, numbers to be predicted'
        )
    return len(floats) == 2


def _refuse_labels(name: str, y: np.ndarray) -> None:
    values = np.unique(y) if y.ndim == 1 else np.empty(0)
    counted = np.array_equal(values, np.arange(len(values)))
    few = len(values) <= _FEW and 2 * len(values) <= y.size and np.array_equal(values, np.rint(values))
    few = few and bool(np.abs(values).max(initial=0) <= _LARGEST)
    if y.size and values.size and (counted or few):  # 0 .. k - 1; 1 .. k; -1 and 1
        listed = ", ".join(f"{v:g}" for v in values[:8]) + ", ..." * (len(values) > 8)
        listed = f"0 .. {values[-1]:g}" if counted else listed
        way = 'see .astype("int64") or .long()' if counted else "np.unique(y, return_inverse=True)[1] makes such"
        raise TypeError(
            f"{name} has dtype {y.dtype} and only the whole numbers {listed} in it, as labels have; valid: integer "
            f"labels, {way}; or [n, 1], .reshape(-1, 1), for numbers to be predicted"
        )
    if y.ndim == 2 and y.shape[1] > 1 and y.size and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        raise ValueError(
            f"{name} has shape {y.shape} and only one-hot rows in it; valid: labels [n], .argmax(1) turns one-hot rows "
            "into labels, or numbers to be predicted"
        )


def check_targets(name: str, y: np.ndarray) -> None:
    """Raises ValueError unless they are [n] or [n, k], and some. (Storing them finds out whether they are finite.)"""
    if y.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {y.shape}; valid: [n] or [n, k], .reshape(len(y), -1) makes rows of them")
    if y.size == 0:
        raise ValueError(f"{name} is empty, its shape is {y.shape}; valid: at least one sample with one number")


def check_columns(train_y: np.ndarray, test_y: np.ndarray) -> None:
    """Raises ValueError unless both have as many numbers a sample."""
    columns = [y.shape[1] if y.ndim == 2 else 1 for y in (train_y, test_y)]
    if columns[0] != columns[1]:
        raise ValueError(f"test_y has {columns[1]} numbers a sample; valid: as many as train_y, {columns[0]}")


def check_labels(name: str, y: np.ndarray) -> None:
    """Raises TypeError or ValueError unless they are integers >= 0, [n]."""
    if y.ndim != 1:
        hint = (
            "; .reshape(-1) flattens a column" if y.shape[1:] == (1,) else "; .argmax(1) turns one-hot rows into labels"
        )
        raise ValueError(f"{name} has shape {y.shape}; valid: one dimension, [n]{hint if y.ndim == 2 else ''}")
    if y.size == 0:
        raise ValueError(f"{name} is empty; valid: at least one label")
    if y.dtype.kind not in "iu":
        raise TypeError(f'{name} has dtype {y.dtype}; valid: integer labels, see .astype("int64") or .long()')
    if y.min() < 0:
        first = int((y < 0).argmax())
        raise ValueError(f"{name} has label {y[first]} at index {first}; valid: 0 .. classes - 1")


def check_classes(train_y: np.ndarray, test_y: np.ndarray) -> None:
    """Raises ValueError unless the labels are 0 .. classes - 1, each of them present in `train_y`."""
    relabel = "np.unique(labels, return_inverse=True)[1] numbers them so (or floats, if they are no labels)"
    top = int(train_y.max())
    if top >= len(train_y):  # before bincount, which would allocate that many counters
        raise ValueError(f"train_y has label {top} with {len(train_y)} samples; valid: 0 .. classes - 1; {relabel}")
    absent = np.flatnonzero(np.bincount(train_y.astype(np.int64)) == 0)
    if absent.size:
        listed = ", ".join(map(str, absent[:8])) + (", ..." if absent.size > 8 else "")
        raise ValueError(f"train_y has labels up to {top} but none of {listed}; valid: each of 0 .. {top}; {relabel}")
    if test_y.max() > top:
        first = int((test_y > top).argmax())
        raise ValueError(f"test_y has label {test_y[first]} at index {first}; valid: those of train_y, 0 .. {top}")
