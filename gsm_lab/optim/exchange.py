"""What ranks tell each other so that all take the exact global top Q: counts, never metrics.

The bits of non-negative floats, read as integers, have the order of the floats (infinity above the finite, NaN above
it). So the Q-th greatest of values that are spread over ranks is found digit by digit: each rank counts how often each
value of the leading digit occurs among its own, the counts are summed over the ranks, and the sum says which digit the
Q-th greatest has; then the next digit, among the values that have that one.

What a rank sends in a step, whatever N and Q, in int64:

    20 words        the header: what must agree, and whether something is wrong here
    2,048 counts    leading digit (exponent and three bits), in the same message
    1,024 counts    each of two more digits                                          32.2 KiB in three messages so far
    2,048 counts    leading digit again, in a step whose bound was too high
    128 counts      for every 7 bits of N, where ties at the threshold are left out  57.2 KiB at the very most
    1 word          where a metric is not finite

The bound is a quarter of the last step's threshold (which moves by about a third in a step): only values that reach it
are looked at. Should fewer than Q of them exist, all ranks see that in the counts and look at every positive value, so
the answer never depends on the past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

INFINITY = 0x7F800000  # its bits; what is above is NaN
NAN = INFINITY + 1  # the one that stands for all
SMALLEST = 1  # bits of the smallest positive float32
DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, width) of the digits of a non-negative float32, leading one first
POSITION_WIDTH = 7

SumOverRanks = Callable[[Tensor], Tensor]  # int64 [n] of this rank -> int64 [n], the sum over all ranks


class RankLost(RuntimeError):
    """Another rank did not answer during the gate's exchange; no weight of this rank was changed in this step."""


class Ranks:
    """The ranks over which the weights of a model are spread.

    Args:
        groups: process groups whose sums, one after the other, reach every rank: one, or one for each dimension of a
            mesh.
        device: where their backend takes tensors.
    """

    def __init__(self, groups: Sequence[ProcessGroup], device: torch.device | str) -> None:
        self.groups, self.device = [g for g in groups if dist.get_world_size(g) > 1], device

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all ranks of int64 [n]; raises RankLost where a rank does not answer in the group's time-out."""
        counts = counts.to(self.device)
        try:
            for group in self.groups:
                dist.all_reduce(counts, group=group)
        except RuntimeError as lost:
            raise RankLost(
                "another rank did not answer within the process group's time-out while the ranks were choosing the "
                "active weights; no weight of this rank was changed in this step. Resume from the last checkpoint"
            ) from lost
        return counts


# -- the k-th greatest ---------------------------------------------------------------------------------------------


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


# -- the header ------------------------------------------------------------------------------------------------------


class Own(NamedTuple):
    """What one rank brings to the exchange.

    `n`, `q`: N and Q as this rank knows them, 0 and 0 where it has no prunable tensor and takes what the others say;
    `counted`: how many entries it counts; `bound`: bits of a number that the Q-th greatest most likely reaches;
    `setting`: where Q comes from, for the error; `wrong`: what is wrong with a number here, if anything.
    """

    n: int
    q: int
    counted: int
    bound: int
    setting: str
    wrong: str | None


class Top(NamedTuple):
    """The result, the same on every rank.

    `bits`: of the smallest chosen value, 0 where none is positive; `kept`, `left_out`: how many of those equal to it
    are chosen and are not; `finite`: whether all chosen values are; `n`, `q`: N and Q.
    """

    bits: int
    kept: int
    left_out: int
    finite: bool
    n: int
    q: int


def top_q(own: Own, above: Callable[[int], Tensor], look: Callable[[], str | None], total: SumOverRanks) -> Top | None:
    """The exact top Q of non-negative float32 values that are spread over ranks; every rank gets the same answer.

    Args:
        own: what this rank knows.
        above: the bits, int32 [m], of this rank's values that reach a bound; those of NaN as `NAN`.
        look: called where a value is not finite somewhere: what is wrong with this rank's gradients, or None.
        total: sums int64 counts over the ranks.

    Returns:
        None where Q = N: all are chosen.

    Raises, on every rank in the same step:
        ValueError: ranks disagree on N or Q, or their parts do not make up the whole.
        FloatingPointError: a number is not finite, on this rank or on another.
    """
    found = above(own.bound) if own.q < own.n else torch.empty(0, dtype=torch.int32)
    counts = histogram(found, *DIGITS[0])
    header = torch.tensor(_header(own), device=counts.device)
    together = total(torch.cat((header, counts)))
    words, counts = together[: header.numel()].tolist(), together[header.numel() :]
    n, q, bound = _read(words, own)
    if q == n:
        return None
    positive = int(counts.sum())
    if positive < q and bound != SMALLEST:
        found = above(SMALLEST)
        counts = total(histogram(found, *DIGITS[0]))
        positive = int(counts.sum())
    if not positive:
        return Top(0, 0, 0, True, n, q)
    finite = not int(counts[INFINITY >> DIGITS[0][0] :].sum())
    if not finite:
        wrong = look()
        _refuse(wrong, int(total(counts.new_tensor([wrong is not None]))))
    value, kept, equal = kth_greatest(found, min(q, positive), DIGITS, total, counts)
    return Top(value, kept, equal - kept, finite, n, q)


_PIECE = 20  # bits: a million ranks can add the squares of such numbers in an int64


def signature(number: int, pieces: int) -> list[int]:
    """A number in pieces of 20 bits, and their squares: from the sums of these `agreed` sees whether all were equal."""
    parts = [number >> _PIECE * i & (1 << _PIECE) - 1 for i in range(pieces)]
    return parts + [part * part for part in parts]


def agreed(sums: Sequence[int], ranks: int) -> int | None:
    """The number whose `signature` every rank has sent, None where they differ: then some piece has a variance."""
    half = len(sums) // 2
    if any(ranks * square != piece * piece for piece, square in zip(sums[:half], sums[half:], strict=True)):
        return None
    return sum(piece // max(ranks, 1) << _PIECE * i for i, piece in enumerate(sums[:half]))


def mean(sums: Sequence[int], ranks: int) -> float:
    """The mean of the numbers whose signatures were summed."""
    return sum(piece << _PIECE * i for i, piece in enumerate(sums[: len(sums) // 2])) / max(ranks, 1)


def _header(own: Own) -> list[int]:
    knows = own.n > 0
    numbers = signature(own.n, 3) + signature(own.q, 3) + signature(own.bound, 2)
    return [1, int(knows), int(own.wrong is not None), own.counted, *numbers]


def _read(words: list[int], own: Own) -> tuple[int, int, int | None]:
    """N, Q, and the bound (None where ranks used different ones), from the sum of all headers; raises as `top_q`."""
    ranks, knowing, wrong, counted = words[:4]
    n, q = agreed(words[4:10], knowing), agreed(words[10:16], knowing)
    if n is None or q is None:
        means = mean(words[10:16], knowing), mean(words[4:10], knowing)
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
    return n, q, agreed(words[16:20], ranks)


def _refuse(here: str | None, ranks: int) -> None:
    if here:
        raise FloatingPointError(here)
    if ranks:
        raise FloatingPointError(
            f"NaN or infinity on {ranks} other rank{'s'[: ranks > 1]} (the error there names the parameter); "
            "no weight was changed"
        )
