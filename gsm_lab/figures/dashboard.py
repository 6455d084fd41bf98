"""The four plots of a run: loss and accuracy, weights near zero, re-activations, density by layer.

`dashboard(history)` draws a finished figure; the playground keeps one figure alive and has it updated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab.checks import kind, number, whole
from gsm_lab.figures import network, taylor_view
from gsm_lab.figures.arrangement import LOG_FONT, PLOTS, Arrangement, frame, merged, places, shown
from gsm_lab.figures.fitting import NARROWEST
from gsm_lab.figures.headlines import title_texts
from gsm_lab.figures.history_lines import checked, curves, shown_layers
from gsm_lab.figures.style import AXIS, COLOURS, FEW_TICKS, finish, line
from gsm_lab.knobs import KNOBS
from gsm_lab.metric import Metric
from gsm_lab.wording import layer_name, short_layer_name

if TYPE_CHECKING:
    from gsm_lab.studies.view import View
    from gsm_lab.training.history import History

MARKS_SHOWN = 12
_LABEL_ROWS, _LABEL_HEIGHT = 4, 15  # labels of marks stand in so many rows, each so many pixels high
_MARKED = tuple(name for name, knob in KNOBS.items() if knob.marked)
_SHORT = {"compression": "C", "momentum": "β", "weight_decay": "η", "lr": "α", "smoothing": "s"}


def marks(
    history: History, arrangement: Arrangement | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A vertical line through all four plots wherever a knob moved, and its label on the two upper ones.

    Returns (shapes, annotations) for the layout. Moves less than 5% of the steps shown apart share a line and a label;
    labels that are near each other stand above one another.
    """
    a = arrangement or Arrangement()
    moves = [e for e in checked(history).events if e["old"] is not None and e["knob"] in _MARKED]
    steps = history.steps.array()["step"]
    end = float(steps[-1]) if len(steps) else 0.0
    begin = max(0.0, end - a.last) if a.last else 0.0
    places: dict[int, list[str]] = {}
    for event in moves:
        if event["step"] < begin or (a.log and not event["step"]):
            continue
        at = next((s for s in places if event["step"] - s <= 0.05 * (end - begin)), event["step"])
        text = f"{_SHORT.get(event['knob'], event['knob'])} {event['new']:g}"
        same = [t for t in places.get(at, []) if t.split()[0] != text.split()[0]]
        places[at] = [*same, text]
    shapes, labels = [], []
    for i, (at, texts) in enumerate(list(places.items())[-MARKS_SHOWN:]):
        said = ", ".join(texts[-2:]) + (f" +{len(texts) - 2}" if len(texts) > 2 else "")
        along = math.log10(at) / math.log10(max(end, 2)) if a.log else (at - begin) / max(1.0, end - begin)
        for plot in PLOTS[:4]:
            shapes.append(
                {"type": "line", "xref": plot.x, "yref": f"{plot.y} domain", "x0": at, "x1": at, "y0": 0, "y1": 1,
                 "line": {"color": "#777777", "width": 1.5, "dash": "2px,3px"}}
            )  # fmt: skip
            if plot in PLOTS[:2]:
                labels.append(
                    {"xref": plot.x, "yref": f"{plot.y} domain", "x": math.log10(at) if a.log else at, "y": 0,
                     "text": said, "showarrow": False, "xanchor": "right" if along > 0.7 else "left",
                     "yanchor": "bottom", "yshift": 2 + _LABEL_HEIGHT * (i % _LABEL_ROWS), "borderpad": 0,
                     "font": {"size": 11, "color": "#444444"}, "bgcolor": "rgba(255,255,255,0.8)"}
                )  # fmt: skip
    return shapes, labels


def dashboard(
    history: History,
    height: int = 900,
    slots: int = 0,
    taylor: np.ndarray | None = None,
    arrangement: Arrangement | None = None,
) -> go.Figure:
    """The four plots of a history. With `slots`, at least so many density lines are there, the spare ones hidden.

    `taylor`, the steps that were probed, adds the Taylor view: see `taylor_view`. All plots stand below one another, so
    that they fit into the narrowest cell of a notebook, the four within `height` pixels, unless an `arrangement` says
    otherwise.
    """
    checked(history)
    slots, height = whole("slots", slots, 0), number("height", height, 10, 100_000)
    _probes(taylor)
    views = ("curves",) if taylor is None else ("curves", "Taylor")
    a = arrangement or Arrangement(views, 1, NARROWEST, (height - 8) / 4)
    lines, traces = curves(history, last=a.last, log=a.log), []

    def add(key: str, plot: int, i: int, hover: str, *, right: bool = False, **more: Any) -> None:
        (x, y), at = lines[key], PLOTS[plot]
        hover = hover if hover.endswith(">") else f"step %{{x}}: {hover}<extra></extra>"
        style = {"name": key, "hovertemplate": hover, **line(i), **more}
        axes = {"xaxis": at.x, "yaxis": at.right if right else at.y, "legend": at.legend}
        traces.append(go.Scatter(x=x, y=y, **axes, **style))

    add("loss", 0, 0, "training loss %{y:.3g}", line={"color": COLOURS[0], "width": 1.5}, mode="lines")
    metric = history.metric
    for i, (which, (name, hover)) in enumerate(_measured(metric).items(), 1):
        add(f"{which} accuracy", 0, i, hover, right=True, name=name)
    add("under 1e-3", 1, 3, "%{y:.2f}% of weights with |w| < 1e-3")
    add("under 1e-4", 1, 4, "%{y:.2f}% of weights with |w| < 1e-4")
    grey = {"color": "#000000", "dash": "dot", "width": 1.5, "shape": "hv"}
    add("target", 1, 2, "a cut takes %{y:.2f}% = 1 − 1/C", mode="lines", line=grey)
    add("re-activated", 2, 5, "%{y:,.0f} weights passive the step before", mode="lines", fill="tozeroy",
        line={"color": "#444444", "width": 1.5}, fillcolor="rgba(120,120,120,0.3)", showlegend=False)  # fmt: skip
    layers = shown_layers(history.layers)
    for i, (_, (name, _size)) in enumerate(layers):
        add(f"layer {name}", 3, i, f"%{{y:.3g}}% of {layer_name(name)} would stay", name=short_layer_name(name))
    for i in range(len(layers), slots):
        traces.append(go.Scatter(x=[], y=[], xaxis="x4", yaxis="y5", legend="legend4", **line(i)))
    frames = frame(PLOTS[:4] if taylor is None else PLOTS[:6])
    layouts = [finish(go.Figure(), height).layout.to_plotly_json(), frames, _axes(metric)]
    if taylor is not None:
        traces += taylor_view.traces(taylor)
        layouts.append(taylor_view.axes())
    for trace, visible in zip(traces, shown(traces, a), strict=True):
        trace.visible = visible
    layouts.append(places(traces, frames["annotations"], a))
    return update(go.Figure(traces, merged(*layouts)), history, taylor, a)


def update(
    figure: go.Figure,
    history: History,
    taylor: np.ndarray | None = None,
    arrangement: Arrangement | None = None,
    view: View | None = None,
) -> go.Figure:
    """Bring a `dashboard` with spare slots up to date, in place; for a live figure, inside its `batch_update()`.

    `taylor` is to be given if it was when the figure was made, and so is the `arrangement` that it has: what is not
    shown is left as it is. `view`: of the network, where `add_network` has added it. Returns the figure.
    """
    kind("figure", figure, BaseFigure, "a figure that `dashboard` made")
    _probes(taylor)
    a = arrangement or Arrangement(("curves",) if taylor is None else ("curves", "Taylor"), 1, NARROWEST)
    said: dict[str, str] = {}
    shapes, labels = [], []
    if "curves" in a.views:
        lines = curves(checked(history), last=a.last, log=a.log)
        if len(figure.data) < len(lines):
            raise ValueError("figure must be a `dashboard` of this history, or one with enough slots")
        for trace, (x, y) in zip(figure.data, lines.values(), strict=False):
            trace.x, trace.y = x, y
        if figure.data[1].name != f"live {history.metric.name}":  # after a reset with other data
            _measure(figure, history.metric)
        layers = [name for _, (name, _) in shown_layers(history.layers)]
        for i, trace in enumerate(t for t in figure.data[7:] if t.legend == "legend4"):
            trace.visible = i < len(layers)
            trace.name = short_layer_name(layers[i]) if i < len(layers) else None
        said |= zip((plot.title for plot in PLOTS[:4]), title_texts(history), strict=True)
        shapes, labels = marks(history, a)
    if "Taylor" in a.views and taylor is not None:
        said |= taylor_view.update(figure, taylor, a.last)
    if "network" in a.views and view is not None:
        network.update(figure, view)
        said |= zip((plot.title for plot in PLOTS[6:]), network.titles(view), strict=True)
    titles = [note.to_plotly_json() for note in figure.layout.annotations if note.name]
    titles = [note | {"text": a.headline(said[note["name"]])} if note["name"] in said else note for note in titles]
    figure.layout.annotations = [*titles, *labels]
    if _differ(shapes, figure.layout.shapes):
        figure.layout.shapes = shapes
    return figure


def add_network(figure: go.Figure, view: View) -> go.Figure:
    """Add the two plots of what is left of the network to a `dashboard`, in place; `arrange` gives them a place."""
    network.add(figure, view, titled=False)
    more, notes = frame(PLOTS[6:]), [note.to_plotly_json() for note in figure.layout.annotations]
    return figure.update_layout(more | {"annotations": [*notes, *more["annotations"]]})


def _differ(shapes: list[dict[str, Any]], before: tuple[Any, ...]) -> bool:
    return [(s["xref"], s["x0"]) for s in shapes] != [(s.xref, s.x0) for s in before]


def _probes(taylor: Any) -> None:
    if taylor is not None and not (isinstance(taylor, np.ndarray) and "error_metric" in (taylor.dtype.names or ())):
        raise TypeError(f"taylor must be None or a structured array of probes, got {type(taylor).__name__}")


def _measured(metric: Metric) -> dict[str, tuple[str, str]]:
    """Of the two lines of what a run is measured by: name, and hover text."""
    said = f"test {metric.name} {metric.hover()}"
    when = {"live": "as it is", "cut": "if cut now"}
    return {which: (f"{which} {metric.name}", f"step %{{x}}: {said} {at}<extra></extra>") for which, at in when.items()}


def _measure(figure: go.Figure, metric: Metric) -> None:
    """The two lines and their axis are of another metric now."""
    for trace, (name, hover) in zip(figure.data[1:3], _measured(metric).values(), strict=True):
        trace.name, trace.hovertemplate = name, hover
    nothing = dict.fromkeys(("range", "autorange", "tickmode", "dtick", "nticks"))
    figure.layout.yaxis2.update(nothing | {"title": {"text": metric.axis}} | _scale(metric))


_PERCENT = {"range": [0, 101], "tickmode": "linear", "dtick": 20}


def _scale(metric: Metric) -> dict[str, Any]:
    return _PERCENT if metric.is_accuracy else {"nticks": 5}


def _axes(metric: Metric) -> dict[str, Any]:
    """What the axes of the four plots measure."""
    few = {**FEW_TICKS, "tickfont": LOG_FONT}
    measured = {
        "y": ("training loss (log)", {**few, "autorangeoptions": {"clipmax": 100}}),  # what explodes leaves the rest
        "y2": (metric.axis, {**_scale(metric), "overlaying": "y", "side": "right", "showgrid": False}),
        "y3": ("share of weights, %", _PERCENT),
        "y4": ("weights per step", {"rangemode": "tozero"}),
        "y5": ("kept, % (log)", few),
    }
    layout: dict[str, Any] = {}
    for plot in PLOTS[:4]:
        matches = {} if plot.x == "x" else {"matches": "x"}
        layout[f"xaxis{plot.x[1:]}"] = {"title": {"text": "step"}, "nticks": 6, "anchor": plot.y, **AXIS, **matches}
        for name in filter(None, (plot.y, plot.right)):
            text, how = measured[name]
            layout[f"yaxis{name[1:]}"] = {"title": {"text": text}, "anchor": plot.x, **AXIS, **how}
    return layout
