"""Arguments: what was given in words that are never too long, numbers within bounds, and things of the right kind."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

MOST = 2**31 - 1  # of anything that is counted
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
    valid = "a finite number" if low == -math.inf == -high else valid
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be {valid}, got {shown(value)}")
    if not (is_number(value) and low <= float(value) <= high):
        raise ValueError(f"{name} must be {valid}, got {shown(value)}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number: no bool, no text, no tensor."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except (OverflowError, ValueError):  # an int beyond every float
        return False


def positive(name: str, value: Any) -> float:
    """`value`, if it is a finite number above 0; else ValueError naming it."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")
    return value


def whole(name: str, value: Any, low: int = 1, valid: str = "a whole number") -> int:
    """`value` as an int, if it is an integer within low .. 2^31 - 1; else ValueError naming it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} must be {valid} >= {low}, got {shown(value)}")
    if value > MOST:
        raise ValueError(f"{name} must be {valid} <= {MOST:,}, got {shown(value)}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, if it is one, or 0 or 1; else TypeError naming it."""
    if isinstance(value, Integral) and value in (0, 1):
        return bool(value)
    if type(value).__module__ == "numpy" and str(getattr(value, "dtype", "")) == "bool" and not value.ndim:
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def text(name: str, value: Any) -> str:
    """`value`, if it is text; else TypeError naming it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {shown(value)}")
    return value


def one_of(name: str, value: Any, valid: Iterable[Any]) -> Any:
    """`value`, if it is one of the names or numbers that are valid; else ValueError listing them."""
    valid = list(valid)
    if not isinstance(value, str | Real) or value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(str, valid))}, got {shown(value)}")
    return value


def several(name: str, value: Any, of: str = "value", empty: bool = False) -> list[Any]:
    """What is in a list or the like, unless it may be `empty` at least one; else TypeError or ValueError naming it."""
    try:
        found = None if isinstance(value, str | bytes) else list(value)
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{name} must be a list, got {shown(value)}")
    if not found and not empty:
        raise ValueError(f"{name} must hold at least one {of}, got none")
    return found


def kind(name: str, value: Any, kinds: type | tuple[type, ...], valid: str) -> Any:
    """`value`, if it is of one of these kinds; else TypeError naming it and what is valid."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {valid}, got {type(value).__name__}")
    return value


def table(name: str, value: Any, columns: Iterable[str] = (), empty: bool = False) -> Any:
    """`value`, if it is a pandas.DataFrame with these columns and, unless it may be `empty`, a row.

    Raises TypeError or ValueError naming it.
    """
    from pandas import DataFrame

    kind(name, value, DataFrame, "a table, a pandas.DataFrame")
    if not len(value) and not empty:
        raise ValueError(f"{name} must have at least one row, got none")
    if missing := [column for column in columns if column not in value.columns]:
        raise ValueError(f"{name} must have the columns {', '.join(columns)}; it has no {', '.join(missing)}")
    return value
