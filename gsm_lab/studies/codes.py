"""How a `Recorder` writes down a size in two bytes, and a stretch of steps by its leading digits."""

from __future__ import annotations

import numpy as np

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
