"""Widgets as text, for a notebook to store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


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
