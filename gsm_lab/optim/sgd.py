"""PyTorch's own SGD, as it is called here: a step without hooks, and methods that do not import torch's compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from gsm_lab.optim import strides


def sgd_step(optimizer: torch.optim.SGD) -> None:
    """SGD's step without the hooks, as ours has run them; the fused one is given what it reads right."""
    if strides.misread(optimizer):
        with strides.as_fused_reads(optimizer):
            _step(optimizer)
    else:
        _step(optimizer)


def _step(optimizer: torch.optim.SGD) -> None:
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):  # which torch does beside the import
        _without_import(without_hooks(torch.optim.SGD))(optimizer)


def raise_versions(optimizer: torch.optim.SGD) -> None:
    """Let autograd notice what a fused step has changed: torch's kernel counts no versions."""
    moved = [strides.taking_part(optimizer, group) for group in optimizer.param_groups if group["fused"]]
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
