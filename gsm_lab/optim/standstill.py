"""A gate with fewer weights to let through than it has places for: noticed, and said once."""

from __future__ import annotations

import warnings

import torch

from gsm_lab.optim.gate import Gate

AT_ONCE = 10  # steps in a row in which nothing passed, after which that is said
LOOK = 100  # steps to the next count of those that passed, after one that was too low; a count takes about a step
LOOKS = 5  # counts in a row that were too low, after which that is said: some epochs of a small data set
SELDOM = 10_000  # steps to the next count, at most, where all is well


class Standstill:
    """Counts the steps in which fewer than Q weights had T = |gradient * weight| > 0.

    Where a weight is zero its T is, and the gate never lets it move: LoRA's second matrix, which starts as zeros, and
    then the first, whose gradient is zero as long as the second is. A dense step or two set them going.
    """

    def __init__(self) -> None:
        self._steps = self._still = self._short = 0
        self._pause = self._next = LOOK
        self._said = False

    def after(self, gate: Gate, q: int) -> None:
        """To be called after each step; warns once.

        Does not look on an accelerator, which would be to wait, nor where the weights are spread over ranks.

        Args:
            gate: that of the step; `q`: how many it has places for.
        """
        if type(gate) is not Gate or type(gate.threshold) is not float:
            return
        self._steps += 1
        self._still = self._still + 1 if gate.threshold == 0.0 else 0  # also where the gate is open
        if self._still == AT_ONCE and q < gate.count:
            self._say(f"no weight has had T = |gradient * weight| > 0 in {AT_ONCE} steps", gate)
        if self._steps >= self._next and not self._said and (few := self._too_few(gate, q)):
            self._say(few, gate)

    def _too_few(self, gate: Gate, q: int) -> str:
        """What is to be said where it was so often enough, else nothing."""
        passed = int(gate.active().sum())
        self._short = self._short + 1 if passed < q < gate.count and gate.candidates is None else 0
        enough = self._short == LOOKS
        if enough and sum(int(p.count_nonzero()) for p in gate.weights) <= q and all(map(torch.any, gate.weights)):
            self._short, enough = 0, False  # the network was cut, and what is left trains
        self._pause = LOOK if self._short else min(2 * self._pause, SELDOM)
        self._next = self._steps + self._pause
        if not enough:
            return ""
        n = LOOK * LOOKS
        return f"for {n} steps fewer than Q = {q:,} weights have had T = |gradient * weight| > 0, now {passed:,}"

    @torch.no_grad()
    def _say(self, what: str, gate: Gate) -> None:
        weights = {gate.name(p).partition(", ")[0]: p for p in gate.weights}
        zero = [name for name, p in weights.items() if not p.any()]
        idle = [name for name, p in weights.items() if p.grad is None or not p.grad.any()]
        if self._said or len(idle) == len(weights):  # SGD would not move them either
            return
        self._said = True
        why = [f"{is_}: {', '.join(some[:3])}" for is_, some in (("all zeros", zero), ("no gradient", idle)) if some]
        warnings.warn(
            f"{what}, and the others do not train ({'; '.join(why) or 'single weights or gradients are zero'}). Take "
            "dense steps first (compression=1; in a Run pretrain=), start from other values, or raise compression",
            stacklevel=6,
        )
