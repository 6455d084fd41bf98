"""GSM's step as two compiled passes over g and w, for float32 tensors on a CPU (numba, the extra `gsm-lab[fast]`).

The first pass reads g and w and forms |g * w| without storing it: it counts the values above a bracket that a strided
sample gives, and keeps the few inside, among which the threshold is selected. The second pass forms |g * w| again,
gates, and does what PyTorch's fused SGD does, to the bit. Where the sample misled us the answer is found digit by
digit, so a bad bracket costs time and never the exactness. Above a few million weights, every thread of PyTorch's
takes a part of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim import kernels
from gsm_lab.optim.passes import LARGE, Edge, Passes, Settings, sampling

SHARED = LARGE  # weights from which on threads share the work: below, to wake them costs more than they save


class Compiled(Passes):
    """See `Passes`."""

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        super().__init__(weights, others)
        table = np.zeros((len(self.tensors), 4), np.uint64)
        table[:, 3] = self.sizes
        self._table, self._entries = table, memoryview(table.reshape(-1))  # writing through it costs half
        self._settings, self._given = np.empty((len(self.tensors), 4), np.float32), None
        self._found = np.empty(self.room + kernels.BLOCK + 8, np.int32)
        self._parts: list[_Part] = []

    def take(self, grads: list[Tensor | None]) -> bool:
        weights, gradients = self.places(self.tensors, "weights"), self.places(grads)
        if weights is None or gradients is None:
            return False
        self._write(0, weights)
        self._write(1, gradients)
        threads = torch.get_num_threads() if self.count >= SHARED else 1
        if len(self._parts) != threads:
            self._divide(threads)
        self._locate()
        return True

    def edge(self, q: int) -> Edge | None:
        bits, ties, finite = self._find(q)
        if not finite or not bits:
            return None
        upto = self.count
        if ties:
            competing = self._table[: self.competing]
            upto = kernels.after_equal(competing, bits, kernels.equal_within(competing, bits) - ties)
        return Edge(_as_float(bits), upto)

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        self._each(
            lambda part: kernels.pass_through(part.table, edge.threshold, edge.upto - part.flat.start, out[part.flat])
        )

    def step(self, q: int, momenta: list[Tensor], settings: list[Settings], active: np.ndarray) -> np.float32 | None:
        n, buffers = self.competing, self.places(momenta, "momenta")
        if buffers is None or (codes := rounding()) is None:
            return None
        self._write(2, buffers)
        if settings != self._given:
            # in the first step momentum begins with the gradient as it is
            self._settings[:] = [(lr, decay, m, 1 - d if m else 1) for lr, decay, m, d in settings]
            self._given = settings
        if len(self._parts) == 1:
            found = sampling(self.count, q)
            bits, done = kernels.step(self._table, n, q, *found, self._found, self._settings, codes, active)
            return _as_float(bits) if done else None
        edge = self.edge(q)
        if edge is None or not kernels.finite(self._table[n:]):
            return None
        self._locate()
        self._each(
            lambda part: kernels.update(
                *(part.table, edge.threshold, edge.upto - part.flat.start),
                *(self._settings[part.tensors], codes, active[part.flat]),
            )
        )
        rest = self._table[n:], np.float32(0), 1 << 62  # which all reach
        kernels.update(*rest, self._settings[n:], codes, active[self.count :])
        return edge.threshold

    def _find(self, q: int) -> tuple[int, int, bool]:
        """`kernels.find`, by all threads."""
        stride, brackets = sampling(self.count, q)
        if len(self._parts) == 1:
            return kernels.find(self._parts[0].table, q, stride, brackets, self._found)
        histogram = np.zeros(kernels.BINS, np.int32)
        for part in self._parts if stride else ():
            kernels.sample(part.table, -part.flat.start % stride, stride, histogram)
        for most, least in brackets:
            low, high = kernels.bracket(histogram, most, least) if stride else (1, kernels.GREATEST)
            results = self._each(lambda part, a=low, b=high: kernels.collect(part.table, a, b, self._found[part.room]))
            inside, above, finite = zip(*results, strict=True)
            left = q - sum(above)
            if min(inside) >= 0 and 0 < left <= sum(inside):
                found = [self._found[part.room][:n] for part, n in zip(self._parts, inside, strict=True)]
                return *kernels.select(np.concatenate(found), left, low, high), all(finite)
        return kernels.descend(self._table[: self.competing], q)

    def _divide(self, threads: int) -> None:
        """Parts of about equal size, cut where no vector is cut."""
        bounds = np.cumsum([0, *self.sizes[: self.competing]])
        cuts = [self.count * i // threads for i in range(threads)]
        starts = bounds[np.searchsorted(bounds, cuts, "right") - 1]  # of the tensors that are cut
        flat = [*(starts + (cuts - starts) // 64 * 64), self.count]
        room = [self._found.size * i // threads for i in range(threads + 1)]
        self._parts = [_Part(self._table, bounds, *ends) for ends in zip(pairwise(flat), pairwise(room), strict=True)]

    def _write(self, column: int, places: list[int]) -> None:
        entries = self._entries
        for i, place in enumerate(places):
            entries[4 * i + column] = place

    def _locate(self) -> None:
        for part in self._parts if len(self._parts) > 1 else ():
            part.locate(self._table)

    def _each(self, do: Callable[[_Part], Any]) -> list[Any]:
        parts = self._parts
        return [do(parts[0])] if len(parts) == 1 else list(_threads(len(parts)).map(do, parts))


class _Part:
    """The competing weights from one flat position to another, and where among candidates it may put its own."""

    def __init__(self, table: np.ndarray, bounds: np.ndarray, ends: tuple[int, int], room: tuple[int, int]) -> None:
        a, b = ends
        first, last = np.searchsorted(bounds, a, "right") - 1, np.searchsorted(bounds, b, "left")
        self.flat, self.tensors, self.room = slice(a, b), slice(first, last), slice(*room)
        starts = np.maximum(bounds[first:last], a)
        self._skipped = (4 * (starts - bounds[first:last])).astype(np.uint64)[:, None]  # bytes
        self.table = table[self.tensors]
        if b - a < bounds[-1]:
            self.table = self.table.copy()
            self.table[:, 3] = np.minimum(bounds[first + 1 : last + 1], b) - starts

    def locate(self, table: np.ndarray) -> None:
        """Take the addresses from the table of all tensors."""
        np.add(table[self.tensors, :3], self._skipped, out=self.table[:, :3])


def _as_float(bits: int) -> np.float32:
    return np.int32(bits).view(np.float32)


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="gsm")


@cache
def rounding() -> np.ndarray | None:
    """How PyTorch's fused SGD rounds on this processor: codes for `kernels.update`, found by trying; None if none fits.

    Whether a product and a sum are rounded once or twice depends on the instructions that PyTorch was built for and
    found; the last few entries of a tensor, which fill no vector, may be treated differently from the others.
    """
    sizes = np.array([1 << 14, *[15] * 200])  # many vectors, and many rests
    parts = torch.randn(3, sizes.sum(), generator=torch.Generator().manual_seed(0))
    done = parts.clone()
    torch._fused_sgd_(
        *(part.split(sizes.tolist()) for part in done),
        lr=0.03, weight_decay=0.3, momentum=0.9, dampening=0.3, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
    starts = 4 * np.cumsum([0, *sizes[:-1]])
    settings = np.array([[0.03, 0.3, 0.9, 1 - 0.3]] * len(sizes), np.float32)

    def fits(tensors: int, *codes: int) -> bool:
        trial, n = parts.clone(), sizes[:tensors].sum()
        w, g, z = (part.data_ptr() + starts for part in trial)
        table = np.stack([w, g, z, sizes], 1).astype(np.uint64)[:tensors]
        kernels.update(table, np.float32(0), 1 << 62, settings, np.array(codes), np.empty(n, bool))
        return torch.equal(trial[:, :n], done[:, :n])

    body = next((code for code in kernels.ROUNDINGS if fits(1, code, code, 1)), None)
    tails = [(body, tail, width) for width in (16, 8, 4) for tail in kernels.ROUNDINGS if body is not None]
    return next((np.array(codes) for codes in tails if fits(len(sizes), *codes)), None)
