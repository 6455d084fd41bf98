"""A run over ranks of which each holds a part of every tensor: FSDP2."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gsm_lab import data as datasets
from gsm_lab.distributed.placement import Parallel
from gsm_lab.distributed.world import World
from gsm_lab.knobs import KNOBS, Settings
from gsm_lab.metric import Metric
from gsm_lab.optim import param_groups
from gsm_lab.optim.picks import Picks
from gsm_lab.optim.ranks.group import local
from gsm_lab.optim.ranks.shards import placed_as
from gsm_lab.training.derivatives import holding
from gsm_lab.training.history import History
from gsm_lab.training.parts import Loss, Parts
from gsm_lab.training.run import Run
from gsm_lab.training.state import part_of

_UNIT = 1_000_000  # parameters; smaller modules are gathered together with what they are part of


class FSDP(Parallel):
    """Every rank holds its rows of each tensor, weights, gradients and momentum (FSDP2, `fully_shard`).

    `recorders` get this rank's part: `active` and `weights` of its rows. Of the methods, GSM can do with that.
    """

    exchanges = True  # in the model's modules

    def must_suit(self, run: Parts, settings: Settings, options: dict[str, Any], data: datasets.Dataset) -> None:
        """As with DDP. Raises ValueError for a method that needs all of each tensor, too."""
        if not run.method.shards:
            raise ValueError(
                f"method {run.method.name} needs all of each tensor, where FSDP2 spreads them over ranks: use DDP"
            )
        super().must_suit(run, settings, options, data)

    def must_allow(self, settings: Settings) -> None:
        """Raises ValueError for a setting that takes a look at all weights at once."""
        for name, knob in KNOBS.items():
            if not knob.shards and getattr(settings, name) != knob.default:
                raise ValueError(
                    f"{name} must be {knob.default:g} where weights are spread over ranks, got "
                    f"{getattr(settings, name):g}"
                )

    def tried(
        self, run: Parts, model: nn.Module, data: datasets.Dataset, batch_size: int, loss: Loss, metric: Metric
    ) -> float | None:
        """As with DDP; what was gathered for it is let go of."""
        try:
            return super().tried(run, model, data, batch_size, loss, metric)
        finally:
            _reshard(model)

    def place(self, model: nn.Module, named: bool, picks: dict[str, Picks]) -> nn.Module:
        """In parts, one on each rank."""
        model = super().place(model, named, picks)
        param_groups(model, **picks)  # refuses one without prunable weights, before that is changed
        if not isinstance(model, FSDPModule):
            device = next(model.parameters()).device.type
            mesh = init_device_mesh(device, (self.size,))
            _shard(model, lambda m: fully_shard(m, mesh=mesh))
            fully_shard(model, mesh=mesh)
        return model

    def history(self, weights: dict[str, nn.Parameter]) -> History:
        """One that adds up what ranks count."""
        return _ShardedHistory(weights, self.world)

    @contextlib.contextmanager
    def replacing(self, model: nn.Module, replaced: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """FSDP2 gathers the parameters it knows: what replaces them takes their place while it is looked at."""
        try:
            with holding(model, replaced):
                yield {}
        finally:
            _reshard(model)

    def alone(self, run: Parts, folder: Path) -> Run:
        """The run in this process alone. Raises TypeError for a model that was given: resume with a new one."""
        if not isinstance(run.source_model, str):
            raise TypeError("the model that was given is sharded: use Run.resume(folder, model=...) with a new one")
        return super().alone(run, folder)


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
        self._bounds = np.cumsum([0, *(local(p).numel() for p in self._params)])

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
