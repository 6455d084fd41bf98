"""Arguments: what was given in words that are never too long, and numbers within bounds."""

from __future__ import annotations

import math
import operator
import os
from numbers import Real
from pathlib import Path
from typing import Any

_LONGEST = 80  # characters of a value in an error


def shown(value: Any) -> str:
    """`repr(value)`, cut where it is long; its type where it has none, as an int of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int if it is an integer within low .. high; else TypeError or ValueError naming it."""
    valid = f"an integer >= {low}" if high is None else f"an integer in {low} .. {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}; valid: {valid}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {shown(number)}; valid: {valid}")
    return number


def path(name: str, value: Any) -> Path:
    """`value` as a path, if it is one or text; else TypeError or ValueError naming it."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} must be a path, as text or a pathlib.Path, got {shown(value)}")
    if "\0" in os.fspath(value):
        raise ValueError(f"{name} must be a path without null characters, got {shown(value)}")
    if not os.fspath(value):
        raise ValueError(f"{name} must be a path, got an empty one ('.' is the working directory)")
    return Path(value)


def number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a float, if it is a finite number within low .. high; else TypeError or ValueError naming it."""
    valid = f"a finite number >= {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be {valid}, got {shown(value)}")
    try:
        found = float(value)
    except (OverflowError, ValueError):  # an int beyond every float
        found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        raise ValueError(f"{name} must be {valid}, got {shown(value)}")
    return found
