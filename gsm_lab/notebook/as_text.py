"""What figures and widgets show, in a few words and numbers, for a notebook to store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from gsm_lab.checks import shown

STATISTICS = ("first", "last", "min", "max", "mean")
SHOWN = 6  # numbers of an array that are all shown; of more the least and the greatest


def digest(figure: Any) -> dict[str, dict[str, Any]]:
    """What `expect.trace` compares, for every trace of a plotly figure: to be stored, and tightened by hand.

    Returns:
        name of the trace -> `look`: type, mode, dash, marker and axes; `points`: how many there may be, from, to;
        `y`: first, last, min, max and mean, rounded; `tolerance`: of these five. (Values are y, or z of a heat map, or
        x of horizontal bars.) The tolerance is 5% of the range, at least 0.1% of the largest.
    """
    found = {}
    for name, one in named(figure).items():
        y = values(one)
        entry: dict[str, Any] = {"look": appearance(one), "points": (9 * y.size // 10, -(-11 * y.size // 10))}
        if y.size:
            spread = float(y.max() - y.min())
            tolerance = float(f"{max(0.05 * spread, 1e-3 * float(np.abs(y).max())) or 1e-6:.1g}")
            digits = 1 - math.floor(math.log10(tolerance))
            entry |= {"y": tuple(round(v, digits) + 0.0 for v in statistics(y)), "tolerance": tolerance}
        found[name] = entry
    return found


def named(figure: Any) -> dict[str, Any]:
    """Traces by name; a trace without a name, or with one that is taken, by its place."""
    from plotly.basedatatypes import BaseFigure

    if not isinstance(figure, BaseFigure):
        raise TypeError(f"figure must be a plotly figure, got {shown(figure)}")
    found: dict[str, Any] = {}
    for i, one in enumerate(figure.data):
        name = one.name or f"trace {i}"
        found[name if name not in found else f"{name} (trace {i})"] = one
    return found


def appearance(one: Any) -> str:
    """Type, mode, dash, marker and axes of a trace, "-" for what it does not have."""
    lines, markers = (part in (_of(one, "mode") or "lines+markers") for part in ("lines", "markers"))
    parts = (
        _of(one, "type"),
        _of(one, "mode"),
        (_of(one, "line", "dash") or "solid") if lines and _of(one, "line") is not None else None,
        (_of(one, "marker", "symbol") or "circle") if markers and _of(one, "line") is not None else None,
        _of(one, "xaxis") or "x",
        _of(one, "yaxis") or "y",
    )
    return " ".join(str(part or "-") for part in parts)


def values(one: Any) -> np.ndarray:
    """The numbers that a trace shows, flat and without gaps."""
    horizontal = _of(one, "orientation") == "h"
    shown = next((v for v in (_of(one, "z"), _of(one, "x") if horizontal else _of(one, "y")) if v is not None), ())
    values = np.asarray(shown, dtype=np.float64).reshape(-1)  # None becomes NaN, which plotly draws as a gap too
    return values[np.isfinite(values)]


def statistics(y: np.ndarray) -> tuple[float, ...]:
    """First, last, least and greatest value, and the mean."""
    return float(y[0]), float(y[-1]), float(y.min()), float(y.max()), float(y.mean())


def measured(got: np.ndarray, beside: float, what: str = "") -> str:
    """The end of a line of `expect`: " (measured 0.972)", which nbval does not compare.

    Args:
        got: the numbers, of any shape, at least one; all finite.
        beside: the tolerance or bound they were held against: as many decimals as it has are shown, or more.
        what: what the numbers are, where that is not plain.
    """
    decimals = max(0, -int(Decimal(f"{beside:.8g}").as_tuple().exponent))
    numbers, between = (got.flat, ", ") if got.size <= SHOWN else ((got.min(), got.max()), " to ")
    said = between.join(_rounded(x, decimals) for x in numbers)
    return f" (measured {f'{what}: ' if what else ''}{said})"


def _rounded(x: float, decimals: int) -> str:
    """To three digits, at least so many decimals, and always to the unit; what is tiny or huge to three digits."""
    size = abs(float(x))
    if not 1e-4 <= size < 1e8:
        return f"{x:.3g}" if size else "0"
    text = f"{x:.{max(decimals, 2 - math.floor(math.log10(size)), 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _of(thing: Any, *path: str) -> Any:
    for name in path:
        thing = getattr(thing, name, None)
    return thing


def describe(widgets: Any, without: Iterable[str] = ("HTML", "Output")) -> str:
    """Widgets as text, a line each: class, description, value, and what else it could be.

    Args:
        widgets: a widget, an iterable or mapping of them, or anything with `children`; boxes are opened.
        without: names of classes to leave out; read-outs hold numbers that differ from CPU to CPU.
    """
    skipped = frozenset(without)
    return "\n".join(_line(w) for w in _leaves(widgets, set()) if type(w).__name__ not in skipped)


def _leaves(widgets: Any, seen: set[int]) -> Iterable[Any]:
    """What is inside boxes, iterables and mappings, each widget once, in order."""
    inside = getattr(widgets, "children", None)
    if inside is None and not hasattr(widgets, "layout"):  # only widgets have that, and a FigureWidget is iterable
        inside = widgets.values() if isinstance(widgets, Mapping) else widgets
    if isinstance(inside, Iterable) and not isinstance(inside, str):
        for one in inside:
            yield from _leaves(one, seen)
    elif id(widgets) not in seen:
        seen.add(id(widgets))
        yield widgets


def _line(widget: Any) -> str:
    parts = [f"{type(widget).__name__:<18}", repr(getattr(widget, "description", ""))]
    value = getattr(widget, "value", None)
    if value is not None:
        parts.append(f"= {_text(value)}")
    low, high, options = (getattr(widget, name, None) for name in ("min", "max", "options"))
    if options is not None:
        labels = [option[0] if isinstance(option, tuple) else option for option in options]
        parts.append("of " + ", ".join(map(_text, labels)))
    elif low is not None and high is not None:
        parts.append(f"from {_text(low)} to {_text(high)}")
    if getattr(widget, "disabled", False):
        parts.append("(disabled)")
    if getattr(getattr(widget, "layout", None), "display", None) == "none":
        parts.append("(hidden)")
    return "  ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", value)).strip() if isinstance(value, str) else str(value)
