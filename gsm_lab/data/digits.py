"""The 1,797 handwritten digits that come with scikit-learn, enlarged to the size of MNIST's."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

from gsm_lab.data.dataset import Dataset

FILE = "datasets/data/digits.csv.gz"  # of scikit-learn


@lru_cache(maxsize=1)
def digits() -> Dataset:
    """1,437 images for training and 360 for testing, of 28 x 28 pixels; ModuleNotFoundError without scikit-learn."""
    rows = _rows()
    # Bilinear 8 -> 20 as torch's interpolate(align_corners=False) does it: output pixel i lies at 0.4 i - 0.3. Counted
    # in tenths, all of it is integers up to the one division, so every CPU gets the same bits and the same digest.
    tenths = np.maximum(4 * np.arange(20) - 3, 0)
    left, part = tenths // 10, tenths % 10
    weight = np.zeros((20, 8), dtype=np.int64)
    weight[np.arange(20), left] = 10 - part
    weight[np.arange(20), np.minimum(left + 1, 7)] += part
    large = weight @ rows[:, :64].reshape(-1, 8, 8) @ weight.T  # 0..1600
    images = np.pad(large, ((0, 0), (4, 4), (4, 4))).astype(np.float32) / np.float32(1600)
    labels = rows[:, 64]
    train, test = _split(labels)
    return Dataset(images[train], labels[train], images[test], labels[test], name="digits")


def _rows() -> np.ndarray:
    """int64 [1797, 65]: 8 x 8 pixels in 0..16, then which digit.

    From the file that `sklearn.datasets.load_digits` reads, where it is still there: to import scikit-learn takes
    nearly as long as to import torch.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    file = Path(found.submodule_search_locations[0], FILE)
    if file.exists():
        return np.loadtxt(file, dtype=np.int64, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True)).astype(np.int64)


def _split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are for training and which for testing, in this order.

    They are those of scikit-learn's `train_test_split(..., test_size=360, stratify=labels, random_state=0)`, draw by
    draw (numpy's RandomState gives the same numbers for ever).
    """
    random = np.random.RandomState(0)
    for _ in range(2):  # twice two digits round alike, and scikit-learn draws the one that has a row more
        random.permutation(2)
    train, test = [], []
    for digit, held_out in enumerate((36, 36, 35, 37, 36, 37, 36, 36, 35, 36)):
        rows = random.permutation(np.flatnonzero(labels == digit))
        train.append(rows[:-held_out])
        test.append(rows[-held_out:])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
