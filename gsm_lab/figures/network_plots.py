"""The two plots of a network's first layer, in any figure that has a height: see `gsm_lab.figures.network`."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure, BaseTraceType

from gsm_lab.checks import flag, kind, number, several, shown
from gsm_lab.figures import raster
from gsm_lab.figures.network_words import NOUNS, captions, checked, of_unit, titles
from gsm_lab.figures.style import AXIS
from gsm_lab.studies.view import PIXELS, POSITIONS, View

# Names of the traces, and of what belongs to them in the layout: `show` hides these.
TRACES = ("network inputs", "network units", "network returned", "network names", "network bar", "network unit bar")
AXES = ("xaxis7", "yaxis8", "xaxis8", "yaxis9")
LEFT, RIGHT = (0.0, 0.34, 0.0, 1.0), (0.42, 1.0, 0.0, 1.0)
MARKS = 1000  # re-activated weights that are marked; where there are more, those that are kept come first
_ON = ({"xaxis": "x7", "yaxis": "y8"}, {"xaxis": "x8", "yaxis": "y9"})
_ABOVE, _BELOW = 52, 112  # pixels over a plot for its title of two lines, and under it for its axis and its bar
_EMPTY = 0.2  # of the bar of counts: inputs that keep no weight
_SMALL = {"size": 12}

Box = tuple[float, float, float, float]
Scales = tuple[int, float]  # the count and the |w| at which colours end


def scales(views: list[View]) -> Scales:
    """Where the colours of some views end: at the greatest count, and where a twentieth of kept |w| are larger."""
    most = max(int(view.inputs.max(initial=0)) for view in views)
    kept = [np.abs(view.units[view.kept]) for view in views]
    return most, max((float(np.quantile(w, 0.95)) for w in kept if w.size), default=0.0)


def add(figure: go.Figure, view: View, left: Box = LEFT, right: Box = RIGHT, titled: bool = True) -> go.Figure:
    """Put the two plots into a figure that has a height and margins, in place, on the axes `AXES`. Returns the figure.

    Args:
        figure: any that has none of these axes: a `dashboard`, for example.
        view: from `gsm_lab.studies.network.look`.
        left, right: where the plots go, titles and bars included: x from, x to, y from, y to, in shares of the plot
            area ("paper" coordinates).
        titled: whether each has its title above it, an annotation called "network".

    Raises:
        TypeError, ValueError: no figure or view, a figure without a height, a box that is none.
    """
    kind("figure", figure, BaseFigure, "a plotly figure")
    view, left, right, titled = checked(view), _box("left", left), _box("right", right), flag("titled", titled)
    margin = figure.layout.margin
    area = number("figure.layout.height", figure.layout.height, 10) - (margin.t or 0) - (margin.b or 0)
    for (x0, x1, y0, y1), x, y in ((left, "7", "8"), (right, "8", "9")):
        top = y1 - titled * _ABOVE / area
        fits = {**AXIS, "mirror": True, "showgrid": False, "constrain": "domain"}
        across = {"domain": [x0, x1], "anchor": f"y{y}", "constraintoward": "left", "title": {"font": _SMALL}}
        down = {"domain": [min(y0 + _BELOW / area, top), top], "anchor": f"x{x}", "constraintoward": "top"}
        # Assigned: of a new axis with a title, `update_layout` of a live figure tells the page all of it and each part,
        # and plotly.js refuses that and whatever comes after it.
        figure.layout[f"xaxis{x}"], figure.layout[f"yaxis{y}"] = fits | across, fits | down
        if titled:
            place = {"xref": f"x{x} domain", "yref": f"y{y} domain", "x": 0, "y": 1, "yshift": 4, "name": "network"}
            place |= {"xanchor": "left", "yanchor": "bottom", "align": "left", "showarrow": False, "font": {"size": 15}}
            figure.add_annotation(text="", **place)
    # a dot is light with a dark rim, so that it shows on every ground, in grey too
    dot = {"symbol": "circle", "size": 3.5, "color": "#00e5ff", "line": {"width": 0.8, "color": "#000000"}}
    quiet: dict[str, Any] = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    figure.add_traces(
        [
            go.Image(**_ON[0]),
            go.Image(hoverinfo="skip", **_ON[1]),
            go.Scatter(marker=dot, **quiet, **_ON[1]),
            go.Scatter(marker={"opacity": 0, "size": 24}, **quiet | {"hoverinfo": "text"}, **_ON[1]),
            go.Scatter(x=[None], y=[None], marker=_bar(left), **quiet, **_ON[0]),
            go.Scatter(x=[None], y=[None], marker=_bar(right), **quiet, **_ON[1]),
        ]
    )
    for name, trace in zip(TRACES, figure.data[-len(TRACES) :], strict=True):
        trace.name = name
    notes = put(figure, view, scales([view]))
    others = [note for note in figure.layout.annotations if note.name != "network"]
    figure.layout.annotations = [*others, *notes]
    return figure


def update(figure: go.Figure, view: View) -> list[dict[str, Any]]:
    """Bring the plots that `add` made up to date, in place; returns their titles, to be put among the annotations.

    For a live figure, inside its `batch_update()`. The view may be of another model than the one before.
    """
    kind("figure", figure, BaseFigure, "a figure to which `add` has added the network")
    return put(figure, checked(view), scales([view]))


def show(figure: go.Figure, visible: bool) -> None:
    """Show or hide what `add` has added, but for its titles, in place."""
    kind("figure", figure, BaseFigure, "a figure to which `add` has added the network")
    visible = flag("visible", visible)
    for trace in _ours(figure):
        trace.visible = visible
    for axis in AXES:
        figure.layout[axis].visible = visible


def put(figure: go.Figure, view: View, ends: Scales) -> list[dict[str, Any]]:
    """Have the plots show a view, on scales that end there; returns the titles."""
    traces, (most, largest) = _ours(figure), ends
    # plotly takes milliseconds to be told what it knows: all that stays is set once, and what changes only where it has
    stays = repr((view.inputs.shape, mosaic_shape(view), view.kind, min(most, 2), captions(view, MARKS)))
    if traces[0].meta != stays:
        traces[0].meta = stays
        figure.update_layout(_axes(view))
        noun, across = NOUNS[view.kind], "%{x}" if view.inputs.shape[0] == 1 else "in row %{y}, column %{x}"
        traces[0].hovertemplate = f"{noun} {across}: %{{customdata:,}} weights kept<extra></extra>"
        traces[4].marker.update(_counts(most, noun))
        traces[5].marker.update(_sizes())
    said = (_counts(most, "")["colorbar"]["ticktext"], (f"−{largest:.2g}", "goes", f"+{largest:.2g}"))
    for trace, text in zip(traces[4:], said, strict=True):
        if trace.marker.colorbar.ticktext != text:
            trace.marker.colorbar.ticktext = text
    for trace, new in zip(traces, content(view, ends), strict=False):
        for name, value in new.items():
            old = trace[name]
            if not (np.array_equal(old, value) if isinstance(value, np.ndarray) else old == value):
                trace[name] = value
    notes = [note.to_plotly_json() for note in figure.layout.annotations if note.name == "network"]
    said = (f"<b>{text.replace('; ', ';<br>')}</b>" for text in titles(view))  # in half a figure's width two lines
    return [{**note, "text": text} for note, text in zip(notes, said, strict=False)]


def _axes(view: View) -> dict[str, dict[str, Any]]:
    """Ranges, titles and ticks of the axes, which follow from the shape of what is shown."""
    layout: dict[str, dict[str, Any]] = {}
    (h, w), (down, across) = view.inputs.shape, mosaic_shape(view)
    places = (("7", "8", h, w), ("8", "9", down, across))
    for (x, y, rows, columns), said in zip(places, captions(view, MARKS), strict=True):
        layout |= {
            f"xaxis{x}": {"range": [-0.5, columns - 0.5], "title": {"text": said}},
            # a single row would be a line: it may fill its place
            f"yaxis{y}": {"range": [rows - 0.5, -0.5], "scaleanchor": f"x{x}" if rows > 1 else False},
        }
    square = view.kind in (PIXELS, POSITIONS)
    layout["xaxis7"] |= {"showticklabels": square or h == 1, "nticks": 5}
    layout["yaxis8"] |= {"showticklabels": square and h > 1, "nticks": 5}
    for axis in ("xaxis8", "yaxis9"):
        layout[axis] |= {"showticklabels": False, "ticks": ""}
    return layout


def content(view: View, ends: Scales) -> list[dict[str, Any]]:
    """What the first four of `TRACES` show; the others are bars of colours."""
    most, largest = ends
    k, h, w = view.units.shape
    across = raster.columns(k, h, w)
    units = raster.mosaic(raster.shades(view.units, view.kept, largest), across)
    column, row = raster.corners(k, h, w, across)
    unit, y, x = np.nonzero(view.reactivated)
    if len(unit) > MARKS:
        first = np.argsort(~view.kept[unit, y, x], kind="stable")[:MARKS]
        unit, y, x = unit[first], y[first], x[first]
    said = of_unit(view)
    return [
        {"source": raster.png(raster.levels(view.inputs, most), raster.MAP), "customdata": view.inputs},
        {"source": raster.png(units, raster.UNITS)},
        {"x": (column[unit] + x).astype(np.float32), "y": (row[unit] + y).astype(np.float32)},
        {"x": (column + (w - 1) / 2).astype(np.float32), "y": (row + (h - 1) / 2).astype(np.float32),
         "text": tuple(map(said, view.shown.tolist(), view.unit_kept.tolist()))},
    ]  # fmt: skip


def mosaic_shape(view: View) -> tuple[int, int]:
    """Rows and columns of the picture of all units."""
    k, h, w = view.units.shape
    across = raster.columns(k, h, w)
    return -(-k // across) * (h + raster.GAP) + raster.GAP, across * (w + raster.GAP) + raster.GAP


def _box(name: str, box: Any) -> Box:
    sides = tuple(number(f"{name}[{i}]", side, 0, 1) for i, side in enumerate(several(name, box)))
    if len(sides) != 4 or not (sides[0] < sides[1] and sides[2] < sides[3]):
        raise ValueError(f"{name} must be x from, x to, y from, y to, each pair rising, got {shown(box)}")
    return sides


def _bar(box: Box) -> dict[str, Any]:
    """A marker that is not there, with a bar of colours at the lower end of a box."""
    x0, x1, y0, _ = box
    bar = {"orientation": "h", "x": x0, "len": x1 - x0, "y": y0, "xanchor": "left", "yanchor": "bottom", "xpad": 0}
    bar |= {"ypad": 0, "thickness": 10, "tickfont": {"size": 11}, "ticks": "", "outlinewidth": 1}
    bar["title"] = {"side": "top", "font": _SMALL}
    return {"color": [0], "cmin": 0, "cmax": 1, "showscale": True, "colorbar": bar}


def _counts(most: int, noun: str) -> dict[str, Any]:
    """The bar of the map: white where nothing is kept, then from one weight to the most."""
    white, *shades = (raster.css(colour) for colour in raster.MAP[1:])
    ticks = {_EMPTY / 2: "none", _EMPTY + 0.02: "1", 1: f"{most:,}"}
    if most < 2:  # one colour, or not even that
        shades = [shades[0] if most else white] * 2
        ticks = {_EMPTY / 2: "none"} | ({(1 + _EMPTY) / 2: "1"} if most else {})
    at = np.linspace(_EMPTY, 1, len(shades)).tolist()
    colours = [(0.0, white), (_EMPTY, white), *zip(at, shades, strict=True)]
    return _marked(colours, ticks, f"weights kept at each {noun}")


def _sizes() -> dict[str, Any]:
    """The bar of the units: kept and negative, what goes, kept and positive."""
    dark, light = raster.UNITS[1 : raster.LEVELS + 1], raster.UNITS[-raster.LEVELS :]
    colours = [*dark, raster.UNITS[raster.ZERO], *light]
    edges = np.linspace(0, 1, len(colours) + 1).tolist()
    steps = [(edge, raster.css(colour)) for i, colour in enumerate(colours) for edge in edges[i : i + 2]]
    return _marked(steps, {0.05: "−", 0.5: "goes", 0.95: "+"}, "kept: dark negative, light positive")


def _marked(colours: list[tuple[float, str]], ticks: dict[float, str], title: str) -> dict[str, Any]:
    bar = {"tickvals": (*ticks,), "ticktext": (*ticks.values(),), "title": {"text": title}}
    return {"colorscale": (*colours,), "colorbar": bar}


def _ours(figure: go.Figure) -> list[BaseTraceType]:
    found = [trace for trace in figure.data if trace.name in TRACES]
    if len(found) != len(TRACES):
        raise ValueError("figure must be one to which `add` has added the network")
    return found
