"""Figures of the study of trajectories: its tables (`gsm_lab.studies.trajectories`) in, plotly figures out.

Titles are computed from the table, so that they stay true when it changes. Where a table has a column `run`, each run
is a line; a number there is a momentum.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gsm_lab.checks import number, one_of, whole
from gsm_lab.figures.decay import falls, speed
from gsm_lab.figures.frame import DOTS, NARROW, WIDE, by_run, name, only_run, scatter, titled
from gsm_lab.figures.style import line
from gsm_lab.knobs import LOSSLESS
from gsm_lab.studies.aggregation import first_lossless
from gsm_lab.wording import layer_name

__all__ = ["PATHS_SHOWN", "cut_gap", "density", "falls", "near_zero", "paths", "sets", "speed"]

PATHS_SHOWN = 12  # of a kind; more cannot be told apart
_POINTS = 200  # of a path
_KINDS = {"kept": "kept in the end", "switched": "active at times", "passive": "never active"}
_STYLES = {"kept": 0, "switched": 4, "passive": 2}  # dark ones, that stand out from the grey band


def near_zero(table: pd.DataFrame) -> go.Figure:
    """Shares of weights under 1e-3 and 1e-4 over the steps, a line a run. Takes `near_zero(...)`.

    With the columns `expected_...` also, thin and dotted, what there would be if all weights were passive.
    """
    runs = by_run(table, "step", "under_1e-3", "under_1e-4", "target")
    ends = ", ".join(f"{100 * rows['under_1e-4'].iloc[-1]:.1f}% ({name(label)})" for label, rows in runs)
    title = f"Under 1e-4 at the end: {ends}; {100 * runs[-1][1]['target'].iloc[-1]:.1f}% have to go"
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=("|w| < 1e-3", "|w| < 1e-4")
    )
    for col, bound in enumerate(("1e-3", "1e-4"), 1):
        for i, (label, rows) in enumerate(runs):
            step, first = rows["step"], {"showlegend": col == 1 and not i}
            if f"expected_{bound}" in rows:
                hover = f"{name(label)}, step %{{x}}: %{{y:.2f}}% if all weights were passive"
                thin = {"mode": "lines", "line": {"color": "#666666", "dash": "1px,2px", "width": 1.5}, **first}
                thin |= {"name": "if all were passive", "legendgroup": "expected"}
                figure.add_trace(scatter(step, 100 * rows[f"expected_{bound}"], hover, thin), 1, col)
            hover = f"{name(label)}, step %{{x}}: %{{y:.2f}}% of weights have |w| < {bound}"
            style = {"name": name(label), "legendgroup": name(label), "showlegend": col == 1, **line(i)}
            figure.add_trace(scatter(step, 100 * rows[f"under_{bound}"], hover, style), 1, col)
        goal = {"mode": "lines", "line": DOTS, "name": "1 − 1/C", "legendgroup": "goal", "showlegend": col == 1}
        rows = runs[0][1]
        figure.add_trace(scatter(rows["step"], 100 * rows["target"], "%{y:.2f}% = 1 − 1/C have to go", goal), 1, col)
    titled(figure, title, 440)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="share of all weights, %", range=[0, 102], col=1)
    return figure


def cut_gap(table: pd.DataFrame, tolerance: float = LOSSLESS) -> go.Figure:
    """Live minus cut accuracy above, training loss below, over the steps, a line a run. Takes `cut_gap(...)`.

    The title says from which step on a cut costs at most `tolerance` (accuracy, 0..1); the grey band shows it.
    """
    runs, said = by_run(table, "step", "live", "cut", "gap", "loss"), []
    tolerance = number("tolerance", tolerance, 0)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    for i, (label, rows) in enumerate(runs):
        who = name(label)
        first = first_lossless(rows, tolerance)
        said.append(f"from step {rows['step'].iloc[first]:,} on ({who})" if first < len(rows) else f"never ({who})")
        both = 100 * rows[["live", "cut"]].to_numpy()
        hover = f"{who}, step %{{x}}: live %{{customdata[0]:.2f}}%, cut %{{customdata[1]:.2f}}%, "
        hover += "the cut costs %{y:.2f} points"
        style = {"name": who, "legendgroup": who, **line(i)}
        figure.add_trace(scatter(rows["step"], 100 * rows["gap"], hover, {**style, "customdata": both}), 1, 1)
        hover = f"{who}, step %{{x}}: training loss %{{y:.3g}}, mean since the evaluation before"
        figure.add_trace(scatter(rows["step"], rows["loss"], hover, {**style, "showlegend": False}), 2, 1)
    points = 100 * tolerance
    figure.add_hrect(y0=-points, y1=points, fillcolor="#999999", opacity=0.3, line_width=0, row=1, col=1)
    title = f"A cut costs at most {points:g} {'point' if points == 1 else 'points'}: " + ", ".join(said)
    titled(figure, title, 560)
    figure.update_xaxes(title_text="step", row=2)
    figure.update_yaxes(title_text="live − cut accuracy, points", row=1)
    figure.update_yaxes(title_text="training loss (log)", **NARROW, row=2)
    return figure


def density(table: pd.DataFrame) -> go.Figure:
    """Share of each layer that a cut would keep over the steps, a line a layer. Takes `density(...)` of one run."""
    only_run(table, "step", "layer", "weights", "kept", "density")
    last = table[table["step"] == table["step"].max()].sort_values("density")
    last = last.iloc[[-1, 0]] if len(last) > 1 else last
    ends = [f"{100 * row['density']:.2g}% of {layer_name(row['layer'])}" for _, row in last.iterrows()]
    title = "In the end, a cut keeps " + " and ".join(ends)
    figure = go.Figure()
    for i, (layer, rows) in enumerate(table.groupby("layer", sort=False)):
        who = layer_name(layer)
        hover = f"{who}, step %{{x}}: %{{customdata:,}} weights, %{{y:.3g}}% of the layer, would stay"
        style = {"name": f"{who} ({rows['weights'].iloc[0]:,} weights)", "customdata": rows["kept"], **line(i)}
        figure.add_trace(scatter(rows["step"], 100 * rows["density"], hover, style))
    titled(figure, title, 420)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="kept by a cut, % of the layer (log)", **NARROW)
    return figure


def paths(table: pd.DataFrame, layer: str | None = None, shown: int = PATHS_SHOWN) -> go.Figure:
    """|w| of single weights over the steps, by what became of them; a grey band where active. Takes `Paths.frame()`.

    Args:
        table: of one run.
        layer: only its weights.
        shown: at most so many of each kind (the title counts all of them).

    Raises ValueError for a layer the table does not have, and for a table of several runs.
    """
    only_run(table, "weight", "layer", "kind", "step", "magnitude", "active")
    shown = whole("shown", shown)
    if layer is not None:
        one_of("layer", layer, map(str, table["layer"].unique()))
        table = table[table["layer"] == layer]
    figure = make_subplots(
        rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(_KINDS.values())
    )
    counts, asleep = {}, 0.0
    for i, kind in enumerate(_KINDS):
        rows = table[(table["kind"] == kind).to_numpy()]
        each = rows["weight"].unique()
        counts[kind] = len(each)
        if kind == "switched" and len(rows):
            asleep = float((rows.groupby("weight")["magnitude"].last() < 1e-3).mean())
        each = each[np.unique(np.linspace(0, len(each) - 1, min(shown, len(each))).astype(int))]
        x, y, active, told = _joined(rows[rows["weight"].isin(each)])
        hover, style = "%{customdata} at step %{x}: |w| = %{y:.3g}", line(_STYLES[kind], customdata=told)
        if kind != "passive":  # the band lies behind the line
            band = {"mode": "lines", "line": {"color": "#DADADA", "width": 9, "dash": "solid"}, "customdata": told,
                    "name": "active", "legendgroup": "active", "showlegend": kind == "switched"}  # fmt: skip
            figure.add_trace(scatter(x, np.where(active, y, np.nan), hover + ", active", band), 1, i + 1)
        style["line"]["width"] = 1.3
        style["marker"] |= {"maxdisplayed": 30, "size": 6}
        figure.add_trace(scatter(x, y, hover, {**style, "name": _KINDS[kind]}), 1, i + 1)
    title = f"Of {sum(counts.values())} weights{f' of {layer_name(layer)}' if layer else ''}, {counts['kept']} are kept"
    if counts["switched"]:
        title += f"; of {counts['switched']} active only at times, {100 * asleep:.0f}% end under 1e-3"
    titled(figure, title, 480)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(**WIDE)
    figure.update_yaxes(title_text="|w| (log)", col=1)
    return figure


def sets(table: pd.DataFrame) -> go.Figure:
    """How the final Q settles, what the batches ask for, and what a cut would remove. Takes `ActiveSets.frame()`."""
    only_run(table, "step", "active", "ever", "kept", "asked", "removed", "contested")
    start, end = table.iloc[0], table.iloc[-1]
    title = f"Within {start['step']:,.0f} steps, batches ask for {start['asked']:.1f} Q weights at first and "
    title += f"{end['asked']:.1f} Q in the end"
    settled = np.flatnonzero(table["kept"] < 0.9)
    if len(settled) and settled[-1] + 1 < len(table):
        title += f"; 90% of the final Q are settled at step {table['step'].iloc[settled[-1] + 1]:,}"
    titles = ("share of the final Q", "asked for by the batches", "what a cut would remove")
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.09, subplot_titles=titles)
    lines = (
        ("ever", 1, 100, "has been active", "%{y:.1f}% of the final Q have been active"),
        ("kept", 1, 100, "a cut would keep", "a cut would keep %{y:.1f}% of the final Q"),
        ("active", 1, 100, "is active", "%{y:.1f}% of the final Q are active"),
        ("asked", 2, 1, "distinct active weights", "%{y:.2f} Q distinct weights were active since the record before"),
        ("removed", 3, 100, "norm a cut removes", "a cut would remove %{y:.3g}% of the norm"),
        ("contested", 3, 100, "… in weights just asked for", "%{y:.3g}% of the norm in weights just asked for"),
    )
    for i, (column, col, factor, text, hover) in enumerate(lines):
        style = {"name": text, **line(i)}
        figure.add_trace(scatter(table["step"], factor * table[column], f"step %{{x}}: {hover}", style), 1, col)
    titled(figure, title, 460, 2)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="share, %", range=[0, 102], col=1)
    figure.update_yaxes(title_text="weights / Q", rangemode="tozero", col=2)
    figure.update_yaxes(title_text="% of the norm of all weights", rangemode="tozero", col=3)
    return figure


def _joined(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights one after the other, a gap between: step, |w| (a gap where 0, not on a log axis), active, what it is."""
    parts: list[tuple[np.ndarray, ...]] = []
    for weight, own in rows.groupby("weight", sort=False):
        every = max(1, len(own) // _POINTS)
        step, w = own["step"].to_numpy(np.float64)[::every], own["magnitude"].to_numpy(np.float64)[::every]
        starts = np.arange(0, len(own), every)
        active = np.maximum.reduceat(own["active"].to_numpy(), starts) > 0  # at any step up to the next point
        told = np.full(len(step) + 1, f"weight {weight:,} of {layer_name(str(own['layer'].iloc[0]))}", object)
        w = np.where(w > 0, w, np.nan)
        parts.append((np.append(step, np.nan), np.append(w, np.nan), np.append(active, False), told))
    if not parts:
        return np.empty(0), np.empty(0), np.empty(0, bool), np.empty(0, object)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
