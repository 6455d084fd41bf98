"""The gate: from the gradients of the prunable tensors to gradients in which only the top Q of |g * w| are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.selection import chosen, top_q, top_q_on_device

# (grad, x, limit): grad where x > limit or NaN, else 0
pass_above = torch.ops.aten.threshold_backward.grad_input
GatedGradients = list[tuple[Tensor, Tensor]]  # a tensor, and the gradient that a step is to use in place of its own


class Choice:
    """Who passed a gate the last time, and who may pass: what every kind of gate has.

    Attributes:
        weights, others, name: as they were given. sizes, count: how many entries each of the weights has, and N, all.
        size: how many of them are here.
        threshold: the smallest T that passed (float32; 0.0 before the first step, and while the gate is open; on an
            accelerator a tensor).
        candidates: bool [size], who may pass; None: everybody.
    """

    def __init__(self, weights: list[Tensor], others: list[Tensor], name: Callable[[Tensor], str]) -> None:
        self.weights, self.others, self.name = weights, others, name
        self.sizes = [p.numel() for p in weights]
        self.count = self.size = sum(self.sizes)
        self.candidates: Tensor | None = None
        self.passed(0.0, False)

    def passed(self, threshold: float | Tensor, mask: bool | Tensor | Callable[[], Tensor]) -> None:
        """Set the result of a choice: the threshold, and who passed: all or nobody, bool [size], or how to find out.

        Nobody has before the first step, and after one that was refused.
        """
        self.threshold, self._mask = threshold, mask

    def active(self) -> Tensor:
        """Who passed at the last step: bool [size], on the CPU or where the weights are; all False before the first."""
        if isinstance(self._mask, bool):
            self._mask = torch.full((self.size,), self._mask)
        elif not isinstance(self._mask, Tensor):
            self._mask = self._mask()
        return self._mask

    def mask(self, p: Tensor) -> Tensor:
        """`active` for one of the tensors: bool, of its shape, placed as it is. Raises ValueError for any other."""
        for i, other in enumerate(self.weights):
            if other is p:
                return self._part(i)
        what = f"a tensor of shape {tuple(p.shape)}" if isinstance(p, Tensor) else f"a {type(p).__name__}"
        raise ValueError(f"p, {what}, is not among this optimizer's prunable tensors")


class Gate(Choice):
    """The metric T = |dL/dw * w| of a fixed list of tensors, and the gradients that pass its global top Q.

    Args:
        weights: the competing tensors; the flat order of everything here is theirs, row-major within each.
        others: the tensors that do not compete: all of their gradients pass.
        name: what a tensor is called, for errors.
    """

    _buffer: Tensor | None = None

    @torch.no_grad()
    def close(
        self, q: int, own: dict[str, Any], state: dict[Tensor, Any], writes: bool, differentiable: bool
    ) -> GatedGradients:
        """Form T from the current weights and gradients, choose the exact top `q`, and gate; at q = count all pass.

        Args:
            q: how many gradients pass, 0 < q <= count (fewer where fewer T are positive).
            own: what the gate is asked to do; here its `smoothing` counts.
            state: of the optimizer, in which the averages of a smoothed gate are kept.
            writes: whether the step may write into gradients.
            differentiable: whether somebody differentiates through the step; the mask is then taken as given.

        Returns:
            The tensors whose gradients are to be exchanged for the step, and for what; valid until the next call.

        Raises:
            FloatingPointError: a gradient is not finite; the gate is shut then.
        """
        for p in self.others:
            self._refuse_non_finite(p)
        averages = self._averages(own["smoothing"], state) if own["smoothing"] else None
        if q == self.count:
            gated, finite = [], False
            self.passed(0.0, True)
        else:
            gated, finite = self._choose(q, averages, in_place=not (writes or differentiable))
        if not finite:  # where the gradients are finite, T overflowed float32: it ranks first, as it should
            for p in self.weights:
                self._refuse_non_finite(p)
        if gated is None:
            with torch.set_grad_enabled(differentiable):
                gated = self.passing()
        if writes:
            there = {p for p, _ in gated}
            gated += [
                (p, p.grad.clone()) for p in (*self.weights, *self.others) if p.grad is not None and p not in there
            ]
        return gated

    def _choose(self, q: int, averages: list[Tensor] | None, in_place: bool) -> tuple[GatedGradients | None, bool]:
        """The gated gradients, where one pass turns T into them, and whether all T are finite."""
        if not self.weights[0].is_cpu:
            self.choose_on_device(q, averages)
            return None, bool(torch.isfinite(self._buffer.max()))
        plain = self._measure(averages)
        metric = self._buffer.numpy()
        top = top_q(metric, q)
        if not (in_place and plain and top.finite) or top.ties_left_out or averages is not None:
            self.passed(top.threshold, torch.from_numpy(chosen(metric, top)))
            return None, top.finite
        # One pass turns the buffer from T into the gated gradient. The kernel passes what is greater than a number, and
        # "greater than the next number below the threshold" is "at least the threshold".
        below = float(np.nextafter(np.float32(top.threshold), np.float32(0.0)))
        pairs = [(p, t) for p, t in zip(self.weights, self._parts, strict=True) if p.grad is not None]
        gated = [(p, pass_above(p.grad, t, below, grad_input=t)) for p, t in pairs]
        self.passed(top.threshold, self._buffer.bool)  # a T that passed is positive, so its gradient is not zero
        return gated, True

    def choose_on_device(self, q: int, averages: list[Tensor] | None = None) -> None:
        """The choice without waiting for the device; what is not finite passes first, and is for others to find."""
        self._measure(averages)
        self.passed(*top_q_on_device(self._buffer, q))

    def passing(self) -> GatedGradients:
        """The gradients of the last choice that pass, and zeros, in new memory: of each tensor that has a gradient."""
        return [(p, _where(self.mask(p), p.grad)) for p in self.weights if p.grad is not None]

    @contextmanager
    def lent(self, optimizer: torch.optim.Optimizer, gated: GatedGradients) -> Iterator[None]:
        """In its block tensors have these gradients in place of their own."""
        given = [p.grad for p, _ in gated]
        try:
            for p, grad in gated:
                p.grad = grad
            yield
        finally:
            for (p, _), grad in zip(gated, given, strict=True):
                p.grad = grad

    def _part(self, i: int) -> Tensor:
        return self.active().split(self.sizes)[i].view(self.weights[i].shape).to(self.weights[i].device)

    def _averages(self, smoothing: float, state: dict[Tensor, Any]) -> list[Tensor]:
        """The smoothed |gradients| of the competing tensors, brought up to date."""
        for p in self.weights:  # a gradient that is refused must not be in an average
            self._refuse_non_finite(p)
        averages = []
        for p in self.weights:
            if "gradient_average" not in state[p]:
                state[p]["gradient_average"] = torch.zeros_like(p)
            averages.append(state[p]["gradient_average"].mul_(smoothing))
            if p.grad is not None:
                averages[-1].add_(_dense(p.grad).abs(), alpha=1 - smoothing)
        return averages

    def _measure(self, averages: list[Tensor] | None) -> bool:
        """Fill the buffer with T, of the gradients or of averages of them; returns what `measure` does."""
        grads, place = averages or [p.grad for p in self.weights], self.weights[0].device
        if self._buffer is None or self._buffer.device != place:
            self._buffer = torch.empty(self.count, dtype=torch.float32, device=place)
            parts = self._buffer.split(self.sizes)
            self._parts = [t.view(p.shape) for p, t in zip(self.weights, parts, strict=True)]
        return measure(self.weights, grads, self._parts, self._buffer, self.candidates)

    def _refuse_non_finite(self, p: Tensor) -> None:
        if p.grad is not None and (said := complaint(self.name, p, p.grad)):
            self.passed(0.0, False)
            raise FloatingPointError(said)


def measure(
    weights: list[Tensor], grads: list[Tensor | None], parts: list[Tensor], buffer: Tensor, candidates: Tensor | None
) -> bool:
    """Form T of tensors in the parts of a buffer, 0 where there is no gradient, and for those that are no candidates.

    Returns whether the buffer can stand in for the gradients: all are float32, contiguous, and on its device.
    """
    plain = True
    for p, grad, t in zip(weights, grads, parts, strict=True):
        if grad is None:
            t.zero_()
        elif grad.device == t.device and _is_plain(p) and _is_plain(grad):
            torch.mul(p, grad, out=t)
        else:
            t.copy_(p.float() * _dense(grad).float())
            plain = False
    buffer.abs_()
    if candidates is not None:
        buffer.masked_fill_(~candidates.to(buffer.device), 0.0)
    return plain


def complaint(name: Callable[[Tensor], str], p: Tensor, grad: Tensor, where: str = "") -> str | None:
    """What is wrong with the gradient of `p`, or with the part of it that is somewhere, if something is."""
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values() if grad.is_sparse else grad.to_dense()
    # the sum is one pass without a temporary, but may overflow where all is finite: it only raises suspicion
    total = grad.sum().item()
    if total - total == 0 or (finite := torch.isfinite(grad)).all():
        return None
    place = int((~finite).reshape(-1).to(torch.uint8).argmax())
    return (
        f"the gradient of {name(p)} holds {grad.reshape(-1)[place].item()} at flat position {place:,}{where}; "
        "no weight was changed. Lower the learning rate, or look for a division by zero in the loss"
    )


def _is_plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.layout is torch.strided and x.is_contiguous()


def _dense(grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else grad.to_dense()


def _where(mask: Tensor, grad: Tensor) -> Tensor:
    """A gradient where the mask is set, else zero; a sparse one keeps the entries that it has."""
    if not grad.is_sparse:
        return _dense(grad).masked_fill(~mask, 0.0)
    grad = grad.coalesce()
    values = grad.values().masked_fill(~mask[tuple(grad.indices())], 0.0)
    return torch.sparse_coo_tensor(grad.indices(), values, grad.shape, check_invariants=False, is_coalesced=True)
