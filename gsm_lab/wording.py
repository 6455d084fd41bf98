"""Numbers as people read them."""

from __future__ import annotations

from typing import Any


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
