"""What `History` counts after every step, in numpy; compiled where numba is installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gsm_lab.optim.fused import loader

CHUNK = 65_536  # weights whose |w| is formed at a time: the scratch stays small, and in the cache
COMPILED = f"{__name__}_compiled"


def flags(now: np.ndarray, before: np.ndarray | None, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries are set in each layer, and how many of these were not set before (none without a `before`).

    Args:
        now, before: bool [N].
        bounds: int64 [layers + 1], where layers begin and end.

    Returns:
        Two int32 [layers].
    """
    before = now if before is None else before
    if module := loader.compiled(COMPILED):
        return module.flags(now, before, bounds)
    layers = [(now[a:b], before[a:b]) for a, b in pairwise(bounds.tolist())]
    came = [np.count_nonzero(np.greater(x, y)) for x, y in layers]
    return np.array([np.count_nonzero(x) for x, _ in layers], np.int32), np.array(came, np.int32)


def near_zero(w: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    """How many |w| are below each threshold; w is float32 [n]."""
    limits = np.array(thresholds, np.float32)
    if module := loader.compiled(COMPILED):
        return module.near_zero(w, limits).tolist()
    counts = np.zeros(len(limits), np.int64)
    scratch = np.empty(min(w.size, CHUNK), np.float32)
    for start in range(0, w.size, CHUNK):
        part = w[start : start + CHUNK]
        magnitude = np.abs(part, out=scratch[: part.size])
        counts += [np.count_nonzero(magnitude < limit) for limit in limits]
    return counts.tolist()
