"""The loops of `history`, compiled by numba. Counters of 32 bits, in blocks, so that whole vectors are added up."""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 1 << 12


@njit("UniTuple(int32[::1], 2)(boolean[::1], boolean[::1], int64[::1])", cache=True, nogil=True)
def flags(now, before, bounds):  # noqa: ANN001, ANN201
    """As in `history`, with a `before`."""
    x, y = now.view(np.uint8), before.view(np.uint8)
    held, came = np.zeros(bounds.size - 1, np.int32), np.zeros(bounds.size - 1, np.int32)
    for layer in range(bounds.size - 1):
        for start in range(bounds[layer], bounds[layer + 1], BLOCK):
            end = min(start + BLOCK, bounds[layer + 1])
            a, b = x[start:end], y[start:end]
            n, m = np.int32(0), np.int32(0)
            for j in range(a.size):
                n += np.int32(a[j])
                m += np.int32(a[j] & ~b[j])
            held[layer] += n
            came[layer] += m
    return held, came


@njit("int64[::1](float32[::1], float32[::1])", cache=True, nogil=True)
def near_zero(w, limits):  # noqa: ANN001, ANN201
    """As in `history`."""
    counts = np.zeros(limits.size, np.int64)
    for start in range(0, w.size, BLOCK):
        part = w[start : min(start + BLOCK, w.size)]
        for i in range(limits.size):
            limit, n = limits[i], np.int32(0)
            for j in range(part.size):
                n += np.int32(abs(part[j]) < limit)
            counts[i] += n
    return counts
