"""Where the plots of a board stand: which of them are shown, in one column or two; everything in pixels.

    arrange(figure, Arrangement(views=("curves",), columns=2, width=1000))     # a `dashboard`, in place

A plot has from top to bottom a title of one line or two, its legend, the plot, its ticks and the title of its x axis.
What is not shown keeps its traces, without a place.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab.checks import flag, integer, kind, number, one_of, whole
from gsm_lab.figures.style import BUTTONS

VIEWS = ("curves", "Taylor", "network")
ROW = 320  # pixels from one row of plots to the next
WIDTH = 860  # pixels, of a picture in a notebook's cell beside the file browser
TITLE, LEGEND, LABELS = 14, 12, 12  # sizes of letters, in pixels
_TICK_FONT = {"size": 12}
LOG_FONT = {"size": 14}  # plotly writes digits between powers of ten in three quarters of it
_BOLD, _PLAIN = 0.575, 0.53  # width of a letter in the mean, over its size
_LEFT, _RIGHT, _EDGE = 62, 52, 36  # pixels beside a plot: labels of its axis, of a second one; for the mode bar
_TITLE_LINE, _LEGEND_LINE, _UNDER = 19, 20, 44  # pixels of height
_UNDER_PICTURES = 112  # under a plot of the network: what its axis says, and a bar of colours
_SIGN, _LEAST = 44, 60  # pixels of a line's sample in a legend; of a plot
_LONGEST = {"curves": 58, "Taylor": 60, "network": 86}  # letters of a title
_NOWHERE = [0, 0.0005]  # plotly takes no less than 1/4096, and gives the whole width instead


class Plot(NamedTuple):
    """A plot of a board by the names that plotly has for its parts; `title` is the name of its title's annotation."""

    title: str
    view: str
    x: str
    y: str
    right: str = ""
    legend: str = ""


PLOTS = (
    Plot("accuracy", "curves", "x", "y", "y2", "legend"),
    Plot("near zero", "curves", "x2", "y3", "", "legend2"),
    Plot("re-activated", "curves", "x3", "y4", "", "legend3"),
    Plot("density", "curves", "x4", "y5", "", "legend4"),
    Plot("change", "Taylor", "x5", "y6", "", "legend5"),
    Plot("error", "Taylor", "x6", "y7", "", "legend6"),
    Plot("inputs", "network", "x7", "y8"),
    Plot("units", "network", "x8", "y9"),
)


@dataclass(frozen=True)
class Arrangement:
    """What a board shows and how wide the page is.

    Args:
        views: which of "curves", "Taylor" and "network", from top to bottom.
        columns: 1 or 2 plots beside each other; 1 also where two have no room.
        width: of the board, in pixels.
        row: pixels from one row of plots to the next. A view that is alone is as high as two rows of two.
        last: show only so many steps, up to the latest; None for all.
        log: a logarithmic axis of steps.

    Raises TypeError, ValueError for anything else.
    """

    views: tuple[str, ...] = ("curves",)
    columns: int = 2
    width: float = WIDTH
    row: float = ROW
    last: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for view in self.views:
            one_of("views", view, VIEWS)
        one_of("columns", integer("columns", self.columns, 1), (1, 2))
        number("width", self.width, 10, 100_000)
        number("row", self.row, 5, 100_000)
        flag("log", self.log)
        if self.last is not None:
            whole("last", self.last)
        if self.plot_width <= _LEAST:
            object.__setattr__(self, "columns", 1)

    @property
    def margins(self) -> dict[str, int]:
        """Left, right, top and bottom, in pixels."""
        beside = _RIGHT if self.columns == 1 and "curves" in self.views else 0
        return {"l": _LEFT, "r": _EDGE + beside, "t": 4, "b": 4}

    @property
    def plot_width(self) -> float:
        """Pixels from the left end of an x axis to its right end."""
        area = self.width - self.margins["l"] - self.margins["r"]
        return max(_LEAST, area if self.columns == 1 else (area - self._gap) / 2)

    @property
    def _gap(self) -> int:
        return _LEFT + (_RIGHT if "curves" in self.views else 12)

    def title_lines(self, view: str) -> int:
        """Lines that there is room for in every title of a view."""
        longest = _LONGEST[view]
        return 1 if self._title_letters >= longest else math.ceil(1.2 * longest / self._title_letters)

    @property
    def _title_letters(self) -> int:
        return max(12, int((self.plot_width + _LEFT + 10) / (_BOLD * TITLE)))

    def headline(self, text: str) -> str:
        """A title in bold, in as many lines as it takes."""
        lines = textwrap.wrap(text, self._title_letters)
        return f"<b>{'<br>'.join(lines)}</b>"

    def legend_lines(self, names: Iterable[str]) -> int:
        """Lines of a legend: plotly puts entries into columns as wide as the widest, where one line is too short.

        A line may be as long as all columns of plots together; one that is longer than its plot ends where that does.
        """
        widths = [_SIGN + _PLAIN * LEGEND * len(name) for name in names]
        room = self.width - self.margins["l"] - self.margins["r"]
        if not widths or sum(widths) <= room:
            return 1
        return math.ceil(len(widths) / max(1, int(room / max(widths))))

    def outgrows(self, names: Iterable[str]) -> bool:
        """Whether a legend is wider than a plot."""
        return sum(_SIGN + _PLAIN * LEGEND * len(name) for name in names) > self.plot_width + 10


def arrange(figure: go.Figure, arrangement: Arrangement) -> go.Figure:
    """Give every plot of a `dashboard` its place, or none, in place; returns the figure.

    Raises TypeError for what is no figure or no `Arrangement`.
    """
    kind("figure", figure, BaseFigure, "a figure that `dashboard` made")
    a = kind("arrangement", arrangement, Arrangement, "an Arrangement of gsm_lab.figures")
    bars = {place.plot.x: place for place in _places(figure.data, a) if place.plot.view == "network"}
    for trace, visible in zip(figure.data, shown(figure.data, a), strict=True):
        if (trace.visible is not False) != visible:
            trace.visible = visible
        if visible and trace.xaxis in bars and trace.type == "scatter" and trace.marker.showscale:
            place = bars[trace.xaxis]
            trace.marker.colorbar.update(x=place.left, len=place.right - place.left, y=place.floor)
    notes = [note.to_plotly_json() for note in figure.layout.annotations]
    figure.update_layout(places(figure.data, notes, a))
    return figure


def shown(traces: Sequence[go.Scatter], a: Arrangement) -> list[bool]:
    """Which of the traces are to be seen: not the spare ones of the density, which have no name."""
    there = {plot.x for plot in PLOTS if plot.view in a.views}
    return [(t.xaxis or "x") in there and (t.type != "scatter" or t.legend != "legend4" or t.name is not None)
            for t in traces]  # fmt: skip


class _Place(NamedTuple):
    """Where a plot stands, in shares of what is between the margins; its title begins at `title`, from below."""

    plot: Plot
    left: float
    right: float
    floor: float
    bottom: float
    top: float
    title: float


def _places(traces: Sequence[go.Scatter], a: Arrangement) -> list[_Place]:
    there = {trace.xaxis or "x" for trace in traces}
    plots = [plot for view in a.views for plot in PLOTS if plot.view == view and plot.x in there]
    rows, wide = _rows(traces, plots, a), max(1.0, a.width - a.margins["l"] - a.margins["r"])
    area, above, found = _area(rows), 0.0, []
    for row, height, over in rows:
        floor, top = max(0.0, 1 - (above + height) / area), 1 - (above + over) / area
        for i, plot in enumerate(row):
            left = i * (a.plot_width + a._gap) / wide
            right = min(1.0, left + a.plot_width / wide)
            legend = _LEGEND_LINE * a.legend_lines(_names(traces, plot)) if plot.legend else 6
            under = _UNDER_PICTURES if plot.view == "network" else _UNDER
            found.append(_Place(plot, left, right, floor, floor + under / area, top, top + legend / area))
        above += height
    return found


def _area(rows: list[tuple[list[Plot], float, float]]) -> float:
    return max(1.0, sum(height for _, height, _ in rows))


def places(traces: Sequence[go.Scatter], notes: list[dict[str, Any]], a: Arrangement) -> dict[str, Any]:
    """What `arrange` sets in a layout; `notes`: the annotations that it has."""
    found, margins = {place.plot: place for place in _places(traces, a)}, a.margins
    area = _area(_rows(traces, [*found], a))
    layout: dict[str, Any] = {"height": area + margins["t"] + margins["b"], "margin": {**margins, "autoexpand": False}}
    titles: dict[str, dict[str, Any]] = {}
    there = {trace.xaxis or "x" for trace in traces}
    for plot in PLOTS:
        if plot.x not in there:
            continue
        place, axes = found.get(plot), [axis for axis in (plot.y, plot.right) if axis]
        across, up, visible = _NOWHERE, _NOWHERE, place is not None
        if place is not None:
            across, up = [place.left, place.right], [place.bottom, place.top]
            titles[plot.title] = {"x": place.left, "xshift": 8 - _LEFT, "y": place.title, "visible": True}
        else:
            titles[plot.title] = {"visible": False}
        layout[_axis(plot.x)] = {"domain": across, "visible": visible}
        layout |= {_axis(y): {"domain": up, "visible": visible} for y in axes}
        if plot.legend:
            layout[plot.legend] = {"visible": visible} | (_legend(place, a, traces) if place else {})
        if plot.view != "network" and plot.title != "change":  # its steps are the latest ones, and few
            how = {"type": "log", "nticks": 3, "tickfont": LOG_FONT} if a.log else {"type": "linear", "nticks": 6}
            how = {"tickfont": _TICK_FONT, "rangemode": "normal" if a.last or a.log else "tozero"} | how
            layout[_axis(plot.x)] |= how
    layout["annotations"] = [note | titles.get(note.get("name", ""), {}) for note in notes]
    return layout


def _legend(place: _Place, a: Arrangement, traces: Sequence[go.Scatter]) -> dict[str, Any]:
    if place.left > 0 and a.outgrows(_names(traces, place.plot)):
        return {"x": place.right, "xanchor": "right", "y": place.top}
    return {"x": place.left, "xanchor": "left", "y": place.top}


def frame(plots: Sequence[Plot]) -> dict[str, Any]:
    """A layout in which each of the plots has an empty title, a legend, and small labels at its axes."""
    small = {"title": {"font": {"size": LABELS}, "standoff": 4}, "tickfont": _TICK_FONT}
    title = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "align": "left", "text": ""}
    title |= {"showarrow": False, "borderpad": 0, "font": {"size": TITLE}}
    legend = {"orientation": "h", "yanchor": "bottom", "xanchor": "left", "bgcolor": "rgba(0,0,0,0)"}
    axes = [axis for plot in plots for axis in (plot.x, plot.y, plot.right) if axis]
    return {
        **{_axis(axis): small for axis in axes},
        **{plot.legend: {**legend, "font": {"size": LEGEND}} for plot in plots if plot.legend},
        "annotations": [{"name": plot.title, **title} for plot in plots],
        "showlegend": True,
        "modebar": {"orientation": "v", **BUTTONS},
    }


def merged(*layouts: dict[str, Any]) -> dict[str, Any]:
    """Layouts in one, later ones over earlier ones, as plotly's `update_layout` does, which takes far longer."""
    result: dict[str, Any] = {}
    for layout in layouts:
        for key, value in layout.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def _rows(traces: Sequence[go.Scatter], plots: list[Plot], a: Arrangement) -> list[tuple[list[Plot], float, float]]:
    """The plots of each row, its height, and how much of it is over the plots; in pixels."""
    rows = []
    for view in a.views:
        of_view = [plot for plot in plots if plot.view == view]
        for i in range(0, len(of_view), a.columns):
            row = of_view[i : i + a.columns]
            legends = max(a.legend_lines(_names(traces, plot)) if plot.legend else 0 for plot in row)
            over = a.title_lines(view) * _TITLE_LINE + max(1, legends) * _LEGEND_LINE
            under = _UNDER_PICTURES if view == "network" else _UNDER
            alone = len(a.views) == 1 and len(of_view) <= 2 == a.columns
            height = a.row * (2 if alone else 1) + max(0, legends - 1) * _LEGEND_LINE
            if view == "network":  # as high as wide, as far as there is room
                height = max(height, over + under + min(320, a.plot_width))
            rows.append((row, max(height, over + under + _LEAST), over))
    return rows


def _names(traces: Sequence[go.Scatter], plot: Plot) -> list[str]:
    """What stands in the legend of a plot."""
    return [trace.name for trace in traces
            if trace.legend == plot.legend and trace.name and trace.showlegend is not False]  # fmt: skip


def _axis(name: str) -> str:
    """ "x2" is `xaxis2` in a layout."""
    return f"{name[0]}axis{name[1:]}"
