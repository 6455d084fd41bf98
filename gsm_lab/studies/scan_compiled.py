"""The loops of `scan`, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from gsm_lab.optim.fused.llvm import bits, fetch, floats, zeros_below
from gsm_lab.studies.scan import ABOVE, BELOW, CUT, LOWEST, NEAR, NEARER, NEVER, SHIFT

BLOCK = 1 << 13  # weights that are looked at together: what is read twice is still in the nearest cache
AHEAD = 12  # words


@njit("void(uint16[::1], float32[::1], uint8[::1])", cache=True, nogil=True)
def lower(least, weights, active):  # noqa: ANN001, ANN201
    """Lower least to the codes of weights (see `scan`) where these are lower, and not active, in place."""
    for i in range(weights.size):
        size = bits(abs(weights[i]))
        # numba adds and shifts in 64 bits; made 32 again at once, a vector holds twice as many
        size = np.int32(size + (BELOW if size < NEARER else ABOVE))
        code = np.uint16(min(max(np.int32(size >> CUT), np.int32(0)), np.int32(NEVER)))
        least[i] = code if (code < least[i]) & (active[i] == 0) else least[i]


@njit(
    "void(boolean[::1], boolean[::1], uint64[::1], int64[::1], int64, int32[:, ::1], uint16[::1],"
    "uint16[::1], int64[:, ::1], int64[:, ::1], int64[::1], int64)",
    cache=True,
    nogil=True,
)
def step(active, before, addresses, bounds, now, pair, least, times, ended, sums, held, patience):  # noqa: ANN001, ANN201
    """As in `scan`; `addresses` are those of the layers' values."""
    a, b = active.view(np.uint8), before.view(np.uint8)
    words = np.empty(BLOCK // 8 + 1, np.int64)
    place = np.uint64(pair.ctypes.data)
    for layer in range(held.size):
        sums[0, layer] += bounds[layer + 1] - bounds[layer] - held[layer]
    mover = layer = 0  # the layer of the weight that moved, and of those whose |w| is looked at
    for start in range(0, a.size, BLOCK):
        end = min(start + BLOCK, a.size)
        at = start
        while at < end:
            while at >= bounds[layer + 1]:
                layer += 1
            to = min(end, bounds[layer + 1])
            w = carray(floats(addresses[layer]), bounds[layer + 1] - bounds[layer])
            lower(least[at:to], w[at - bounds[layer] : to - bounds[layer]], a[at:to])
            at = to
        whole = (end - start) // 8
        x, y = a[start : start + 8 * whole].view(np.uint64), b[start : start + 8 * whole].view(np.uint64)
        # which words differ no processor can predict: instead of branching, all are noted, the wrong ones overwritten
        n = 0
        for k in range(whole):
            words[n] = k
            n += x[k] != y[k]
        rest = 0
        for i in range(start + 8 * whole, end):  # of the last block
            rest += a[i] != b[i]
        for t in range(n + (rest > 0)):
            if t + AHEAD < n:
                fetch(place + np.uint64(8 * (start + 8 * words[t + AHEAD])))
            if t < n:
                first, moved = start + 8 * words[t], x[words[t]] ^ y[words[t]]
            else:
                first, moved = start + 8 * whole, np.uint64(0)
                for i in range(first, end):
                    moved |= np.uint64(a[i] != b[i]) << np.uint64(8 * (i - first))
            while moved:
                i = first + np.int64(zeros_below(moved) >> np.uint64(3))
                moved &= moved - np.uint64(1)
                while i >= bounds[mover + 1]:
                    mover += 1
                if a[i]:
                    length = now - 1 - pair[i, 0]
                    pair[i, 1] = max(pair[i, 1], length)
                    times[i] += times[i] < 65535
                    ended[mover, (np.int64(bits(np.float32(length))) >> SHIFT) - LOWEST] += 1
                    held[mover] += 1
                    sums[1, mover] += 1
                    sums[2, mover] += length >= patience
                    sums[3, mover] += least[i] < NEAR
                else:
                    pair[i, 0] = now - 1
                    held[mover] -= 1
