"""The exact global top Q: the Q greatest of N non-negative numbers, and the threshold that separates them.

The definition, which every form of it equals (and which the tests hold it against):

    order = argsort(metric, descending, stable)      # ties: the lower position wins
    chosen = the first Q of order whose metric is positive

Here it is with numpy, and on a device that nothing has to wait for; `fused` has it compiled, as a part of a whole step,
and `ranks` by counts alone, where the numbers are spread over ranks.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INFINITY = 0x7F800000  # the bits of float32's infinity; those of NaN are above
DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, width) of the bits of a float32 >= 0, leading one first


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
    # As integers, the bits of such floats have the same order (NaN last), and are partitioned at twice the speed.
    rest, top = np.split(np.partition(metric.view(np.int32), metric.size - q), [metric.size - q])
    if top[0] == 0:
        rest, top = rest[:0], top[top > 0]
    if not top.size:
        return Top(0.0, 0, True)
    least, greatest = top.min(), top.max()
    if least > INFINITY:
        return Top(math.nan, np.count_nonzero(rest > INFINITY), False)
    return Top(float(least.view(np.float32)), np.count_nonzero(rest == least), bool(greatest < INFINITY))


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


def top_q_on_device(metric: Tensor, q: int) -> tuple[Tensor, Tensor]:
    """`top_q` and `chosen` without a look at a value from the host, which would have to wait for the device.

    Digit by digit: how many values have which leading digit, which digit the q-th greatest has, and again among those
    that share it.

    Args:
        metric: float32 [N], each entry >= 0, inf, or NaN (which ranks first).
        q: how many to choose, 0 < q <= N.

    Returns:
        The threshold, float32 [], and who is chosen, bool [N].
    """
    bits = metric.view(torch.int32)
    left = (bits > 0).sum().clamp(max=q)
    none, prefix, before = left == 0, bits.new_zeros(()), 31
    one = torch.ones((), dtype=torch.int64, device=bits.device)
    for shift, width in DIGITS:
        digit = (bits >> shift) & ((1 << width) - 1)
        bins = torch.where((bits >> before) == prefix, digit, 1 << width)  # what has another prefix goes to the end
        counts = torch.zeros((1 << width) + 1, dtype=torch.int64, device=bits.device)
        counts.scatter_add_(0, bins.long(), one.expand(bins.numel()))
        at_least = counts[:-1].flip(0).cumsum(0).flip(0)  # how many have this digit or a greater one
        found = (at_least >= left).sum() - 1
        greater = torch.cat((at_least[1:], counts.new_zeros(1))).gather(0, found.view(1)).squeeze(0)
        left, prefix, before = left - greater, (prefix << width) | found.int(), shift
    equal = (bits == prefix) & ~none
    passes = ((bits > prefix) & ~none) | (equal & (equal.cumsum(0) <= left))
    return torch.where(none, 0, prefix).int().view(torch.float32), passes
