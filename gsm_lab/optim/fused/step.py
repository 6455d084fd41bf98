"""GSM's step as two compiled passes over g and w, for float32 tensors on a CPU (numba, the extra `gsm-lab[fast]`).

The first pass reads g and w and forms |g * w| without storing it: it counts the values above a bracket that a strided
sample gives, and keeps the few inside, among which the threshold is selected. The second pass forms |g * w| again,
gates, and does what PyTorch's fused SGD does, to the bit. Where the sample misled us the answer is found digit by
digit, so a bad bracket costs time and never the exactness. Above 65,536 weights, every thread of PyTorch's
takes a part of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.fused import kernels
from gsm_lab.optim.fused.llvm import ROUNDINGS
from gsm_lab.optim.passes import LARGE, Edge, Passes, Settings, sampling, simple

SHARED = 1 << 16  # weights from which on threads share the work: below, to wait for each other costs more
_UNEVEN = 1 << 18  # candidates that a thread has room for, at least: they may lie close together


class Compiled(Passes):
    """See `Passes`."""

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        super().__init__(weights, others)
        table = np.zeros((len(self.tensors), 4), np.uint64)
        table[:, 3] = self.sizes
        self._table, self._entries = table, memoryview(table.reshape(-1))  # writing through it costs half
        self._large = sum(self.sizes) >= SHARED
        self._written: list[list[int]] = [[], [], []]
        self._settings, self._given = np.empty((len(self.tensors), 4), np.float32), None
        self._active = np.empty(kernels.groups(table), np.uint64)  # a bit for each entry; tensors begin with a word
        histogram = np.empty(1 << (11 if self.count < LARGE else 13), np.int32)
        self._histogram, self._planned = histogram, (0, 0)
        self._plan = plan = np.zeros(kernels.ACTIVE + 1, np.int64)
        plan[kernels.TENSORS], plan[kernels.COMPETING] = len(table), self.competing
        plan[kernels.TABLE], plan[kernels.HISTOGRAM], plan[kernels.BINS] = (
            *map(_address, (table, histogram)),
            histogram.size,
        )
        plan[kernels.SETTINGS], plan[kernels.ACTIVE] = map(_address, (self._settings, self._active))

    def take(self, grads: list[Tensor | None]) -> bool:
        weights = self.places(self.tensors, "weights")
        if weights is None or not all(map(simple, grads, self.sizes)):
            return False
        self._write(0, weights)
        self._write(1, [g.data_ptr() for g in grads])
        return True

    def edge(self, q: int) -> Edge | None:
        self._decide(q)
        bits, ties, finite = kernels.find(self._plan)
        if not finite or not bits:
            return None
        competing, upto = self._table[: self.competing], self.count
        if ties:
            upto = kernels.after_equal(competing, bits, kernels.equal_within(competing, bits) - ties)
        return Edge(np.int32(bits).view(np.float32), upto)

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        kernels.gate(self._team, self._table[: self.competing], edge.threshold.view(np.int32), edge.upto, out)

    def step(self, q: int, momenta: list[Tensor], settings: list[Settings]) -> float | None:
        buffers, codes = self.places(momenta, "momenta"), rounding()
        if buffers is None or codes is None:
            return None
        self._write(2, buffers)
        if settings != self._given:
            # in the first step momentum begins with the gradient as it is
            self._settings[:] = [(lr, decay, m, 1 - d if m else 1) for lr, decay, m, d in settings]
            self._given, self._plan[kernels.ROUNDING] = settings, _address(codes)
        self._decide(q)
        threshold, done = kernels.step(self._plan)
        return threshold if done else None

    def active(self) -> np.ndarray:
        flags = np.empty(self.count, bool)
        kernels.unpack(self._table[: self.competing], self._active, flags)
        return flags

    def _decide(self, q: int) -> None:
        """How to look for the top q, and with how many threads."""
        asked = q, torch.get_num_threads() if self._large else 1
        if asked == self._planned:
            return
        self._planned = 0, 0  # until all of it is done
        self._team, (stride, self._brackets) = team(asked[1]), sampling(self.count, q)
        parts = int(self._team[kernels.THREADS])
        all_of_one = 64 * -(-kernels.groups(self._table[: self.competing]) // parts)
        some = max(self.room // parts, _UNEVEN if parts > 1 else 0) + 64 * kernels.BLOCK
        self._found = np.empty(parts * (min(all_of_one, some) + kernels.SPARE), np.int32)
        plan = self._plan
        plan[kernels.Q], plan[kernels.STRIDE], plan[kernels.TRIES] = q, stride, len(self._brackets)
        plan[kernels.TEAM], plan[kernels.BRACKETS] = map(_address, (self._team, self._brackets))
        plan[kernels.FOUND], plan[kernels.ROOM] = _address(self._found), self._found.size
        self._planned = asked

    def _write(self, column: int, places: list[int]) -> None:
        if places is not self._written[column]:
            for i, place in enumerate(places):
                self._entries[4 * i + column] = place
            self._written[column] = places


@cache
def team(threads: int) -> np.ndarray:
    """What `kernels` takes for so many threads; for one, where the OpenMP of PyTorch cannot be found or used."""
    alone = np.array([1, 0, 0, 0, 0], np.int64)
    if threads == 1:
        return alone
    library = ctypes.CDLL(torch._C.__file__)  # and what that depends on
    try:
        functions = [getattr(library, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except AttributeError:
        return alone
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    several = np.array([threads, kernels.work.address, *addresses], np.int64)
    return several if kernels.understood(several) else alone


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@cache
def rounding() -> np.ndarray | None:
    """How PyTorch's fused SGD rounds on this processor: codes for `kernels.update`, found by trying; None if none fits.

    Whether a product and a sum are rounded once or twice depends on the instructions that PyTorch was built for and
    found; the last few entries of a tensor, which fill no vector, may be treated differently from the others.
    """
    sizes = np.array([1 << 14, *[15] * 200])  # many vectors, and many rests
    random = torch.Generator().manual_seed(0)
    parts = torch.randn(3, sizes.sum(), generator=random, dtype=torch.float32, device="cpu")
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
        groups = kernels.groups(table)
        kernels.update(table, 0, groups, 0, 1 << 62, settings, np.array(codes), np.empty(groups, np.uint64))
        return torch.equal(trial[:, :n], done[:, :n])

    body = next((code for code in ROUNDINGS if fits(1, code, code, 1)), None)
    tails = [(body, tail, width) for width in (16, 8, 4) for tail in ROUNDINGS if body is not None]
    return next((np.array(codes) for codes in tails if fits(len(sizes), *codes)), None)
