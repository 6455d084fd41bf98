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


def share(part: float) -> str:
    """A share, or a relative error, in percent: two digits that count, whole percents from 10 on; "100%" is all of it.

    "34%", "1.3%", "0.012%", "99.6%", "1,250%"; "unknown" where there is none (NaN).
    """
    percents = 100 * part
    if not math.isfinite(percents):
        return "unknown" if math.isnan(percents) else "beyond all bounds"
    if 0 < percents < 1e-3:
        return "under 0.001%"
    if 99.5 <= percents < 100:
        return f"{math.floor(10 * percents + 1e-6) / 10:.1f}%"
    return f"{percents:,.0f}%" if percents >= 9.95 else f"{percents:.2g}%"


def digits(value: float) -> str:
    """A number in two digits that count: "0.034", "-1.5", "12,000", "1.2·10⁻⁷"; "not a number" where it is none."""
    value = float(f"{value:.2g}") + 0.0  # never a zero with a sign
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'-' if value < 0 else ''}infinity"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"
    mantissa, power = f"{value:e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if float(mantissa) == 1 else f"{float(mantissa):g}·10{raised}"


def signed(value: float, decimals: int = 1) -> str:
    """A change with its sign: "+0.3", "-1.0"; what rounds to nothing is "+0.0"."""
    return f"{round(float(value), decimals) + 0.0:+.{decimals}f}"


def counted(number: int, what: str, many: str = "") -> str:
    """So many of something: "1 weight", "1,200 weights"; `many` where that is not `what` with an s."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def times(factor: float) -> str:
    """A factor >= 1 in two digits: "1.2×", "34×", "1,400×", "10⁹×"."""
    if factor >= 1e6:
        return f"{digits(factor)}×"
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
