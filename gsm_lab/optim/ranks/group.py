"""This rank and the others: its part of a tensor, sums over all ranks, and whether all have the same settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gsm_lab.optim.settings import SETTINGS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_distributed(x: Tensor) -> bool:
    """Whether it is a DTensor (told without importing the module that defines it, which takes a while)."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """This rank's part, as a plain tensor that shares the memory (waited for, where it is still on its way)."""
    if not is_distributed(x):
        return x
    part = x.to_local()
    return part.wait() if hasattr(part, "wait") else part


class RankLost(RuntimeError):
    """Another rank did not answer during the gate's exchange; no weight of this rank was changed in this step."""


class Ranks:
    """The ranks over which the weights of a model are spread.

    Args:
        groups: process groups whose sums, one after the other, reach every rank: one, or one for each dimension of a
            mesh.
        device: where their backend takes tensors.
    """

    def __init__(self, groups: Sequence[ProcessGroup], device: torch.device | str) -> None:
        self.groups, self.device = [g for g in groups if dist.get_world_size(g) > 1], device

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all ranks of int64 [n]; raises RankLost where a rank does not answer in the group's time-out."""
        counts = counts.to(self.device)
        try:
            for group in self.groups:
                dist.all_reduce(counts, group=group)
        except RuntimeError as lost:
            raise RankLost(
                "another rank did not answer within the process group's time-out while the ranks were choosing the "
                "active weights; no weight of this rank was changed in this step. Resume from the last checkpoint"
            ) from lost
        return counts


_PIECE = 20  # bits: a million ranks can add the squares of such numbers in an int64


def signature(number: int, pieces: int) -> list[int]:
    """A number in pieces of 20 bits, and their squares: from the sums of these `agreed` sees whether all were equal."""
    parts = [number >> _PIECE * i & (1 << _PIECE) - 1 for i in range(pieces)]
    return parts + [part * part for part in parts]


def agreed(sums: Sequence[int], ranks: int) -> int | None:
    """The number whose `signature` every rank has sent, None where they differ: then some piece has a variance."""
    half = len(sums) // 2
    if any(ranks * square != piece * piece for piece, square in zip(sums[:half], sums[half:], strict=True)):
        return None
    return sum(piece // max(ranks, 1) << _PIECE * i for i, piece in enumerate(sums[:half]))


def mean(sums: Sequence[int], ranks: int) -> float:
    """The mean of the numbers whose signatures were summed."""
    return sum(piece << _PIECE * i for i, piece in enumerate(sums[: len(sums) // 2])) / max(ranks, 1)


_SETTINGS = ("compression", "nonzeros", *SETTINGS, "nesterov", "maximize", "prunable")


@torch.no_grad()
def agree(optimizer: torch.optim.Optimizer, group: ProcessGroup | None = None) -> None:
    """Check once, before training, that all ranks have the same settings: one small all-reduce (0.5 KiB).

    Under DDP nothing else would tell: ranks that prune differently drift apart. Without `torch.distributed` running it
    does nothing.

    Args:
        optimizer: a `GSM`, or any other of torch's.
        group: the ranks that have to agree; None: all.

    Raises:
        ValueError: on every rank, where they differ in a setting of a parameter group or in the tensors' shapes; it
            says in what, and what this rank has.
        RankLost: a rank did not answer.
    """
    if not dist.is_initialized():
        return
    own = _settings(optimizer)
    digests = [int.from_bytes(hashlib.sha256(repr(x).encode()).digest()[:7], "big") for x in own.values()]
    first = optimizer.param_groups[0]["params"][0]
    device = first.device_mesh.device_type if is_distributed(first) else first.device
    words = torch.tensor([1, *(word for digest in digests for word in signature(digest, 3))])
    sums = Ranks([group or dist.group.WORLD], device).sum(words).tolist()
    different = [name for i, name in enumerate(own) if agreed(sums[1 + 6 * i : 7 + 6 * i], sums[0]) is None]
    if different:
        has = "; ".join(f"{name} = {own[name]}" for name in different)
        raise ValueError(
            f"ranks disagree on {', '.join(different)}. Give every rank the same settings; "
            f"rank {dist.get_rank()} of {sums[0]} has, by parameter group, {has}"
        )


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Each setting's values in the parameter groups, the shapes, and all other settings together."""
    groups = optimizer.param_groups
    plain = [{k: x.item() if isinstance(x, Tensor) else x for k, x in g.items() if k != "params"} for g in groups]
    rest = [{k: x for k, x in sorted(g.items()) if k not in (*_SETTINGS, "names", "param_names")} for g in plain]
    shapes = [[tuple(p.shape) for p in g["params"]] for g in groups]
    return {**{k: [g.get(k) for g in plain] for k in _SETTINGS}, "shapes": shapes, "other settings": rest}
