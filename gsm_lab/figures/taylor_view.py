"""The Taylor view, a third row under the four plots: what single steps changed against what was predicted, and errors.

    add(figure, probes)            # to a `dashboard`, which grows by ROW pixels
    annotations = update(figure, probes)

`probes` is a structured array with a row for each step that was probed and the fields step, true, first, second,
metric, without (changes of the loss), error_first, error_second, error_metric (relative; NaN where there is none).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.lib.stride_tricks import sliding_window_view

from gsm_lab.figures.style import AXIS, line
from gsm_lab.wording import error_percent

ROW = 300  # pixels
RECENT = 30  # probes shown one by one
POINTS = 60  # of an error line
WINDOW = 9  # probes that a point of an error line is the median over, itself the last of them
LEGENDS = ("legend5", "legend6")
# name in the legend, field, which of `style.line`'s
_CHANGES = (("true", "true", 0), ("predicted, g·Δw", "first", 1), ("with curvature", "second", 2))
_ERRORS = (("step, g·Δw", "error_first", 1), ("step, with curvature", "error_second", 2),
           ("weight at threshold, |g·w|", "error_metric", 4))  # fmt: skip


def curves(probes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The six lines, (x in steps, y) in float32: the changes of the last probes, the errors (medians) in percent."""
    recent = probes[-RECENT:]
    x, changes = recent["step"].astype(np.float32), (recent[field] for _, field, _ in _CHANGES)
    lines = [(x, np.where(np.isfinite(y), y, np.nan).astype(np.float32)) for y in changes]
    last = np.arange(len(probes) - 1, -1, -max(1, -(-len(probes) // POINTS)))[::-1]
    at = probes["step"][last].astype(np.float32)
    for _, field, _ in _ERRORS:
        before = np.concatenate([np.full(WINDOW, np.nan, np.float32), probes[field]])
        y = 100 * medians(sliding_window_view(before, WINDOW)[last + 1])
        lines.append((at, np.where(y > 0, y, np.nan).astype(np.float32)))
    return lines


def medians(errors: np.ndarray) -> np.ndarray:
    """The median of each row [n, k], of what is finite in it; NaN where nothing is."""
    ordered = np.sort(np.where(np.isfinite(errors), errors, np.nan))  # NaN goes to the end
    count, rows = np.isfinite(ordered).sum(axis=1), np.arange(len(errors))
    return (ordered[rows, np.maximum(count - 1, 0) // 2] + ordered[rows, count // 2 * (count > 0)]) / 2


def titles(probes: np.ndarray) -> tuple[str, str]:
    """What the two plots show at this moment."""
    if not len(probes):
        return "<b>Taylor view: change of the loss in a step</b>", "<b>Error of the Taylor estimates</b>"
    last = probes[-1]
    first, metric = (medians(probes[field][None, -WINDOW:])[0] for field in ("error_first", "error_metric"))
    errors = ((first, "for a step"), (metric, "at the threshold"))
    said = [f"{error_percent(error)} {where}" for error, where in errors if error == error]
    return (
        f"<b>Step {last['step']:,}: predicted {_signed(last['first'])}, true {_signed(last['true'])}</b>",
        f"<b>Taylor is off by {', '.join(said)}</b>" if said else "<b>Nothing that could be compared</b>",
    )


def add(figure: go.Figure, probes: np.ndarray) -> go.Figure:
    """Put the row under a `dashboard`, in place: its plots keep their size in pixels. Returns the figure."""
    margins = figure.layout.margin.t + figure.layout.margin.b
    before, columns = figure.layout.height - margins, [figure.layout[axis].domain for axis in ("xaxis", "xaxis2")]
    after = before + ROW

    def moved(y: float) -> float:
        return 1 - (1 - y) * before / after

    for axis in figure.select_yaxes():
        if axis.domain:
            axis.domain = [moved(y) for y in axis.domain]
    for name in ("legend", "legend2", "legend3", "legend4"):
        figure.layout[name].y = moved(figure.layout[name].y)
    for title in figure.layout.annotations[:4]:
        title.y = moved(title.y)
    top = (ROW - 120) / after
    step = {"title": {"text": "step", "standoff": 4}, **AXIS}
    figure.update_layout(
        height=figure.layout.height + ROW,
        xaxis5={"domain": columns[0], "anchor": "y6", "nticks": 6, **step},
        yaxis6={"domain": [0, top], "anchor": "x5", "title": {"text": "change of the loss"}, **AXIS, "zeroline": True,
                "zerolinecolor": "#888888"},
        xaxis6={"domain": columns[1], "anchor": "y7", "matches": "x", "rangemode": "tozero", **step},
        yaxis7={"domain": [0, top], "anchor": "x6", "title": {"text": "relative error, % (log)"}, "type": "log",
                "dtick": 1, "exponentformat": "power", "autorangeoptions": {"clipmin": 0.01, "clipmax": 1e4}, **AXIS},
    )  # fmt: skip
    places = [columns[0][0], columns[1][0]]
    legend = figure.layout.legend.to_plotly_json()
    for name, x in zip(LEGENDS, places, strict=True):
        figure.update_layout({name: {**legend, "x": x, "y": top}})
    title = figure.layout.annotations[0].to_plotly_json()
    over = 36 / after  # the title stands above the legend
    figure.layout.annotations = [
        *figure.layout.annotations,
        *({**title, "x": x, "y": top + over, "text": t} for x, t in zip(places, titles(probes), strict=True)),
    ]
    hover = ["%{y:.3g} " + said for said in ("the true change", "predicted by g·Δw", "with Δw'HΔw/2 added")]
    hover += [f"%{{y:.3g}}% off (median of {WINDOW}), {name}" for name, _, _ in _ERRORS]
    for i, ((name, _, of), (x, y)) in enumerate(zip(_CHANGES + _ERRORS, curves(probes), strict=True)):
        left = i < len(_CHANGES)
        style = line(of)
        style["marker"] |= {"maxdisplayed": 0, "size": 6 if i else 9} if left else {}  # the truth shows behind
        style |= {"name": name, "legend": LEGENDS[not left], "hovertemplate": f"step %{{x}}: {hover[i]}<extra></extra>"}
        axes = {"xaxis": "x5", "yaxis": "y6"} if left else {"xaxis": "x6", "yaxis": "y7"}
        figure.add_trace(go.Scatter(x=x, y=y, **axes, **style))
    return figure


def update(figure: go.Figure, probes: np.ndarray) -> list[dict[str, Any]]:
    """Bring the row's lines up to date, in place; returns its titles, to be put among the figure's annotations."""
    lines = [trace for trace in figure.data if trace.legend in LEGENDS]
    for trace, (x, y) in zip(lines, curves(probes), strict=True):
        if not (np.array_equal(trace.x, x) and np.array_equal(trace.y, y, equal_nan=True)):  # to set it costs 20 times
            trace.x, trace.y = x, y
    mine = [note.to_plotly_json() for note in figure.layout.annotations if note.xref == "paper"][4:]
    return [{**note, "text": text} for note, text in zip(mine, titles(probes), strict=True)]


def _signed(x: float) -> str:
    return f"{x:+.2g}".replace("-", "−")
