"""A run over ranks of which each holds a part of every tensor: FSDP2."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gsm_lab import data as datasets
from gsm_lab.distributed.placement import ParallelRun
from gsm_lab.distributed.world import World
from gsm_lab.optim import param_groups
from gsm_lab.optim.ranks import local
from gsm_lab.optim.spread import placed_as
from gsm_lab.training.checkpoint import part_of
from gsm_lab.training.history import History
from gsm_lab.training.run import Run

_UNIT = 1_000_000  # parameters; smaller modules are gathered together with what they are part of


class FSDPRun(ParallelRun):
    """Every rank holds its rows of each tensor, weights, gradients and momentum (FSDP2, `fully_shard`).

    `recorders` get this rank's part: `active` and `weights` of its rows.
    """

    def _placed(self, model: nn.Module) -> nn.Module:
        model = super()._placed(model)
        param_groups(model, **self._picks)  # refuses one without prunable weights, before that is changed
        if not isinstance(model, FSDPModule):
            device = next(model.parameters()).device.type
            mesh = init_device_mesh(device, (self.world.size,))
            _shard(model, lambda m: fully_shard(m, mesh=mesh))
            fully_shard(model, mesh=mesh)
        return model

    def _refuse(self, knobs: dict[str, Any]) -> None:
        for name, off in (("smoothing", 0), ("freeze", 1), ("cut_at", 1)):
            if knobs[name] != off:
                raise ValueError(f"{name} must be {off} where weights are spread over ranks, got {knobs[name]:g}")

    def _must_be_whole(self) -> None:
        """FSDP2 itself exchanges parameters, in the model's modules, for those that it has gathered, and back."""

    def _tried(self, model: nn.Module, data: datasets.Dataset, batch_size: int) -> float | None:
        try:
            return super()._tried(model, data, batch_size)
        finally:
            _reshard(model)

    def _new_history(self, weights: dict[str, nn.Parameter]) -> History:
        return _ShardedHistory(weights, self.world)

    @torch.no_grad()
    def _accuracy(self, replaced: dict[str, Tensor]) -> float:
        """FSDP2 gathers the parameters it knows: what replaces them takes their place while it is looked at."""
        own = {name: local(self.model.get_parameter(name)) for name in replaced}
        before = {name: part.clone() for name, part in own.items()}
        try:
            for name, part in own.items():
                part.copy_(local(replaced[name]))
            return super()._accuracy({})
        finally:
            for name, part in own.items():
                part.copy_(before[name])

    def _right(self, x: Tensor, y: Tensor, replaced: dict[str, Tensor]) -> int:
        try:
            return super()._right(x, y, replaced)
        finally:
            _reshard(self.model)

    def alone(self, folder: Path) -> Run:
        """The run in this process alone. Raises TypeError for a model that was given: resume with a new one."""
        if not isinstance(self.source_model, str):
            raise TypeError("the model that was given is sharded: use Run.resume(folder, model=...) with a new one")
        return super().alone(folder)


def _reshard(model: nn.Module) -> None:
    for module in model.modules():  # else the outermost ones keep what they gathered for a backward pass
        if isinstance(module, FSDPModule):
            module.reshard()


def _shard(module: nn.Module, shard: Callable[[nn.Module], Any]) -> None:
    """Shard the parts of `module` of at least a million parameters that no smaller part of them holds."""
    for child in module.children():
        _shard(child, shard)
        free = {p for p in child.parameters() if not isinstance(p, DTensor)}
        if sum(p.numel() for p in free) >= _UNIT and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            shard(child)


class _ShardedHistory(History):
    """Counts the weights this rank holds, and adds the counts up over ranks: 16 bytes a layer and step."""

    def __init__(self, weights: dict[str, nn.Parameter], world: World) -> None:
        super().__init__({layer: p.numel() for layer, p in weights.items()})
        self._params, self._world = list(weights.values()), world
        sizes = [local(p).numel() for p in self._params]
        self._bounds = np.cumsum([0, *sizes])

    def _total(self, counts: np.ndarray) -> np.ndarray:
        return self._world.total(torch.from_numpy(counts)).numpy()

    def _all_of(self, flags: np.ndarray) -> np.ndarray:
        parts = []
        for p, (a, b) in zip(self._params, itertools.pairwise(self._bounds), strict=True):
            part = torch.from_numpy(flags[a:b].view(np.uint8)).view(local(p).shape).to(p.device)
            parts.append(_flat(placed_as(p, part).full_tensor()))
        return np.concatenate(parts)

    def _part_of(self, flags: np.ndarray) -> np.ndarray:
        parts, wholes = [], torch.from_numpy(flags.view(np.uint8)).split(list(self.layers.values()))
        for p, whole in zip(self._params, wholes, strict=True):
            parts.append(_flat(local(part_of(whole.view(p.shape), p))))
        return np.concatenate(parts)


def _flat(flags: Tensor) -> np.ndarray:
    return flags.cpu().numpy().astype(bool).reshape(-1)
