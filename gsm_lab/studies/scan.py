"""The inner loops of a `Recorder`, in numpy; compiled where numba is installed; and how it writes down what it sees.

`pair`, int32 [N, 2], holds for each weight the step it was last active at, unless it is now, and its longest stretch.
`least`, uint16 [N], holds the code of its smallest |w| while passive, `NEVER` where it never was: a step reads and
writes all of them, and in two bytes they leave more of the caches to the network than as float32. Lengths of stretches
are counted by their leading digits.
"""

from __future__ import annotations

import itertools

import numpy as np

from gsm_lab.optim.fused import loader

NEAR_ZERO, NEARER_ZERO = 1e-3, 1e-4  # |w| below it counts as near zero; a second limit, which codes respect, too
SHIFT = 23 - 5  # leaves five bits of a length's leading digits: exact below 64, within 3% above
LOWEST = int(np.float32(1).view(np.int32)) >> SHIFT
BINS = 24 << 5  # for stretches of up to 2^24 steps

# Of the bits of |w|, which order as the sizes do, a code has the exponent and nine digits. An offset makes the first
# code end near 2^-64, and NEAR_ZERO begin one; below NEARER_ZERO a lesser offset makes that begin one, too.
NEVER = 65535
CUT = 23 - 9
_near, NEARER = (int(np.float32(x).view(np.int32)) for x in (NEAR_ZERO, NEARER_ZERO))
ABOVE = (_near - int(np.float32(2**-64).view(np.int32)) >> CUT << CUT) - _near
BELOW = (NEARER + ABOVE >> CUT << CUT) - NEARER
NEAR = _near + ABOVE >> CUT  # the code of NEAR_ZERO

CHUNK = 32768  # weights whose |w| is formed at a time: the scratch stays small, and in the cache
COMPILED = f"{__name__}_compiled"


def codes(weights: np.ndarray) -> np.ndarray:
    """Codes of |w|, which never fall as |w| grows and rise by one every 0.2%: float32 [n] -> uint16 [n].

    What is below NEAR_ZERO or NEARER_ZERO (as float32) has a code below that limit's, all else has not. Sizes under
    5.4e-20 share the code 0; those from 1.85e19 on, infinity and NaN have the code `NEVER`.
    """
    found = weights.view(np.int32) & 0x7FFFFFFF
    np.subtract(found, ABOVE - BELOW, out=found, where=found < NEARER)
    found += ABOVE
    found >>= CUT
    return found.clip(0, NEVER, out=found).astype(np.uint16)


def sizes(codes: np.ndarray) -> np.ndarray:
    """The least |w| that has each code, 0 for 0, infinity for `NEVER`: uint16 [n] -> float32 [n]."""
    found = codes.astype(np.int32) << CUT
    found = np.where(found < NEARER + BELOW, found - BELOW, np.maximum(found - ABOVE, NEARER))
    found[codes == 0], found[codes == NEVER] = np.array([0, np.inf], np.float32).view(np.int32)
    return found.view(np.float32)


def length_bin(length: np.ndarray) -> np.ndarray:
    """The bin of stretches of `length` >= 1 steps: the leading bits of the length as a float32, so no logarithm."""
    return (length.astype(np.float32).view(np.int32) >> SHIFT) - LOWEST


def length_bins() -> np.ndarray:
    """Where each bin begins: float64 [BINS]; below 64 each whole number has its own bin."""
    return (np.arange(LOWEST, LOWEST + BINS, dtype=np.int32) << SHIFT).view(np.float32).astype(np.float64)


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
    arrived = np.diff(by_layer)
    sums[0] += np.diff(bounds) - held
    held += arrived - np.diff(gone)
    pair[off, 0] = now - 1
    both, count = pair.take(on, axis=0), times.take(on)
    length = (now - 1) - both[:, 0]
    pair[on, 1] = np.maximum(both[:, 1], length)
    count += count < 65535
    times[on] = count
    layer = np.arange(len(ended)).repeat(arrived)
    ended += np.bincount(layer * BINS + length_bin(length), minlength=ended.size).reshape(ended.shape)
    woken, near = length >= patience, least.take(on) < NEAR
    for i, (a, b) in enumerate(itertools.pairwise(by_layer.tolist())):
        sums[1:, i] += (b - a, np.count_nonzero(woken[a:b]), np.count_nonzero(near[a:b]))
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
    places = _places(active != before)
    on = active.take(places)
    return places.compress(on), places.compress(~on)


def _places(flags: np.ndarray) -> np.ndarray:
    """`np.flatnonzero` of flags few of which are set: where eight in a row are not, they are passed over together."""
    whole = flags.size // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words.take(some).view(bool))
    found = (some.take(inside >> 3) << 3) + (inside & 7)
    return found if whole == flags.size else np.append(found, whole + np.flatnonzero(flags[whole:]))
