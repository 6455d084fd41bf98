"""`explore`: one figure with a few choices above it, redrawn from tables that are already there."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from gsm_lab.figures import static
from gsm_lab.playground.view import STYLE, Figure


class explore(widgets.VBox):
    """Show `draw(...)` under one menu for each of the choices; another choice redraws the figure.

        gl.explore(draw, momentum=[0.9, 0.98, 0.99], layer=["fc1", "fc2"])

    Args:
        draw: called with the chosen values by name; returns the figure. It should draw tables, not compute them: it
            runs at every choice.
        **choices: what can be chosen, at least one value each; the first is shown first.

    Readers without a kernel see the first figure as a picture. An error in `draw` is shown above the figure.

    Raises:
        ValueError: no choices at all, or one without values.
        TypeError: `draw` cannot be called.
    """

    def __init__(self, draw: Callable[..., go.Figure], **choices: Sequence[Any]) -> None:
        if not callable(draw):
            raise TypeError(f"draw must be a function that returns a figure, got {draw!r}")
        if not choices:
            raise ValueError("choices must hold at least one name with its values, as in momentum=[0.9, 0.98]")
        for name, values in choices.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ValueError(f"{name} must be a list of at least one value, got {values!r}")
        self._draw = draw
        first = draw(**{name: values[0] for name, values in choices.items()})
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
        self.figure = Figure(first)
        self.figure._config = {"responsive": True, "displaylogo": False}
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
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(map(str, valid))}, got {value!r}")
        for name, value in values.items():
            self.menus[name].value = value

    def _redraw(self, _: Any = None) -> None:
        try:
            new = self._draw(**self.chosen)
        except Exception as error:
            self.failure.value = f'<div class="gsm-error">{escape(type(error).__name__)}: {escape(str(error))}</div>'
            return
        self.failure.value = ""
        with self.figure.batch_update():
            if [t.type for t in new.data] != [t.type for t in self.figure.data]:
                self.figure.data = ()
                self.figure.add_traces(new.data)
            else:
                for old, trace in zip(self.figure.data, new.data, strict=True):
                    old.update(trace.to_plotly_json(), overwrite=True)
            self.figure.layout.update(new.layout.to_plotly_json(), overwrite=True)

    def __repr__(self) -> str:
        return f"explore({', '.join(f'{name}={value!r}' for name, value in self.chosen.items())})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if isinstance(bundle, dict):
            with contextlib.suppress(Exception):  # without a browser that draws it there is no picture
                bundle["image/png"] = base64.b64encode(static(go.Figure(self.figure.to_dict()))).decode()
        return bundle
