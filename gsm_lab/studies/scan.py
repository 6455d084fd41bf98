"""The inner loops of a `Recorder`, in numpy; compiled where numba is installed.

`pair`, int32 [N, 2], holds for each weight the step it was last active at, unless it is now, and its longest stretch.
`least`, uint16 [N], holds the code (see `studies.codes`) of its smallest |w| while passive, `NEVER` where it never was:
a step reads and writes all of them, and in two bytes they leave more of the caches to the network than as float32.
"""

from __future__ import annotations

import itertools

import numpy as np

from gsm_lab.optim.fused import loader
from gsm_lab.studies.codes import BINS, NEAR, codes, length_bin

CHUNK = 32768  # weights whose |w| is formed at a time: the scratch stays small, and in the cache
COMPILED = f"{__name__}_compiled"


def step(
    active: np.ndarray, before: np.ndarray, weights: list[np.ndarray], bounds: np.ndarray, now: int, pair: np.ndarray,
    least: np.ndarray, times: np.ndarray, ended: np.ndarray, sums: np.ndarray, held: np.ndarray, patience: int,
) -> None:  # fmt: skip
    """A step and the one before it.

    Args:
        active, before: who is active now and was one step earlier, bool [N].
        weights: the layers' values, float32, contiguous; those of layer i have places from bounds[i] to bounds[i + 1].
        now: the step.
        pair, least: see above.
        times: uint16 [N], re-activations; stays at 65,535.
        ended: int64 [layers, BINS], of stretches by length; sums: int64 [4, layers], see `Recorder`.
        held: int64 [layers], how many were active one step earlier; afterwards, are now.
        patience: passive steps in a row that make a weight woken.
    """
    if module := loader.compiled(COMPILED):
        addresses = np.array([w.__array_interface__["data"][0] for w in weights], np.uint64)
        module.step(active, before, addresses, bounds, now, pair, least, times, ended, sums, held, patience)
        return
    on, off = moved(active, before)
    by_layer, gone = on.searchsorted(bounds), off.searchsorted(bounds)
    sums[0] += np.diff(bounds) - held
    pair[off, 0] = now - 1
    came(on, by_layer, now, pair, least, times, ended, sums, patience)
    held += np.diff(by_layer) - np.diff(gone)
    places = _places(active)
    stays = least.take(places)
    for w, (a, b) in zip(weights, itertools.pairwise(bounds), strict=True):
        lower(least[a:b], w.reshape(-1))
    least[places] = stays


def lower(least: np.ndarray, weights: np.ndarray) -> None:
    """Lower the codes `least`, uint16 [n], to those of `weights`, float32 [n], where these are lower, in place."""
    for start in range(0, weights.size, CHUNK):
        part = least[start : start + CHUNK]
        np.minimum(part, codes(weights[start : start + CHUNK]), out=part)


def moved(active: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places where `active` is set and `before` is not, and the reverse: int64, ascending. Both are bool [n]."""
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


def came(
    on: np.ndarray, by_layer: np.ndarray, step: int, pair: np.ndarray, least: np.ndarray, times: np.ndarray,
    ended: np.ndarray, sums: np.ndarray, patience: int,
) -> None:  # fmt: skip
    """The weights `on`, int64, ascending, became active in this step; those of layer i are on[by_layer[i] : ...]."""
    both, count = pair.take(on, axis=0), times.take(on)
    length = (step - 1) - both[:, 0]
    pair[on, 1] = np.maximum(both[:, 1], length)
    count += count < 65535
    times[on] = count
    layer = np.arange(len(ended)).repeat(by_layer[1:] - by_layer[:-1])
    ended += np.bincount(layer * BINS + length_bin(length), minlength=ended.size).reshape(ended.shape)
    woken, near = length >= patience, least.take(on) < NEAR
    for i, (a, b) in enumerate(itertools.pairwise(by_layer.tolist())):
        sums[1:, i] += (b - a, np.count_nonzero(woken[a:b]), np.count_nonzero(near[a:b]))
