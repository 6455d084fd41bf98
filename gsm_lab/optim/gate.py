"""The gate: from the gradients of the prunable tensors to gradients in which only the top Q of |g * w| are left."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim import accelerator as device
from gsm_lab.optim.blocks import Blocks
from gsm_lab.optim.passes import LARGE
from gsm_lab.optim.selection import chosen, top_q
from gsm_lab.optim.whole import Whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from gsm_lab.optim.passes import Passes, Settings

_pass_above = torch.ops.aten.threshold_backward.grad_input  # (grad, x, limit): grad where x > limit or NaN, else 0
_NOTHING = torch.zeros(())  # what `torch.where(out=)` takes, which wants a tensor


@cache
def compiled() -> ModuleType | None:
    """The compiled passes, where numba is installed. The first call ever takes seconds, later ones half of one."""
    try:
        from gsm_lab.optim.fused import step as compiled
    except (ImportError, RuntimeError):  # the latter where numba finds no folder to keep its compiled code in
        return None
    return compiled


class Gate:
    """The metric T = |dL/dw * w| of a fixed list of tensors, and the gradients that pass its global top Q.

    Args:
        weights: the competing tensors; the flat order of everything here is theirs, row-major within each.

    Attributes:
        threshold: the smallest T that passed at the last `close` (float32; 0.0 before, and while the gate is open; on
            an accelerator a tensor).
        candidates: bool [count], who may pass; None: everybody.
        sizes: how many entries each tensor has.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        self.sizes = [p.numel() for p in weights]
        self.count = sum(self.sizes)
        self._buffer: Tensor | None = None
        self._numpy: np.ndarray | None = None
        self._passes: Passes | None = None
        self._listed: list[Tensor] = []
        self.candidates: Tensor | None = None
        self._masked: list[Tensor] = []  # gradients of the candidates: the passes read at their addresses
        self.shut()

    def shut(self) -> None:
        """Nothing passed: how it is before the first step, and after one that was refused."""
        self.threshold, n = 0.0, self.count  # (what is asked later must not hold the gate: it would hold itself)
        self._passed(lambda: torch.zeros(n, dtype=torch.bool))

    def open(self) -> None:
        """Let every gradient pass, until `close`."""
        self.threshold, n = 0.0, self.count
        self._passed(lambda: torch.ones(n, dtype=torch.bool))

    def restore(self, candidates: Tensor | None, threshold: float, active: Tensor) -> None:
        """Say of the last choice, and of who may pass, what another gate over equal tensors says."""
        self.candidates, self.threshold = candidates, threshold
        self._passed(active)

    def _passed(self, mask: Tensor | Callable[[], Tensor]) -> None:
        """Who passed: bool [count], or how to make that when it is asked for."""
        self._mask = mask

    def step(self, q: int, others: list[Tensor], momenta: list[Tensor], settings: list[Settings]) -> bool:
        """Do a whole step of fused SGD on the competing tensors and on `others`, in two passes (`passes.Passes`).

        Args:
            q: how many gradients pass, 0 < q < count.
            others: tensors that do not compete.
            momenta: the momentum buffers of the competing tensors, then of the others.
            settings: of each of them; a momentum of 0 stands for the first step.

        Returns:
            False where that is left to PyTorch (other types and devices, NaN, ...); nothing has changed then.
        """
        if not (passes := self._two_passes(others)):
            return False
        threshold = passes.step(q, momenta, settings)
        if threshold is None:
            self.shut()
            return False
        self.threshold = threshold
        self._passed(lambda: torch.from_numpy(passes.active()))
        torch.autograd.graph.increment_version([*self._listed, *momenta])
        return True

    def close(
        self, q: int, may_be_written: bool, averages: list[Tensor] | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], bool]:
        """Form T from the current weights and gradients, choose the exact top `q`, and gate.

        Args:
            q: how many gradients pass, 0 < q < count (fewer where fewer T are positive).
            may_be_written: whether the caller's use of the result may write into it.
            averages: of the tensors, to stand in T for their gradients.

        Returns:
            (tensor, gated gradient) for each tensor that has a gradient, and whether every T that passed is finite. The
            gated gradients are valid until the next call.
        """
        own = averages is None and not may_be_written
        if own and (passes := self._two_passes([])) and (edge := passes.edge(q)) is not None:
            if self._numpy is None:
                self._allocate(torch.device("cpu"))
            passes.gate(edge, self._numpy)
            self.threshold = float(edge.threshold)
            self._passed(self._buffer.bool)  # a T that passed is positive, so its gradient is not zero
            return list(zip(self.weights, self._parts, strict=True)), True
        plain = self._measure([p.grad for p in self.weights] if averages is None else averages)
        if self._numpy is None:
            return self._choose_on_device(q), bool(torch.isfinite(self._buffer.max()))
        metric = self._numpy
        top = top_q(metric, q)
        self.threshold = top.threshold
        # where averages stood in for the gradients, one that passes may be zero: the mask has to be kept
        short = own and plain and top.finite and not top.ties_left_out
        self._passed(self._buffer.bool if short else torch.from_numpy(chosen(metric, top)))
        if not short and (may_be_written or top.ties_left_out or not (plain and top.finite and self._can_stand_in())):
            return self.passing(), top.finite
        # One pass turns the buffer from T into the gated gradient. The kernel passes what is greater than a number, and
        # "greater than the next number below the threshold" is "at least the threshold".
        below = float(np.nextafter(np.float32(top.threshold), np.float32(0.0)))
        pairs = [(p, p.grad, t) for p, t in zip(self.weights, self._parts, strict=True) if p.grad is not None]
        return [(p, _pass_above(grad, t, below, grad_input=t)) for p, grad, t in pairs], True

    def _can_stand_in(self) -> bool:
        """Whether the buffer can stand in for the gradients."""
        return all(p.grad is None or _is_plain(p, p.grad) for p in self.weights)

    def close_on_device(self, q: int) -> list[tuple[Tensor, Tensor]]:
        """`close` without waiting for the device; what is not finite passes first, and is for others to find."""
        self._measure([p.grad for p in self.weights])
        return self._choose_on_device(q)

    def _choose_on_device(self, q: int) -> list[tuple[Tensor, Tensor]]:
        self.threshold, mask = device.top_q(self._buffer, q)
        self._passed(mask)
        return self.passing()

    def passing(self) -> list[tuple[Tensor, Tensor]]:
        """The gradients of the last choice that pass, and zeros, in new memory: of each tensor that has a gradient."""
        return [(p, _where(self.mask(p), p.grad)) for p in self.weights if p.grad is not None]

    def _two_passes(self, others: list[Tensor]) -> Passes | None:
        """The passes over the competing tensors and `others`, where there are some that can read all of them now."""
        if self._passes is None or len(self._listed) != len(self.weights) + len(others):
            kind = module.Compiled if (module := compiled()) else Blocks if self.count >= LARGE else Whole
            self._listed = self.weights + others
            self._passes = kind(self.weights, others)
        grads = [p.grad for p in self._listed]
        if self.candidates is not None:  # without a gradient nobody passes
            parts = self.candidates.split(self.sizes)
            if not self._masked:
                self._masked = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in self.weights]
            grads[: len(parts)] = [
                torch.where(part.view(g.shape), g, _NOTHING, out=room)
                if g is not None and g.is_cpu and g.dtype == room.dtype and g.layout is torch.strided
                else None
                for g, part, room in zip(grads, parts, self._masked, strict=False)
            ]
        return self._passes if self._passes.take(grads) else None

    def active(self) -> Tensor:
        """Which weights passed at the last step: bool [N], on the CPU; all False before the first."""
        return self._active().cpu()

    def _active(self) -> Tensor:
        """The same, where it is."""
        if not isinstance(self._mask, Tensor):
            self._mask = self._mask()
        return self._mask

    def mask(self, p: Tensor) -> Tensor:
        """`active` for one of the tensors: bool, of its shape, on its device."""
        start = 0
        for other in self.weights:
            if other is p:
                return self._active()[start : start + p.numel()].view(p.shape).to(p.device)
            start += other.numel()
        what = f"a tensor of shape {tuple(p.shape)}" if isinstance(p, Tensor) else f"a {type(p).__name__}"
        raise ValueError(f"p, {what}, is not among this optimizer's prunable tensors")

    def magnitude(self, p: Tensor) -> Tensor:
        """|gradient| of one of the tensors, in memory that the next call or `close` uses again."""
        if self._buffer is None or self._buffer.device != p.device or not _is_plain(p, p.grad):
            return _dense(p.grad).abs()
        return torch.abs(p.grad, out=self._parts[next(i for i, other in enumerate(self.weights) if other is p)])

    def _measure(self, grads: list[Tensor | None]) -> bool:
        """Fill the buffer with T; returns whether it can stand in for the gradients: all float32, contiguous, there."""
        place = self.weights[0].device
        if self._buffer is None or self._buffer.device != place:
            self._allocate(place)
        plain = True
        for p, grad, t in zip(self.weights, grads, self._parts, strict=True):
            if grad is None:
                t.zero_()
            elif grad.device == place and _is_plain(p, grad):
                torch.mul(p, grad, out=t)
            else:
                t.copy_(p.float() * _dense(grad).float())
                plain = False
        self._buffer.abs_()
        if self.candidates is not None:
            self._buffer.masked_fill_(~self.candidates.to(place), 0.0)
        return plain

    def _allocate(self, place: torch.device) -> None:
        self._buffer = torch.empty(self.count, dtype=torch.float32, device=place)
        self._numpy = self._buffer.numpy() if place.type == "cpu" else None
        self._parts = [t.view(p.shape) for p, t in zip(self.weights, self._buffer.split(self.sizes), strict=True)]


def _is_plain(p: Tensor, grad: Tensor) -> bool:
    return grad.dtype == torch.float32 and grad.layout is torch.strided and grad.is_contiguous() and p.is_contiguous()


def _dense(grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else grad.to_dense()


def _where(mask: Tensor, grad: Tensor) -> Tensor:
    """A gradient where the mask is set, else zero; a sparse one keeps the entries that it has."""
    if not grad.is_sparse:
        return _dense(grad).masked_fill(~mask, 0.0)
    grad = grad.coalesce()
    values = grad.values().masked_fill(~mask[tuple(grad.indices())], 0.0)
    return torch.sparse_coo_tensor(grad.indices(), values, grad.shape, check_invariants=False, is_coalesced=True)
