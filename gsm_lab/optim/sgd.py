"""PyTorch's own SGD, as it is called here: a step without hooks, given what fused SGD reads right.

On a CPU, PyTorch's fused kernel walks through the memory of weight, gradient and momentum side by side, entry after
entry, and does not look at their strides. That is right where all three are laid out alike and without gaps. Where they
are not (a gradient set by hand, a momentum loaded from a network in another memory format, a slice of a larger tensor)
it silently moves other weights; where they lie on a GPU it refuses. Here the gradient and the momentum are laid out as
the weight is, and a weight with gaps is left to SGD's loop, which looks at strides. So are, for a step, a group in
which some have a momentum and others do not yet, where the kernel raises, and weights of 16 bits, most of which it
leaves as they are up to PyTorch 2.13 (pytorch/pytorch issue 191763).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, wraps
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)
_NOTHING: dict[str, Any] = {}


def sgd_step(optimizer: torch.optim.SGD) -> None:
    """SGD's step without the hooks, as ours has run them; the fused one is given what it reads right.

    Momenta stay as they are laid out for it. What its kernel cannot do at all, SGD's loop over tensors does.
    """
    held: list[tuple[Tensor, Tensor]] = []
    alone: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for group in optimizer.param_groups:
            if not group["fused"]:
                continue
            its, momenta = _taking_part(optimizer, group)
            if _must_be_alone(optimizer, its, momenta):
                alone.append((group, {name: group[name] for name in ("fused", "foreach")}))
                group["fused"] = group["foreach"] = False
                continue
            for p, z in zip_longest(its, momenta):
                if _lies_unlike(p, p.grad):
                    held.append((p, p.grad))
                    p.grad = _like(p, p.grad)
                if z is not None and _lies_unlike(p, z):
                    optimizer.state[p]["momentum_buffer"] = _like(p, z)
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):  # which torch does beside the import
            _without_import(without_hooks(torch.optim.SGD))(optimizer)
    finally:
        for p, grad in held:
            p.grad = grad
        for group, before in alone:
            group.update(before)


def raise_versions(optimizer: torch.optim.SGD) -> None:
    """Let autograd notice what a fused step has changed: torch's kernel counts no versions."""
    moved = [_taking_part(optimizer, group) for group in optimizer.param_groups if group["fused"]]
    all_of_them = [x for its, momenta in moved for x in (*its, *momenta) if x is not None and not x.is_inference()]
    torch.autograd.graph.increment_version(all_of_them)


def without_hooks(kind: type[torch.optim.SGD]) -> Callable[..., Any]:
    """The step of a kind of SGD, but for the hooks: torch wraps `step` of every class that has an instance."""
    return kind.step.__wrapped__ if getattr(kind.step, "hooked", False) else kind.step


def uncompiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizers that does not import torch's compiler, so long as nobody else has.

    Torch's own imports it to keep it from compiling the method, which takes as long as to import torch itself.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _without_import(method)(*args, **kwargs)

    return call


def _without_import(method: Callable[..., Any]) -> Callable[..., Any]:
    return method if "torch._dynamo" in sys.modules else getattr(method, "__wrapped__", method)


def _taking_part(optimizer: torch.optim.SGD, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor | None]]:
    """The tensors of a group that have a gradient, and their momenta."""
    its, get = [p for p in group["params"] if p.grad is not None], optimizer.state.get
    return its, [get(p, _NOTHING).get("momentum_buffer") for p in its] if group["momentum"] else []


def _must_be_alone(optimizer: torch.optim.SGD, its: list[Tensor], momenta: list[Tensor | None]) -> bool:
    """Whether the kernel cannot do a group, however it is laid out."""
    if hasattr(optimizer, "found_inf"):  # which only the fused kernel knows
        return False
    return (
        0 < sum(z is not None for z in momenta) < len(its)
        or any(p.dtype in _HALVES and p.is_cpu and not moves_halves(p.dtype) for p in its)
        or any(not p.is_contiguous() and _has_gaps(p) for p in its)
    )


def _lies_unlike(p: Tensor, x: Tensor) -> bool:
    return x.layout is torch.strided and not (x.is_contiguous() and p.is_contiguous()) and x.stride() != p.stride()


@cache
def moves_halves(dtype: torch.dtype) -> bool:
    """Whether the fused kernel of this PyTorch, on this processor, moves all weights of a type of 16 bits."""
    w, g, z = (torch.ones(77, dtype=dtype, device="cpu") for _ in range(3))
    torch._fused_sgd_(
        [w], [g], [z],
        lr=0.5, weight_decay=0.0, momentum=0.5, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
    return bool((w == 0.25).all() and (z == 1.5).all())


def _has_gaps(p: Tensor) -> bool:
    """Whether entries of `p` share memory, or leave some of it out between them."""
    size = 1
    for stride, n in sorted(zip(p.stride(), p.shape, strict=True)):
        if n == 0:
            return False
        if n > 1 and stride != size:
            return True
        size *= n
    return False


def _like(p: Tensor, x: Tensor) -> Tensor:
    """`x`, with the strides of `p`."""
    return torch.empty_strided(p.shape, p.stride(), dtype=x.dtype, device=x.device).copy_(x)
