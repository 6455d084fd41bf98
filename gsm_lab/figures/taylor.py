"""Figures of the Taylor study: estimates of a loss change against the true one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import one_of, text
from gsm_lab.figures.fitting import log_axis
from gsm_lab.figures.style import COLOURS, SYMBOLS, as_picture, drawn, line, named
from gsm_lab.figures.style import scatter as trace
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.wording import digits, share

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
    title = title if shown.any() else f"{_said(estimate)}: no weight is above the floor"
    below = f"{int((~shown).sum())} of {len(table)} below the floor"
    x, y = f"true |change of the loss| without the weight ({below})", f"{estimate}, estimated change of the loss"
    figure = drawn(figure, title, f"{x} (log)", y, height, logy=True)
    return figure.update_xaxes(log_axis(size[shown], 5))


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
    medians = agreement.groupby("estimate")["relative_error"].median().dropna()
    title = "No weight is above the floor"
    if len(medians):
        best, worst = medians.idxmin(), medians.idxmax()
        title = f"{_said(best)} is {_off(medians[best])}"
        title += f", {worst} {_off(medians[worst])}" if best != worst else ""
    title += f" {note}" if note else ""
    figure = drawn(figure, title, across, "median relative error", height, logy=True)
    return named(figure, [x for trace in figure.data for x in trace.x])


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
    one = last["size"] == 1
    title = f"{last['size']:,} weight{'' if one else 's'} ({kind}) set to zero "
    if np.isfinite(last["true"]):
        title += f"change{'s' if one else ''} the loss by {digits(last['true'])}; "
    else:
        title += f"leave{'s' if one else ''} no finite loss; "
    title += f"first order is {_off(last['error of first order'])}{' ' + note if note else ''}"
    figure = drawn(figure, title, "weights set to zero together (log)", "relative error", height, logy=True)
    return figure.update_xaxes(log_axis(rows["size"]))


def rank_map(counts: pd.DataFrame, height: int = 480) -> go.Figure:
    """Every weight by its rank of T and its true rank, from `rank_map`: on the diagonal |g w| ranks rightly."""
    _numbers(counts, "counts")
    total = counts.to_numpy().sum()
    near = sum(np.trace(counts.to_numpy(), offset) for offset in (-1, 0, 1)) / max(1, total)
    powers = range(int(np.log10(max(1, counts.to_numpy().max()))) + 1)
    bar = {"title": {"text": "weights"}, "tickvals": list(powers), "ticktext": [f"{10**e:,}" for e in powers]}
    hover = "rank by |g w| about %{x:,.0f}, true rank about %{y:,.0f}: %{customdata:,} weights<extra></extra>"
    heat = go.Heatmap(
        x=counts.columns, y=counts.index, z=np.log10(counts.where(counts > 0)), customdata=counts, colorscale="Greys",
        colorbar=bar, hovertemplate=hover,
    )  # fmt: skip
    title = f"|g w| ranks {share(near)} of all {total:,} weights about rightly"
    if total <= 1:
        title = "There is one weight, and nothing to rank" if total else "There are no weights"
    x, y = "rank by |g w| (1: greatest; log)", "rank by the true |change of the loss| (log)"
    figure = drawn(go.Figure(heat), title, x, y, height).update_layout(showlegend=False)
    figure.update_xaxes(log_axis(counts.columns))
    return figure.update_yaxes(log_axis(counts.index))


def input_map(missed: pd.DataFrame, height: int = 440) -> go.Figure:
    """Where in the picture the weights are that |g w| wrongly leaves out, from `missed_by_input`."""
    _numbers(missed, "missed")
    values = missed.to_numpy()
    rows, columns = values.shape
    hover = "row %{y}, column %{x}: %{z} weights missed<extra></extra>"
    heat = go.Heatmap(z=values, colorscale="Greys", colorbar={"title": {"text": "weights"}}, hovertemplate=hover)
    inner = values[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].sum()
    missing = values.sum()
    title = f"{share(inner / max(1, missing))} of the {missing:,} weights that |g w| misses "
    title += "look at the middle quarter of the picture"
    if missing <= 1:
        at = "looks" if inner else "does not look"
        title = f"The one weight that |g w| misses {at} at the middle quarter" if missing else "|g w| misses no weight"
    figure = drawn(go.Figure(heat), title, "column (pixels)", "row (pixels)", height).update_layout(showlegend=False)
    return as_picture(figure, rows, columns)


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
    return "exact to 0.1%" if error < 1e-3 else f"{share(error)} off"
