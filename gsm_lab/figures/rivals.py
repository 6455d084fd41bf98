"""Figures of the methods compared, drawn from the CSVs of `gsm-lab reproduce`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import number, shown, text
from gsm_lab.figures.fitting import LETTER, ROOM, letters, ticks, wrapped
from gsm_lab.figures.style import DOTS, as_picture, drawn, error_bars, line, named, scatter
from gsm_lab.studies.aggregation import METHODS, summary
from gsm_lab.wording import signed

__all__ = ["against_published", "budgets", "pixels", "ranked", "summary"]

FAR = 10.0  # points under the median of what is shown: beyond that a method is told in words, at the lower edge


def budgets(table: pd.DataFrame, model: str = "lenet300", height: int = 460) -> go.Figure:
    """Accuracy after the cut of every method against the compression: mean, least and greatest over seeds.

    Args:
        table: rows of a CSV of `gsm-lab reproduce`.
        model: which of its networks.
        height: in pixels.

    Raises ValueError where there are no rows of that model.
    """
    rows = summary(_part(table, model))
    figure = go.Figure()
    for i, (label, of) in enumerate(rows.groupby("label", sort=False)):
        of = of.sort_values("compression")
        hover = f"{label} at %{{x:g}}×: %{{y:.2f}}%, %{{customdata[0]:.2f}} to %{{customdata[1]:.2f}} over "
        hover += "%{customdata[2]} seeds"
        style = line(i, name=label, error_y=error_bars(of, "cut"), customdata=of[["low", "high", "runs"]])
        figure.add_trace(scatter(of["compression"], of["cut"], hover, style))
    hardest = rows[rows["compression"] == rows["compression"].max()].sort_values("cut")
    best, worst = hardest.iloc[-1], hardest.iloc[0]
    title = f"At {best['compression']:,g}× {best['label']} keeps {best['cut']:.2f}%"
    if len(hardest) > 1:
        title += f", {worst['label']} {worst['cut']:.2f}%"
    figure = drawn(figure, title, "compression N / Q (log)", "test accuracy after the cut, %", height)
    figure.update_xaxes(type="log", **ticks(rows["compression"].unique()))
    least = rows["cut"].median() - FAR
    close = rows[rows["cut"] >= least]
    far: dict[Any, list[str]] = {}
    for r in rows[rows["cut"] < least].itertuples():
        far.setdefault(float(np.log10(r.compression)), []).append(f"{r.label} {r.cut:.1f}%")
    return _told_below(figure, [*close["low"], *close["high"]], far)


def ranked(table: pd.DataFrame, model: str = "lenet300", compression: float = 60, height: int = 460) -> go.Figure:
    """The methods at one budget, best first: accuracy as the network is and after the cut, beside the dense network.

    Args:
        table: rows of a CSV of `gsm-lab reproduce`.
        model, compression: which of its rows.
        height: in pixels.

    Raises ValueError where there are no such rows.
    """
    rows = summary(_part(table, model, number("compression", compression, 1)))
    rows = rows.sort_values("cut", ascending=False, kind="stable")
    figure = go.Figure()
    for i, (column, name) in enumerate((("cut", "after the cut"), ("live", "before it"))):
        hover = f"%{{x}}: %{{y:.2f}}% {name}, mean of %{{customdata}} seeds"
        style = line(i, mode="markers", name=name, customdata=rows["runs"])
        if column == "cut":
            style["error_y"] = error_bars(rows, "cut")
        figure.add_trace(scatter(rows["label"], rows[column], hover, style))
    dense = rows["base"].mean()
    ends = {"mode": "lines", "line": {**DOTS, "color": "#444444"}, "name": f"dense network, {dense:.2f}%"}
    if dense == dense:
        figure.add_trace(scatter(rows["label"], [dense] * len(rows), "dense network: %{y:.2f}%", ends))
    best = rows.iloc[0]
    title = f"At {compression:,g}× {best['label']} keeps {best['cut']:.2f}%"
    for word, i in (("then", 1), ("and", len(rows) - 1))[: len(rows) - 1]:
        title += f", {word} {rows['label'].iloc[i]} {rows['cut'].iloc[i]:.2f}%"
    figure = drawn(figure, title, "method", "test accuracy, %", height)
    far = rows["cut"] < rows["cut"].median() - FAR
    near = rows[~far]
    seen = [y for y in (*near["low"], *near["high"], *near["live"], dense) if y == y]
    named(figure, rows["label"])
    return _told_below(figure, seen, {r.label: [f"{r.cut:.1f}%"] for r in rows[far].itertuples()})


def _part(table: pd.DataFrame, model: str, compression: float | None = None) -> pd.DataFrame:
    """The rows of one network, at one compression. Raises ValueError where there are none."""
    checks.table("table", table, METHODS)
    part, at = table[table["model"] == text("model", model)], ""
    if compression is not None:
        part, at = part[part["compression"] == compression], f" at {compression:g}x"
    if not len(part):
        pairs = table[["model", "compression"]].drop_duplicates().to_numpy()
        there = ", ".join(f"{m} at {c:g}x" for m, c in pairs)
        raise ValueError(
            f"table of {model[:80]}{at} must have at least one row, got none: model and compression must be of {there}"
        )
    return part


def _told_below(figure: go.Figure, near: list[float], far: dict[Any, list[str]]) -> go.Figure:
    """Show what is `near`, and say at the lower edge what is `far` below, or the others would lie on top of each other.

    `far`: the place on the x axis (its logarithm, where the axis is), and what is said there; where it is empty the
    figure stays as it is. Where what is said has no room side by side, it is said below the axis.
    """
    if not far:
        return figure
    bottom, top = min(near), max(near)
    pad = 0.12 * (top - bottom) + 0.05
    logs = [x for x in far if not isinstance(x, str)]
    shown = {float(np.log10(x)) if logs else str(x) for trace in figure.data for x in trace.x}
    apart = min(np.diff(sorted(logs)), default=9) / ((max(shown) - min(shown)) or 1) if logs else 1 / len(shown)
    if apart * ROOM > LETTER * max(len(text) for said in far.values() for text in (*said, "↓ (below)")):
        for x, said in far.items():
            text = "<br>".join([*said, "↓ (below)"])
            figure.add_annotation(x=x, y=bottom - 2 * pad, yanchor="bottom", text=text, showarrow=False)
    else:
        at = {x: f"at {10**x:,.4g}×" if logs else x.replace("<br>", " ") for x in far}
        told = "; ".join(f"{at[x]}: {', '.join(said)}" for x, said in far.items())
        title = figure.layout.xaxis.title
        title.text += "<br>" + wrapped(f"below what is shown {told}", letters(ROOM))
        figure.layout.height += 17 * (1 + title.text.count("<br>"))
    return figure.update_yaxes(range=[bottom - 2 * pad, top + pad])


def pixels(counts: Any, height: int = 440) -> go.Figure:
    """How many weights of the first layer read each pixel.

    Args:
        counts: [height, width], a number a pixel.
        height: of the figure, in pixels.
    """
    try:
        counts = np.asarray(counts, float)
    except (TypeError, ValueError, OverflowError, RuntimeError, RecursionError):  # in numpy's words
        raise TypeError(f"counts must be numbers, got {shown(counts)}") from None
    if counts.ndim != 2 or not counts.size:
        raise ValueError(f"counts must be of shape [height, width], got {list(counts.shape)}")
    read = int((counts > 0).sum())
    title = f"{read:,} of {counts.size:,} pixels {'is' if read == 1 else 'are'} read, "
    title += f"{counts.size - read:,} by no weight at all"
    if read in (0, counts.size):
        every = "The one pixel is read" if read == 1 else f"All {counts.size:,} pixels are read"
        title = every if read else "No weight reads a pixel"
    hover = "row %{y}, column %{x}: %{z} weights<extra></extra>"
    heat = {"colorscale": "Greys", "colorbar": {"title": {"text": "weights"}}, "name": "weights that read a pixel"}
    figure = go.Figure(go.Heatmap(z=counts, hovertemplate=hover, **heat))
    figure = drawn(figure, title, "column, pixels", "row, pixels", height)
    return as_picture(figure, *counts.shape)


def against_published(table: pd.DataFrame, height: int = 460) -> go.Figure:
    """What was measured here beside what the papers report, a point a row that has both.

    Args:
        table: rows of a CSV of `gsm-lab reproduce`.
        height: in pixels.
    """
    rows = summary(table).dropna(subset="published")
    checks.table("table with published accuracies", rows)
    names = [f"{r.label}<br>{r.model}, {r.compression:g}×" for r in rows.itertuples()]
    figure = go.Figure()
    hover = "%{x}: %{y:.2f}%, %{customdata[0]:.2f} to %{customdata[1]:.2f} over %{customdata[2]} seeds"
    style = line(0, mode="markers", name="here", error_y=error_bars(rows, "cut"))
    style["customdata"] = rows[["low", "high", "runs"]]
    figure.add_trace(scatter(names, rows["cut"], hover, style))
    style = line(1, mode="markers", name="published")
    figure.add_trace(scatter(names, rows["published"], "%{x}: %{y:.2f}% published", style))
    off = rows["cut"] - rows["published"]
    low, high, good = signed(off.min(), 2), signed(off.max(), 2), int((off >= 0).sum())
    title = f"Measured minus published: {low if low == high else f'{low} to {high}'} points"
    title += f", {good} of {len(off)} rows at least as good" if len(off) > 1 else ""
    figure = drawn(figure, title, "method, network and compression", "test accuracy after the cut, %", height)
    named(figure, names)
    least = pd.concat([rows["cut"], rows["published"]]).median() - FAR
    near = [y for y in (*rows["low"], *rows["high"], *rows["published"]) if y >= least]
    far: dict[Any, list[str]] = {}
    for column, whose in (("cut", "here"), ("published", "published")):
        for name, y in zip(names, rows[column], strict=True):
            if y < least:
                far.setdefault(name, []).append(f"{whose} {y:.2f}%")
    return _told_below(figure, near, far)
