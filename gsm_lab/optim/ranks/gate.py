"""The gate where the weights are spread over ranks (DTensors: FSDP2, tensor parallelism, HSDP).

The active set is that of one process with the same weights and gradients: the exact global top Q, ties to the lower
position in the whole model. What it costs is said in `digits`: 32 KiB a step in three messages. Under DDP none of this
is needed: all ranks see the same averaged gradients, and the ordinary gate picks the same set on each of them.

The weights, too, are those of one process to the bit, where torch's kernels round every entry alike: in float32 the
default and foreach ones do. The fused ones, and all in bfloat16, may round the last few entries of a tensor in another
way than the others, and a part has other last entries than the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.gate import Choice, GatedGradients, complaint, measure, pass_above
from gsm_lab.optim.ranks.digits import Top
from gsm_lab.optim.ranks.group import is_distributed, local
from gsm_lab.optim.ranks.shards import ShardedMetric, placed_as


class ShardedGate(Choice):
    """`gate.Gate` over tensors of which some are DTensors: every rank calls `close` at every step.

    Args:
        weights: the competing tensors, in the same order on all ranks; the rank may have none.
        others: the tensors that do not compete.
        name: what a tensor is called, for errors.

    `count` and `sizes` are of all ranks together; what is as long as `size` is of this rank's entries.
    """

    def __init__(self, weights: list[Tensor], others: list[Tensor], name: Callable[[Tensor], str]) -> None:
        super().__init__(weights, others, name)
        self._metric = ShardedMetric(weights, others, name)
        self.size = self._metric.size

    @torch.no_grad()
    def close(
        self, q: int, own: dict[str, Any], state: dict[Tensor, Any], writes: bool, differentiable: bool
    ) -> GatedGradients:
        """Choose the exact top `q` of T over all ranks, and gate; at q = count let everything pass.

        Args:
            q: how many gradients pass, on all ranks together.
            own: what the gate is asked to do, which q comes from.
            writes: whether the step may write into gradients.
            state, differentiable: not looked at.

        Returns:
            (tensor, this rank's part of its gated gradient) for each tensor, also the others, that has a gradient;
            valid until the next call.

        Raises:
            ValueError: a smoothed gate; and, on every rank in the same step, as `digits.top_q`.
            FloatingPointError: on every rank in the same step, as `digits.top_q`.
            RankLost: a rank did not answer.
        """
        if own["smoothing"]:
            raise ValueError(f"smoothing must be 0 where weights are spread over ranks, got {own['smoothing']}")
        setting = " and ".join(f"{k}={own[k]}" for k in ("compression", "nonzeros") if own[k] is not None)
        grads = [_gradient(p) for p in self.weights]
        rest = [(p, grad) for p in self.others if (grad := _gradient(p)) is not None]
        try:
            top, mask = self._choose(q, grads, rest, setting, writes)
        except Exception:
            self.passed(0.0, False)
            raise
        if writes:
            rest = [(p, grad.clone()) for p, grad in rest]
        there = [i for i, grad in enumerate(grads) if grad is not None]
        if top is None:
            self.passed(0.0, True)
            return [(self.weights[i], grads[i].clone() if writes else grads[i]) for i in there] + rest
        threshold = float(np.int32(top.bits).view(np.float32))
        if mask is not None:
            self.passed(threshold, mask)
            masks = self._metric.split(mask)
            return [(self.weights[i], grads[i].masked_fill(~masks[i], 0.0)) for i in there] + rest
        self.passed(threshold, self._metric.values.bool)  # a T that passed is positive, so its gradient is not zero
        # As in `gate`: one pass turns T into the gated gradient; "greater than the next number below" is "at least".
        below = float(np.nextafter(np.float32(threshold), np.float32(0.0)))
        views = self._metric.views
        return [(self.weights[i], pass_above(grads[i], views[i], below, grad_input=views[i])) for i in there] + rest

    def _choose(
        self, q: int, grads: list[Tensor | None], rest: list[tuple[Tensor, Tensor]], setting: str, mask_anyway: bool
    ) -> tuple[Top | None, Tensor | None]:
        """The top, and the mask where T cannot become the gated gradient in one pass."""
        pairs = [(p, grad) for p, grad in zip(self.weights, grads, strict=True) if grad is not None]
        plain, unseen = True, pairs
        if q < self.count:  # T of what is counted shows whether all is finite; other ranks' copies are looked at here
            plain = measure(
                [*map(local, self.weights)], grads, self._metric.views, self._metric.values, self.candidates
            )
            copies = {part.tensor for part in self._metric.parts if not part.counted}
            unseen = [(p, grad) for p, grad in pairs if p in copies]
        wrong = self._first_complaint(unseen + rest)
        top = self._metric.top(q, setting, wrong, lambda: self._first_complaint(pairs))
        if top is None or (plain and top.finite and not top.left_out and not mask_anyway):
            return top, None
        return top, self._metric.chosen(top)

    def _first_complaint(self, pairs: list[tuple[Tensor, Tensor]]) -> str | None:
        return next((said for p, grad in pairs if (said := complaint(self.name, p, grad, " of this rank"))), None)

    def _part(self, i: int) -> Tensor:
        return placed_as(self.weights[i], self._metric.split(self.active())[i])

    @contextmanager
    def lent(self, optimizer: torch.optim.Optimizer, gated: GatedGradients) -> Iterator[None]:
        """In its block the optimizer holds this rank's parts, plain tensors with these gradients, in place of its own.

        So torch's kernels update the parts as they would plain tensors, also those that know no DTensors (fused), and
        without what each operation on a DTensor costs on top. What state they leave is kept for the optimizer's own
        tensors, as DTensors where these are. Tensors without a gradient are left out.
        """
        parts = {}
        with torch.no_grad():
            for p, grad in gated:
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


def _gradient(p: Tensor) -> Tensor | None:
    """This rank's part of a gradient; one that is a partial sum is summed first, as any optimizer has to."""
    grad = p.grad
    if grad is not None and is_distributed(p) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return None if grad is None else local(grad)


@torch.no_grad()
def _keep_state(optimizer: torch.optim.Optimizer, p: Tensor, part: Tensor) -> None:
    """What a step has left for a part goes to its tensor; tensors that were there are updated in place already."""
    for name, x in optimizer.state.pop(part, {}).items():
        own = optimizer.state[p]
        if not isinstance(x, Tensor):
            own[name] = x
        elif name not in own or local(own[name]).data_ptr() != x.data_ptr():
            own[name] = placed_as(p, x) if is_distributed(p) and x.shape == part.shape else x
