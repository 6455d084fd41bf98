"""GSM's two passes with PyTorch and numpy, all weights at once: where they are few, the number of calls decides.

Of a sample of |g * w| the threshold's lower bound is taken; the few that reach it are picked out, and the threshold is
selected among those. One kernel of PyTorch's then turns |g * w| into the gated gradient in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.passes import Edge, Passes, Settings, pass_through, sampling, sgd_each, simple
from gsm_lab.optim.selection import INFINITY, picked, top_of


class Whole(Passes):
    """See `Passes`. What its sample misjudges it leaves to others."""

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        super().__init__(weights, others)
        self._metric = torch.empty(self.count, dtype=torch.float32, device="cpu")
        self._bits, self._flags = self._metric.numpy().view(np.int32), np.empty(self.count, bool)
        sizes = self.sizes[: self.competing]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._views = [t.view(p.shape) for p, t in zip(weights, self._metric.split(sizes), strict=True)]

    def take(self, grads: list[Tensor | None]) -> bool:
        if not all(map(simple, grads, self.sizes)):
            return False
        self._grads = [g.detach() for g in grads]
        return self.places(self.tensors, "weights") is not None

    @torch.no_grad()
    def edge(self, q: int) -> Edge | None:
        for p, g, t in zip(self.tensors, self._grads, self._views, strict=False):
            torch.mul(p, g, out=t)
        self._metric.abs_()
        stride, ((_, least), *_) = sampling(self.count, q)
        low = np.int32(1)
        if stride:
            sample = self._bits[::stride].copy()
            if least <= sample.size:
                sample.partition(sample.size - least)
                low = max(low, sample[sample.size - least])
        found = picked(self._bits, np.greater_equal(self._bits, low, out=self._flags))
        # fewer may be positive than are to pass; where fewer than that reach the bound, it was too high
        q = min(q, found.size) if low == 1 else q
        if not 0 < q <= found.size or found.max() >= INFINITY:
            return None
        top = top_of(found.view(np.float32), q)
        threshold, upto = np.float32(top.threshold), self.count
        if top.ties_left_out:
            upto = int(np.flatnonzero(self._bits == threshold.view(np.int32))[-top.ties_left_out])
        return Edge(threshold, upto)

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        flat = torch.from_numpy(out).split(self.sizes[: self.competing])
        self._gate(edge, [t.view(p.shape) for p, t in zip(self.tensors, flat, strict=False)])
        self._grads = []

    @torch.no_grad()
    def step(self, q: int, momenta: list[Tensor], settings: list[Settings]) -> float | None:
        others = self._grads[self.competing :]
        if self.places(momenta, "momenta") is None or not all(np.isfinite(g.numpy()).all() for g in others):
            return None
        if (edge := self.edge(q)) is None:
            return None
        self._gate(edge, self._views)
        sgd_each(self.tensors, [*self._views, *others], momenta, settings)
        self._grads = []  # they come and go: to keep them would keep their memory
        return float(edge.threshold)

    def active(self) -> np.ndarray:
        return self._metric.numpy() != 0  # the gated gradients: an |g * w| that passed is positive

    def _gate(self, edge: Edge, out: list[Tensor]) -> None:
        if edge.upto >= self.count:
            for g, metric, to in zip(self._grads, self._views, out, strict=False):
                pass_through(g, metric, edge, 0, to)
            return
        for g, metric, start, to in zip(self._grads, self._views, self._starts, out, strict=False):
            pass_through(g.view(-1), metric.view(-1), edge, start, to.view(-1))
