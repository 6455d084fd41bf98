"""A metric that is spread over ranks, and the exact global top Q of it: for the gate, and for the cut at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.layout import lay_out
from gsm_lab.optim.radix import NAN, SMALLEST, last_kept
from gsm_lab.optim.ranks.digits import Own, Top, top_q
from gsm_lab.optim.ranks.group import local
from gsm_lab.optim.selection import not_below


class SpreadMetric:
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

    def top(self, q: int, base: int, setting: str, wrong: str | None, look: Callable[[], str | None]) -> Top | None:
        """`exchange.top_q` of the values of all ranks."""
        own = Own(self.count, q, sum(map(len, self._counted)), base, setting, wrong)
        return top_q(own, self._at_least, look, self.ranks.sum)

    def _at_least(self, least: int) -> Tensor:
        """The bits, int32, of all counted values whose bits are at least `least`; NaN as `NAN`."""
        found = [torch.empty(0, dtype=torch.int32, device=self.values.device)]
        for bits in self._counted:
            near = not_below(bits.numpy(), np.int32(least)) if bits.is_cpu else bits[bits >= least]
            found.append(torch.as_tensor(near))
        return torch.cat(found).clamp_(max=NAN)

    def chosen(self, top: Top) -> Tensor:
        """Which of the values belong to the top Q: bool [size]; where ties are left out, ranks ask each other again."""
        bits = self.values.view(torch.int32)
        mask = bits >= max(top.bits, SMALLEST)
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
        ValueError, FloatingPointError: on every rank, as `exchange.top_q`.
    """
    names = {id(p): name for name, p in weights.items()}
    metric = SpreadMetric(list(weights.values()), (), lambda p: repr(names[id(p)]))
    for p, view in zip(weights.values(), metric.views, strict=True):
        view.copy_(local(p))
    metric.values.abs_()
    finite = {name: bool(torch.isfinite(local(p)).all()) for name, p in weights.items()}
    wrong = next(
        (f"weight {name!r} holds NaN or infinite values; nothing was cut" for name in weights if not finite[name]), None
    )
    top = metric.top(q, SMALLEST, setting, wrong, lambda: None)
    mask = metric.values > 0 if top is None else metric.chosen(top)
    masks = metric.split(mask)
    counted = [int(m.sum()) if part.counted else 0 for m, part in zip(masks, metric.parts, strict=True)]
    kept = metric.ranks.sum(torch.tensor(counted))
    return {name: placed_as(p, m) for (name, p), m in zip(weights.items(), masks, strict=True)}, kept.tolist()
