"""Ends widgets for good: ipywidgets keeps each one, and all it refers to, until it is closed by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipywidgets import Widget

from gsm_lab.notebook.browser import PlotlyJS


def close_all(widgets: Iterable[Any]) -> None:
    """Close widgets with all that they hold, laid out or not: children, layouts, styles, widgets in attributes.

    What is closed already stays so.
    """
    seen, left = set[int](), list(widgets)
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
        elif isinstance(one, Widget) and not isinstance(one, PlotlyJS):  # that one is of all figures
            left.extend(vars(one).values())  # the values of its traits among them, as far as there are any
            Widget.close(one)


def forget_output(what: Any) -> None:
    """Take an object out of IPython's record of what cells have shown (`Out`, `_`, `_3`), which would keep it."""
    try:
        from IPython import get_ipython
    except ImportError:  # a widget that goes with its program comes here when nothing can be imported any more
        return
    if (shell := get_ipython()) is None:
        return
    shown = shell.user_ns.get("_oh", {})
    for count in [count for count, value in shown.items() if value is what]:
        del shown[count]
    # IPython writes what was shown down a second time, among the names that `%who` does not list
    for names in (shell.user_ns, getattr(shell, "user_ns_hidden", {})):
        for name in [name for name, value in names.items() if value is what and name.strip("_").isdigit()]:
            del names[name]
        for name in [name for name in ("_", "__", "___") if names.get(name) is what]:
            names[name] = ""
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name, None) is what:
            setattr(shell.displayhook, name, "")
