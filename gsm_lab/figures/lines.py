"""A table drawn as lines: one column a line."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.figures.parts import drawn
from gsm_lab.figures.style import line


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
    for name, value in (("title", title), ("x", x), ("y", y)):
        checks.text(name, value)
    log, figure = checks.flag("log", log), go.Figure()
    for i, name in enumerate(table.columns):
        hover = f"{name}: %{{y:.3g}} at {x} %{{x}}<extra></extra>"
        figure.add_trace(go.Scatter(x=table.index, y=table[name], name=str(name), hovertemplate=hover, **line(i)))
    figure = drawn(figure, title, x, y, height)
    return figure.update_yaxes(type="log", nticks=8, exponentformat="power") if log else figure
