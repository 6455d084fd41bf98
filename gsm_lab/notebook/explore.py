"""`explore`: one figure with a few choices above it, redrawn from tables that are already there."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab.figures import static
from gsm_lab.notebook.browser import STYLE, Figure
from gsm_lab.notebook.closing import close_all, forget_output
from gsm_lab.notebook.readouts import got


class explore(widgets.VBox):
    """Show `draw(...)` under one menu for each of the choices; another choice redraws the figure.

        gl.explore(draw, momentum=[0.9, 0.98, 0.99], layer=["fc1", "fc2"])

    Args:
        draw: called with the chosen values by name; returns the figure. It should draw tables, not compute them: it
            runs at every choice.
        **choices: what can be chosen, at least one value each; the first is shown first.

    Readers without a kernel see the first figure as a picture. An error in `draw` at a later choice, or something else
    than a figure from it, is said above the figure, which stays as it was. A figure of the same make as the one before
    (the same traces and settings with other values) takes its place and keeps a zoom; any other begins afresh.

    Raises:
        ValueError: no choices at all, or one without values; a figure with frames, for which menus have no room.
        TypeError: `draw` cannot be called, or does not return a figure.
    """

    def __init__(self, draw: Callable[..., go.Figure], **choices: Sequence[Any]) -> None:
        if not callable(draw):
            raise TypeError(f"draw must be a function that returns a figure, got {got(draw)}")
        if not choices:
            raise ValueError("choices must hold at least one name with its values, as in momentum=[0.9, 0.98]")
        for name, values in choices.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ValueError(f"{name} must be a list of at least one value, got {got(values)}")
            for value in values:
                try:
                    str(value)
                except Exception as error:
                    raise ValueError(f"{name} must hold values that menus can show, got {got(value)}") from error
        self._draw = draw
        self._drawn = _plain(draw(**{name: values[0] for name, values in choices.items()}))
        self.menus = {
            name: widgets.Dropdown(
                options=[(str(value), value) for value in values],
                value=values[0],
                description=name.replace("_", " "),
                style={"description_width": "initial"},
            )
            for name, values in choices.items()
        }
        self.failure = widgets.HTML()
        self.figure = Figure(deepcopy(self._drawn))
        for menu in self.menus.values():
            menu.observe(self._redraw, "value")
        row = widgets.HBox(list(self.menus.values()), layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([widgets.HTML(STYLE), row, self.failure, self.figure])
        self.add_class("gsm-explore")

    @property
    def chosen(self) -> dict[str, Any]:
        """The values chosen now, by name."""
        return {name: menu.value for name, menu in self.menus.items()}

    def choose(self, **values: Any) -> None:
        """Choose without a mouse. Raises ValueError, before anything changes, for a name or value there is not."""
        for name, value in values.items():
            if name not in self.menus:
                raise ValueError(f"there is no choice {name!r}; the choices are {', '.join(self.menus)}")
            valid = [v for _, v in self.menus[name].options]
            if not _among(value, valid):
                raise ValueError(f"{name} must be one of {', '.join(map(str, valid))}, got {got(value)}")
        for name, value in values.items():
            self.menus[name].value = value

    def _redraw(self, _: Any = None) -> None:
        try:
            new = _plain(self._draw(**self.chosen))
            if _make(new) != _make(self._drawn):  # what to take away from the one before, only plotly's page knows
                before, self.figure = self.figure, Figure(deepcopy(new))
                self.children = [*self.children[:-1], self.figure]
                close_all([before])
            else:
                with self.figure.batch_update():
                    for trace, values in zip(self.figure.data, new["data"], strict=True):
                        trace.update(deepcopy(values), overwrite=True)
                    self.figure.layout.update(deepcopy(new["layout"]), overwrite=True)
        except Exception as error:
            self.failure.value = f'<div class="gsm-error">{escape(type(error).__name__)}: {escape(str(error))}</div>'
            return
        self._drawn, self.failure.value = new, ""

    def close(self) -> None:
        """Remove the widget, with all it is made of."""
        close_all([self])
        forget_output(self)

    def __repr__(self) -> str:
        return f"explore({', '.join(f'{name}={value!r}' for name, value in self.chosen.items())})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if isinstance(bundle, dict):
            with contextlib.suppress(Exception):  # without a browser that draws it there is no picture
                bundle["image/png"] = base64.b64encode(static(go.Figure(self.figure.to_dict()))).decode()
        return bundle


def _among(value: Any, valid: list[Any]) -> bool:
    try:
        return value in valid
    except Exception:  # an array, or a table, is equal to nothing as a whole
        return any(value is one for one in valid)


def _plain(figure: Any) -> dict[str, Any]:
    """What `draw` returned, as plain data and layout. Raises TypeError, ValueError."""
    if not isinstance(figure, BaseFigure):
        raise TypeError(f"draw must return a plotly figure, got {got(figure)}")
    if figure.frames:
        raise ValueError(f"draw must return a figure without frames, got one with {len(figure.frames)}")
    plain = figure.to_plotly_json()
    return {"data": [{k: v for k, v in t.items() if k != "uid"} for t in plain["data"]], "layout": plain["layout"]}


def _make(what: Any, name: str = "") -> Any:
    """All of a figure but its values: which settings there are, of how many traces; a few by value, too."""
    if name in ("type", "uirevision", "template"):
        return repr(what)
    if isinstance(what, dict):
        return {key: _make(value, key) for key, value in what.items()}
    if isinstance(what, list | tuple) and any(isinstance(one, dict) for one in what):
        return [_make(one) for one in what]
    return what is None
