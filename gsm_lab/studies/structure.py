"""How a model is built around one of its layers, found out by running it: nothing is taken from its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.studies.problem import Problem


class NoSuchStructure(Exception):
    """A model is not built around a layer as a study would need it."""


def fully_connected(problem: Problem) -> dict[str, nn.Linear]:
    """The fully-connected layers by the name of their tensor."""
    modules = problem.model.named_modules()
    return {f"{name}.weight".lstrip("."): module for name, module in modules if type(module) is nn.Linear}


def passed(problem: Problem, module: nn.Linear) -> tuple[Tensor, Tensor]:
    """Input and output of a layer on the batch, copies. Raises NoSuchStructure where it is not called exactly once."""
    seen: list[tuple[Tensor, Tensor]] = []
    with hooked(module.register_forward_hook(lambda _, a, z: seen.append((a[0].clone(), z.clone())))):
        problem.answer()
    if len(seen) != 1:
        raise NoSuchStructure
    return seen[0]


@torch.no_grad()
def used_once(problem: Problem, layer: str, module: nn.Linear) -> tuple[Tensor, Tensor]:
    """Input x [n, fan-in] and output z = x W' + b of a layer whose tensor W reaches the loss through z alone.

    The tensor is moved at random while the module is made to answer what it answered before: then neither what arrives
    at the module nor the loss may change; they do where the tensor is used elsewhere (a tied layer, a transposed use,
    the loss itself). Raises NoSuchStructure then, and where a sample is at several positions.
    """
    inputs, outputs = passed(problem, module)
    if inputs.ndim != 2 or len(inputs) != len(problem.x):
        raise NoSuchStructure
    if not close(outputs, F.linear(inputs, module.weight, module.bias)):
        raise NoSuchStructure  # a hook changes what comes out
    arrived: list[Tensor] = []

    def fixed(_: nn.Module, a: tuple[Tensor, ...], __: Tensor) -> Tensor:
        arrived.append(a[0].clone())
        return outputs.clone()

    weight = problem.weights[layer]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    with hooked(module.register_forward_hook(fixed)):
        value = problem.loss_at({layer: weight + noise * (weight.std(correction=0) + 1e-3)})
    if len(arrived) != 1 or not close(arrived[0], inputs) or not abs(value - problem.value) <= problem.floor:
        raise NoSuchStructure
    return inputs, outputs


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@contextmanager
def hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Take the hooks away at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
