"""The k-th greatest of integers that are spread over ranks, digit by digit, by counts alone.

Each rank counts how often each value of the leading digit occurs among its own (a histogram); the sum of the counts
over the ranks says which digit the k-th greatest has; then the next digit, among the values that have that one. The
bits of non-negative floats, read as integers, have the order of the floats (infinity above the finite, NaN above it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

INFINITY = 0x7F800000  # its bits; what is above is NaN
NAN = INFINITY + 1  # the one that stands for all
SMALLEST = 1  # bits of the smallest positive float32
OCTAVE = 1 << 23  # what the bits of a float differ by from those of its double
RANGE = 2 * OCTAVE
POSITION_WIDTH = 7
# (shift, width) of digits, leading one first: of a float32 >= 0; of what is in range; that, where a word is one count
DIGITS = ((20, 11), (10, 10), (0, 10))
NEAR = ((12, 12), (0, 12))
NEAR_UNPACKED = ((13, 11), (3, 10), (0, 3))
PACKED = 1 << 31  # below this N, counts fit in half a word

SumOverRanks = Callable[[Tensor], Tensor]  # int64 [n] of this rank -> int64 [n], the sum over all ranks


class Place(NamedTuple):
    """The k-th greatest `value`, how many of the values equal to it are among the k greatest, and how many exist."""

    value: int
    kept: int
    equal: int


def kth_greatest(
    values: Tensor, k: int, digits: Sequence[tuple[int, int]], total: SumOverRanks, counts: Tensor | None = None
) -> Place:
    """The k-th greatest of non-negative integers that are spread over ranks.

    Args:
        values: this rank's, int32 or int64 [n]; n may be 0 and differ between ranks.
        k: from 1 to the number of values on all ranks; the same on every rank.
        digits: (shift, width) in bits of each digit, leading one first.
        total: sums counts over the ranks; called once for each digit.
        counts: the sum for the leading digit, where it is known already.
    """
    found, here = 0, 0
    for shift, width in digits:
        if counts is None:
            counts = total(histogram(values, shift, width))
        at_least = counts.flip(0).cumsum(0).cpu()  # [i]: how many have one of the i + 1 greatest digits
        i = int(torch.searchsorted(at_least, k))
        digit, here = at_least.numel() - 1 - i, int(at_least[i] - at_least[i - 1]) if i else int(at_least[0])
        k -= int(at_least[i]) - here
        found |= digit << shift
        values = values[_digit(values, shift, width) == digit]
        counts = None
    return Place(found, k, here)


def histogram(values: Tensor, shift: int, width: int) -> Tensor:
    """How often each value of a digit occurs in integers: int64 [2 ** width], on their device."""
    return torch.bincount(_digit(values, shift, width), minlength=1 << width)


def _digit(values: Tensor, shift: int, width: int) -> Tensor:
    return (values >> shift) & ((1 << width) - 1)


def last_kept(positions: Tensor, keep: int, n: int, total: SumOverRanks) -> int:
    """The greatest of the `keep` lowest among distinct `positions`, int64, in 0..n-1, that are spread over ranks."""
    greatest = (1 << max(1, (n - 1).bit_length())) - 1
    shifts = range(0, greatest.bit_length(), POSITION_WIDTH)
    digits = [(shift, POSITION_WIDTH) for shift in reversed(shifts)]
    return greatest - kth_greatest(greatest - positions, keep, digits, total).value


def pack(counts: Tensor) -> Tensor:
    """Two counts in a word: sums of words hold the sums of both, as long as these are below 2^31."""
    return counts[0::2] + (counts[1::2] << 32)


def unpack(words: Tensor) -> Tensor:
    """The counts that are in the words."""
    return torch.stack((words & 0xFFFFFFFF, words >> 32), dim=1).flatten()
