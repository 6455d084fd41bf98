"""The compiled passes over g and w (numba), for `compiled`. They take addresses: cheaper to hand over than arrays.

Values of |g * w| are handled as the bits of non-negative floats, whose order as integers is theirs (inf, then NaN, on
top). Loops start at 0, or numba's handling of negative indices keeps them from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

BLOCK = 4096  # values formed at once: 16 KiB, a third of the fastest cache
_FINE, _BINS = 18, 1 << 13  # bits dropped by the sample's histogram: 32 bins an octave
_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, width) of the selection's three digits, most significant first


@intrinsic
def _floats(_: Any, address: Any) -> Any:
    """The pointer to float32 that an address is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.uintp), generate


def _kernel(signature: str) -> Any:
    return njit(signature, cache=True, nogil=True, error_model="numpy")


@_kernel("int32(uintp[::1], uintp[::1], int64[::1], int64, int64)")
def _lower_bound(weights, grads, sizes, stride, above):  # noqa: ANN001
    """The bits of a positive number that at least `above` of every stride-th value reach, and few others."""
    histogram = np.zeros(_BINS, np.int32)
    at = 0
    for i in range(sizes.size):
        w, g = carray(_floats(weights[i]), sizes[i]), carray(_floats(grads[i]), sizes[i])
        bits = np.empty(1, np.float32)
        while at < sizes[i]:
            bits[0] = w[at] * g[at]
            histogram[(bits.view(np.int32)[0] & 0x7FFFFFFF) >> _FINE] += 1
            at += stride
        at -= sizes[i]
    seen, k = 0, _BINS
    while k > 0 and seen < above:
        k -= 1
        seen += histogram[k]
    return np.int32(max(1, k << _FINE))


@_kernel("int64(uintp[::1], uintp[::1], int64[::1], int32, int32[::1])")
def _collect(weights, grads, sizes, bound, found):  # noqa: ANN001
    """Copy the bits of all values >= bound to `found`; returns how many, or -1 where they may not fit."""
    products = np.empty(BLOCK, np.float32)
    bits = products.view(np.int32)
    flags = np.zeros(BLOCK, np.uint8)
    words = flags.view(np.uint64)
    n = 0
    for i in range(sizes.size):
        w, g = carray(_floats(weights[i]), sizes[i]), carray(_floats(grads[i]), sizes[i])
        for start in range(0, sizes[i], BLOCK):
            m = min(BLOCK, sizes[i] - start)
            if n + m + 8 > found.size:
                return -1
            wb, gb = w[start : start + m], g[start : start + m]
            for j in range(m):
                products[j] = wb[j] * gb[j]
            for j in range(m):
                v = bits[j] & 0x7FFFFFFF
                bits[j] = v
                flags[j] = v >= bound
            for j in range(m, (m + 7) // 8 * 8):
                flags[j] = 0
            for k in range((m + 7) // 8):
                if words[k]:
                    for j in range(8 * k, 8 * k + 8):
                        found[n] = bits[j]
                        n += flags[j]
    return n


@_kernel("Tuple((int32, int64, int32))(int32[::1], int64)")
def _select(found, q):  # noqa: ANN001
    """The q-th greatest of `found`, which is reordered; how many of its equals are beyond q; the greatest."""
    greatest = np.int32(0)
    for i in range(found.size):
        greatest = max(greatest, found[i])
    left, size = q, found.size
    threshold = np.int32(0)
    histogram = np.zeros(1 << 11, np.int32)
    for shift, width in _DIGITS:
        histogram[:] = 0
        last = (1 << width) - 1
        for i in range(size):
            histogram[(found[i] >> shift) & last] += 1
        digit = last
        while histogram[digit] < left:
            left -= histogram[digit]
            digit -= 1
        threshold |= np.int32(digit << shift)
        n = 0
        for i in range(size):
            v = found[i]
            found[n] = v
            n += ((v >> shift) & last) == digit
        size = n
    return threshold, size - left, greatest


@_kernel("Tuple((int64, int32, int64, int32))(uintp[::1], uintp[::1], int64[::1], int64, int64, int64, int32[::1])")
def find(weights, grads, sizes, stride, above, q, found) -> tuple[int, int, int, int]:  # noqa: ANN001
    """The q-th greatest |g * w|, from those values that reach a sampled bound (all positive ones where `above` is 0).

    Returns how many values were found (-1: more than fit; below q: the bound was too high, and nothing else is said);
    the bits of the q-th, or of the smallest where fewer are positive; how many of its equals are beyond q; the bits of
    the greatest.
    """
    bound = _lower_bound(weights, grads, sizes, stride, above) if above else np.int32(1)
    n = _collect(weights, grads, sizes, bound, found)
    if n <= 0 or (n < q and above):
        return n, np.int32(0), 0, np.int32(0)
    threshold, ties, greatest = _select(found[:n], min(q, n))
    return n, threshold, ties, greatest


@_kernel("void(uintp[::1], uintp[::1], int64[::1], float32, float32[::1])")
def pass_through(weights, grads, sizes, threshold, out) -> None:  # noqa: ANN001
    """Write g where |g * w| >= threshold, else 0, of all tensors one after the other."""
    first = 0
    for i in range(sizes.size):
        w, g = carray(_floats(weights[i]), sizes[i]), carray(_floats(grads[i]), sizes[i])
        o = out[first : first + sizes[i]]
        for j in range(sizes[i]):
            o[j] = g[j] if abs(w[j] * g[j]) >= threshold else np.float32(0.0)
        first += sizes[i]


@intrinsic
def _fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """The number a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


ROUNDINGS = [a | b | c for a in (0, 1) for b in (0, 2, 4) for c in (0, 8)]  # what is rounded once in an update


@njit(inline="always")
def _new_momentum(x, w, z, decay, beta, keep, rounding):  # noqa: ANN001
    if decay != 0:
        x = _fma(w, decay, x) if rounding & 1 else x + w * decay
    if rounding & 2:
        return _fma(x, keep, z * beta)
    if rounding & 4:
        return _fma(z, beta, x * keep)
    return z * beta + x * keep


@njit(inline="always")
def _new_weight(w, z, lr, rounding):  # noqa: ANN001
    return _fma(z, -lr, w) if rounding & 8 else w - z * lr


@_kernel("void(uintp[::1], uintp[::1], int64[::1], uintp[::1], float32[::1], float32[:,::1], int64[::1], bool[::1])")
def update(weights, grads, sizes, momenta, thresholds, settings, rounding, active) -> None:  # noqa: ANN001
    """One SGD step with the gradients that pass the threshold of their tensor.

    `settings`: learning rate, decay, momentum, 1 - dampening, of each tensor. `rounding`: how products and sums are
    rounded (`ROUNDINGS`), the same for the rest that fills no vector, and the width of a vector.
    """
    first = 0
    for i in range(sizes.size):
        n = sizes[i]
        w, g = carray(_floats(weights[i]), n), carray(_floats(grads[i]), n)
        z, a = carray(_floats(momenta[i]), n), active[first : first + n]
        lr, decay, beta, keep = settings[0, i], settings[1, i], settings[2, i], settings[3, i]
        threshold = thresholds[i]
        r = rounding[0]
        body = n // rounding[2] * rounding[2]
        for j in range(body):
            passes = abs(w[j] * g[j]) >= threshold
            a[j] = passes
            z[j] = _new_momentum(g[j] if passes else np.float32(0.0), w[j], z[j], decay, beta, keep, r)
            w[j] = _new_weight(w[j], z[j], lr, r)
        r = rounding[1]
        for j in range(body, n):
            passes = abs(w[j] * g[j]) >= threshold
            a[j] = passes
            z[j] = _new_momentum(g[j] if passes else np.float32(0.0), w[j], z[j], decay, beta, keep, r)
            w[j] = _new_weight(w[j], z[j], lr, r)
        first += n
