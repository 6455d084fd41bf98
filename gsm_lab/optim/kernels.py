"""The compiled passes over g and w (numba), for `compiled`. They take addresses: cheaper to hand over than arrays.

A table, uint64 [tensors, 4], says where tensors lie: the addresses of weights, gradients and momentum buffers, and
sizes. Values of |g * w| are handled as the bits of non-negative floats, whose order as integers is theirs (inf, then
NaN, on top). Loops start at 0, or numba's handling of negative indices keeps them from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from gsm_lab.optim.intrinsics import bits, floats, fma, ones, reached, zeros_below

BLOCK = 2048  # values looked at together: their weights and gradients stay in the fastest cache
INFINITY = np.int32(0x7F800000)  # the bits of float32's infinity; those of NaN are above
GREATEST = np.int32(0x7FFFFFFF)  # all bits but that of the sign
_AT_ONCE = 4  # places written for 64 values; more than so many are in the bracket of hardly any 64
_FINE, BINS = 18, 1 << 13  # bits dropped by the sample's histogram: 32 bins an octave
_DIGIT = 8  # bits that the selection among candidates looks at together
_W, _G, _Z, _N = range(4)  # columns of a table


def _kernel(signature: str) -> Any:
    return njit(signature, cache=True, nogil=True, error_model="numpy")


@njit(inline="always")
def _tensor(table, i, column):  # noqa: ANN001
    return carray(floats(table[i, column]), np.int64(table[i, _N]))


@_kernel("void(uint64[:,::1], int64, int64, int32[::1])")
def sample(table, first, stride, histogram) -> None:  # noqa: ANN001
    """Count every stride-th value, from the `first` on, by its leading bits: int32 [BINS], added to."""
    at = first
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        while at < w.size:
            histogram[(bits(w[at] * g[at]) & GREATEST) >> _FINE] += 1
            at += stride
        at -= w.size


@_kernel("UniTuple(int32, 2)(int32[::1], int64, int64)")
def bracket(histogram, most, least) -> tuple[int, int]:  # noqa: ANN001
    """Bits (low, high): at most `most` of a sample reach high, at least `least` (or all positive ones) reach low."""
    seen, k = 0, BINS
    while k > 1 and seen + histogram[k - 1] <= most:
        k -= 1
        seen += histogram[k]
    high = np.int32(k << _FINE) if k < BINS else GREATEST
    while k > 0 and seen < least:
        k -= 1
        seen += histogram[k]
    return np.int32(max(1, k << _FINE)), high


@njit(inline="always")
def _put(word, first, places, n):  # noqa: ANN001
    """Write where the bits of a word are set, counted from `first`, to `places[n:]`; returns n plus their number.

    How many there are no processor can predict: so some places are always written, those that are none over again.
    """
    more = n + np.int64(ones(word))
    for k in range(_AT_ONCE):
        places[n + k] = first + np.int64(zeros_below(word))
        word &= word - np.uint64(1)
    n += _AT_ONCE
    while word:
        places[n] = first + np.int64(zeros_below(word))
        word &= word - np.uint64(1)
        n += 1
    return more


@_kernel("Tuple((int64, int64, boolean))(uint64[:,::1], int32, int32, int32[::1])")
def collect(table, low, high, found) -> tuple[int, int, bool]:  # noqa: ANN001
    """Copy the bits of all values with low <= bits < high to `found`.

    Returns how many these are (-1 where they may not fit), how many values reach `high`, and whether all are finite.
    """
    places = np.empty(BLOCK + _AT_ONCE, np.int32)
    n, above, bad = 0, np.uint64(0), np.uint64(0)
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        whole = w.size // 64 * 64
        for start in range(0, whole, BLOCK):
            end = min(start + BLOCK, whole)
            if n + end - start > found.size:
                return -1, np.int64(above), False
            some = 0
            for at in range(start, end, 64):
                skipped = np.uint64(4 * at)
                inside, over, infinite = reached(table[i, _W] + skipped, table[i, _G] + skipped, low, high)
                above += ones(over)
                bad |= infinite
                some = _put(inside & ~over, at - start, places, some)
            for t in range(some):
                j = np.uint64(start + np.int64(places[t]))
                found[n + t] = bits(w[j] * g[j]) & GREATEST
            n += some
        if n + w.size - whole > found.size:
            return -1, np.int64(above), False
        for j in range(whole, w.size):
            v = bits(w[j] * g[j]) & GREATEST
            above += np.uint64(v >= high)
            bad |= np.uint64(v >= INFINITY)
            found[n] = v
            n += low <= v < high
    return n, np.int64(above), bad == 0


@_kernel("UniTuple(int64, 2)(int32[::1], int64, int32, int32)")
def select(found, q, low, high) -> tuple[int, int]:  # noqa: ANN001
    """The q-th greatest of `found`, all from low to below high, which is reordered; its equals that are beyond q."""
    left, size, base, width = q, found.size, low, 0
    while (high - 1 - low) >> width > 0:
        width += 1
    histogram = np.empty(1 << _DIGIT, np.int32)
    while width > 0:
        digits = min(_DIGIT, width)
        width -= digits
        histogram[:] = 0
        for i in range(size):
            histogram[(found[i] - base) >> width] += 1
        digit = (1 << digits) - 1
        while histogram[digit] < left:
            left -= histogram[digit]
            digit -= 1
        base += np.int32(digit << width)
        n = 0
        for i in range(size):
            v = found[i]
            found[n] = v
            n += (v - base) >> width == 0
        size = n
    return np.int64(base), size - left


@_kernel("Tuple((int64, int64, boolean))(uint64[:,::1], int64)")
def descend(table, q) -> tuple[int, int, bool]:  # noqa: ANN001
    """The q-th greatest of all values (the smallest positive one where fewer are positive) digit by digit.

    Needs no memory and no luck, and takes three slow passes. Returns its bits, its equals beyond q, and whether all
    values are finite.
    """
    prefix, shift, left, equal, finite = np.int32(0), 31, q, 0, True
    histogram = np.empty(1 << 13, np.int64)
    for width in (13, 9, 9):
        histogram[:] = 0
        above, shift = shift, shift - width
        zeros = 0
        for i in range(table.shape[0]):
            w, g = _tensor(table, i, _W), _tensor(table, i, _G)
            for j in range(w.size):
                v = bits(w[j] * g[j]) & GREATEST
                zeros += v == 0
                if v >> above == prefix:
                    histogram[(v >> shift) & ((1 << width) - 1)] += 1
        if shift == 18:
            finite = histogram[INFINITY >> 18 :].sum() == 0
            left = min(q, histogram.sum() - zeros)
            if left == 0:
                return 0, 0, finite
        if prefix == 0:
            histogram[0] -= zeros
        digit = (1 << width) - 1
        while histogram[digit] < left:
            left -= histogram[digit]
            digit -= 1
        prefix, equal = np.int32((prefix << width) | digit), histogram[digit]
    return np.int64(prefix), equal - left, finite


@_kernel("Tuple((int64, int64, boolean))(uint64[:,::1], int64, int64, int64[:,::1], int32[::1])")
def find(table, q, stride, brackets, found) -> tuple[int, int, bool]:  # noqa: ANN001
    """The bits of the q-th greatest value, how many of its equals are beyond q, and whether all values are finite.

    `stride`: of the sample, 0 for none. `brackets`: pairs (most, least) of it, to be tried in turn.
    """
    histogram = np.zeros(BINS if stride else 1, np.int32)
    if stride:
        sample(table, 0, stride, histogram)
    for t in range(brackets.shape[0]):
        low, high = np.int32(1), GREATEST
        if stride:
            low, high = bracket(histogram, brackets[t, 0], brackets[t, 1])
        inside, above, finite = collect(table, low, high, found)
        if inside >= 0 and above < q <= above + inside:
            bits, ties = select(found[:inside], q - above, low, high)
            return bits, ties, finite
    return descend(table, q)


@_kernel("boolean(uint64[:,::1])")
def finite(table) -> bool:  # noqa: ANN001
    """Whether all gradients are finite."""
    greatest = np.int32(0)
    for i in range(table.shape[0]):
        g = _tensor(table, i, _G)
        for j in range(g.size):
            greatest = max(greatest, bits(g[j]) & GREATEST)
    return greatest < INFINITY


@_kernel("int64(uint64[:,::1], int64, int64)")
def after_equal(table, wanted, n) -> int:  # noqa: ANN001
    """The flat position after that of the n-th value whose bits are the `wanted` ones."""
    first = 0
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        for j in range(w.size):
            n -= (bits(w[j] * g[j]) & GREATEST) == wanted
            if n == 0:
                return first + j + 1
        first += w.size
    return first


@_kernel("int64(uint64[:,::1], int64)")
def equal_within(table, wanted) -> int:  # noqa: ANN001
    """How many values have the `wanted` bits."""
    n = 0
    for i in range(table.shape[0]):
        w, g = _tensor(table, i, _W), _tensor(table, i, _G)
        for j in range(w.size):
            n += (bits(w[j] * g[j]) & GREATEST) == wanted
    return n


@njit(inline="always")
def _next(x):  # noqa: ANN001
    """The next greater float32 of one that is positive."""
    return np.array([bits(x) + 1], np.int32).view(np.float32)[0]


@_kernel("void(uint64[:,::1], float32, int64, float32[::1])")
def pass_through(table, threshold, upto, out) -> None:  # noqa: ANN001
    """Write g where |g * w| >= threshold (before flat position `upto`; from there on >), else 0, in flat order."""
    first, above = 0, _next(threshold)
    for i in range(table.shape[0]):
        weights, grads = _tensor(table, i, _W), _tensor(table, i, _G)
        size = weights.size
        cut = min(max(upto - first, 0), size)
        for start, end, limit in ((0, cut, threshold), (cut, size, above)):
            w, g, o = weights[start:end], grads[start:end], out[first + start : first + end]
            for j in range(w.size):
                o[j] = g[j] if abs(w[j] * g[j]) >= limit else np.float32(0.0)
        first += size


ROUNDINGS = [a | b | c for a in (0, 1) for b in (0, 2, 4) for c in (0, 8)]  # what is rounded once in an update


@njit(inline="always")
def _new_momentum(x, w, z, decay, beta, keep, rounding):  # noqa: ANN001
    if decay != 0:
        x = fma(w, decay, x) if rounding & 1 else x + w * decay
    if rounding & 2:
        return fma(x, keep, z * beta)
    if rounding & 4:
        return fma(z, beta, x * keep)
    return z * beta + x * keep


@njit(inline="always")
def _new_weight(w, z, lr, rounding):  # noqa: ANN001
    return fma(z, -lr, w) if rounding & 8 else w - z * lr


@_kernel("void(uint64[:,::1], float32, int64, float32[:,::1], int64[::1], boolean[::1])")
def update(table, threshold, upto, settings, rounding, active) -> None:  # noqa: ANN001
    """One SGD step with the gradients that pass as in `pass_through`; `active`, in flat order, says which did.

    `settings`: learning rate, decay, momentum, 1 - dampening, of each tensor. `rounding`: how products and sums are
    rounded (`ROUNDINGS`), the same for the rest that fills no vector, and the width of a vector.
    """
    first, above = 0, _next(threshold)
    for i in range(table.shape[0]):
        weights, grads, momenta = _tensor(table, i, _W), _tensor(table, i, _G), _tensor(table, i, _Z)
        lr, decay, beta, keep = settings[i, 0], settings[i, 1], settings[i, 2], settings[i, 3]
        size = weights.size
        cut, body = min(max(upto - first, 0), size), size // rounding[2] * rounding[2]
        for part in range(4):  # the body and the rest, each before and after the cut
            start, end = (0, body) if part < 2 else (body, size)
            start, end = (start, min(end, cut)) if part % 2 == 0 else (max(start, cut), end)
            if start >= end:
                continue
            limit, r = threshold if part % 2 == 0 else above, rounding[part // 2]
            w, g, z = weights[start:end], grads[start:end], momenta[start:end]
            a = active[first + start : first + end]
            for j in range(w.size):
                passes = abs(w[j] * g[j]) >= limit
                a[j] = passes
                z[j] = _new_momentum(g[j] if passes else np.float32(0.0), w[j], z[j], decay, beta, keep, r)
                w[j] = _new_weight(w[j], z[j], lr, r)
        first += size


@_kernel(
    "Tuple((int64, boolean))(uint64[:,::1], int64, int64, int64, int64[:,::1], int32[::1], float32[:,::1], int64[::1],"
    "boolean[::1])"
)
def step(table, competing, q, stride, brackets, found, settings, rounding, active) -> tuple[int, bool]:  # noqa: ANN001
    """`find` among the first tensors, which compete, then `update` of all; one call, since each call costs.

    Returns the bits of the threshold, and whether it was done: not where there is none, or something is not finite.
    """
    found_bits, ties, well = find(table[:competing], q, stride, brackets, found)
    if found_bits == 0 or not well or not finite(table[competing:]):
        return found_bits, False
    count = np.int64(0)
    for i in range(competing):
        count += np.int64(table[i, _N])
    upto = count
    if ties > 0:
        upto = after_equal(table[:competing], found_bits, equal_within(table[:competing], found_bits) - ties)
    threshold = np.array([found_bits], np.int32).view(np.float32)[0]
    update(table[:competing], threshold, upto, settings[:competing], rounding, active)
    rest = table[competing:]
    update(rest, np.float32(0.0), np.int64(1 << 62), settings[competing:], rounding, active[count:])  # all reach 0
    return found_bits, True
