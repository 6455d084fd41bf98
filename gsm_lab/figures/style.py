"""The style of all figures, readable in greyscale: every trace differs in dash and in marker, not only in colour."""

from __future__ import annotations

import base64
import contextlib
import json
import textwrap
from typing import Any

import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab.checks import integer, kind, number
from gsm_lab.figures.pictures import static

# Okabe and Ito's colours without the yellow, which disappears on white; sorted so that neighbours differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px", "2px,6px")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "cross")
LINE = 88  # characters of a title in a line: what a notebook's cell beside JupyterLab's file browser has room for
MARKERS_SHOWN = 9  # along a line, however many points it has
AXIS = {"showline": True, "linecolor": "#888888", "ticks": "outside", "gridcolor": "#e6e6e6", "zeroline": False}
FONT = "Open Sans, Helvetica, Arial, sans-serif"


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


def headed(figure: go.Figure, title: str, top: int = 64, size: int = 16) -> go.Figure:
    """Give a figure its title, a sentence, in as many lines as it takes, under `top` pixels of margin with one line."""
    words = textwrap.wrap(title, LINE, break_long_words=False)
    at = {"x": 0.02, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 18}}
    text = {"text": f"<b>{'<br>'.join(words)}</b>", "font": {"size": size}, **at}
    return figure.update_layout(title=text, margin={"t": top + round(1.3 * size) * (max(1, len(words)) - 1)})


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
