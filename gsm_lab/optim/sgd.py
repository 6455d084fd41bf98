"""What `GSM` does with PyTorch's SGD and its settings: lend it gradients, have it step, know what it would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# what decides whether a group is plain, the settings of a step first; and how many of its weights pass
ASKED = (
    *("lr", "weight_decay", "momentum", "dampening", "fused", "nesterov", "maximize", "differentiable"),
    *("compression", "nonzeros"),
)
NUMBERS = (float, int)  # not tensors, in which a learning rate may come


def checked(smoothing: float) -> float:
    """`smoothing`, if it is valid. Raises ValueError."""
    if isinstance(smoothing, bool) or not isinstance(smoothing, NUMBERS) or not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be a number from 0 (the paper's gate) to below 1, got {smoothing!r}")
    return float(smoothing)


def is_plain(group: dict[str, Any]) -> bool:
    """Whether fused SGD with momentum is all that this parameter group asks for."""
    return (
        bool(group["fused"] and group["momentum"])
        and not (group["nesterov"] or group["maximize"] or group["differentiable"])
        and all(isinstance(group[name], NUMBERS) for name in ("lr", "weight_decay", "momentum", "dampening"))
    )


def first_non_finite(grad: Tensor) -> str:
    """The first entry that is not finite, of a gradient that has one, in words."""
    place = int((~torch.isfinite(grad)).reshape(-1).to(torch.uint8).argmax())
    return f"{float(grad.reshape(-1)[place])} at flat position {place:,}"


@contextmanager
def lent(gated: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Gradients in place of the tensors' own, for a while."""
    given = [p.grad for p, _ in gated]
    try:
        for p, grad in gated:
            p.grad = grad
        yield
    finally:
        for (p, _), grad in zip(gated, given, strict=True):
            p.grad = grad


def sgd_step(optimizer: torch.optim.SGD) -> None:
    """SGD's step without the hooks: torch wraps `step` of every class that has an instance, and ours has run them."""
    step = torch.optim.SGD.step
    if getattr(step, "hooked", False):
        step = step.__wrapped__
    step(optimizer)
