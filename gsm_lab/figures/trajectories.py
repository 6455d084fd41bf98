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
from gsm_lab.figures.fitting import few, log_axis, short_names
from gsm_lab.figures.style import DOTS, by_run, line, name, only_run, scatter, shown_on, titled
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import allowed, first_lossless
from gsm_lab.wording import counted, digits, error_percent, layer_name, share, times

PATHS_SHOWN = 12  # of a kind; more cannot be told apart
_POINTS = 200  # of a path
_MEASURED = 12  # markers a line
_TOLD = 3  # runs that a title names one by one
_LEAST = 1e-38  # of a weight's size: float32 has nothing below
# what a kind is called, and its line: dark ones, that stand out from the grey band
_KINDS = {"kept": ("kept in the end", 0), "switched": ("active at times", 4), "passive": ("never active", 2)}


def near_zero(table: pd.DataFrame) -> go.Figure:
    """Shares of weights under 1e-3 and 1e-4 over the steps, a line a run. Takes `near_zero(...)`.

    With the columns `expected_...` also, thin and dotted, what there would be if all weights were passive.
    """
    runs = by_run(table, "step", "under_1e-3", "under_1e-4", "target")
    ends = [(rows["under_1e-4"].iloc[-1], f"({name(label)})") for label, rows in runs]
    goals = sorted({f"{100 * rows['target'].iloc[-1]:.1f}%" for _, rows in runs}, key=lambda text: float(text[:-1]))
    if len(ends) > _TOLD:
        said = " to ".join(f"{100 * end:.1f}% {who}" for end, who in (min(ends), max(ends)))
    else:
        said = ", ".join(f"{100 * end:.1f}% {who}" for end, who in ends)
    title = f"Under 1e-4 at the end: {said}; {' to '.join(dict.fromkeys((goals[0], goals[-1])))} have to go"
    titles = ("|w| < 1e-3", "|w| < 1e-4")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
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
        targets = {tuple(rows["target"]): rows for _, rows in reversed(runs)}
        for i, rows in enumerate(reversed(targets.values())):
            goal = {"mode": "lines", "line": DOTS, "name": "1 − 1/C", "legendgroup": "goal"}
            goal["showlegend"] = col == 1 and not i
            hover = "%{y:.2f}% = 1 − 1/C have to go"
            figure.add_trace(scatter(rows["step"], 100 * rows["target"], hover, goal), 1, col)
    figure.update_yaxes(title_text="share of all weights, %", range=[0, 102], col=1)
    return titled(figure, title, "step", 440, 2)


def cut_gap(table: pd.DataFrame, tolerance: float | None = None) -> go.Figure:
    """Live minus cut accuracy above, training loss below, over the steps, a line a run. Takes `cut_gap(...)`.

    The title says from which step on a cut costs at most `tolerance`, in the unit of the metric, unless given that of
    the metric (0.005 of accuracy, 0..1); the grey band shows it. Raises ValueError for runs of several metrics.
    """
    runs, said = by_run(table, "step", "live", "cut", "gap", "loss"), []
    metric = metric_of(table)
    tolerance = None if tolerance is None else number("tolerance", tolerance, 0)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    for i, (label, rows) in enumerate(runs):
        who = name(label)
        first = first_lossless(rows, tolerance)
        at = float(rows["step"].iloc[first]) if first < len(rows) else np.inf
        said.append((at, f"from step {at:,.0f} on ({who})" if at < np.inf else f"never ({who})"))
        both = metric.scale * rows[["live", "cut"]].to_numpy()
        hover = f"{who}, step %{{x}}: live {metric.hover('customdata[0]')}, cut {metric.hover('customdata[1]')}, "
        hover += f"the cut costs {metric.hover_amount()}"
        style = {"name": who, "legendgroup": who, **line(i)}
        figure.add_trace(scatter(rows["step"], metric.scale * rows["gap"], hover, {**style, "customdata": both}), 1, 1)
        hover = f"{who}, step %{{x}}: training loss %{{y:.3g}}, mean since the evaluation before"
        figure.add_trace(scatter(rows["step"], rows["loss"], hover, {**style, "showlegend": False}), 2, 1)
    points = float(f"{metric.scale * max(allowed(rows, tolerance) for _, rows in runs):.6g}")
    figure.add_hrect(y0=-points, y1=points, fillcolor="#999999", opacity=0.3, line_width=0, row=1, col=1)
    unit = "point" if metric.percent and points == 1 else metric.points
    most = (
        digits(points) if metric.percent else f"{points:.3g}",
        unit,
        "" if metric.is_accuracy else f"of {metric.name}",
    )
    title = f"A cut costs at most {' '.join(filter(None, most))}: "
    if len(said) > _TOLD:
        free = sorted(one for one in said if one[0] < np.inf)
        title += f"{len(free)} of {len(said)} runs come to that"
        title += f", the first {free[0][1]}" if free else ""
    else:
        title += ", ".join(text for _, text in said)
    figure.update_yaxes(title_text=metric.cost_axis, row=1)
    figure.update_yaxes(title_text="training loss (log)", **log_axis(shown_on(figure, "y2"), 4), row=2)
    return titled(figure, title, "step", 560, row=2)


def density(table: pd.DataFrame) -> go.Figure:
    """Share of each layer that a cut would keep over the steps, a line a layer. Takes `density(...)` of one run."""
    only_run(table, "step", "layer", "weights", "kept", "density")
    last = table[table["step"] == table["step"].max()].sort_values("density")
    last = last.iloc[[-1, 0]] if len(last) > 1 else last
    ends = [(share(row["density"]), layer_name(row["layer"])) for _, row in last.iterrows()]
    same = len(ends) > 1 and ends[0][0] == ends[1][0]
    said = f"{ends[0][0]} of every layer" if same else " and ".join(f"{part} of {layer}" for part, layer in ends)
    title, every = f"In the end, a cut keeps {said}", list(dict.fromkeys(table["layer"]))
    shown = few(every)
    if len(shown) < len(every):
        title += f" ({len(shown)} of {len(every)} layers shown)"
    figure, short = go.Figure(), dict(zip(shown, short_names([layer_name(layer) for layer in shown]), strict=True))
    for i, layer in enumerate(shown):
        rows, who = table[table["layer"] == layer], layer_name(layer)
        hover = f"{who}, step %{{x}}: %{{customdata:,}} weights, %{{y:.3g}}% of the layer, would stay"
        style = {"name": f"{short[layer]} ({counted(rows['weights'].iloc[0], 'weight')})", "customdata": rows["kept"]}
        y = 100 * rows["density"].where(rows["density"] > 0)
        figure.add_trace(scatter(rows["step"], y, hover, {**style, **line(i)}))
    figure.update_yaxes(title_text="kept by a cut, % of the layer (log)", **log_axis(shown_on(figure)))
    return titled(figure, title, "step", 420)


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
    titles = [called for called, _ in _KINDS.values()]
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    counts, asleep = {}, 0.0
    for i, (kind, (called, of)) in enumerate(_KINDS.items()):
        rows = table[(table["kind"] == kind).to_numpy()]
        each = rows["weight"].unique()
        counts[kind] = len(each)
        if kind == "switched" and len(rows):
            asleep = float((rows.groupby("weight")["magnitude"].last() < 1e-3).mean())
        each = each[np.unique(np.linspace(0, len(each) - 1, min(shown, len(each))).astype(int))]
        x, y, active, told = _joined(rows[rows["weight"].isin(each)])
        hover, style = "%{customdata} at step %{x}: |w| = %{y:.3g}", line(of, customdata=told)
        if kind != "passive":  # the band lies behind the line
            band = {"mode": "lines", "line": {"color": "#DADADA", "width": 9, "dash": "solid"}, "customdata": told,
                    "name": "active", "legendgroup": "active", "showlegend": kind == "switched"}  # fmt: skip
            figure.add_trace(scatter(x, np.where(active, y, np.nan), hover + ", active", band), 1, i + 1)
        style["line"]["width"] = 1.3
        style["marker"] |= {"maxdisplayed": 30, "size": 6}
        figure.add_trace(scatter(x, y, hover, {**style, "name": called}), 1, i + 1)
    where = f" of {layer_name(layer)}" if layer else ""
    title = f"Of {counted(sum(counts.values()), 'weight')}{where}, {counts['kept']:,} "
    title += "is kept" if counts["kept"] == 1 else "are kept"
    if counts["switched"] == 1:
        title += f"; one is active only at times, and {'ends' if asleep else 'does not end'} under 1e-3"
    elif counts["switched"]:
        title += f"; of {counts['switched']:,} active only at times, {share(asleep)} end under 1e-3"
    figure.update_yaxes(log_axis(np.concatenate([np.asarray(trace.y, float) for trace in figure.data])))
    figure.update_yaxes(title_text="|w| (log)", col=1)
    return titled(figure, title, "step", 480, 3)


def sets(table: pd.DataFrame) -> go.Figure:
    """How the final Q settles, what the batches ask for, and what a cut would remove. Takes `ActiveSets.frame()`."""
    only_run(table, "step", "active", "ever", "kept", "asked", "removed", "contested")
    start, end = table.iloc[0], table.iloc[-1]
    title = f"Within {counted(int(start['step']), 'step')}, batches ask for {start['asked']:,.1f} Q weights"
    title += f" at first and {end['asked']:,.1f} Q in the end" if len(table) > 1 else ""
    settled = np.flatnonzero(table["kept"] < 0.9)
    if len(settled) and settled[-1] + 1 < len(table):
        title += f"; 90% of the final Q are settled at step {table['step'].iloc[settled[-1] + 1]:,}"
    titles = ("share of the final Q", "asked for by the batches", "what a cut would remove")
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.14, subplot_titles=titles)
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
    figure.update_yaxes(title_text="share, %", range=[0, 102], col=1)
    figure.update_yaxes(title_text="weights / Q", rangemode="tozero", col=2)
    figure.update_yaxes(title_text="% of the norm of all weights", rangemode="tozero", col=3)
    return titled(figure, title, "step", 460, 3, nticks=4)


def falls(table: pd.DataFrame) -> go.Figure:
    """|w| of weights that were never active, relative to the first step: measured, recurrence, closed form.

    Takes `trajectories.falls(...)`, a line a run. The closed form is drawn once where runs share it.
    """
    figure, worst, ends, drawn = go.Figure(), 0.0, [], []
    for i, (label, rows) in enumerate(by_run(table, "step", "measured", "exact", "closed_form")):
        style, who = line(i), name(label)
        exact, measured, closed = (rows[column].to_numpy() for column in ("exact", "measured", "closed_form"))
        envelope = np.maximum.accumulate(exact[::-1])[::-1]  # where a weight swings, errors are relative to the swing
        worst = max(worst, float((np.abs(exact - measured) / np.maximum(envelope, 1e-30)).max()))
        off = max(closed[-1], _LEAST) / max(measured[-1], _LEAST)
        ends.append((max(off, 1 / off), f"({who.removeprefix('momentum ')})"))
        hover = f"{who}, step %{{x}}: %{{y:.3g}} of the first |w|, "
        lines = {**style, "mode": "lines", "marker": None, "name": f"{who}, recurrence"}
        figure.add_trace(scatter(rows["step"], exact, hover + "by the recurrence", lines))
        few = slice(i * max(1, len(rows) // _MEASURED) // 3, None, max(1, len(rows) // _MEASURED))
        dots = {"mode": "markers", "marker": {"symbol": style["marker"]["symbol"], "size": 10,
                "color": style["marker"]["color"]}, "name": f"{who}, measured"}  # fmt: skip
        figure.add_trace(scatter(rows["step"].iloc[few], measured[few], hover + "median measured", dots))
        if not any(len(closed) == len(other) and np.allclose(closed, other, rtol=1e-3) for other in drawn):
            hover = "step %{x}: %{y:.3g} by exp(−Σ αη/(1 − β))"
            dotted = {"mode": "lines", "line": DOTS, "name": "closed form", "showlegend": not drawn}
            figure.add_trace(scatter(rows["step"], closed, hover, dotted))
            drawn.append(closed)
    ends = [min(ends), max(ends)] if len(ends) > _TOLD else ends
    said = ", ".join(f"{times(off) if off >= 1.05 else 'under 5%'} {who}" for off, who in ends)
    how = f"follow the recurrence to {error_percent(worst)}" if worst < 0.1 else f"leave it by {error_percent(worst)}"
    title = f"Passive weights {how if worst < 0.1 else 'do not follow the recurrence, they ' + how}; "
    title += f"the closed form ends off by {said}"
    figure.update_yaxes(title_text="|w| relative to the first step (log)", **log_axis(shown_on(figure)))
    return titled(figure, title, "step", 504)


def speed(table: pd.DataFrame) -> go.Figure:
    """Measured decay per step against lr * decay, both in units of the critical point. Takes `zero_out_speed(...)`.

    In these units the exact roots of all momenta near 1 lie on one line; it is drawn for the median momentum.
    """
    by_run(table, "momentum", "product", "of_critical", "weights", "measured", "off_exact", "off_closed_form")
    beta = float(np.percentile(table["momentum"], 50, method="nearest"))
    fastest = -0.5 * np.log(beta)
    x = np.geomspace(0.7 * table["of_critical"].min(), 1.4 * table["of_critical"].max(), 300)
    product = x * (1 - np.sqrt(beta)) ** 2
    p = 1 + beta - product
    root = (p + np.sqrt(np.maximum(p**2 - 4 * beta, 0))) / 2
    exact, closed = np.where(x < 1, -np.log(root), fastest) / fastest, product / (1 - beta) / fastest
    figure, hover = go.Figure(), "αη %{x:.3g} of the critical: %{y:.3g} of the fastest decay"
    for who, y, color, dash in ((f"exact root, β = {beta:g}", exact, "#000000", "solid"),
                                ("closed form αη/(1 − β)", closed, "#666666", "dash")):  # fmt: skip
        style = {"mode": "lines", "line": {"color": color, "dash": dash, "width": 2}, "name": who}
        figure.add_trace(scatter(x, y, hover, style))
    for i, (momentum, rows) in enumerate(table.groupby("momentum")):
        columns = (np.log(2) / rows["measured"], 100 * rows["off_exact"], 100 * rows["off_closed_form"],
                   rows["weights"], rows["product"])  # fmt: skip
        hover = (
            f"momentum {momentum:g}, αη = %{{customdata[4]:.2g}} (%{{x:.2g}} of the critical): half-life "
            "%{customdata[0]:.4g} steps, median of %{customdata[3]:,} weights; the root is off by "
            "%{customdata[1]:+.2f}%, the closed form by %{customdata[2]:+.1f}%"
        )
        marker = line(i)["marker"]  # open and of different sizes: they lie on top of each other
        marker = {"symbol": f"{marker['symbol']}-open", "size": max(22 - 6 * i, 8), "color": marker["color"],
                  "line": {"width": 2.5}}  # fmt: skip
        style = {"mode": "markers", "marker": marker, "name": f"momentum {momentum:g}, measured"}
        relative = rows["measured"] / (-0.5 * np.log(momentum))
        style["customdata"] = np.stack(columns, axis=1)
        figure.add_trace(scatter(rows["of_critical"], relative, hover, style))
    title = f"Measured and exact speed differ by at most {share(table['off_exact'].abs().max())}"
    if x[0] < 1 < x[-1]:
        title += "; past the critical αη, more decay does not help"
        figure.add_vline(x=1, line={"color": "#777777", "dash": "2px,3px", "width": 1.5})
        figure.add_annotation(x=np.log10(1.05), y=0.02, yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
                              text="above: weights swing through zero", font={"size": 12})  # fmt: skip
    figure.update_yaxes(title_text="decay per step relative to ½ ln 1/β (log)", **log_axis(shown_on(figure)))
    return titled(figure, title, "αη relative to the critical (1 − √β)² (log)", 480, **log_axis(x))


def _joined(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights one after the other, a gap between: step, |w| (a gap where 0, not on a log axis), active, what it is."""
    parts = [(np.empty(0), np.empty(0), np.empty(0, bool), np.empty(0, object))]
    for weight, own in rows.groupby("weight", sort=False):
        every = max(1, len(own) // _POINTS)
        step, w = own["step"].to_numpy(np.float64)[::every], own["magnitude"].to_numpy(np.float64)[::every]
        active = np.maximum.reduceat(own["active"].to_numpy(), np.arange(0, len(own), every)) > 0  # until the next
        told = np.full(len(step) + 1, f"weight {weight:,} of {layer_name(str(own['layer'].iloc[0]))}", object)
        w = np.where(w > 0, w, np.nan)
        parts.append((np.append(step, np.nan), np.append(w, np.nan), np.append(active, False), told))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
