"""The Taylor view, a third row under the four plots: what single steps changed against what was predicted, and errors.

    add_looks(figure, looks)            # to a `dashboard`, which grows by ROW pixels
    annotations = update_looks(figure, looks)

`looks` is a structured array with a row for each step that was looked at and the fields step, true, first, second,
metric, without (changes of the loss), error_first, error_second, error_metric (relative; NaN where there is none).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.lib.stride_tricks import sliding_window_view

from gsm_lab.figures.style import line

ROW = 300  # pixels
RECENT = 30  # looks shown one by one
POINTS = 60  # of an error line
WINDOW = 9  # looks that a point of an error line is the median over, itself the last of them
LEGENDS = ("legend5", "legend6")
# name in the legend, field, which of `style.line`'s looks
_CHANGES = (("true", "true", 0), ("predicted, g·Δw", "first", 1), ("with curvature", "second", 2))
_ERRORS = (("step, g·Δw", "error_first", 1), ("step, with curvature", "error_second", 2),
           ("weight at threshold, |g·w|", "error_metric", 4))  # fmt: skip


def curves(looks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The six lines, (x in steps, y) in float32: three changes by the last looks, three errors (medians) in percent."""
    recent = looks[-RECENT:]
    lines = [(recent["step"].astype(np.float32), _finite(recent[field])) for _, field, _ in _CHANGES]
    last = np.arange(len(looks) - 1, -1, -max(1, -(-len(looks) // POINTS)))[::-1]
    at = looks["step"][last].astype(np.float32)
    for _, field, _ in _ERRORS:
        before = np.concatenate([np.full(WINDOW, np.nan, np.float32), looks[field]])
        lines.append((at, _positive(100 * medians(sliding_window_view(before, WINDOW)[last + 1]))))
    return lines


def medians(errors: np.ndarray) -> np.ndarray:
    """The median of each row [n, k], of what is finite in it; NaN where nothing is."""
    ordered = np.sort(np.where(np.isfinite(errors), errors, np.nan))  # NaN goes to the end
    count, rows = np.isfinite(ordered).sum(axis=1), np.arange(len(errors))
    return (ordered[rows, np.maximum(count - 1, 0) // 2] + ordered[rows, count // 2 * (count > 0)]) / 2


def titles(looks: np.ndarray) -> tuple[str, str]:
    """What the two plots show at this moment."""
    if not len(looks):
        return "<b>Taylor view: change of the loss in a step</b>", "<b>Error of the Taylor estimates</b>"
    last = looks[-1]
    first, metric = (medians(looks[field][None, -WINDOW:])[0] for field in ("error_first", "error_metric"))
    said = [f"{_percent(e)} {where}" for e, where in ((first, "for a step"), (metric, "at the threshold")) if e == e]
    return (
        f"<b>Step {last['step']:,}: predicted {_signed(last['first'])}, true {_signed(last['true'])}</b>",
        f"<b>Taylor is off by {', '.join(said)}</b>" if said else "<b>Nothing that could be compared</b>",
    )


def add_looks(figure: go.Figure, looks: np.ndarray) -> go.Figure:
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
    look = {"showline": True, "linecolor": "#888888", "ticks": "outside", "gridcolor": "#e6e6e6", "zeroline": False}
    step = {"title": {"text": "step", "standoff": 4}, **look}
    figure.update_layout(
        height=figure.layout.height + ROW,
        xaxis5={"domain": columns[0], "anchor": "y6", "nticks": 6, **step},
        yaxis6={"domain": [0, top], "anchor": "x5", "title": {"text": "change of the loss"}, **look, "zeroline": True,
                "zerolinecolor": "#888888"},
        xaxis6={"domain": columns[1], "anchor": "y7", "matches": "x", "rangemode": "tozero", **step},
        yaxis7={"domain": [0, top], "anchor": "x6", "title": {"text": "relative error, % (log)"}, "type": "log",
                "dtick": 1, "exponentformat": "power", "autorangeoptions": {"clipmin": 0.01, "clipmax": 1e4}, **look},
    )  # fmt: skip
    places = [columns[0][0], columns[1][0]]
    legend = figure.layout.legend.to_plotly_json()
    for name, x in zip(LEGENDS, places, strict=True):
        figure.update_layout({name: {**legend, "x": x, "y": top}})
    style = figure.layout.annotations[0].to_plotly_json()
    over = 36 / after  # the title stands above the legend
    figure.layout.annotations = [
        *figure.layout.annotations,
        *({**style, "x": x, "y": top + over, "text": t} for x, t in zip(places, titles(looks), strict=True)),
    ]
    hover = ["%{y:.3g} " + said for said in ("the true change", "predicted by g·Δw", "with Δw'HΔw/2 added")]
    hover += [f"%{{y:.3g}}% off (median of {WINDOW}), {name}" for name, _, _ in _ERRORS]
    for i, ((name, _, of), (x, y)) in enumerate(zip(_CHANGES + _ERRORS, curves(looks), strict=True)):
        left = i < len(_CHANGES)
        looks_like = line(of)
        looks_like["marker"] |= {"maxdisplayed": 0, "size": 6 if i else 9} if left else {}  # the truth shows behind
        figure.add_trace(
            go.Scatter(x=x, y=y, name=name, legend=LEGENDS[not left], xaxis="x5" if left else "x6",
                       yaxis="y6" if left else "y7", hovertemplate=f"step %{{x}}: {hover[i]}<extra></extra>",
                       **looks_like)
        )  # fmt: skip
    return figure


def update_looks(figure: go.Figure, looks: np.ndarray) -> list[dict[str, Any]]:
    """Bring the row's lines up to date, in place; returns its titles, to be put among the figure's annotations."""
    lines = [trace for trace in figure.data if trace.legend in LEGENDS]
    for trace, (x, y) in zip(lines, curves(looks), strict=True):
        if not (np.array_equal(trace.x, x) and np.array_equal(trace.y, y, equal_nan=True)):  # to set it costs 20 times
            trace.x, trace.y = x, y
    mine = [note.to_plotly_json() for note in figure.layout.annotations if note.xref == "paper"][4:]
    return [{**note, "text": text} for note, text in zip(mine, titles(looks), strict=True)]


def _finite(y: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(y), y, np.nan).astype(np.float32)


def _positive(y: np.ndarray) -> np.ndarray:
    return np.where(y > 0, y, np.nan).astype(np.float32)


def _signed(x: float) -> str:
    return f"{x:+.2g}".replace("-", "−")


def _percent(error: float) -> str:
    return f"{100 * error:,.0f}%" if error >= 0.01 else f"{100 * error:.1g}%"
