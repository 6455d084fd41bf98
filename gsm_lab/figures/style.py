"""What figures share: a style readable in greyscale, the frame around a plot, traces with hover text, axes, runs.

Every trace differs from the others in dash and in marker, not only in colour.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab import checks
from gsm_lab.checks import flag, integer, kind, number, text
from gsm_lab.figures.fitting import LETTER, LINE, NARROWEST, ROOM, legend_rows, letters, log_axis, names_axis, wrapped
from gsm_lab.figures.pictures import static

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours without the yellow, which disappears on white; sorted so that neighbours differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px", "2px,6px")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "cross")
MARKERS_SHOWN = 9  # along a line, however many points it has
AXIS = {"showline": True, "linecolor": "#888888", "ticks": "outside", "gridcolor": "#e6e6e6", "zeroline": False}
FONT = "Open Sans, Helvetica, Arial, sans-serif"
WIDE = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"dtick": "D1"}}  # axis over many decades
NARROW = {"type": "log", "dtick": "D2", "exponentformat": "power"}  # over one or two
# Over as many as there may be: powers of ten, or 1, 2 and 5 of each. Asked for more ticks, plotly writes all digits of
# one or two decades, and they overprint each other.
FEW_TICKS = {"type": "log", "nticks": 3, "exponentformat": "power"}
# What a figure is read by, and not the button that sends it to plotly's cloud.
BUTTONS = {"remove": ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]}
BELOW = {"orientation": "h", "xref": "container", "x": 0.01, "yref": "container", "y": 0.01, "yanchor": "bottom"}
TALL = 300  # pixels that the title of a y axis may take
DOTS = {"color": "#000000", "dash": "1px,4px", "width": 2}  # a reference line


def line(i: int, **more: Any) -> dict[str, Any]:
    """Arguments of a `Scatter` for the i-th line of a plot: colour, dash and marker of its own.

    There are eight colours; from the ninth line on markers are open, and dashes go with other markers.
    """
    turn, i = divmod(integer("i", i, 0), len(COLOURS))
    dash, symbol = DASHES[(i + 3 * turn) % len(DASHES)], SYMBOLS[i] + ("-open" if turn % 2 else "")
    return {
        "mode": "lines+markers",
        "line": {"color": COLOURS[i], "dash": dash, "width": 2},
        "marker": {"symbol": symbol, "size": 8, "maxdisplayed": MARKERS_SHOWN, "color": COLOURS[i]},
        **more,
    }


def finish(figure: go.Figure, height: int) -> go.Figure:
    """Template, fonts and margins; a zoom survives an update of the data. Raises TypeError, ValueError for a height."""
    height = number("height", height, 10, 100_000)
    figure.update_layout(
        template="plotly_white",
        height=height,
        autosize=True,
        margin={"l": 72, "r": 48, "t": 64, "b": 56, "autoexpand": False},
        font={"family": FONT, "size": 13, "color": "#222222"},
        hovermode="closest",
        modebar=BUTTONS,
        uirevision="keep",
    )
    return figure.update_xaxes(AXIS).update_yaxes(AXIS)


def headed(figure: go.Figure, title: str, top: int = 82, size: int = 16, line: int = LINE) -> go.Figure:
    """Give a figure its title, a sentence, in as many lines as it takes, under `top` pixels of margin with one line.

    It begins below the mode bar, which would cover it. `line`: characters in a line.
    """
    said = wrapped(title, line)
    at = {"x": 0.02, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 38}}
    more = round(1.3 * size) * said.count("<br>")
    return figure.update_layout(
        title={"text": f"<b>{said}</b>", "font": {"size": size}, **at}, margin={"t": top + more}
    )


def drawn(figure: go.Figure, title: str, x: str, y: str, height: int, logy: bool = False) -> go.Figure:
    """Finish a figure of one plot: style, a title that states the finding, axis titles with units, and a legend.

    The figure is of `height` pixels, and higher with a title or legend of several lines.
    """
    figure.update_yaxes(title_text=f"{y} (log)" if logy else y)
    if logy:
        figure.update_yaxes(log_axis(shown_on(figure)))
    return titled(figure, title, x, height)


def titled(figure: go.Figure, title: str, x: str, height: int, columns: int = 1, **xaxis: Any) -> go.Figure:
    """Finish a figure of plots in so many columns: style, title, x axes, and room for the titles above the plots.

    The legend is below, in as many rows as it takes. The figure is of `height` pixels, and higher with a title or
    legend of several lines.
    """
    headed(finish(figure, height), title)
    room, most = ROOM / columns - (14 if columns > 1 else 0), 0
    for note in figure.layout.annotations:
        if note.yref == "paper" and note.yanchor == "bottom" and note.y == 1 and note.xanchor == "center":
            note.update(text=wrapped(note.text, letters(room)), font={"size": 14})
            most = max(most, 1 + note.text.count("<br>"))
    shown = [t.name for t in figure.data if t.showlegend is not False and t.name]
    rows = legend_rows(shown) if len(shown) > 1 else 1
    tall = 21 * max(0, figure.layout.title.text.count("<br>") - 1) + 19 * (rows - 1) + 18 * max(0, most - 1)
    figure.update_layout(
        height=height + tall,
        showlegend=True,
        legend=BELOW,
        margin={"autoexpand": True, "l": 30, "r": 24, "b": 20, "t": figure.layout.margin.t + 18 * most - 4},
    )
    figure.update_xaxes(
        title_text=wrapped(x, letters(room)), title_font_size=14, title_standoff=8, automargin=True, **xaxis
    )
    for axis in figure.select_yaxes():
        axis.update(automargin=True, title={"font": {"size": 14}, "standoff": 8})
        if axis.title.text:
            axis.title.text = wrapped(axis.title.text, letters(TALL))
    return figure


def named(figure: go.Figure, names: Iterable[Hashable]) -> go.Figure:
    """Give the x axis of a finished figure these names; upright ones make it higher, not the plot lower."""
    axis = names_axis(names)
    if axis["tickangle"]:
        figure.layout.height += round(LETTER * max(map(len, axis["ticktext"])))
    return figure.update_xaxes(axis)


def as_picture(figure: go.Figure, rows: int, columns: int) -> go.Figure:
    """Show a heat map as a picture of so many rows, the first on top: its pixels square, unless it is a strip."""
    figure.update_xaxes(constrain="domain", nticks=8)
    figure.update_yaxes(autorange="reversed", constrain="domain", nticks=8)
    if max(rows, columns) <= 4 * min(rows, columns):
        figure.update_yaxes(scaleanchor="x")
    return figure


def shown_on(figure: go.Figure, axis: str = "y") -> np.ndarray:
    """All numbers that a figure shows on its y axes of this name."""
    parts = [np.empty(0)]
    for trace in figure.data:
        if (trace.yaxis or "y") == axis and trace.y is not None:
            y = np.asarray(trace.y, np.float64)
            parts.append(y)
            if trace.error_y and trace.error_y.array is not None:
                parts += [y + np.asarray(trace.error_y.array, float), y - np.asarray(trace.error_y.arrayminus, float)]
    return np.concatenate(parts)


def lines(table: pd.DataFrame, title: str, x: str, y: str, log: bool = False, height: int = 420) -> go.Figure:
    """Each column of `table` against its index.

    Args:
        table: numbers; the index is the x axis, the column names are the legend.
        title: what the figure shows, as a sentence.
        x, y: axis titles, with units.
        log: a logarithmic y axis.
        height: in pixels.
    """
    checks.table("table", table, empty=True)
    for argument, value in (("title", title), ("x", x), ("y", y)):
        text(argument, value)
    log, figure = flag("log", log), go.Figure()
    for i, column in enumerate(table.columns):
        hover = f"{column}: %{{y:.3g}} at {x} %{{x}}"
        figure.add_trace(scatter(table.index, table[column], hover, line(i, name=str(column))))
    return drawn(figure.update_yaxes(log_axis(shown_on(figure))) if log else figure, title, x, y, height)


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook twice over: live in JupyterLab, and as PNG for readers without a kernel.

    JupyterLab, too, shows the PNG until the mouse is over it, and as wide as it is: so it is drawn for the narrowest
    cell. On a machine without a Chromium or Chrome it is left out.
    """
    from IPython.display import display

    kind("figure", figure, BaseFigure, "a plotly figure")
    bundle = {
        "application/vnd.plotly.v1+json": json.loads(figure.to_json()),
        "text/plain": f"Figure with {len(figure.data)} lines",
    }
    with contextlib.suppress(Exception):  # whatever keeps a browser from drawing, the live figure is there
        bundle["image/png"] = base64.b64encode(static(figure, NARROWEST)).decode()
    display(bundle, raw=True)


def scatter(x: Any, y: Any, hover: str, style: dict[str, Any]) -> go.Scatter:
    """A trace with its hover text, and nothing in the box beside it."""
    return go.Scatter(x=np.asarray(x), y=np.asarray(y), hovertemplate=hover + "<extra></extra>", **style)


def error_bars(rows: pd.DataFrame, of: str = "mean") -> dict[str, Any]:
    """Bars around a column, from `low` to `high`, the least and the greatest value."""
    return {"type": "data", "array": rows["high"] - rows[of], "arrayminus": rows[of] - rows["low"]}


def band(i: int, x: pd.Series, low: pd.Series, high: pd.Series) -> go.Scatter:
    """A pale band between two lines, behind the i-th line of `line`."""
    red, green, blue = (int(COLOURS[i % len(COLOURS)][k : k + 2], 16) for k in (1, 3, 5))
    return go.Scatter(
        x=[*x, *reversed(list(x))], y=[*low, *reversed(list(high))], fill="toself", hoverinfo="skip", showlegend=False,
        fillcolor=f"rgba({red},{green},{blue},0.18)", line={"width": 0}, mode="lines",
    )  # fmt: skip


def by_run(table: pd.DataFrame, *columns: str) -> list[tuple[Hashable, pd.DataFrame]]:
    """The rows of each run by its label, in order; a table without a column `run` is of one.

    Raises ValueError for an empty table, or one without these columns, TypeError where it is none.
    """
    checks.table("table", table, columns)
    return list(table.groupby("run", sort=False)) if "run" in table else [("this run", table)]


def only_run(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError when the table is of several runs, naming them, and as `by_run` does."""
    runs = by_run(table, *columns)
    if len(runs) > 1:
        raise ValueError(f"table must be of one run, got {', '.join(name(label) for label, _ in runs)}; select one")


def name(label: Hashable) -> str:
    """What a run is called in a legend: a number is its momentum."""
    return f"momentum {label:g}" if isinstance(label, float) else str(label)
