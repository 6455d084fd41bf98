"""The exact global top Q: the Q greatest of N non-negative numbers, and the threshold that separates them.

The definition, which every path here equals (and which the tests hold it against):

    order = argsort(metric, descending, stable)      # ties: the lower position wins
    chosen = the first Q of order whose metric is positive

Sorting N numbers costs many times an SGD step. Instead a strided sample gives a value that almost surely lies below the
threshold; one pass gathers the few numbers above it, and only those are partitioned. If the sample misled us, the pass
is repeated over every positive number, so the answer never depends on luck.
"""

from __future__ import annotations

import math
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import numpy as np

_SMALLEST = np.float32(np.finfo(np.float32).smallest_subnormal)
SAMPLE = 4096  # a partition of so few costs some microseconds; at Q = N/60 the bound lets 1.3 Q entries through


def budget(weights: int, compression: float | None = None, nonzeros: int | None = None) -> int:
    """Q, how many of `weights` weights (N) stay: `nonzeros` as it is, or N / compression rounded down, at least 1.

    Args:
        weights: N, the number of prunable weights.
        compression: C = N / Q, at least 1. Give this or `nonzeros`, not both.
        nonzeros: Q itself, from 1 to N.

    Raises:
        ValueError: neither or both given, a compression that is not a finite number of at least 1, or a Q outside 1..N.
    """
    if not _is_number(weights) or not 0 <= weights < 1e300 or weights != int(weights):
        raise ValueError(f"weights must be a whole number >= 0, got {weights!r}")
    if (compression is None) == (nonzeros is None):
        raise ValueError(
            f"give exactly one of compression and nonzeros, got compression={compression!r}, nonzeros={nonzeros!r}"
        )
    if compression is not None:
        if not _is_number(compression) or not 1 <= compression < math.inf:
            raise ValueError(f"compression must be a finite number >= 1 (1 prunes nothing), got {compression!r}")
        c = compression if isinstance(compression, int) else float(compression)  # (not in numpy's float32)
        # N / (N / Q) may come out one rounding error below Q
        return min(weights, max(1, int(weights / c * (1 + 1e-12))))
    if not _is_number(nonzeros) or not 1 <= nonzeros <= max(weights, 1) or nonzeros != int(nonzeros):
        raise ValueError(
            f"nonzeros must be a whole number from 1 to {weights:,}, all prunable weights, got {nonzeros!r}"
        )
    return min(int(nonzeros), weights)


def _is_number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)


INFINITY = np.int32(0x7F800000)  # the bits of float32's infinity; those of NaN are above
FEW = 4096  # candidates from which on a sample narrows them down


class Top(NamedTuple):
    """The result of `top_q`: which entries are chosen follows from it, see `chosen`.

    `threshold`: the smallest chosen value (0.0 where nothing is positive, NaN or inf where so many are);
    `ties_left_out`: how many entries equal the threshold (NaN equals NaN) and yet are not chosen;
    `finite`: whether every chosen value is a finite number.
    """

    threshold: float
    ties_left_out: int
    finite: bool


def top_q(metric: np.ndarray, q: int) -> Top:
    """The threshold of the exact top `q` of a flat metric.

    Exactly `q` entries are chosen unless fewer than `q` are positive. Of equal values at the threshold, those of lower
    position are chosen.

    Args:
        metric: float32 [N], contiguous, as `abs` returns it: each entry >= 0, inf, or NaN (which ranks first).
        q: how many to choose, 0 < q <= N.
    """
    if not isinstance(metric, np.ndarray) or metric.dtype != np.float32 or metric.ndim != 1:
        raise TypeError(f"metric must be a float32 array [N], got {type(metric).__name__}")
    if not isinstance(q, int | np.integer) or not 0 < q <= metric.size:
        raise ValueError(f"q must be a whole number from 1 to {metric.size:,}, the size of metric, got {q!r}")
    bound = _lower_bound(metric, q)
    candidates = not_below(metric, bound)
    if candidates.size >= q:  # all that reach the bound, so nothing was missed
        return top_of(candidates, q)
    return top_of(metric[~(metric <= 0)], q)


def top_of(candidates: np.ndarray, q: int) -> Top:
    """`top_q` by partition, of candidates among which the top `q` are; it may reorder them."""
    if candidates.size >= max(FEW, q + 1):
        candidates, q = _narrowed(candidates, q)
    rest = max(candidates.size - q, 0)
    if not candidates.size:
        return Top(0.0, 0, True)
    # As integers, the bits of such floats have the same order (NaN last) and are partitioned at twice the speed.
    candidates.view(np.int32).partition(rest)
    threshold = candidates[rest]
    finite = np.count_nonzero(np.less(candidates[rest:], np.inf)) == candidates.size - rest
    if threshold != threshold:
        return Top(math.nan, np.count_nonzero(np.isnan(candidates[:rest])), False)
    return Top(float(threshold), rest - np.count_nonzero(np.less(candidates, threshold)), finite)


def chosen(metric: np.ndarray, top: Top) -> np.ndarray:
    """Which entries belong to the top Q: bool [N]."""
    threshold = np.float32(top.threshold)
    if threshold == 0:
        return ~(metric <= 0)
    mask = ~(metric < threshold) if threshold > 0 else np.isnan(metric)
    if top.ties_left_out:
        tied = np.flatnonzero(metric == threshold if threshold > 0 else mask)
        mask[tied[tied.size - top.ties_left_out :]] = False
    return mask


def _narrowed(candidates: np.ndarray, q: int) -> tuple[np.ndarray, int]:
    """Those among which the q-th greatest is, by a sample, and its rank there; all as they are where one is infinite.

    Two looks at all of them cost less than to partition them.
    """
    bits, stride = candidates.view(np.int32), max(2, math.isqrt(candidates.size) // 8)
    sample = bits[::stride].copy()
    mean, n = q * sample.size / bits.size, sample.size
    margin = 3 * math.sqrt(mean * (1 - q / bits.size)) + 1
    places = [max(0, n - math.ceil(mean + margin)), min(n - 1, n - math.floor(mean - margin))]
    low, high = np.partition(sample, places)[places]
    above = bits >= high
    inside = bits.compress((bits >= low) & ~above)
    left = q - np.count_nonzero(above)
    if not 0 < left <= inside.size or bits.max() >= INFINITY:
        return candidates, q
    return inside.view(np.float32), left


def not_below(metric: np.ndarray, bound: np.float32) -> np.ndarray:
    """All entries that are not below `bound`, a copy. ("Not below" rather than "at least", so that NaN comes along.)"""
    return picked(metric, ~np.less(metric, bound))


def picked(values: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """`values.compress(flags)`, bool and as long, for flags few of which are set.

    Eight flags are one 64-bit word. To find the words in which any is set, and copy whole runs of eight values before
    looking at single ones, costs a fraction.
    """
    whole = flags.size // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    runs, rest = values[:whole].reshape(-1, 8).take(some, axis=0), values[whole:].compress(flags[whole:])
    found = runs.reshape(-1).compress(words.take(some).view(bool))
    return np.concatenate((found, rest)) if rest.size else found


def _lower_bound(metric: np.ndarray, q: int) -> np.float32:
    """A positive number that the q-th greatest most likely reaches, from a strided sample."""
    stride, above = sampling(metric.size, q)
    if not above:
        return _SMALLEST
    sample = metric.view(np.int32)[::stride].copy()
    sample.partition(sample.size - above)
    bound = sample[sample.size - above].view(np.float32)
    return bound if bound > 0 else _SMALLEST


@lru_cache(maxsize=64)
def sampling(size: int, q: int) -> tuple[int, int]:
    """The stride of the sample, and how many of it are at or above the bound (0: the sample is of no use).

    Of m sampled entries the number that belong to the top q is about binomial with mean m q / N; two and a half
    standard deviations more than that are taken. Too high a bound, in one step of a hundred, costs a second look.
    """
    stride = size // SAMPLE
    if stride < 2:
        return 1, 0
    stride += 1 - stride % 2  # odd, so that power-of-two layer widths do not confine the sample to a few columns
    while stride % 3 == 0 or stride % 5 == 0 or stride % 7 == 0:  # nor widths such as 300 or 784 with their factors
        stride += 2
    sampled = -(-size // stride)
    mean = sampled * q / size
    above = math.ceil(mean + 2.5 * math.sqrt(mean) + 2.0)
    return stride, above if above <= sampled else 0
