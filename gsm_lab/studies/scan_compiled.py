"""The loops of `scan`, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from gsm_lab.studies.scan import LOWEST, NEAR_ZERO, SHIFT


@njit("void(float32[::1], float32[::1])", cache=True, nogil=True)
def lower(smallest, weights):  # noqa: ANN001, ANN201
    """Lower smallest to min(smallest, |weights|), in place."""
    for i in range(weights.size):
        w = abs(weights[i])
        smallest[i] = w if w < smallest[i] else smallest[i]


@njit("Tuple((int64[::1], int64[::1]))(boolean[::1], boolean[::1])", cache=True, nogil=True)
def moved(active, before):  # noqa: ANN001, ANN201
    """Places where `active` is set and `before` is not, and the reverse, ascending."""
    a, b = active.view(np.uint8), before.view(np.uint8)
    whole = a.size // 8
    x, y = a[: 8 * whole].view(np.uint64), b[: 8 * whole].view(np.uint64)
    differ = 0
    for k in range(whole):
        differ += x[k] != y[k]
    # which words differ, and which way an entry moved, no processor can predict: so instead of branching, everything
    # is written, and what was wrong is written over by the next
    words = np.empty(differ + 1, np.uint64)
    n = 0
    for k in range(whole):
        words[n] = k
        n += x[k] != y[k]
    on, off = np.empty(8 * differ + 8, np.int64), np.empty(8 * differ + 8, np.int64)
    up = down = np.uint64(0)
    for k in words[:differ]:
        came, went = x[k] & ~y[k], y[k] & ~x[k]
        for j in range(8):
            on[up] = off[down] = 8 * k + np.uint64(j)
            up += came >> np.uint64(8 * j) & np.uint64(1)
            down += went >> np.uint64(8 * j) & np.uint64(1)
    for i in range(8 * whole, a.size):
        on[up] = off[down] = i
        up += np.uint64(a[i] > b[i])
        down += np.uint64(a[i] < b[i])
    return on[:up], off[:down]


@njit("void(int64[::1], int64, int32[:, ::1], float32[:, ::1], float32[::1])", cache=True, nogil=True)
def went(off, step, pair, as_float, smallest):  # noqa: ANN001, ANN201
    """As in `scan`; `as_float` is a view of `pair`."""
    for i in off:
        smallest[i] = as_float[i, 0]
        pair[i, 0] = step - 1


@njit(
    "void(int64[::1], int64[::1], int64, int32[:, ::1], float32[:, ::1], float32[::1], uint16[::1], int64[:, ::1],"
    "int64[:, ::1], int64)",
    cache=True,
    nogil=True,
)
def came(on, by_layer, step, pair, as_float, smallest, times, ended, sums, patience):  # noqa: ANN001, ANN201
    """As in `scan`; `as_float` is a view of `pair`."""
    one = np.empty(1, np.float32)
    bits = one.view(np.int32)
    near_zero = np.float32(NEAR_ZERO)
    for layer in range(ended.shape[0]):
        woken = near = 0
        for k in range(by_layer[layer], by_layer[layer + 1]):
            i = on[k]
            length, least = step - 1 - pair[i, 0], smallest[i]
            pair[i, 1] = max(pair[i, 1], length)
            as_float[i, 0] = least
            times[i] += times[i] < 65535
            one[0] = length
            ended[layer, (bits[0] >> SHIFT) - LOWEST] += 1
            woken += length >= patience
            near += least < near_zero
        sums[1, layer] += by_layer[layer + 1] - by_layer[layer]
        sums[2, layer] += woken
        sums[3, layer] += near
