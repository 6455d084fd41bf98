"""GSM's two passes with PyTorch and numpy: block by block, so that each stays in the cache.

Where few are to pass, the first pass keeps the places of all that may, and the second puts their gradients among zeros
that lie ready: neither has to form |g * w| once more, or to write a gradient for every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim import pieces
from gsm_lab.optim.passes import LARGE, Edge, Passes, Settings, pass_through, sampling, sgd_each, simple
from gsm_lab.optim.pieces import Block, divided
from gsm_lab.optim.selection import INFINITY, picked, top_of

SPARSE = 12  # compression from which on places are kept: below, they are so many that to find them costs more
MOST = 3 << 19  # that pass while places are kept, for the sake of memory
SHARED = LARGE  # weights from which on threads share the first pass
_GREATEST = np.int32(0x7FFFFFFF)


Reached = tuple[np.ndarray, np.ndarray]  # the places in a block of all that reach a bound, and their |g * w| as bits


class Blocks(Passes):
    """See `Passes`. It needs no compiler, and some times the time."""

    def __init__(self, weights: Iterable[Tensor], others: Iterable[Tensor] = ()) -> None:
        super().__init__([*weights], [*others])
        self._blocks = divided(self.sizes[: self.competing])
        self._at: tuple[list[int], ...] = ([], [])  # where weights and momenta lay when they were cut into pieces
        self._active = np.empty(self.count, bool)
        self._idle: np.ndarray | None = None  # zeros, among which the gradients that pass are put for a moment
        self._rooms: dict[tuple[int, str], np.ndarray] = {}  # to work in: fresh memory costs time

    def take(self, grads: list[Tensor | None]) -> bool:
        weights = self.places(self.tensors, "weights")
        if weights is None or not all(map(simple, grads, self.sizes)):
            return False
        if weights != self._at[0]:
            self._flat = [p.detach().view(-1) for p in self.tensors]
            self._values = [p.numpy() for p in self._flat[: self.competing]]
            self._at = weights, []
        self._grads = [g.detach().view(-1) for g in grads]
        self._slopes = [g.numpy() for g in self._grads[: self.competing]]
        return True

    def edge(self, q: int) -> Edge | None:
        return self._edge(q)[0]

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        passed = torch.from_numpy(out)
        for block in self._blocks:
            self._pass(block, edge, passed[block.start : block.start + block.size])
        self._grads, self._slopes = [], []

    def step(self, q: int, momenta: list[Tensor], settings: list[Settings]) -> float | None:
        places, n = self.places(momenta, "momenta"), self.competing
        if places is None or not all(np.isfinite(g.numpy()).all() for g in self._grads[n:]):
            return None
        edge, reached = self._edge(q)
        if edge is None:
            return None
        if places != self._at[1]:
            flat = [z.view(-1) for z in momenta]
            self._moving = [
                [[of[x.i][x.inside] for x in block.pieces] for of in (self._flat, flat)] for block in self._blocks
            ]
            self._at = self._at[0], places
        gated = self._room(self._blocks, "product")
        if reached:
            gated = np.zeros(gated.size, np.float32) if self._idle is None else self._idle
            self._idle = None  # an interrupt may leave in it what must not be seen again
        room = torch.from_numpy(gated)
        for k, (block, (weights, momenta_now)) in enumerate(zip(self._blocks, self._moving, strict=True)):
            flags, zeros = self._active[block.start : block.start + block.size], [room[x.at] for x in block.pieces]
            if reached:
                at = _up_to(edge, block, *reached[k])
                flags.fill(False)
                flags[at] = True
                gated[at] = self._slopes_at(block, at)
            else:
                self._pass(block, edge, room[: block.size])
                np.not_equal(gated[: block.size], 0, out=flags)  # an |g * w| that passed is positive
            sgd_each(weights, zeros, momenta_now, [settings[x.i] for x in block.pieces])
            if reached:
                gated[at] = 0
        if reached:
            self._idle = gated
        sgd_each(self._flat[n:], self._grads[n:], [z.view(-1) for z in momenta[n:]], settings[n:])
        self._grads, self._slopes = [], []  # they come and go: to keep them would keep their memory
        return float(edge.threshold)

    def active(self) -> np.ndarray:
        return self._active.copy()

    # -- the first pass ----------------------------------------------------------------------------------------------

    def _edge(self, q: int) -> tuple[Edge | None, list[Reached]]:
        """`edge`; and of each block what reaches a bound below it, where these are few: else nothing."""
        stride, pairs = sampling(self.count, q)
        sample = self._sample(stride).view(np.int32) if stride else np.empty(0, np.int32)
        sparse = self.count >= SPARSE * q and q <= MOST
        for pair in pairs.tolist():
            found: tuple[Edge | None, list[Reached]] | None
            low, high = _bracket(sample, *pair)
            found = self._edge_among_places(q, low, high) if sparse else self._edge_among_values(q, low, high)
            if found is not None:
                return found
        return None, []

    def _edge_among_values(self, q: int, low: np.int32, high: np.int32) -> tuple[Edge | None, list[Reached]] | None:
        found, above = self._between(low, high)
        left = q - above
        if found is None or not 0 < left <= found.size:
            return None
        top = top_of(found.view(np.float32), left)
        edge = np.float32(top.threshold)
        return Edge(edge, self._after_equal(edge, top.ties_left_out) if top.ties_left_out else self.count), []

    def _edge_among_places(self, q: int, low: np.int32, high: np.int32) -> tuple[Edge | None, list[Reached]] | None:
        """None where the bracket does not hold the threshold; no edge where there is none, or no room."""
        room = 2 * q + self.room
        reached = [x for part in self._each(lambda blocks: self._reaching(blocks, low, room)) for x in part]
        if len(reached) < len(self._blocks):
            return None, []
        bits = np.concatenate([some for _, some in reached]) if len(reached) > 1 else reached[0][1]
        above = bits >= high
        left = q - np.count_nonzero(above)
        inside = bits.compress(~above)
        if (bits.size and bits.max() >= INFINITY) or (low == 1 and not bits.size):
            return None, []
        if low == 1 and bits.size <= q:  # all that is positive passes
            return Edge(bits.min().view(np.float32), self.count), reached
        if not 0 < left <= inside.size:
            return None
        top = top_of(inside.view(np.float32), left)
        edge, upto = np.float32(top.threshold), self.count
        if top.ties_left_out:
            upto = int(_flat(self._blocks, reached)[bits == edge.view(np.int32)][-top.ties_left_out])
        return Edge(edge, upto), reached

    def _reaching(self, blocks: list[Block], low: np.int32, room: int) -> list[Reached]:
        """What has bits of at least `low`, of each block; of fewer blocks where there is no `room` for all that."""
        found: list[Reached] = []
        product, flags = self._room(blocks, "product"), self._room(blocks, "flags")
        with np.errstate(all="ignore"):
            for block in blocks:
                bits = self._bits(block, product)
                at = np.flatnonzero(np.greater_equal(bits, low, out=flags[: block.size]))
                found.append((at, bits.take(at)))
                room -= at.size
                if room < 0:
                    return found[:-1]
        return found

    def _between(self, low: np.int32, high: np.int32) -> tuple[np.ndarray | None, int]:
        """The bits of all |g * w| from low to below high, and how many reach high.

        None for the former where there is no room for them, or something is not finite.
        """
        parts = self._each(lambda blocks: self._between_in(blocks, low, high))
        found = [some for part, _ in parts for some in part or ()]
        if any(part is None for part, _ in parts) or sum(some.size for some in found) > self.room:
            return None, 0
        return np.concatenate(found), sum(above for _, above in parts)

    def _between_in(self, blocks: list[Block], low: np.int32, high: np.int32) -> tuple[list[np.ndarray] | None, int]:
        found, room, above = [], self.room, 0
        product, flags, more = (self._room(blocks, name) for name in ("product", "flags", "more flags"))
        with np.errstate(all="ignore"):
            for block in blocks:
                bits, n = self._bits(block, product), block.size
                if bits.max() >= INFINITY:
                    return None, 0
                over = np.greater_equal(bits, high, out=flags[:n])
                above += np.count_nonzero(over)
                found.append(picked(bits, np.logical_xor(over, np.greater_equal(bits, low, out=more[:n]), out=over)))
                room -= found[-1].size
                if room < 0:
                    return None, 0
        return found, above

    def _room(self, blocks: list[Block], name: str) -> np.ndarray:
        """As many entries as a block may have, float32 or flags; nobody else uses them meanwhile."""
        key = blocks[0].start, name
        if key not in self._rooms:
            self._rooms[key] = np.empty(min(pieces.BLOCK, self.count), bool if "flags" in name else np.float32)
        return self._rooms[key]

    def _bits(self, block: Block, out: np.ndarray) -> np.ndarray:
        """|g * w| of a block as bits, in the memory of `out`."""
        for i, inside, at in block.pieces:
            np.multiply(self._values[i][inside], self._slopes[i][inside], out=out[at])
        bits = out[: block.size].view(np.int32)
        return np.bitwise_and(bits, _GREATEST, out=bits)

    def _sample(self, stride: int) -> np.ndarray:
        parts, at = [], 0
        with np.errstate(all="ignore"):
            for w, g in zip(self._values, self._slopes, strict=True):
                parts.append(np.abs(w[at::stride] * g[at::stride]))
                at = (at - w.size) % stride
        return np.concatenate(parts)

    def _after_equal(self, threshold: np.float32, left_out: int) -> int:
        """The flat position after the last of those values equal to the threshold that are not left out."""
        product, wanted = self._room(self._blocks, "product"), threshold.view(np.int32)
        places = [block.start + np.flatnonzero(self._bits(block, product) == wanted) for block in self._blocks]
        return int(np.concatenate(places)[-left_out - 1]) + 1

    def _each(self, do: Callable[[list[Block]], Any]) -> list[Any]:
        """`do` with all blocks, or with as many parts of them as PyTorch has threads: what it returns for each part."""
        parts = min(torch.get_num_threads(), len(self._blocks)) if self.count >= SHARED else 1
        if parts == 1:
            return [do(self._blocks)]
        ends = [len(self._blocks) * i // parts for i in range(parts + 1)]
        under_way = [_pool(parts).submit(do, self._blocks[a:b]) for a, b in pairwise(ends)]
        try:
            return [part.result() for part in under_way]
        finally:
            wait(under_way)  # also after an interrupt: they write into rooms that the next step uses

    # -- the second --------------------------------------------------------------------------------------------------

    def _slopes_at(self, block: Block, at: np.ndarray) -> np.ndarray:
        """The gradients at some places of a block, which ascend."""
        ends = at.searchsorted([piece.at.stop for piece in block.pieces]).tolist()
        parts = [
            self._slopes[x.i].take(at[a:b] + (x.inside.start - x.at.start))
            for x, a, b in zip(block.pieces, [0, *ends], ends, strict=False)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pass(self, block: Block, edge: Edge, out: Tensor) -> None:
        """Write the gradients of a block that pass, and zeros."""
        for i, inside, at in block.pieces:
            g, to = self._grads[i][inside], out[at]
            pass_through(g, torch.mul(self._flat[i][inside], g, out=to), edge, block.start + at.start, to)


def _bracket(sample: np.ndarray, most: int, least: int) -> tuple[np.int32, np.int32]:
    """Bits (low, high): at most `most` of a sample reach high, at least `least` reach low, or it is that of all."""
    n = sample.size
    ends = [n - k for k in (least, most) if 0 < k <= n]
    if ends:
        sample = np.partition(sample, ends)
    low = max(np.int32(1), sample[n - least]) if 0 < least <= n else np.int32(1)
    high = sample[n - most] if 0 < most <= n else _GREATEST
    return low, max(low, high)


def _flat(blocks: list[Block], reached: list[Reached]) -> np.ndarray:
    """The flat positions of all that was reached: int64."""
    return np.concatenate([block.start + at for block, (at, _) in zip(blocks, reached, strict=True)])


def _up_to(edge: Edge, block: Block, at: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The places of those, out of the `at`, that pass."""
    limit = edge.threshold.view(np.int32)
    passes = bits >= limit
    if edge.upto < block.start + block.size:
        passes &= (bits > limit) | (at < edge.upto - block.start)
    return at.compress(passes)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gsm")
