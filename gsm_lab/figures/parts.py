"""What the figures of several studies share: frame, error bars, bands, ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab.checks import kind, table
from gsm_lab.figures.style import COLOURS, finish, headed


def drawn(figure: go.Figure, title: str, x: str, y: str, height: int, logy: bool = False) -> go.Figure:
    """Give a figure its look, a title that states the finding, and axis titles with units."""
    headed(finish(figure, height), title)
    figure.update_layout(showlegend=True, margin={"autoexpand": True})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=f"{y} (log)" if logy else y)
    if logy:
        shown = np.concatenate([np.asarray(trace.y, float) for trace in figure.data])
        figure.update_yaxes(type="log", **ticks(round_numbers(shown[np.isfinite(shown)])))
    return figure


def round_numbers(values: np.ndarray) -> list[float]:
    """Powers of ten around the positive ones of the values; where they span little, 2 and 5 times these as well."""
    values = values[values > 0]  # a logarithmic axis has no room for others
    if not values.size:
        return [1.0]
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    steps = (1,) if high - low > 3 else (1, 2, 5)
    return [step * 10.0**e for e in range(low, high + 1) for step in steps]


def ticks(values: Iterable[float]) -> dict[str, list]:
    """Ticks at these values, labelled in full: plotly labels a log axis with lone digits."""
    values = sorted(values)
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


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


def some(what: Any, name: str, *columns: str) -> None:
    """Raises TypeError or ValueError where there is no table, nothing to draw in it, or one of the columns is not."""
    table(name, what, columns)


def several(tables: Any, *columns: str) -> None:
    """The same for the argument `tables`, a mapping of some."""
    kind("tables", tables, Mapping, "a mapping of labels to tables")
    if not len(tables):
        raise ValueError("tables must have at least one row, got none")
    for label, one in tables.items():
        some(one, f"tables[{label!r}]", *columns)
