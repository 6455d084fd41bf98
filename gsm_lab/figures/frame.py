"""What figures share: the frame around a plot, traces with hover text, bands, error bars, axes, a line a run."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.figures.style import COLOURS, finish, headed, line

WIDE = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"dtick": "D1"}}  # axis over many decades
NARROW = {"type": "log", "dtick": "D2", "exponentformat": "power"}  # over one or two
FEW_TICKS = {"type": "log", "nticks": 8, "exponentformat": "power"}  # over as many as there may be
DOTS = {"color": "#000000", "dash": "1px,4px", "width": 2}  # a reference line


# -- the frame ---------------------------------------------------------------------------------------------------------


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


def titled(figure: go.Figure, title: str, height: int, legend_rows: int = 1) -> go.Figure:
    """Finish a figure of several plots: style, title, room for subplot titles above and for the legend below."""
    headed(finish(figure, height), title, top=76)
    return figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"autoexpand": False, "b": 64 + 24 * legend_rows},
    )


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
        checks.text(argument, value)
    log, figure = checks.flag("log", log), go.Figure()
    for i, column in enumerate(table.columns):
        hover = f"{column}: %{{y:.3g}} at {x} %{{x}}"
        figure.add_trace(scatter(table.index, table[column], hover, line(i, name=str(column))))
    figure = drawn(figure, title, x, y, height)
    return figure.update_yaxes(FEW_TICKS) if log else figure


# -- traces ------------------------------------------------------------------------------------------------------------


def scatter(x: Any, y: Any, hover: str, style: dict[str, Any]) -> go.Scatter:
    """A trace with its hover text, and nothing in the box beside it."""
    return go.Scatter(x=np.asarray(x), y=np.asarray(y), hovertemplate=hover + "<extra></extra>", **style)


def error_bars(mean: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    """Bars from the least to the greatest value."""
    return {"type": "data", "array": high - mean, "arrayminus": mean - low}


def band(i: int, x: pd.Series, low: pd.Series, high: pd.Series) -> go.Scatter:
    """A pale band between two lines, behind the i-th line of `style.line`."""
    red, green, blue = (int(COLOURS[i % len(COLOURS)][k : k + 2], 16) for k in (1, 3, 5))
    return go.Scatter(
        x=[*x, *reversed(list(x))], y=[*low, *reversed(list(high))], fill="toself", hoverinfo="skip", showlegend=False,
        fillcolor=f"rgba({red},{green},{blue},0.18)", line={"width": 0}, mode="lines",
    )  # fmt: skip


# -- axes --------------------------------------------------------------------------------------------------------------


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


# -- runs -------------------------------------------------------------------------------------------------------------


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
