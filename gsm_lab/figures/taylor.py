"""Figures of the Taylor study: estimates of a loss change against the true one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import one_of, text
from gsm_lab.figures.style import COLOURS, FEW_TICKS, SYMBOLS, drawn, line
from gsm_lab.figures.style import scatter as trace
from gsm_lab.studies.aggregation import ESTIMATES

_EXACT = 1e-9  # relative errors below this are drawn here: float64 knows no better


def scatter(table: pd.DataFrame, estimate: str = "|g w|", height: int = 460) -> go.Figure:
    """Single weights: the estimate of their worth against the true |loss change|, from `singles`.

    Weights whose truth is below the floor are left out and counted in the axis title.
    """
    checks.table("table", table, ("region", "layer", "index", "rank", "true"))
    one_of("estimate", estimate, [name for name in ESTIMATES if name in table])
    if "floor" not in table.attrs:
        raise ValueError('table must be from singles, with its attrs: it has no attrs["floor"]')
    size, guess = table["true"].abs(), table[estimate].abs()
    shown = (size >= table.attrs["floor"]) & (guess > 0)
    figure = go.Figure()
    span = [min(size[shown].min(), guess[shown].min()), max(size[shown].max(), guess[shown].max())]
    said = "%{customdata[0]} [%{customdata[1]}], rank %{customdata[2]:,}<br>true change %{x:.2e}, estimate %{y:.2e}"
    for i, region in enumerate(dict.fromkeys(table["region"])):
        rows = shown & (table["region"] == region)
        if rows.any():
            style = {"name": region, "mode": "markers", "customdata": table.loc[rows, ["layer", "index", "rank"]]}
            style["marker"] = {"symbol": SYMBOLS[i], "size": 8, "color": COLOURS[i], "opacity": 0.75}
            hover = f"{said}<extra>{region}</extra>"
            figure.add_trace(go.Scatter(x=size[rows], y=guess[rows], hovertemplate=hover, **style))
    diagonal = {"color": "#444444", "dash": "dot", "width": 1.5}
    figure.add_trace(go.Scatter(x=span, y=span, name="exact", mode="lines", line=diagonal, hoverinfo="skip"))
    median = ((guess - size).abs() / size)[shown].median()
    title = f"{_said(estimate)} is {_off(median)} for one weight in the median"
    below = f"{int((~shown).sum())} of {len(table)} below the floor"
    x, y = f"true |change of the loss| without the weight ({below})", f"{estimate}, estimated change of the loss"
    figure = drawn(figure, title, x, y, height)
    power = {"type": "log", "exponentformat": "power", "nticks": 9}
    return figure.update_xaxes(power).update_yaxes(power)


def errors(agreement: pd.DataFrame, across: str = "region", note: str = "", height: int = 420) -> go.Figure:
    """Median relative error of every estimate, across the groups of a table from `agreement`.

    Args:
        agreement: with the columns `across`, estimate, relative_error, rank_correlation, weights, below_floor; one row
            for each group and estimate.
        across: the column on the x axis.
        note: where the figure is from, for the title.
    """
    columns = ("estimate", "relative_error", "rank_correlation", "weights", "below_floor")
    checks.table("agreement", agreement, columns)
    one_of("across", across, agreement.columns)
    text("note", note)
    figure = go.Figure()
    for estimate in (e for e in ESTIMATES if e in set(agreement["estimate"])):
        rows = agreement[(agreement["estimate"] == estimate) & agreement["relative_error"].notna()]
        hover = f"{estimate}<br>%{{x}}: median relative error %{{y:.2g}}, rank correlation %{{customdata[0]:.3f}}"
        hover += "<br>%{customdata[1]} of %{customdata[2]} below the floor"
        data = rows[["rank_correlation", "below_floor", "weights"]]
        style = line(ESTIMATES.index(estimate), name=estimate, customdata=data)
        y = rows["relative_error"].clip(lower=_EXACT)
        figure.add_trace(trace(rows[across].astype(str), y, hover, style))
    medians = agreement.groupby("estimate")["relative_error"].median()
    best, worst = medians.idxmin(), medians.idxmax()
    title = f"{_said(best)} is {_off(medians[best])}, {worst} {_off(medians[worst])}{' ' + note if note else ''}"
    return drawn(figure, title, across, "median relative error", height).update_yaxes(FEW_TICKS)


def set_errors(table: pd.DataFrame, kind: str = "top", note: str = "", height: int = 420) -> go.Figure:
    """Sets of growing size of one kind, from `sets`: the relative error of every estimate. Raises ValueError."""
    columns = ("kind", "size", "true", *ESTIMATES, *(f"error of {name}" for name in ESTIMATES))
    checks.table("table", table, columns)
    rows = table[table["kind"] == one_of("kind", kind, dict.fromkeys(table["kind"]))]
    text("note", note)
    figure = go.Figure()
    for i, estimate in enumerate(ESTIMATES):
        error = rows[f"error of {estimate}"]
        if error.notna().any():
            hover = f"{estimate}<br>%{{x:,}} weights: true %{{customdata[0]:.3g}}, estimated %{{customdata[1]:.3g}}, "
            style = line(i, name=estimate, customdata=rows[["true", estimate]])
            figure.add_trace(trace(rows["size"], error.clip(lower=_EXACT), hover + "error %{y:.2g}", style))
    last = rows.loc[rows["size"].idxmax()]
    title = f"{last['size']:,} weights ({kind}) set to zero change the loss by {last['true']:.2g}; "
    title += f"first order is {_off(last['error of first order'])}{' ' + note if note else ''}"
    figure = drawn(figure, title, "weights set to zero together", "relative error", height)
    return figure.update_xaxes(type="log", exponentformat="power").update_yaxes(FEW_TICKS)


def rank_map(counts: pd.DataFrame, height: int = 480) -> go.Figure:
    """Every weight by its rank of T and its true rank, from `rank_map`: on the diagonal |g w| ranks rightly."""
    _numbers(counts, "counts")
    total = counts.to_numpy().sum()
    near = sum(np.trace(counts.to_numpy(), offset) for offset in (-1, 0, 1)) / total
    bar = {"title": {"text": "weights"}, "tickvals": list(range(6)), "ticktext": [f"{10**e:,}" for e in range(6)]}
    hover = "rank by |g w| about %{x:,.0f}, true rank about %{y:,.0f}: %{customdata:,} weights<extra></extra>"
    heat = go.Heatmap(
        x=counts.columns, y=counts.index, z=np.log10(counts.where(counts > 0)), customdata=counts, colorscale="Greys",
        colorbar=bar, hovertemplate=hover,
    )  # fmt: skip
    title = f"|g w| ranks {100 * near:.0f}% of all {total:,} weights about rightly"
    x, y = "rank by |g w| (1: greatest)", "rank by the true |change of the loss|"
    figure = drawn(go.Figure(heat), title, x, y, height).update_layout(showlegend=False)
    power = {"type": "log", "exponentformat": "power"}
    return figure.update_xaxes(power).update_yaxes(power)


def input_map(missed: pd.DataFrame, height: int = 440) -> go.Figure:
    """Where in the picture the weights are that |g w| wrongly leaves out, from `missed_by_input`."""
    _numbers(missed, "missed")
    values = missed.to_numpy()
    rows, columns = values.shape
    hover = "row %{y}, column %{x}: %{z} weights missed<extra></extra>"
    heat = go.Heatmap(z=values, colorscale="Greys", colorbar={"title": {"text": "weights"}}, hovertemplate=hover)
    inner = values[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].sum()
    share = 100 * inner / max(1, values.sum())
    title = f"{share:.0f}% of the {values.sum():,} weights that |g w| misses look at the middle quarter of the picture"
    figure = drawn(go.Figure(heat), title, "column (pixels)", "row (pixels)", height).update_layout(showlegend=False)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
    return figure.update_xaxes(constrain="domain")


def _numbers(table: pd.DataFrame, name: str) -> None:
    checks.table(name, table)
    if not table.size or any(dtype.kind not in "iuf" for dtype in table.dtypes):
        raise ValueError(f"{name} must be a table of numbers alone")


def _said(estimate: str) -> str:
    return estimate[0].upper() + estimate[1:]


def _off(error: float) -> str:
    """An error in words."""
    if error != error:
        return "too small to tell"
    if error < 1e-3:
        return "exact to 0.1%"
    return f"{100 * error:.2g}% off" if error < 0.995 else f"{100 * error:.0f}% off"
