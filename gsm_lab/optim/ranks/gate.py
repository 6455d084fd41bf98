"""GSM where the weights are spread over ranks (DTensors: FSDP2, tensor parallelism, HSDP): the gate and the cut.

The active set is that of one process with the same weights and gradients: the exact global top Q, ties to the lower
position in the whole model. What it costs is said in `exchange`: 32 KiB a step in two messages. Under DDP none of this
is needed: all ranks see the same averaged gradients, and the ordinary gate picks the same set on each of them.

The weights, too, are those of one process to the bit, where torch's kernels round every entry alike: in float32 the
default and foreach ones do. The fused ones, and all in bfloat16, may round the last few entries of a tensor in another
way than the others, and a part has other last entries than the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.radix import SMALLEST
from gsm_lab.optim.ranks.digits import Top
from gsm_lab.optim.ranks.group import RankLost, agree, is_distributed, local
from gsm_lab.optim.ranks.shards import SpreadMetric, placed_as

__all__ = ["RankLost", "ShardedGate", "agree", "on_shards"]

_pass_above = torch.ops.aten.threshold_backward.grad_input  # (grad, x, limit): grad where x > limit or NaN, else 0


class ShardedGate:
    """`gate.Gate` over tensors of which some are DTensors: every rank calls `close` at every step.

    Args:
        weights: the competing tensors, in the same order on all ranks; the rank may have none.
        others: the tensors that do not compete.
        name: what a tensor is called, for errors.
        complain: what is wrong with the gradient of a tensor, of which this rank's part is given; None: nothing.

    Attributes:
        count: N, all entries of the competing tensors; `size`: how many of them this rank has.
        threshold: the smallest T that passed at the last `close`, on any rank (float32).
        candidates: bool [size], who of this rank's entries may pass; None: everybody.
    """

    def __init__(
        self,
        weights: list[Tensor],
        others: list[Tensor],
        name: Callable[[Tensor], str],
        complain: Callable[[Tensor, Tensor], str | None],
    ) -> None:
        self.weights, self._others, self._complain = weights, others, complain
        self._metric = SpreadMetric(weights, others, name)
        self.count, self.size = self._metric.count, self._metric.size
        self.candidates: Tensor | None = None
        self._base = SMALLEST
        self.shut()

    def shut(self) -> None:
        """Nothing passed: how it is before the first step, and after one that was refused."""
        self.threshold, self._mask, self._open = 0.0, torch.zeros(self.size, dtype=torch.bool), False

    def restore(self, candidates: Tensor | None, threshold: float, active: Tensor) -> None:
        """Say of the last choice, and of who may pass, what another gate over equal tensors says on this rank."""
        self.candidates, self.threshold = candidates, threshold
        self._mask, self._open = active.clone(), False

    def _let_pass(self) -> None:
        if not self._open:
            self.threshold, self._mask, self._open = 0.0, torch.ones(self.size, dtype=torch.bool), True

    def close(self, q: int, may_be_written: bool, setting: str) -> list[tuple[Tensor, Tensor]]:
        """Choose the exact top `q` of T over all ranks, and gate; at q = count let everything pass.

        Args:
            q: how many gradients pass, on all ranks together.
            may_be_written: whether the caller's use of the result may write into it.
            setting: where q comes from, for the error.

        Returns:
            (tensor, this rank's part of its gated gradient) for each tensor, also the others, that has a gradient;
            valid until the next call.

        Raises:
            ValueError, FloatingPointError: on every rank in the same step, as `exchange.top_q`.
            RankLost: a rank did not answer.
        """
        grads = [_gradient(p) for p in self.weights]
        rest = [(p, grad) for p in self._others if (grad := _gradient(p)) is not None]
        try:
            top, mask = self._choose(q, grads, rest, setting, may_be_written)
        except Exception:
            self.shut()
            raise
        if may_be_written:
            rest = [(p, grad.clone()) for p, grad in rest]
        there = [i for i, grad in enumerate(grads) if grad is not None]
        if top is None:
            self._let_pass()
            return [(self.weights[i], grads[i].clone() if may_be_written else grads[i]) for i in there] + rest
        self.threshold, self._open = float(np.int32(top.bits).view(np.float32)), False
        self._base, self._mask = top.base, mask
        if mask is not None:
            masks = self._metric.split(mask)
            return [(self.weights[i], grads[i].masked_fill(~masks[i], 0.0)) for i in there] + rest
        # As in `gate`: one pass turns T into the gated gradient; "greater than the next number below" is "at least".
        below = float(np.nextafter(np.float32(self.threshold), np.float32(0.0)))
        views = self._metric.views
        return [(self.weights[i], _pass_above(grads[i], views[i], below, grad_input=views[i])) for i in there] + rest

    def _choose(
        self, q: int, grads: list[Tensor | None], rest: list[tuple[Tensor, Tensor]], setting: str, mask_anyway: bool
    ) -> tuple[Top | None, Tensor | None]:
        """The top, and the mask where T cannot become the gated gradient in one pass."""
        pairs = [(p, grad) for p, grad in zip(self.weights, grads, strict=True) if grad is not None]
        plain, unseen = True, pairs
        if q < self.count:  # T of what is counted shows whether all is finite; other ranks' copies are looked at here
            plain = self._measure(grads)
            copies = {part.tensor for part in self._metric.parts if not part.counted}
            unseen = [(p, grad) for p, grad in pairs if p in copies]
        wrong = self._first_complaint(unseen + rest)
        top = self._metric.top(q, self._base, setting, wrong, lambda: self._first_complaint(pairs))
        if top is None or (plain and top.finite and not top.left_out and not mask_anyway):
            return top, None
        return top, self._metric.chosen(top)

    def _first_complaint(self, pairs: list[tuple[Tensor, Tensor]]) -> str | None:
        return next((said for p, grad in pairs if (said := self._complain(p, grad))), None)

    def _measure(self, grads: list[Tensor | None]) -> bool:
        """Form T of this rank's parts; whether it can stand in for the gradients: all float32, contiguous, there."""
        plain = True
        for p, grad, t in zip(self.weights, grads, self._metric.views, strict=True):
            w = local(p)
            if grad is None:
                t.zero_()
            elif w.dtype == grad.dtype == torch.float32 and w.is_contiguous() and grad.is_contiguous():
                torch.mul(w, grad, out=t)
            else:
                t.copy_(w.float() * grad.float())
                plain = False
        self._metric.values.abs_()
        if self.candidates is not None:
            self._metric.values.masked_fill_(~self.candidates.to(self._metric.values.device), 0.0)
        return plain

    def active(self) -> Tensor:
        """Which of this rank's entries passed at the last step: bool [size], on the CPU; all False before the first."""
        if self._mask is None:  # a T that passed is positive, so its gradient is not zero
            self._mask = self._metric.values.bool()
        self._mask = self._mask.cpu()
        return self._mask

    def mask(self, p: Tensor) -> Tensor:
        """Which entries of a tensor passed: bool, placed as it is."""
        for other, mask in zip(self.weights, self._metric.split(self.active()), strict=True):
            if other is p:
                return placed_as(p, mask)
        raise ValueError(f"p, a tensor of shape {tuple(p.shape)}, is not among this optimizer's prunable tensors")


def _gradient(p: Tensor) -> Tensor | None:
    """This rank's part of a gradient; one that is a partial sum is summed first, as any optimizer has to."""
    grad = p.grad
    if grad is not None and is_distributed(p) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return None if grad is None else local(grad)


@contextmanager
def on_shards(optimizer: torch.optim.Optimizer, gradients: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """In its block the optimizer holds this rank's parts, plain tensors with the given gradients, in place of its own.

    So torch's kernels update the parts as they would plain tensors, also those that know no DTensors (fused), and
    without what each operation on a DTensor costs on top. What state they leave is kept for the optimizer's own
    tensors, as DTensors where these are. Tensors without a gradient are left out.

    Args:
        optimizer: any that keeps its state in `state`, by tensor.
        gradients: (one of its tensors, the gradient for this rank's part of it).
    """
    parts = {}
    with torch.no_grad():
        for p, grad in gradients:
            part = parts[p] = local(p).detach()
            part.grad = grad
            if p in optimizer.state:
                own = optimizer.state[p]
                optimizer.state[part] = {k: local(x) if isinstance(x, Tensor) else x for k, x in own.items()}
    held = [group["params"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"] = [parts[p] for p in group["params"] if p in parts]
        yield
    finally:
        for group, params in zip(optimizer.param_groups, held, strict=True):
            group["params"] = params
        for p, part in parts.items():
            _keep_state(optimizer, p, part)
            torch.autograd.graph.increment_version(p)


@torch.no_grad()
def _keep_state(optimizer: torch.optim.Optimizer, p: Tensor, part: Tensor) -> None:
    """What a step has left for a part goes to its tensor; tensors that were there are updated in place already."""
    for name, x in optimizer.state.pop(part, {}).items():
        own = optimizer.state[p]
        if not isinstance(x, Tensor):
            own[name] = x
        elif name not in own or local(own[name]).data_ptr() != x.data_ptr():
            own[name] = placed_as(p, x) if is_distributed(p) and x.shape == part.shape else x
