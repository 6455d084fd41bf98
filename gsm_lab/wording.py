"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

_UNITS = {0: "bytes", 3: "kB", 6: "MB", 9: "GB", 12: "TB", 15: "PB"}


def percent(share: float | None) -> str:
    """A share in percent with two decimals, such as an accuracy: 0.9833 is "98.33%"; None is ""."""
    return "" if share is None else f"{100 * share:.2f}%"


def error_percent(error: float) -> str:
    """A relative error in percent: whole percents from 1% on ("1,250%"), below that one digit that counts ("0.03%")."""
    return f"{100 * error:,.0f}%" if error >= 0.01 else f"{100 * error:.1g}%"


def number(value: Any) -> str:
    """A knob's value, as short as it can be without losing a digit."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def whole_percent(share: float) -> str:
    """A share in whole percents, with one decimal from 99% on, rounded down: it is "100%" only where it is all."""
    percents = 100 * share
    return f"{percents:.0f}%" if percents < 99 or percents == 100 else f"{math.floor(10 * percents) / 10:.1f}%"


def times(factor: float) -> str:
    """A factor >= 1 in two digits: "1.2×", "34×", "1,400×"."""
    return f"{float(f'{factor:.2g}'):,.4g}×" if factor < 1000 else f"{float(f'{factor:.2g}'):,.0f}×"


def size(count: float) -> str:
    """A number of bytes in three digits and a unit: "2.1 MB"."""
    power = next((p for p in sorted(_UNITS, reverse=True) if count >= 10**p), 0)
    return f"{float(f'{count / 10**power:.3g}'):g} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds in three digits, or milliseconds where there are few: "1.25 s", "30 ms"."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def count(number: int) -> str:
    """A whole number with commas, or in billions: "266,200", "100 billion"."""
    return f"{number / 1e9:g} billion" if number >= 1e9 else f"{number:,}"


def layer_name(parameter: str) -> str:
    """The layer that a prunable parameter belongs to: "fc1" for "fc1.weight"."""
    return parameter.removesuffix(".weight")


def short_layer_name(parameter: str, most: int = 18) -> str:
    """The same in at most so many letters: the middle is left out."""
    name = layer_name(parameter)
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def one_decimal(share: float) -> str:
    """A share in percent with one decimal, "0%" and "100%" only where it is none and all: "98.3%", "under 0.1%"."""
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    return "under 0.1%" if share < 0.0005 else f"{min(99.9, 100 * share):.1f}%"
