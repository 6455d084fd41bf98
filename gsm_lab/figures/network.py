"""What is left of a network's first layer: how many weights each input keeps, and its units as images.

    network(view)                            # a figure of its own, of a view from `gsm_lab.studies.network.look`
    film(views)                              # a film of several, with a slider and a button to play it
    add(figure, view, left, right)           # as two more plots of a living figure, and from then on,
    notes = update(figure, view)             # at each of its frames

Kept weights are light where they are positive and dark where they are negative; what a cut would take is grey, and flat
grey where it is near zero (|w| < 1e-3) already. Both plots are PNG: heat maps would travel as lists of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from gsm_lab.checks import several
from gsm_lab.figures.network_plots import AXES, MARKS, TRACES, Scales, add, content, put, scales, show, update
from gsm_lab.figures.network_words import captions, changed, checked, sentence, titles
from gsm_lab.figures.style import finish, headed
from gsm_lab.studies.view import View

__all__ = ["AXES", "TRACES", "add", "changed", "film", "network", "sentence", "show", "titles", "update"]

_LINE, _SIZE = 62, 15  # of a title: so many characters in a line, so large, fit into 600 pixels
_SECOND = 0.4  # from one view of a film to the next
_UNDER = 84  # pixels under the plots of a film for its button and slider


def network(view: View, height: int = 460) -> go.Figure:
    """What is left of the first layer at one moment.

    Left, how many weights each input keeps; right, units as images, see above. A dot marks a weight that came back in
    this step: it got its gradient, and had not in the step before.

    Args:
        view: from `gsm_lab.studies.network.look`.
        height: in pixels.
    """
    return _drawn(checked(view), scales([view]), height, sentence(view))


def film(views: Iterable[View], height: int = 540) -> go.Figure:
    """Views one after the other, on scales that hold for all, with a slider and a button that plays them.

    It begins at the last one, so that a picture of it shows that, under a title that says what has changed.

    Args:
        views: of one layer, in their order, from `gsm_lab.studies.network.Film`.
        height: in pixels.

    Raises:
        TypeError, ValueError: no views, some of another layer or shape than the first, or not in their order.
    """
    views = several("views", views, "View")
    for i, view in enumerate(views):
        got, first = ((v.layer, v.units.shape) for v in (checked(view), views[0]))
        if got != first:
            raise ValueError(f"views must be of one layer, {first[0]!r} of shape {first[1]}, got {got} at {i}")
        if i and view.step <= views[i - 1].step:
            raise ValueError(f"views must be in the order of their steps, got {view.step} after {views[i - 1].step}")
    ends, said = scales(views), [f"Step {view.step:,}: {sentence(view)}" for view in views]
    said[-1] = changed(views[0], views[-1])
    longest = max(said, key=lambda text: _title(text)["text"].count("<br>"))  # there is room for it from the start
    figure = _drawn(views[-1], ends, height, longest, _UNDER).update_layout(title=_title(said[-1]))
    figure.frames = [_frame(*one, ends) for one in zip(views, said, strict=True)]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    playing = now | {"frame": {"duration": 1000 * _SECOND, "redraw": True}}
    buttons = [("▶ play", [None, playing]), ("❚❚", [[None], now])]
    moments = [(f"{frame.name}", [[frame.name], now]) for frame in figure.frames]
    figure.update_layout(
        updatemenus=[{
            "type": "buttons", "direction": "left", "showactive": False, "x": 0, "xanchor": "left", "y": 0,
            "yanchor": "top", "pad": {"t": 38, "r": 8}, "buttons": _steps(buttons),
        }],
        sliders=[{
            "active": len(views) - 1, "x": 0.24, "len": 0.76, "y": 0, "yanchor": "top", "pad": {"t": 22, "b": 0},
            "currentvalue": {"prefix": "step ", "font": {"size": 13}}, "steps": _steps(moments),
        }],
    )  # fmt: skip
    return figure


def _drawn(view: View, ends: Scales, height: int, title: str, under: int = 0) -> go.Figure:
    figure = headed(finish(go.Figure(), height), title, size=_SIZE, line=_LINE)
    figure.update_layout(margin={"l": 44, "r": 28, "b": 16 + under})
    add(figure, view, titled=False)
    put(figure, view, ends)
    return figure


def _title(said: str) -> dict[str, Any]:
    return headed(go.Figure(), said, size=_SIZE, line=_LINE).layout.title.to_plotly_json()


def _frame(view: View, said: str, ends: Scales) -> go.Frame:
    """A view as a frame: its pictures and marks; bars and axes are the same in all."""
    map_, units, marks, names = content(view, ends)
    data = [go.Image(**map_), go.Image(**units), go.Scatter(**marks), go.Scatter(**names)]
    layout = {"title": _title(said), "xaxis8": {"title": {"text": captions(view, MARKS)[1]}}}
    return go.Frame(name=f"{view.step:,}", data=data, traces=[0, 1, 2, 3], layout=layout)


def _steps(labelled: list[tuple[str, list]]) -> list[dict[str, Any]]:
    return [{"label": label, "method": "animate", "args": arguments} for label, arguments in labelled]
