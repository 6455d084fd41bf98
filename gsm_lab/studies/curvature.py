"""The diagonal of the Hessian of all weights, exact where the model allows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from gsm_lab.checks import flag, kind
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.structure import NoSuchStructure, close, fully_connected, hooked, used_once
from gsm_lab.training.derivatives import gradients, products_with


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
