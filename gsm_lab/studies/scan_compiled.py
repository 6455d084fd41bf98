"""The loops of `scan`, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from gsm_lab.optim.intrinsics import ones, zeros_below
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
    # which words differ no processor can predict: instead of branching, all places are written, the wrong ones again
    words = np.empty(whole + 1, np.int32)
    n = ups = downs = 0
    for k in range(whole):
        words[n] = k
        n += x[k] != y[k]
    for t in range(n):
        k = words[t]
        ups += np.int64(ones(x[k] & ~y[k]))
        downs += np.int64(ones(y[k] & ~x[k]))
    on, off = np.empty(ups + 8, np.int64), np.empty(downs + 8, np.int64)
    ups = downs = 0
    for t in range(n):
        k = np.int64(words[t])
        came, went = x[k] & ~y[k], y[k] & ~x[k]
        while came:
            on[ups] = 8 * k + np.int64(zeros_below(came) >> np.uint64(3))
            ups += 1
            came &= came - np.uint64(1)
        while went:
            off[downs] = 8 * k + np.int64(zeros_below(went) >> np.uint64(3))
            downs += 1
            went &= went - np.uint64(1)
    for i in range(8 * whole, a.size):
        on[ups] = off[downs] = i
        ups += a[i] > b[i]
        downs += a[i] < b[i]
    return on[:ups], off[:downs]


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
