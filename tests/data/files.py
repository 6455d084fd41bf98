"""Small data sets and files for the tests of data."""

import numpy as np
from hypothesis import settings

from gsm_lab.data import Dataset

untimed = settings(deadline=None)


def small(n: int = 30, classes: int = 3, shape: tuple[int, ...] = (4,)) -> Dataset:
    x = np.arange(n * int(np.prod(shape)), dtype=np.float32).reshape(n, *shape)
    return Dataset(x, np.arange(n) % classes, x[:classes], np.arange(classes))
