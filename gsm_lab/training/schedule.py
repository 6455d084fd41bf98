"""What the settings make of the learning rate and of C at a step of the plan."""

from __future__ import annotations

import math

from gsm_lab.knobs import Settings

RAMP_FROM = 4.0  # where a ramp of the compression begins
FLOOR = 0.01  # of the learning rate, where the cosine ends and stays: training past the planned end still trains


def lr(settings: Settings, steps: int, planned: int) -> float:
    """Learning rate after `steps` of `planned`: full for the share `hold` of the plan, then a cosine down to 1%."""
    held = settings.hold * planned
    if steps <= held or settings.hold >= 1:
        return settings.lr
    return settings.lr * cosine((steps - held) / (planned - held))


def compression(settings: Settings, steps: int, planned: int) -> float:
    """C after `steps` of `planned`: the setting, or on the way there from `RAMP_FROM`, by equal factors."""
    full, ramp = settings.compression, settings.ramp * planned
    if steps >= ramp or full <= RAMP_FROM:
        return full
    return RAMP_FROM * (full / RAMP_FROM) ** (steps / ramp)


def reached(share: float, steps: int, planned: int) -> bool:
    """Whether `steps` are that share of the plan; never where the share is 1."""
    return share < 1 and steps >= share * planned


def cosine(share: float) -> float:
    """From 1 at 0 to `FLOOR` at 1, and `FLOOR` from there on."""
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
