"""The inner loops of a `Recorder`, in numpy; compiled where numba is installed.

`pair`, int32 [N, 2], holds for each weight the step it was last active at and its longest stretch. For a weight that is
active now, the former's four bytes hold its smallest |w| so far instead (see `Recorder`).
"""

from __future__ import annotations

import itertools
from functools import cache
from types import ModuleType

import numpy as np

NEAR_ZERO = 1e-3  # |w| below it counts as near zero
CHUNK = 32768  # weights whose |w| is formed at a time: the scratch stays small, and in the cache
SHIFT = 23 - 5  # leaves five bits of a length's leading digits: exact below 64, within 3% above
LOWEST = int(np.float32(1).view(np.int32)) >> SHIFT
BINS = 24 << 5  # for stretches of up to 2^24 steps


@cache
def compiled() -> ModuleType | None:
    """The compiled passes, where numba is installed."""
    try:
        from gsm_lab.studies import scan_compiled
    except ImportError:
        return None
    return scan_compiled


def lower(smallest: np.ndarray, weights: np.ndarray) -> None:
    """Lower smallest to min(smallest, |weights|), both float32 [n], in place."""
    if module := compiled():
        module.lower(smallest, weights)
        return
    scratch = np.empty(min(weights.size, CHUNK), np.float32)
    for start in range(0, weights.size, CHUNK):
        w, least = weights[start : start + CHUNK], smallest[start : start + CHUNK]
        np.minimum(least, np.abs(w, out=scratch[: w.size]), out=least)


def moved(active: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places where `active` is set and `before` is not, and the reverse: int64, ascending. Both are bool [n]."""
    if module := compiled():
        return module.moved(active, before)
    whole = active.size // 8 * 8
    a, b = active[:whole].view(np.uint64), before[:whole].view(np.uint64)
    words = _places(a != b)  # of eight entries each
    places = _inside(words, np.flatnonzero((a.take(words) ^ b.take(words)).view(bool)))
    if whole < active.size:
        places = np.append(places, whole + np.flatnonzero(active[whole:] != before[whole:]))
    on = active.take(places)
    return places.compress(on), places.compress(~on)


def _places(flags: np.ndarray) -> np.ndarray:
    """`np.flatnonzero` of flags few of which are set: where eight in a row are not, they are passed over together."""
    whole = flags.size // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    found = _inside(some, np.flatnonzero(words.take(some).view(bool)))
    return found if whole == flags.size else np.append(found, whole + np.flatnonzero(flags[whole:]))


def _inside(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Places among the entries of some words of eight -> places among all entries."""
    return (words.take(places >> 3) << 3) + (places & 7)


def went(off: np.ndarray, step: int, pair: np.ndarray, smallest: np.ndarray) -> None:
    """The weights `off`, int64, became passive in this step: their smallest |w| is put back, their last step noted."""
    if module := compiled():
        module.went(off, step, pair, pair.view(np.float32), smallest)
        return
    both = pair.view(np.int64).reshape(-1)
    now = both.take(off).view(np.int32).reshape(-1, 2)
    smallest[off] = now.view(np.float32)[:, 0]
    now[:, 0] = step - 1
    both[off] = now.view(np.int64).reshape(-1)


def came(
    on: np.ndarray, by_layer: np.ndarray, step: int, pair: np.ndarray, smallest: np.ndarray, times: np.ndarray,
    ended: np.ndarray, sums: np.ndarray, patience: int,
) -> None:  # fmt: skip
    """The weights `on`, int64, became active in this step.

    Args:
        on: ascending; those of layer i are on[by_layer[i] : by_layer[i + 1]].
        step: this one.
        pair, smallest: see above; the smallest |w| is put away.
        times: uint16 [N], re-activations; stays at 65,535.
        ended: int64 [layers, BINS], of stretches by length; sums: int64 [4, layers], see `Recorder`.
        patience: passive steps in a row that make a weight woken.
    """
    if module := compiled():
        module.came(on, by_layer, step, pair, pair.view(np.float32), smallest, times, ended, sums, patience)
        return
    both = pair.view(np.int64).reshape(-1)
    now, least, count = both.take(on).view(np.int32).reshape(-1, 2), smallest.take(on), times.take(on)
    length = (step - 1) - now[:, 0]
    now[:, 1] = np.maximum(now[:, 1], length)
    now.view(np.float32)[:, 0] = least
    both[on] = now.view(np.int64).reshape(-1)
    count += count < 65535
    times[on] = count
    layer = np.arange(len(ended)).repeat(by_layer[1:] - by_layer[:-1])
    ended += np.bincount(layer * BINS + length_bin(length), minlength=ended.size).reshape(ended.shape)
    woken, near = length >= patience, least < NEAR_ZERO
    for i, (a, b) in enumerate(itertools.pairwise(by_layer.tolist())):
        sums[1:, i] += (b - a, np.count_nonzero(woken[a:b]), np.count_nonzero(near[a:b]))


def length_bin(length: np.ndarray) -> np.ndarray:
    """The bin of stretches of `length` >= 1 steps: the leading bits of the length as a float32, so no logarithm."""
    return (length.astype(np.float32).view(np.int32) >> SHIFT) - LOWEST


def length_bins() -> np.ndarray:
    """Where each bin begins: float64 [BINS]; below 64 each whole number has its own bin."""
    return (np.arange(LOWEST, LOWEST + BINS, dtype=np.int32) << SHIFT).view(np.float32).astype(np.float64)
