"""What ranks tell each other so that all take the exact global top Q: counts, never metrics.

The Q-th greatest of all metrics is found digit by digit (`radix`), with one message for each digit: how often each
value of the digit occurs among this rank's metrics.

The threshold moves by about a third from step to step. So ranks first look at what lies between half and double the
last one: two digits of 12 bits name every float in there, and two messages are enough. Where the new threshold is not
in there, all ranks see that in the counts, and go through all digits, so the answer never depends on the past.

What a rank sends in a step, whatever N and Q (a word is an int64; where N < 2^31, one holds two counts):

    22 + 2,048 words   the header: what must agree, and whether something is wrong here; counts of the leading digit
    2,048 words        counts of the second digit: 32.2 KiB so far, in two messages, and that is the usual step
    2,048 + 2 x 1,024  in place of that in the first step, and where the threshold has left the range: all three digits
    128 words          for every 7 bits of N, where ties at the threshold are left out
    1 word             where a metric is not finite

That is 57.2 KiB at the very most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gsm_lab.optim.radix import (
    DIGITS,
    INFINITY,
    NEAR,
    NEAR_UNPACKED,
    OCTAVE,
    PACKED,
    RANGE,
    SMALLEST,
    SumOverRanks,
    histogram,
    kth_greatest,
    pack,
    unpack,
)
from gsm_lab.optim.ranks.group import agreed, mean, signature


class Own(NamedTuple):
    """What one rank brings to the exchange.

    `n`, `q`: N and Q as this rank knows them, 0 and 0 where it has no prunable tensor and takes what the others say;
    `counted`: how many entries it counts; `base`: bits of the number from which two octaves most likely contain the
    threshold, `SMALLEST` where nothing is known; `setting`: where Q comes from, for the error; `wrong`: what is wrong
    with a number here, if anything.
    """

    n: int
    q: int
    counted: int
    base: int
    setting: str
    wrong: str | None


class Top(NamedTuple):
    """The result, the same on every rank.

    `bits`: of the smallest chosen value, 0 where none is positive; `kept`, `left_out`: how many of those equal to it
    are chosen and are not; `finite`: whether all chosen values are; `n`, `q`: N and Q; `base`: for the next step.
    """

    bits: int
    kept: int
    left_out: int
    finite: bool
    n: int
    q: int

    @property
    def base(self) -> int:
        """Half of the threshold: for the next step."""
        return min(max(SMALLEST, self.bits - OCTAVE), INFINITY - RANGE)


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
    found = above(own.base) if own.q < own.n else torch.empty(0, dtype=torch.int32)
    near, digits, packed = found, DIGITS, False
    if own.base > SMALLEST:
        near, packed = found[found < own.base + RANGE] - own.base, own.n < PACKED
        digits = NEAR if packed else NEAR_UNPACKED
    counts = histogram(near, *digits[0])
    header = _header(own, over=len(found) - len(near), odd=int((found >= INFINITY).sum()))
    together = total(torch.cat((torch.tensor(header, device=counts.device), pack(counts) if packed else counts)))
    words, counts = together[: len(header)].tolist(), together[len(header) :]
    n, q, base, over, odd = _read(words, own)
    if q == n:
        return None
    if odd:
        wrong = look()
        _refuse(wrong, int(total(torch.tensor([wrong is not None], dtype=torch.int64))))
    if base is not None and base > SMALLEST:
        counts, digits = (unpack(counts), NEAR) if n < PACKED else (counts, NEAR_UNPACKED)
        if over < q <= over + int(counts.sum()):
            ask = (lambda x: unpack(total(pack(x)))) if n < PACKED else total
            value, kept, equal = kth_greatest(near, q - over, digits, ask, counts)
            return Top(base + value, kept, equal - kept, not odd, n, q)
    if base != SMALLEST:
        found = above(base + RANGE if base and over >= q else SMALLEST)
        counts = total(histogram(found, *DIGITS[0]))
    positive = int(counts.sum())
    if not positive:
        return Top(0, 0, 0, True, n, q)
    value, kept, equal = kth_greatest(found, min(q, positive), DIGITS, total, counts)
    return Top(value, kept, equal - kept, not odd, n, q)


def _header(own: Own, over: int, odd: int) -> list[int]:
    numbers = signature(own.n, 3) + signature(own.q, 3) + signature(own.base, 2)
    return [1, int(own.n > 0), int(own.wrong is not None), own.counted, over, odd, *numbers]


def _read(words: list[int], own: Own) -> tuple[int, int, int | None, int, int]:
    """N, Q, the base (None where ranks used different ones), and how many values are above the range and not finite.

    From the sum of all headers; raises as `top_q`.
    """
    ranks, knowing, wrong, counted, over, odd = words[:6]
    n, q = agreed(words[6:12], knowing), agreed(words[12:18], knowing)
    if n is None or q is None:
        means = mean(words[12:18], knowing), mean(words[6:12], knowing)
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
    return n, q, agreed(words[18:], ranks), over, odd


def _refuse(here: str | None, ranks: int) -> None:
    if here:
        raise FloatingPointError(here)
    if ranks:
        raise FloatingPointError(
            f"NaN or infinity on {ranks} other rank{'s'[: ranks > 1]} (the error there names the parameter); "
            "no weight was changed"
        )
