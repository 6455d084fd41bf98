"""Where this rank's entries lie in the whole model, and the exact global top Q of a number for each of them.

A tensor of the model may be cut over the ranks (`Shard`, also unevenly, in several mesh dimensions and, with FSDP on
top of tensor parallelism, in strides), copied (`Replicate`), or be a plain tensor, which is the same on every rank. For
the exact global top Q each entry must count once, and ties go by the position in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gsm_lab.optim.ranks.digits import NAN, Own, Top, last_kept, top_q
from gsm_lab.optim.ranks.group import Ranks, is_distributed, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ShardedMetric:
    """A number >= 0 for each entry of this rank's parts of some tensors, and the exact global top Q of all of them.

    `values`: float32 [size], part after part; `views`: the same in the parts' shapes.
    """

    def __init__(self, tensors: Sequence[Tensor], also: Sequence[Tensor], name: Callable[[Tensor], str]) -> None:
        self.parts, self.ranks = lay_out(tensors, also, name)
        self.count = sum(x.numel() for x in tensors)
        self._ends = np.cumsum([0, *(part.shape.numel() for part in self.parts)]).tolist()
        self.size = self._ends[-1]
        device = local(tensors[0]).device if tensors else self.ranks.device
        self.values = torch.zeros(self.size, dtype=torch.float32, device=device)
        self.views = self.split(self.values)
        spans: list[tuple[int, int]] = []  # of counted parts; neighbours are looked at together
        for part, (a, b) in zip(self.parts, pairwise(self._ends), strict=True):
            if part.counted:
                spans.append((spans.pop()[0] if spans and spans[-1][1] == a else a, b))
        self._counted = [self.values.view(torch.int32)[a:b] for a, b in spans]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Something [size] in the parts' shapes."""
        return [flat[a:b].view(part.shape) for part, (a, b) in zip(self.parts, pairwise(self._ends), strict=True)]

    def top(self, q: int, setting: str, wrong: str | None, look: Callable[[], str | None]) -> Top | None:
        """`digits.top_q` of the values of all ranks."""
        own = Own(self.count, q, sum(map(len, self._counted)), setting, wrong)
        return top_q(own, self._positive, look, self.ranks.sum)

    def _positive(self) -> Tensor:
        """The bits, int32, of all counted values above 0; NaN as `NAN`."""
        none = torch.empty(0, dtype=torch.int32, device=self.values.device)
        return torch.cat([none, *(bits[bits > 0] for bits in self._counted)]).clamp_(max=NAN)

    def chosen(self, top: Top) -> Tensor:
        """Which of the values belong to the top Q: bool [size]; where ties are left out, ranks ask each other again."""
        bits = self.values.view(torch.int32)
        mask = bits >= max(top.bits, 1)
        if not top.left_out:
            return mask
        tied = [(view == top.bits if top.bits < NAN else view >= NAN).reshape(-1) for view in self.split(bits)]
        places = [np.flatnonzero(part.cpu().numpy()) for part in tied]
        positions = [part.positions(where) for part, where in zip(self.parts, places, strict=True)]
        counted = [x for x, part in zip(positions, self.parts, strict=True) if part.counted]
        mine = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *counted]))
        last = last_kept(mine, top.kept, top.n, self.ranks.sum)
        for start, where, position in zip(self._ends, places, positions, strict=False):
            mask[torch.from_numpy(start + where[position > last]).to(mask.device)] = False
        return mask


def placed_as(p: Tensor, part: Tensor) -> Tensor:
    """A tensor of p's shape and placement, of which this rank's part is given."""
    whole = torch.empty_like(p, dtype=part.dtype, requires_grad=False)
    local(whole).copy_(part)
    return whole


def keep_masks(weights: dict[str, Tensor], q: int, setting: str) -> tuple[dict[str, Tensor], list[int]]:
    """What a cut to the `q` greatest |w| over all ranks keeps; every rank calls it, with the same tensors in order.

    Args:
        weights: name -> tensor, some of them DTensors.
        q: how many stay, of all.
        setting: where q comes from, for errors.

    Returns:
        name -> bool, placed as the tensor is; and how many stay of each, of all ranks.

    Raises:
        ValueError, FloatingPointError: on every rank, as `digits.top_q`.
    """
    names = {id(p): name for name, p in weights.items()}
    metric = ShardedMetric(list(weights.values()), (), lambda p: repr(names[id(p)]))
    for p, view in zip(weights.values(), metric.views, strict=True):
        view.copy_(local(p))
    metric.values.abs_()
    bad = next((name for name, p in weights.items() if not torch.isfinite(local(p)).all()), None)
    wrong = None if bad is None else f"weight {bad!r} holds NaN or infinite values; nothing was cut"
    top = metric.top(q, setting, wrong, lambda: None)
    mask = metric.values > 0 if top is None else metric.chosen(top)
    masks = metric.split(mask)
    counted = [int(m.sum()) if part.counted else 0 for m, part in zip(masks, metric.parts, strict=True)]
    kept = metric.ranks.sum(torch.tensor(counted))
    return {name: placed_as(p, m) for (name, p), m in zip(weights.items(), masks, strict=True)}, kept.tolist()


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
    cuts = [[way for way in ways if getattr(way[0], "dim", None) == d] for d in range(x.ndim)]
    indices = tuple(map(_indices, x.shape, cuts))
    if tuple(map(len, indices)) != tuple(shape):
        raise ValueError(
            f"{name(x)}, of shape {tuple(x.shape)} and placed as {tuple(placements)} on {mesh}, has a part of shape "
            f"{tuple(shape)} here, and not of {tuple(map(len, indices))}: this way of placing is not known"
        )
    copy = any(p.is_replicate() and coordinate for p, coordinate, _ in ways)
    return Part(x, shape, first, indices, not copy and leader in _members(mesh))


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
