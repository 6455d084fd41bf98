"""What figures share: a style readable in greyscale, the frame around a plot, traces with hover text, axes, runs.

Every trace differs from the others in dash and in marker, not only in colour.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import textwrap
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab import checks
from gsm_lab.checks import flag, integer, kind, number, text
from gsm_lab.figures.pictures import static

# Okabe and Ito's colours without the yellow, which disappears on white; sorted so that neighbours differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px", "2px,6px")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "cross")
LINE = 88  # characters of a title in a line: what a notebook's cell beside JupyterLab's file browser has room for
MARKERS_SHOWN = 9  # along a line, however many points it has
AXIS = {"showline": True, "linecolor": "#888888", "ticks": "outside", "gridcolor": "#e6e6e6", "zeroline": False}
FONT = "Open Sans, Helvetica, Arial, sans-serif"
WIDE = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"dtick": "D1"}}  # axis over many decades
NARROW = {"type": "log", "dtick": "D2", "exponentformat": "power"}  # over one or two
FEW_TICKS = {"type": "log", "nticks": 8, "exponentformat": "power"}  # over as many as there may be
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
        uirevision="keep",
    )
    return figure.update_xaxes(AXIS).update_yaxes(AXIS)


def headed(figure: go.Figure, title: str, top: int = 64, size: int = 16, line: int = LINE) -> go.Figure:
    """Give a figure its title, a sentence, in as many lines as it takes, under `top` pixels of margin with one line."""
    words = textwrap.wrap(title, line, break_long_words=False)
    at = {"x": 0.02, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 18}}
    said = {"text": f"<b>{'<br>'.join(words)}</b>", "font": {"size": size}, **at}
    return figure.update_layout(title=said, margin={"t": top + round(1.3 * size) * (max(1, len(words)) - 1)})


def drawn(figure: go.Figure, title: str, x: str, y: str, height: int, logy: bool = False) -> go.Figure:
    """Finish a figure of one plot: style, a title that states the finding, and axis titles with units."""
    headed(finish(figure, height), title)
    figure.update_layout(showlegend=True, margin={"autoexpand": True})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=f"{y} (log)" if logy else y)
    if logy:
        shown = np.concatenate([np.asarray(trace.y, float) for trace in figure.data])
        figure.update_yaxes(type="log", **ticks(round_numbers(shown[np.isfinite(shown)])))
    return figure


def titled(figure: go.Figure, title: str, x: str, height: int, legend_rows: int = 1, **xaxis: Any) -> go.Figure:
    """Finish a figure of several plots: style, title, x axes, room for subplot titles and, below, for the legend."""
    headed(finish(figure, height), title, top=76)
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"autoexpand": False, "b": 64 + 24 * legend_rows},
    )
    return figure.update_xaxes(title_text=x, **xaxis)


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
    figure = drawn(figure, title, x, y, height)
    return figure.update_yaxes(FEW_TICKS) if log else figure


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook twice over: live in JupyterLab, and as PNG for readers without a kernel.

    On a machine without a Chromium or Chrome the PNG is left out.
    """
    from IPython.display import display

    kind("figure", figure, BaseFigure, "a plotly figure")
    bundle = {
        "application/vnd.plotly.v1+json": json.loads(figure.to_json()),
        "text/plain": f"Figure with {len(figure.data)} lines",
    }
    with contextlib.suppress(Exception):  # whatever keeps a browser from drawing, the live figure is there
        bundle["image/png"] = base64.b64encode(static(figure)).decode()
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


def ticks(values: Iterable[float]) -> dict[str, list]:
    """Ticks at these values, labelled in full: plotly labels a log axis with lone digits."""
    values = sorted(values)
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def round_numbers(values: np.ndarray) -> list[float]:
    """Powers of ten around the positive ones of the values; where they span little, 2 and 5 times these as well."""
    values = values[values > 0]  # a logarithmic axis has no room for others
    if not values.size:
        return [1.0]
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    steps = (1,) if high - low > 3 else (1, 2, 5)
    return [step * 10.0**e for e in range(low, high + 1) for step in steps]


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
