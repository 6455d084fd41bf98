"""How a model is built around one of its layers, found out by running it, and what that is good for: diag(H), exact.

Nothing is taken from the model's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from gsm_lab.checks import flag, kind
from gsm_lab.studies.problem import Problem
from gsm_lab.training.derivatives import gradients, products_with


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


def diagonal(problem: Problem, all_layers: bool = False) -> Tensor | None:
    """diag(H) over all prunable weights [N], exact.

    In a fully-connected layer d2L/dw[i, j]2 is the sum over the samples of a[j]^2 d2L/dz[i]2, so one product with H a
    unit gives the whole layer. That takes a tensor that is used nowhere else, and samples that do not see each other,
    neither in the model nor in the loss: both are probed. Other layers take one product a weight: without `all_layers`
    the answer is then None.
    """
    kind("problem", problem, Problem, "a Problem, as taylor.of_run makes one")
    all_layers, linear = flag("all_layers", all_layers), fully_connected(problem)
    parts, first = [], 0
    for (name, weight), size in zip(problem.weights.items(), problem.sizes, strict=True):
        part = _unit_diagonal(problem, name, linear[name]) if name in linear else None
        if part is None:
            if not all_layers:
                return None
            chunks = torch.arange(first, first + size).split(512)
            bar = tqdm(chunks, unit="chunk", desc=f"diagonal of {name}")
            part = torch.cat([problem.hessian_diagonal(chunk.tolist()) for chunk in bar]).view(weight.shape)
        parts.append(part.reshape(-1))
        first += size
    return torch.cat(parts)


def _unit_diagonal(problem: Problem, layer: str, module: nn.Linear) -> Tensor | None:
    shifts: list[Tensor] = []

    def shifted(_: nn.Module, __: tuple[Tensor, ...], z: Tensor) -> Tensor:
        shifts.append(torch.zeros_like(z).requires_grad_())
        return z + shifts[-1]

    try:
        with problem.computing():
            inputs, _ = used_once(problem, layer, module)
    except NoSuchStructure:
        return None
    try:
        with torch.enable_grad(), hooked(module.register_forward_hook(shifted)):
            loss = problem.of({})
        if len(shifts) != 1:
            return None
        (gradient,) = gradients(loss, shifts, create_graph=True)
        if not _samples_apart(gradient, shifts[0]):
            return None
        columns = [products_with([gradient[:, unit].sum()], shifts)[0][:, unit] for unit in range(gradient.shape[1])]
    except RuntimeError:  # such as of a checkpoint, which comes by again without the hook
        return None
    return torch.stack(columns) @ inputs.square()


def _samples_apart(gradient: Tensor, at: Tensor) -> bool:
    """Whether the gradient of each sample depends on that sample's values alone: tried with random signs of samples."""
    random = torch.Generator().manual_seed(0)
    units = torch.randn(gradient.shape[1], generator=random).to(gradient)
    signs = (2 * torch.randint(0, 2, (len(gradient), 1), generator=random) - 1).to(gradient)
    (plain,), (signed,) = (
        products_with([gradient], [at], [(rows * units).contiguous()]) for rows in (torch.ones_like(signs), signs)
    )
    return close(signed * signs, plain)
