"""Where this rank's entries lie in the whole model: the parts of DTensors, and which of them count.

A tensor of the model may be cut over the ranks (`Shard`, also unevenly, in several mesh dimensions and, with FSDP on
top of tensor parallelism, in strides), copied (`Replicate`), or be a plain tensor, which is the same on every rank. For
the exact global top Q each entry must count once, and ties go by the position in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gsm_lab.optim.ranks.group import Ranks, is_distributed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Part:
    """This rank's part of one tensor.

    `tensor`: the tensor, a DTensor or a plain one; `shape`: of the part; `first`: flat position of the tensor's first
    entry in the whole model; `indices`: for each dimension, the indices in the tensor that the part has, int64;
    `counted`: whether this rank counts the part, or another one that has the same.
    """

    tensor: Tensor
    shape: torch.Size
    first: int
    indices: tuple[Tensor, ...]
    counted: bool

    def positions(self, flat: np.ndarray) -> np.ndarray:
        """Positions in the whole model, int64, of entries given by their flat positions in the part, row-major."""
        inside = zip(np.unravel_index(flat, self.shape), self.indices, self.tensor.shape, strict=True)
        position = np.zeros(flat.shape, np.int64)
        for index, whole, size in inside:
            position = position * size + whole.numpy()[index]
        return position + self.first


def lay_out(
    tensors: Sequence[Tensor], also: Sequence[Tensor], name: Callable[[Tensor], str]
) -> tuple[list[Part], Ranks]:
    """The parts of `tensors` on this rank, and the ranks that share them.

    The ranks are those of the mesh that holds all others' ranks: its process group, with more than one dimension the
    default group where it covers the same ranks, else the groups of its dimensions one after the other. Where no mesh
    holds all others', they are all ranks of the default group. A tensor on a smaller mesh is counted on the one that
    has the first rank; a plain tensor on the first rank.

    Args:
        tensors: in their order, row-major within each, entries have their positions in the model.
        also: other tensors of the model, whose meshes are looked at.
        name: what a tensor is called, for errors.

    Raises:
        ValueError: a DTensor that is a partial sum, is placed in another unknown way, or has no part on this rank.
    """
    meshes = {x.device_mesh: None for x in (*tensors, *also) if is_distributed(x)}
    widest = max(meshes, key=lambda mesh: mesh.size())
    members = set(_members(widest))
    if all(members.issuperset(_members(mesh)) for mesh in meshes):
        everyone = dist.get_world_size() == len(members) and widest.ndim > 1
        groups = [dist.group.WORLD] if everyone else [widest.get_group(i) for i in range(widest.ndim)]
    else:
        groups, members = [dist.group.WORLD], set(range(dist.get_world_size()))
    starts = accumulate((x.numel() for x in tensors), initial=0)
    parts = [_part(x, first, min(members), name) for x, first in zip(tensors, starts, strict=False)]
    return parts, Ranks(groups, widest.device_type)


def _members(mesh: DeviceMesh) -> list[int]:
    return mesh.mesh.flatten().tolist()


def _part(x: Tensor, first: int, leader: int, name: Callable[[Tensor], str]) -> Part:
    if not is_distributed(x):
        return Part(x, x.shape, first, tuple(map(torch.arange, x.shape)), dist.get_rank() == leader)
    mesh, placements, shape = x.device_mesh, x.placements, x.to_local().shape
    coordinates = mesh.get_coordinate()
    unknown = [p for p in placements if not (p.is_replicate() or hasattr(p, "dim"))]
    if coordinates is None or unknown:
        raise ValueError(
            f"{name(x)} is placed as {tuple(placements)} on {mesh}; a prunable DTensor must have a part on this rank "
            f"({dist.get_rank()}), and be sharded or replicated in every mesh dimension"
        )
    ways = list(zip(placements, coordinates, mesh.shape, strict=True))
    indices = tuple(_indices(size, [way for way in ways if _cuts(way[0], d)]) for d, size in enumerate(x.shape))
    if tuple(map(len, indices)) != tuple(shape):
        raise ValueError(
            f"{name(x)}, of shape {tuple(x.shape)} and placed as {tuple(placements)} on {mesh}, has a part of shape "
            f"{tuple(shape)} here, and not of {tuple(map(len, indices))}: this way of placing is not known"
        )
    copy = any(p.is_replicate() and coordinate for p, coordinate, _ in ways)
    return Part(x, shape, first, indices, not copy and leader in _members(mesh))


def _cuts(placement: object, dimension: int) -> bool:
    return getattr(placement, "dim", None) == dimension


def _indices(size: int, ways: list[tuple[object, int, int]]) -> Tensor:
    """Which of `size` indices a rank has after cuts by several mesh dimensions, as `torch.chunk` cuts.

    A strided placement cuts what later mesh dimensions are going to cut: it first chunks by their number (its
    `split_factor`), and takes its own chunk of each.
    """
    index = torch.arange(size)
    for placement, coordinate, ranks in ways:
        pieces = [piece.chunk(ranks) for piece in index.chunk(getattr(placement, "split_factor", 1))]
        index = torch.cat([index[:0], *(piece[coordinate] for piece in pieces if coordinate < len(piece))])
    return index
