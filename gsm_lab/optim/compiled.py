"""GSM's step as two compiled passes over g and w, for float32 tensors on a CPU (numba, the extra `gsm-lab[fast]`).

The first pass reads g and w and forms |g * w| without storing it: it counts the values above a bracket that a strided
sample gives, and keeps the few inside, among which the threshold is selected. The second pass forms |g * w| again,
gates, and does what PyTorch's fused SGD does, to the bit. Where the sample misled us the answer is found digit by
digit, so a bad bracket costs time and never the exactness. Above a few million weights, every thread of PyTorch's
takes a part of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim import kernels

SHARED = 1 << 21  # weights from which on threads share the work: below, to wake them costs more than they save
_ROOM = 65_536, 5_000_000  # candidates there is room for, at least and at most; between them one weight in 16
_FLOAT, _DENSE, _PLAIN = torch.float32, torch.strided, (Tensor, torch.nn.Parameter)


class Passes:
    """The two passes over a fixed list of tensors.

    Args:
        weights: the tensors that compete.
        others: those that follow them and only take part in the step, with all of their gradients.

    """

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        self._tensors, self._competing = (*weights, *others), len(weights)
        self._sizes = [p.numel() for p in self._tensors]
        table = np.zeros((len(self._tensors), 4), np.uint64)
        table[:, 3] = self._sizes
        self._table, self._entries = (
            table,
            memoryview(table.reshape(-1)),
        )  # through which it is written at half the cost
        self._settings, self._given = np.empty((len(self._tensors), 4), np.float32), None
        self.count = sum(self._sizes[: self._competing])
        room = min(self.count, max(_ROOM[0], min(self.count // 16, _ROOM[1]))) + kernels.BLOCK + 8
        self._found = np.empty(room, np.int32)
        self._parts: list[_Part] = []

    def take(self) -> bool:
        """Note where weights and gradients lie now; False where the passes cannot read one of them at its address."""
        entries = self._entries
        for i, (p, size) in enumerate(zip(self._tensors, self._sizes, strict=True)):
            g = p.grad
            if not (is_simple(p, size) and is_simple(g, size)):
                return False
            entries[4 * i], entries[4 * i + 1] = p.data_ptr(), g.data_ptr()
        threads = torch.get_num_threads() if self.count >= SHARED else 1
        if len(self._parts) != threads:
            self._divide(threads)
        self._locate()
        return True

    def threshold(self, q: int) -> np.float32 | None:
        """The smallest |g * w| among the `q` greatest (fewer where fewer are positive), 0 < q < N; after `take`.

        None where the threshold would not say which pass: ties are left out, some are not finite, or none is positive.
        """
        bits, ties, finite = self._find(q)
        return _as_float(bits) if finite and bits and not ties else None

    def gate(self, threshold: np.float32, out: np.ndarray) -> None:
        """Write the gradients that pass, and zeros, to `out`, float32 [N], one tensor after the other."""
        self._each(lambda part: kernels.pass_through(part.table, threshold, out[part.flat]))

    def step(
        self, q: int, momenta: Sequence[Tensor], settings: list[tuple[float, ...]], active: np.ndarray
    ) -> np.float32 | None:
        """Do PyTorch's fused SGD step with the gradients that pass; after `take`.

        Args:
            q: how many pass, 0 < q < N.
            momenta: the momentum buffers of all tensors.
            settings: learning rate, weight decay, momentum, 1 - dampening of all tensors.
            active: bool, one for each entry of all tensors: says which passed.

        Returns:
            The threshold; None, and nothing is changed, where there is none, a gradient is not finite, a buffer cannot
            be read, or it is not known how PyTorch rounds.
        """
        entries, n = self._entries, self._competing
        for i, (z, size) in enumerate(zip(momenta, self._sizes, strict=True)):
            if not is_simple(z, size):
                return None
            entries[4 * i + 2] = z.data_ptr()
        if (codes := rounding()) is None:
            return None
        if settings != self._given:
            self._settings[:] = self._given = settings
        if len(self._parts) == 1:
            found = sampling(self.count, q)
            bits, done = kernels.step(self._table, n, q, *found, self._found, self._settings, codes, active)
            return _as_float(bits) if done else None
        threshold = self.threshold(q)
        if threshold is None or not kernels.finite(self._table[n:]):
            return None
        self._locate()
        self._each(
            lambda part: kernels.update(part.table, threshold, self._settings[part.tensors], codes, active[part.flat])
        )
        kernels.update(self._table[n:], np.float32(-1), self._settings[n:], codes, active[self.count :])
        return threshold

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
        return kernels.descend(self._table[: self._competing], q)

    def _divide(self, threads: int) -> None:
        """Parts of about equal size, cut where no vector is cut."""
        bounds = np.cumsum([0, *self._sizes[: self._competing]])
        cuts = [self.count * i // threads for i in range(threads)]
        starts = bounds[np.searchsorted(bounds, cuts, "right") - 1]  # of the tensors that are cut
        flat = [*(starts + (cuts - starts) // 64 * 64), self.count]
        room = [self._found.size * i // threads for i in range(threads + 1)]
        self._parts = [_Part(self._table, bounds, *ends) for ends in zip(pairwise(flat), pairwise(room), strict=True)]

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


def is_simple(x: Tensor | None, size: int) -> bool:
    """Whether it is a tensor of so many entries that the passes can read at its address."""
    return (
        type(x) in _PLAIN
        and x.dtype is _FLOAT
        and x.is_cpu
        and x.layout is _DENSE
        and x.is_contiguous()
        and x.numel() == size
    )


@lru_cache(maxsize=64)
def sampling(size: int, q: int) -> tuple[int, np.ndarray]:
    """The stride of the sample (0: none), and pairs (most, least) for `kernels.bracket`, to be tried in turn.

    Of m sampled values the number among the top q is about binomial; three standard deviations to either side hold
    the threshold in all but one step of 400. Neighbours resemble each other, hence a second, wider pair.
    """
    wanted = 4096 if size < 1 << 21 else 32_768 if size < 10**8 else 131_072
    stride = size // wanted
    if stride < 2:
        return 0, np.zeros((1, 2), np.int64)
    stride += 1 - stride % 2  # odd, so that power-of-two layer widths do not confine the sample to a few columns
    while stride % 3 == 0 or stride % 5 == 0 or stride % 7 == 0:  # nor widths such as 300 or 784 with their factors
        stride += 2
    mean = -(-size // stride) * q / size
    deviation = math.sqrt(mean * (1 - q / size))
    pairs = [(max(0, math.floor(mean - s * deviation - 1)), math.ceil(mean + s * deviation + 2)) for s in (3, 9)]
    return stride, np.array(pairs, np.int64)


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
        kernels.update(table, np.float32(-1), settings, np.array(codes), np.empty(n, bool))
        return torch.equal(trial[:, :n], done[:, :n])

    body = next((code for code in kernels.ROUNDINGS if fits(1, code, code, 1)), None)
    tails = [(body, tail, width) for width in (16, 8, 4) for tail in kernels.ROUNDINGS if body is not None]
    return next((np.array(codes) for codes in tails if fits(len(sizes), *codes)), None)
