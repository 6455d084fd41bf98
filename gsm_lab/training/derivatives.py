"""Derivatives by plain autograd at a model's own parameters, first and second, for models as people write them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

Loss = Callable[[Tensor, Tensor], Tensor]


@contextlib.contextmanager
def differentiable_twice(model: nn.Module) -> Iterator[None]:
    """For a forward pass: the kernels of which first and second derivatives exist, and nothing computed twice.

    Attention goes through the plain products instead of fused kernels, recurrent layers through PyTorch's own; what is
    compiled runs as it was written; activation checkpoints of the reentrant kind, which hide the weights inside from
    `autograd.grad`, keep their activations instead.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(False, None, None))  # changes nothing else
        if any(is_parametrized(module) or module._forward_pre_hooks for module in model.modules()):
            stack.enter_context(_PlainWeightNorm())
        stack.enter_context(not_compiled())
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(setattr, checkpoint, "CheckpointFunction", _Checkpoint)
        checkpoint.CheckpointFunction = _Straight
        yield


def not_compiled() -> contextlib.AbstractContextManager[object]:
    """For a forward pass: what is compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # then nothing is
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


class _PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation as products and sums: the second derivatives of PyTorch's fused one are wrong (2.13)."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:
            v, g, dim = (*args, *(kwargs or {}).values(), 0)[:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return func(*args, **(kwargs or {}))


_Checkpoint = checkpoint.CheckpointFunction


class _Straight(_Checkpoint):
    """In place of the reentrant checkpoint: the function itself."""

    @classmethod
    def apply(cls, function: Callable[..., object], _: bool, *args: object) -> object:
        return function(*args)


@contextlib.contextmanager
def leaves(model: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """The model's own parameters of these names, as leaves of the graphs that are built inside."""
    tensors = [model.get_parameter(name) for name in names]
    before = [p.requires_grad for p in tensors]
    for p in tensors:
        p.requires_grad_()
    try:
        with torch.enable_grad():
            yield tensors
    finally:
        for p, flag in zip(tensors, before, strict=True):
            p.requires_grad_(flag)


@contextlib.contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model's parameters of these names have other values; afterwards they have their own again."""
    own = {name: model.get_parameter(name) for name in values}
    before = {name: p.detach().clone() for name, p in own.items()}
    try:
        _put(own, values)
        yield
    finally:
        _put(own, before)


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def gradients(value: Tensor, tensors: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of a value at some tensors; zeros for those that it does not depend on."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(t) for t in tensors)
    return torch.autograd.grad(value, tensors, create_graph=create_graph, materialize_grads=True)


def products_with(
    gradient: Sequence[Tensor], tensors: Sequence[Tensor], vector: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """H v from a gradient that has a graph, with respect to `tensors`; v is 1 unless given.

    Raises NotTwiceDifferentiable where PyTorch has no second derivative of something on the way.
    """
    vector = [torch.ones_like(g) for g in gradient] if vector is None else vector
    with_graph = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    if not with_graph:  # a loss that is linear in all of them
        return tuple(torch.zeros_like(t) for t in tensors)
    slopes, along = zip(*with_graph, strict=True)
    try:
        return torch.autograd.grad(_Along.apply(along, *slopes), tensors, retain_graph=True, materialize_grads=True)
    except RuntimeError as error:  # of a derivative that nobody has written, or that a function forbids
        if not any(words in str(error) for words in ("not implemented", "differentiate twice", "double backward")):
            raise
        raise NotTwiceDifferentiable(
            f"model and loss must have second derivatives in PyTorch, and have not: {str(error).splitlines()[0]}"
        ) from error


class _Along(torch.autograd.Function):
    """A number whose gradient at some tensors is what it is told.

    Told by `autograd.grad` itself, torch imports sympy to compare two shapes: half a second and 40 MB at the first one.
    """

    @staticmethod
    def forward(ctx: Any, along: Sequence[Tensor], *slopes: Tensor) -> Tensor:
        ctx.along = along
        return slopes[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        return None, *ctx.along


class NotTwiceDifferentiable(ValueError):
    """Something has a gradient, and no gradient of it."""


def joined(parts: Iterable[Tensor]) -> Tensor:
    """All entries of some tensors, row by row: [N]."""
    return torch.cat([part.reshape(-1) for part in parts])


def named(loss: object) -> str:
    """What to call a loss in a sentence."""
    return getattr(loss, "__name__", None) or type(loss).__name__
