"""What `GSM` does with PyTorch's SGD and its settings: check them, know what it would do, lend it gradients, step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gsm_lab.optim import strides

# what decides whether a group is plain, the settings of a step first; and the gate's own, which all groups share
ASKED = (
    *("lr", "weight_decay", "momentum", "dampening", "fused", "nesterov", "maximize", "differentiable"),
    *("compression", "nonzeros", "smoothing"),
)
NUMBERS = (float, int)  # not tensors, in which a learning rate may come
SETTINGS = ASKED[:4]
_PLAIN_NUMBERS = frozenset(NUMBERS)


def checked(smoothing: float) -> float:
    """`smoothing`, if it is valid. Raises ValueError."""
    smoothing = as_pythons(smoothing)
    if isinstance(smoothing, bool) or not isinstance(smoothing, NUMBERS) or not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be a number from 0 (the paper's gate) to below 1, got {smoothing!r}")
    return float(smoothing)


def as_pythons(x: Any) -> Any:
    """A number of numpy's as one of Python's, which a `state_dict()` needs that is to be loaded with `weights_only`."""
    if type(x) in NUMBERS or isinstance(x, bool) or not isinstance(x, Real):
        return x
    return int(x) if isinstance(x, Integral) else float(x)


def refuse_settings(given: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError where a setting of SGD's step, of those given, is not a finite number.

    A NaN compares as false with everything, so SGD itself takes it, and all weights are NaN after a step. What is out
    of range is for SGD to refuse, in its own words.
    """
    for name in SETTINGS:
        if name in given and not _is_finite(x := given[name]):
            if isinstance(x, Tensor) and x.numel() != 1:  # in torch's words
                raise ValueError(f"Tensor {name}{where} must be 1-element, got one of shape {tuple(x.shape)}")
            kind = "a finite number" if not isinstance(x, Tensor) else "a finite number, or a tensor of one"
            raise ValueError(f"{name}{where} must be {kind}, got {x!r}")


def are_plain(settings: tuple[Any, ...]) -> bool:
    """Whether these are finite Python numbers: in a fraction of the time that `refuse_settings` takes."""
    try:
        return _PLAIN_NUMBERS.issuperset(map(type, settings)) and all(map(math.isfinite, settings))
    except OverflowError:  # an int beyond every float
        return False


def _is_finite(x: Any) -> bool:
    if isinstance(x, Tensor):
        if x.numel() != 1 or x.is_complex() or x.dtype is torch.bool:
            return False
        # a look at what lies on a device would wait for it
        return not x.is_cpu or math.isfinite(x.detach().item())
    try:
        return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)
    except OverflowError:  # an int beyond every float
        return False


def is_plain(group: dict[str, Any]) -> bool:
    """Whether fused SGD with momentum is all that this parameter group asks for."""
    return (
        bool(group["fused"] and group["momentum"])
        and not (group["nesterov"] or group["maximize"] or group["differentiable"])
        and all(isinstance(group[name], NUMBERS) for name in SETTINGS)
    )


def first_non_finite(grad: Tensor) -> str:
    """The first entry that is not finite, of a gradient that has one, in words."""
    place = int((~torch.isfinite(grad)).reshape(-1).to(torch.uint8).argmax())
    return f"{grad.reshape(-1)[place].item()} at flat position {place:,}"


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
    """SGD's step without the hooks, as ours has run them; the fused one is given what it reads right."""
    if strides.misread(optimizer):
        with strides.as_fused_reads(optimizer):
            _step(optimizer)
    else:
        _step(optimizer)


def _step(optimizer: torch.optim.SGD) -> None:
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):  # which torch does beside the import
        _without_import(without_hooks(torch.optim.SGD))(optimizer)


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
