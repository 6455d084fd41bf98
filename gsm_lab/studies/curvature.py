"""The whole diagonal of the Hessian, exact, at the price of one product with it per unit of a fully-connected layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from gsm_lab.studies.problem import Problem


def diagonal(problem: Problem, all_layers: bool = False) -> Tensor | None:
    """diag(H) over all prunable weights [N], exact.

    In a fully-connected layer d2L/dw[i, j]2 is the mean over the samples of a[j]^2 d2L/dz[i]2, so one product with H a
    unit gives the whole layer. Other layers take one product a weight: without `all_layers` the answer is then None.
    """
    linear = fully_connected(problem)
    parts, first = [], 0
    for (name, weight), size in zip(problem.weights.items(), problem.sizes, strict=True):
        part = _unit_diagonal(problem, linear[name]) if name in linear else None
        if part is None and not all_layers:
            return None
        if part is None:
            chunks = torch.arange(first, first + size).split(512)
            bar = tqdm(chunks, unit="chunk", desc=f"diagonal of {name}")
            part = torch.cat([problem.hessian_diagonal(chunk.tolist()) for chunk in bar]).view(weight.shape)
        parts.append(part.reshape(-1))
        first += size
    return torch.cat(parts)


def _unit_diagonal(problem: Problem, module: nn.Module) -> Tensor | None:
    inputs: list[Tensor] = []
    shifts: list[Tensor] = []

    def shifted(_: nn.Module, a: tuple[Tensor, ...], z: Tensor) -> Tensor:
        inputs.append(a[0])
        shifts.append(torch.zeros_like(z).requires_grad_())
        return z + shifts[-1]

    with hooked(module.register_forward_hook(shifted)):
        loss = problem.of({})
    if len(inputs) != 1 or inputs[0].ndim != 2 or len(inputs[0]) != len(problem.x):
        return None  # used twice, or at several positions of a sample, whose second derivatives mix
    (gradient,) = torch.autograd.grad(loss, shifts[0], create_graph=True)
    columns = []
    for unit in range(gradient.shape[1]):
        again = torch.autograd.grad(
            gradient[:, unit].sum(), shifts[0], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        columns.append(again[0][:, unit])
    return torch.stack(columns) @ inputs[0].square()


def fully_connected(problem: Problem) -> dict[str, nn.Module]:
    """The fully-connected layers by the name of their tensor."""
    modules = problem.model.named_modules()
    return {f"{name}.weight".lstrip("."): module for name, module in modules if type(module) is nn.Linear}


@contextmanager
def hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Take the hooks away at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
