"""Figures of the decay of passive weights: tables of `gsm_lab.studies.decay` and `Paths.falls` in, figures out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab.figures.frame import DOTS, NARROW, WIDE, by_run, name, scatter, titled
from gsm_lab.figures.style import line
from gsm_lab.wording import times

_MEASURED = 12  # markers a line


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
        off = closed[-1] / max(measured[-1], 1e-38)
        ends.append(f"{times(max(off, 1 / off))} ({who.removeprefix('momentum ')})")
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
    title = f"Passive weights follow the recurrence to {100 * worst:.1g}%; the closed form ends off by "
    title += ", ".join(ends)
    titled(figure, title, 504, 3)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="|w| relative to the first step (log)", **WIDE)
    return figure


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
        share = rows["measured"] / (-0.5 * np.log(momentum))
        figure.add_trace(scatter(rows["of_critical"], share, hover, {**style, "customdata": np.stack(columns, axis=1)}))
    title = f"Measured and exact speed differ by at most {100 * table['off_exact'].abs().max():.2g}%"
    if x[0] < 1 < x[-1]:
        title += "; past the critical αη, more decay does not help"
        figure.add_vline(x=1, line={"color": "#777777", "dash": "2px,3px", "width": 1.5})
        figure.add_annotation(x=np.log10(1.05), y=0.02, yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
                              text="above: weights swing through zero", font={"size": 12})  # fmt: skip
    titled(figure, title, 480, 2)
    figure.update_xaxes(title_text="αη relative to the critical (1 − √β)² (log)", **NARROW)
    figure.update_yaxes(title_text="decay per step relative to ½ ln 1/β (log)", **NARROW)
    return figure
