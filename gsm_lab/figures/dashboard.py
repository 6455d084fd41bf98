"""The four plots of a run: loss and accuracy, weights near zero, re-activations, density by layer.

`dashboard(history)` draws a finished figure; the playground keeps one figure alive and feeds it `curves(history)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure
from plotly.subplots import make_subplots

from gsm_lab.checks import kind, whole
from gsm_lab.figures import taylor_view
from gsm_lab.figures.style import COLOURS, NARROW, finish, line
from gsm_lab.knobs import KNOBS
from gsm_lab.wording import layer_name

if TYPE_CHECKING:
    from gsm_lab.training.history import History

POINTS = 400  # a line; more cannot be seen, and makes a live figure slow
LAYERS_SHOWN = 8
MARKS_SHOWN = 12
PANELS = ("loss and accuracy", "weights near zero", "re-activated per step", "density by layer")
_LEGENDS = ("legend", "legend2", "legend3", "legend4")
_LEFT, _WIDE = (0.0, 0.6), 0.4  # where the columns begin, and how wide they are, as share of the width
_MARKED = tuple(name for name, knob in KNOBS.items() if knob.marked)
_SHORT = {"compression": "C", "momentum": "β", "weight_decay": "η", "lr": "α", "smoothing": "s"}

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def curves(history: History, points: int = POINTS) -> Curves:
    """The lines of the four plots by name: x in steps, y, both float32 of at most `points` entries.

    Loss and re-activations are means over stretches of steps, everything else is what it was at the end of a stretch.
    Shares and accuracies are in percent.
    """
    points = whole("points", points)
    rows, evaluations = _history(history).steps.array(), history.evaluations.array()
    last, mean = _stretches(len(rows), points)
    seen, _ = _stretches(len(evaluations), points)
    step, at = rows["step"][last].astype(np.float32), evaluations["step"][seen].astype(np.float32)
    share = np.float32(100.0 / max(1, sum(history.layers.values())))
    lines: Curves = {  # in the order in which a dashboard holds them
        "loss": (step, mean(rows["loss"])),
        "live accuracy": (at, 100 * evaluations["live_accuracy"][seen]),
        "cut accuracy": (at, 100 * evaluations["cut_accuracy"][seen]),
        "under 1e-3": (step, rows["under_1e-3"][last].sum(axis=1) * share),
        "under 1e-4": (step, rows["under_1e-4"][last].sum(axis=1) * share),
        "target": (step, 100.0 - 100.0 / history.knob_values("compression", rows["step"][last])),
        "re-activated": (step, mean(rows["reactivated"].sum(axis=1))),
    }
    for i, (name, size) in _shown_layers(history.layers):
        lines[f"layer {name}"] = (at, evaluations["kept"][seen][:, i] * np.float32(100.0 / size))
    return {name: (x, np.asarray(y, np.float32)) for name, (x, y) in lines.items()}


def _stretches(count: int, points: int) -> tuple[np.ndarray, Any]:
    """Up to `points` stretches of equal length: the last row of each, and a function that averages over them."""
    length = max(1, -(-count // points))
    starts = np.arange(0, count, length)
    last = np.minimum(starts + length, count) - 1

    def mean(column: np.ndarray) -> np.ndarray:
        return np.add.reduceat(column.astype(np.float64), starts) / (last - starts + 1)

    return last, mean


def _shown_layers(layers: dict[str, int]) -> list[tuple[int, tuple[str, int]]]:
    """All layers, or some evenly spread over the depth of a deep network."""
    every = list(enumerate(layers.items()))
    if len(every) <= LAYERS_SHOWN:
        return every
    return [every[round(i * (len(every) - 1) / (LAYERS_SHOWN - 1))] for i in range(LAYERS_SHOWN)]


def title_texts(history: History) -> tuple[str, str, str, str]:
    """What each of the four plots shows at this moment, in words and numbers."""
    rows, evaluations = _history(history).steps.array(), history.evaluations.array()
    if not len(evaluations):
        return tuple(f"<b>{name[0].upper()}{name[1:]}</b>" for name in PANELS)
    live, cut = 100 * float(evaluations["live_accuracy"][-1]), 100 * float(evaluations["cut_accuracy"][-1])
    first = f"Accuracy {live:.1f}%, after the cut {cut:.1f}%"
    if not len(rows):
        return tuple(f"<b>{text}</b>" for text in (first, *("Nothing yet: press Play",) * 3))
    row, weights = rows[-1], sum(history.layers.values())
    target = 100.0 - 100.0 / float(history.knob_values("compression", rows["step"][-1:])[0])
    second = f"{100 * row['under_1e-4'].sum() / weights:.1f}% are near zero, {target:.1f}% have to be"
    back = f"{rows['reactivated'][-50:].sum(axis=1).mean():,.0f}"
    third = f"{back} weights a step come back" if back != "1" else "1 weight a step comes back"
    kept = {name: evaluations["kept"][-1][i] / size for i, (name, size) in enumerate(history.layers.items())}
    dense, sparse = max(kept, key=kept.get), min(kept, key=kept.get)
    fourth = f"{layer_name(dense)} keeps {100 * kept[dense]:.2g}% of its weights, "
    fourth += f"{layer_name(sparse)} {100 * kept[sparse]:.2g}%"
    return tuple(f"<b>{text}</b>" for text in (first, second, third, fourth))


def marks(history: History) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A vertical line through all four plots wherever a knob moved, and its label on the two upper ones.

    Returns (shapes, annotations) for the layout. Moves less than 5% of the run apart share a line and a label.
    """
    moves = [e for e in _history(history).events if e["old"] is not None and e["knob"] in _MARKED]
    places: dict[int, list[str]] = {}
    steps = history.steps.array()["step"]
    near = 0.05 * float(steps[-1]) if len(steps) else 0
    for event in moves:
        at = next((s for s in places if event["step"] - s <= near), event["step"])
        text = f"{_SHORT.get(event['knob'], event['knob'])} {event['new']:g}"
        same = [t for t in places.get(at, []) if t.split()[0] != text.split()[0]]
        places[at] = [*same, text]
    shapes, labels = [], []
    for at, texts in list(places.items())[-MARKS_SHOWN:]:
        for axis, y in (("", "y"), ("2", "y3"), ("3", "y4"), ("4", "y5")):
            shapes.append(
                {"type": "line", "xref": f"x{axis}", "yref": f"{y} domain", "x0": at, "x1": at, "y0": 0, "y1": 1,
                 "line": {"color": "#777777", "width": 1.5, "dash": "2px,3px"}}
            )  # fmt: skip
            if axis in ("", "2"):
                labels.append(
                    {"xref": f"x{axis}", "yref": f"{y} domain", "x": at, "y": 0.02, "text": "<br>".join(texts),
                     "showarrow": False, "xanchor": "left", "yanchor": "bottom", "align": "left",
                     "font": {"size": 11, "color": "#444444"}, "bgcolor": "rgba(255,255,255,0.75)"}
                )  # fmt: skip
    return shapes, labels


def dashboard(history: History, height: int = 640, slots: int = 0, taylor: np.ndarray | None = None) -> go.Figure:
    """The four plots of a history. With `slots`, at least so many density lines are there, the spare ones hidden.

    `taylor`, the steps that were probed, adds the Taylor view as a third row, below `height`: see `taylor_view`.
    """
    _history(history)
    slots = whole("slots", slots, 0)
    _probes(taylor)
    figure = make_subplots(
        rows=2, cols=2, specs=[[{"secondary_y": True}, {}], [{}, {}]], subplot_titles=title_texts(history),
        horizontal_spacing=0.15, vertical_spacing=0.2,
    )  # fmt: skip
    lines = curves(history)

    def add(key: str, corner: int, i: int, hover: str, *, right: bool = False, **more: Any) -> None:
        (x, y), (row, col) = lines[key], divmod(corner, 2)
        style = {"name": key, "hovertemplate": f"step %{{x}}: {hover}<extra></extra>", **line(i), **more}
        trace = go.Scatter(x=x, y=y, legend=_LEGENDS[corner], **style)
        figure.add_trace(trace, row=row + 1, col=col + 1, secondary_y=right)

    add("loss", 0, 0, "training loss %{y:.3g}", line={"color": COLOURS[0], "width": 1.5}, mode="lines")
    add("live accuracy", 0, 1, "test accuracy %{y:.2f}% as it is", right=True)
    add("cut accuracy", 0, 2, "test accuracy %{y:.2f}% if cut now", right=True)
    add("under 1e-3", 1, 3, "%{y:.2f}% of weights with |w| < 1e-3")
    add("under 1e-4", 1, 4, "%{y:.2f}% of weights with |w| < 1e-4")
    grey = {"color": "#000000", "dash": "dot", "width": 1.5, "shape": "hv"}
    add("target", 1, 2, "%{y:.2f}% = 1 − 1/C have to go", mode="lines", line=grey)
    add("re-activated", 2, 5, "%{y:,.0f} weights passive the step before", mode="lines", fill="tozeroy",
        line={"color": "#444444", "width": 1.5}, fillcolor="rgba(120,120,120,0.3)")  # fmt: skip
    for i, (_, (name, _size)) in enumerate(_shown_layers(history.layers)):
        add(f"layer {name}", 3, i, f"%{{y:.3g}}% of {layer_name(name)} would stay", name=layer_name(name))
    for i in range(len(_shown_layers(history.layers)), slots):
        figure.add_trace(go.Scatter(x=[], y=[], visible=False, legend="legend4", **line(i)), row=2, col=2)
    _axes(figure)
    finish(figure, height)
    shapes, labels = marks(history)
    figure.update_layout(shapes=shapes, annotations=[*figure.layout.annotations, *labels])
    return figure if taylor is None else taylor_view.add(figure, taylor)


def update(figure: go.Figure, history: History, taylor: np.ndarray | None = None) -> None:
    """Bring a `dashboard` with spare slots up to date, in place; for a live figure, inside its `batch_update()`.

    `taylor` is to be given if it was when the figure was made.
    """
    kind("figure", figure, BaseFigure, "a figure that `dashboard` made")
    _probes(taylor)
    lines = curves(history)
    if len(figure.data) < len(lines):
        raise ValueError("figure must be a `dashboard` of this history, or one with enough slots")
    layers = [name for _, (name, _) in _shown_layers(history.layers)]
    for trace, (x, y) in zip(figure.data, lines.values(), strict=False):
        trace.x, trace.y = x, y
    for i, trace in enumerate(t for t in figure.data[7:] if t.legend == "legend4"):
        trace.visible = i < len(layers)
        if i < len(layers):
            trace.name = layer_name(layers[i])
    shapes, labels = marks(history)
    titles = [{**title.to_plotly_json(), "text": text} for title, text in
              zip(figure.layout.annotations[:4], title_texts(history), strict=True)]  # fmt: skip
    more = [] if taylor is None else taylor_view.update(figure, taylor)
    figure.layout.annotations = [*titles, *labels, *more]
    if len(shapes) != len(figure.layout.shapes) or (shapes and shapes[-1]["x0"] != figure.layout.shapes[-1].x0):
        figure.layout.shapes = shapes


def _history(history: History) -> History:
    from gsm_lab.training.history import History  # loads torch, which figures of tables do not need

    return kind("history", history, History, "a History, as run.history is one")


def _probes(taylor: Any) -> None:
    if taylor is not None and not (isinstance(taylor, np.ndarray) and "error_metric" in (taylor.dtype.names or ())):
        raise TypeError(f"taylor must be None or a structured array of probes, got {type(taylor).__name__}")


def _axes(figure: go.Figure) -> None:
    figure.update_xaxes(title_text="step", rangemode="tozero", title_standoff=4, matches="x")
    figure.layout.xaxis.matches = None  # it is the one the others follow
    figure.update_xaxes(domain=[_LEFT[0], _LEFT[0] + _WIDE], col=1)  # secondary_y would leave a gap at the right
    figure.update_xaxes(domain=[_LEFT[1], _LEFT[1] + _WIDE], col=2)
    percent = {"range": [0, 101], "tickmode": "linear", "dtick": 20}
    # a loss that explodes shall leave the rest of its line readable
    clip = {"autorangeoptions": {"clipmax": 100}}
    figure.update_yaxes(title_text="training loss (log)", **NARROW, **clip, row=1, col=1, secondary_y=False)
    figure.update_yaxes(title_text="test accuracy, %", **percent, showgrid=False, row=1, col=1, secondary_y=True)
    figure.update_yaxes(title_text="share of all weights, %", **percent, row=1, col=2)
    figure.update_yaxes(title_text="weights per step", rangemode="tozero", row=2, col=1)
    figure.update_yaxes(title_text="weights kept by the cut, % (log)", **NARROW, row=2, col=2)
    figure.update_yaxes(title_font_size=14, title_standoff=8)  # the labels of two axes share the gap between columns
    place = {"orientation": "h", "yanchor": "bottom", "xanchor": "left"}
    place |= {"font": {"size": 12}, "bgcolor": "rgba(0,0,0,0)"}
    figure.update_layout(showlegend=True)
    figure.data[6].showlegend = False  # alone in its plot, whose axis says it
    for corner, title in enumerate(figure.layout.annotations[:4]):
        row, col = divmod(corner, 2)
        title.update(x=_LEFT[col], y=(1.055, 0.455)[row], xanchor="left", yanchor="bottom", font={"size": 15})
        figure.update_layout({_LEGENDS[corner]: {"x": _LEFT[col], "y": (1.0, 0.4)[row], **place}})
