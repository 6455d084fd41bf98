"""What ranks tell each other so that all take the exact global top Q: counts, never metrics.

The Q-th greatest of all metrics is found digit by digit. The bits of non-negative floats, read as integers, have the
order of the floats (infinity above the finite, NaN above it). Each rank counts how often each value of the leading
digit occurs among its own; the sum of the counts over the ranks says which digit the Q-th greatest has; then the next
digit, among the values that have that one. What a rank sends in a step, whatever N and Q (a word is an int64):

    16 + 2,048 words   the header: what must agree, and whether something is wrong here; counts of the leading digit
    2 x 1,024 words    counts of the two other digits: 32.1 KiB so far, in three messages, and that is the usual step
    128 words          for every 7 bits of N, where ties at the threshold are left out
    1 word             where a metric is not finite

That is 41.1 KiB at the very most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gsm_lab.optim.ranks.group import agreed, mean, signature
from gsm_lab.optim.selection import DIGITS, INFINITY

NAN = INFINITY + 1  # the bits that stand for all NaN
POSITION_WIDTH = 7  # bits of a digit of a position
HEADER = 4 + 2 * len(signature(0, 3))  # words

SumOverRanks = Callable[[Tensor], Tensor]  # int64 [n] of this rank -> int64 [n], the sum over all ranks


class Own(NamedTuple):
    """What one rank brings to the exchange.

    `n`, `q`: N and Q as this rank knows them, 0 and 0 where it has no prunable tensor and takes what the others say;
    `counted`: how many entries it counts; `setting`: where Q comes from, for the error; `wrong`: what is wrong with a
    number here, if anything.
    """

    n: int
    q: int
    counted: int
    setting: str
    wrong: str | None


class Top(NamedTuple):
    """The result, the same on every rank.

    `bits`: of the smallest chosen value, 0 where none is positive; `kept`, `left_out`: how many of those equal to it
    are chosen and are not; `finite`: whether all chosen values are; `n`: N.
    """

    bits: int
    kept: int
    left_out: int
    finite: bool
    n: int


def top_q(own: Own, values: Callable[[], Tensor], look: Callable[[], str | None], total: SumOverRanks) -> Top | None:
    """The exact top Q of non-negative float32 values that are spread over ranks; every rank gets the same answer.

    Args:
        own: what this rank knows.
        values: the bits, int32 [m], of this rank's positive values; those of NaN as `NAN`.
        look: called where a value is not finite somewhere: what is wrong with this rank's gradients, or None.
        total: sums int64 counts over the ranks.

    Returns:
        None where Q = N: all are chosen.

    Raises, on every rank in the same step:
        ValueError: ranks disagree on N or Q, or their parts do not make up the whole.
        FloatingPointError: a number is not finite, on this rank or on another.
    """
    found = values() if own.q < own.n else torch.empty(0, dtype=torch.int32)
    counts = histogram(found, *DIGITS[0])
    numbers = signature(own.n, 3) + signature(own.q, 3)
    odd = int((found >= INFINITY).sum())
    header = [int(own.n > 0), int(own.wrong is not None), own.counted, odd, *numbers]
    words, counts = total(torch.cat((torch.tensor(header, device=counts.device), counts))).split([HEADER, len(counts)])
    n, q, odd = _read(words.tolist(), own)
    if q == n:
        return None
    if odd:
        wrong = look()
        _refuse(wrong, int(total(torch.tensor([wrong is not None], dtype=torch.int64))))
    if not (positive := int(counts.sum())):
        return Top(0, 0, 0, True, n)
    bits, kept, equal = kth_greatest(found, min(q, positive), DIGITS, total, counts)
    return Top(bits, kept, equal - kept, not odd, n)


def _read(words: list[int], own: Own) -> tuple[int, int, int]:
    """N, Q, and how many values are not finite: from the sum of all headers; raises as `top_q`."""
    knowing, wrong, counted, odd, *numbers = words
    n, q = agreed(numbers[:6], knowing), agreed(numbers[6:], knowing)
    if n is None or q is None:
        means = mean(numbers[6:], knowing), mean(numbers[:6], knowing)
        raise ValueError(
            f"ranks disagree on how many weights stay: {own.setting} on this rank, Q = {own.q:,} of N = {own.n:,}; "
            f"the means over {knowing} ranks are Q = {means[0]:,.1f} and N = {means[1]:,.1f}. Give every rank the same "
            "model and the same compression; no weight was changed"
        )
    if counted != n:
        raise ValueError(
            f"the parts of the prunable tensors on all ranks have {counted:,} entries, and the tensors {n:,}: they lie "
            "on meshes of which none holds all the others, so entries cannot be counted once; no weight was changed"
        )
    _refuse(own.wrong, wrong)
    return n, q, odd


def _refuse(here: str | None, ranks: int) -> None:
    if here:
        raise FloatingPointError(here)
    if ranks:
        raise FloatingPointError(
            f"NaN or infinity on {ranks} other rank{'s'[: ranks > 1]} (the error there names the parameter); "
            "no weight was changed"
        )


def kth_greatest(
    values: Tensor, k: int, digits: Sequence[tuple[int, int]], total: SumOverRanks, counts: Tensor | None = None
) -> tuple[int, int, int]:
    """The k-th greatest of non-negative integers that are spread over ranks.

    Args:
        values: this rank's, int32 or int64 [n]; n may be 0 and differ between ranks.
        k: from 1 to the number of values on all ranks; the same on every rank.
        digits: (shift, width) in bits of each digit, leading one first.
        total: sums counts over the ranks; called once for each digit.
        counts: the sum for the leading digit, where it is known already.

    Returns:
        The value, how many of those equal to it are among the k greatest, and how many there are.
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
    return found, k, here


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
    return greatest - kth_greatest(greatest - positions, keep, digits, total)[0]
