"""GSM's step with PyTorch and numpy where all weights fit into the caches: one buffer, and as few calls as may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.passes import Edge, Passes, Settings, pass_through, sgd_each
from gsm_lab.optim.selection import Top, top_q

_GREATEST = np.int32(0x7FFFFFFF)  # all bits but that of the sign


class Whole(Passes):
    """See `Passes`. A number is kept for every weight: |g * w|, which then makes room for the gradient that passes."""

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        super().__init__(weights, others)
        self._buffer = np.empty(self.count, np.float32)
        ends = np.cumsum(self.sizes[: self.competing]).tolist()
        self._starts = [0, *ends[:-1]]
        self._parts = [self._buffer[a:b] for a, b in zip(self._starts, ends, strict=True)]
        self._gated = [torch.from_numpy(part) for part in self._parts]
        self._at: list[list[int]] = [[], []]  # where weights and momenta lay when they were looked at

    def take(self, grads: list[Tensor | None]) -> bool:
        weights = self.places(self.tensors, "weights")
        if weights is None or self.places(grads) is None:
            return False
        if weights != self._at[0]:
            self._flat = [p.detach().view(-1) for p in self.tensors]
            self._values = [p.numpy() for p in self._flat[: self.competing]]
            self._at[0] = weights
        self._grads = [g.detach().view(-1) for g in grads]
        return True

    def edge(self, q: int) -> Edge | None:
        top = self._top(q)
        if not top.finite or not top.threshold:
            return None
        return Edge(np.float32(top.threshold), self._upto(top))

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        passed = torch.from_numpy(out).split(self.sizes[: self.competing])
        for g, t, part, start in zip(self._grads, self._gated, passed, self._starts, strict=False):
            pass_through(g, t, edge, start, part)

    def step(self, q: int, momenta: list[Tensor], settings: list[Settings], active: np.ndarray) -> np.float32 | None:
        places, n = self.places(momenta, "momenta"), self.competing
        if places is None or not all(np.isfinite(g.numpy()).all() for g in self._grads[n:]):
            return None
        if places != self._at[1]:
            self._momenta, self._at[1] = [z.view(-1) for z in momenta], places
        edge = self.edge(q)
        if edge is None:
            return None
        for g, t, start in zip(self._grads, self._gated, self._starts, strict=False):
            pass_through(g, t, edge, start, t)
        np.not_equal(self._buffer, 0, out=active[: self.count])  # an |g * w| that passed is positive
        sgd_each(self._flat, [*self._gated, *self._grads[n:]], self._momenta, settings)
        active[self.count :] = True
        return edge.threshold

    def _top(self, q: int) -> Top:
        """Fill the buffer with |g * w|, and find its top `q`."""
        with np.errstate(all="ignore"):
            for w, g, t in zip(self._values, self._grads, self._parts, strict=False):
                np.multiply(w, g.numpy(), out=t)
        bits = self._buffer.view(np.int32)
        np.bitwise_and(bits, _GREATEST, out=bits)
        return top_q(self._buffer, q)

    def _upto(self, top: Top) -> int:
        """The flat position of the first value equal to the threshold that is left out; N where there is none."""
        if not top.ties_left_out:
            return self.count
        return int(np.flatnonzero(self._buffer == np.float32(top.threshold))[-top.ties_left_out])
