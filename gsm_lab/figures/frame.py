"""What figures of several runs share: a line a run, its name, the title as a sentence, axes on a log scale."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.figures.style import finish, headed

WIDE = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"dtick": "D1"}}  # axis over many decades
NARROW = {"type": "log", "dtick": "D2", "exponentformat": "power"}  # over one or two
DOTS = {"color": "#000000", "dash": "1px,4px", "width": 2}  # a reference line


def scatter(x: Any, y: Any, hover: str, look: dict[str, Any]) -> go.Scatter:
    """A trace with its hover text, and nothing in the box beside it."""
    return go.Scatter(x=np.asarray(x), y=np.asarray(y), hovertemplate=hover + "<extra></extra>", **look)


def titled(figure: go.Figure, title: str, height: int, legend_rows: int = 1) -> go.Figure:
    """House style, the title as a sentence, room for subplot titles above and the legend below."""
    headed(finish(figure, height), title, top=76)
    return figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0},
        margin={"autoexpand": False, "b": 64 + 24 * legend_rows},
    )


def by_run(table: pd.DataFrame, *columns: str) -> list[tuple[Hashable, pd.DataFrame]]:
    """The rows of each run by its label, in order; a table without a column `run` is of one.

    Raises ValueError for an empty table, or one without these columns, TypeError where it is none.
    """
    checks.table("table", table, empty=True)
    if not len(table):
        raise ValueError("table must hold at least one row, got none")
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


def layer_name(parameter: str) -> str:
    """The layer a prunable parameter belongs to."""
    return parameter.removesuffix(".weight")


def times(factor: float) -> str:
    """A factor >= 1 in words: 1.2×, 34×, 1,400×."""
    return f"{float(f'{factor:.2g}'):,.4g}×" if factor < 1000 else f"{float(f'{factor:.2g}'):,.0f}×"
