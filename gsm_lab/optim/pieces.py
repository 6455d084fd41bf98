"""Tensors in pieces, and pieces in blocks of some size: what `blocks` looks at together."""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 1 << 19  # entries looked at together: some arrays of two megabytes are in use at a time
WHOLE = 64  # entries: a tensor is cut at multiples of it, since fused SGD rounds what fills no vector otherwise


class Piece(NamedTuple):
    """Entries `inside` of the tensor `i`, which are the entries `at` of a block."""

    i: int
    inside: slice
    at: slice


class Block(NamedTuple):
    """Pieces of one or several tensors, which begin at flat position `start` and have `size` entries in all."""

    start: int
    size: int
    pieces: list[Piece]


def divided(sizes: list[int]) -> list[Block]:
    """Tensors of these sizes in blocks of at most BLOCK entries, and not many less but in the last."""
    blocks: list[Block] = []
    start, filled, pieces = 0, 0, []
    for i, size in enumerate(sizes):
        done = 0
        while done < size:
            n = min(size - done, BLOCK - filled)
            if done + n < size:
                n -= n % WHOLE
            if n:
                pieces.append(Piece(i, slice(done, done + n), slice(filled, filled + n)))
                done, filled = done + n, filled + n
            if done < size or filled == BLOCK:
                blocks.append(Block(start, filled, pieces))
                start, filled, pieces = start + filled, 0, []
    return [*blocks, Block(start, filled, pieces)] if pieces else blocks
