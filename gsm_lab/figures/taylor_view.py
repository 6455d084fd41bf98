"""The Taylor view, two plots beside a run's four: what single steps changed against what was predicted, and errors.

    traces(probes), axes()         # of a `dashboard`; `arrangement.places` gives them their place
    titles = update(figure, probes)

`probes` is a structured array with a row for each step that was probed and the fields step, true, first, second,
metric, without (changes of the loss), error_first, error_second, error_metric (relative; NaN where there is none).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.lib.stride_tricks import sliding_window_view

from gsm_lab.figures.arrangement import LOG_FONT, PLOTS
from gsm_lab.figures.style import AXIS, FEW_TICKS, line
from gsm_lab.wording import error_percent

RECENT = 30  # probes shown one by one
POINTS = 60  # of an error line
WINDOW = 9  # probes that a point of an error line is the median over, itself the last of them
LEGENDS = ("legend5", "legend6")
# name in the legend, field, which of `style.line`'s
_CHANGES = (("true", "true", 0), ("predicted, g·Δw", "first", 1), ("with curvature", "second", 2))
_ERRORS = (("step", "error_first", 1), ("with curvature", "error_second", 2),
           ("one weight", "error_metric", 4))  # fmt: skip


def curves(probes: np.ndarray, last: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The six lines, (x in steps, y) in float32: the changes of the last probes, the errors (medians) in percent.

    With `last`, only errors of so many steps up to the latest.
    """
    recent = probes[-RECENT:]
    x, changes = recent["step"].astype(np.float32), (recent[field] for _, field, _ in _CHANGES)
    lines = [(x, np.where(np.isfinite(y), y, np.nan).astype(np.float32)) for y in changes]
    first = int(np.searchsorted(probes["step"], probes["step"][-1] - last, "right")) if last and len(probes) else 0
    ends = np.arange(len(probes) - 1, first - 1, -max(1, -(-(len(probes) - first) // POINTS)))[::-1]
    at = probes["step"][ends].astype(np.float32)
    for _, field, _ in _ERRORS:
        before = np.concatenate([np.full(WINDOW, np.nan, np.float32), probes[field]])
        y = 100 * medians(sliding_window_view(before, WINDOW)[ends + 1])
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
        return "Taylor view: change of the loss in a step", "Error of the Taylor estimates"
    last, said = probes[-1], []
    for field, where in (("error_first", "for a step"), ("error_metric", "for one weight")):
        if np.isfinite(last[field]):  # the title is about what the line ends with
            said.append(f"{error_percent(medians(probes[field][None, -WINDOW:])[0])} {where}")
    of = f"Median of {min(len(probes), WINDOW)}: off" if len(probes) > 1 else "Taylor is off"
    return (
        f"Step {last['step']:,}: predicted {_signed(last['first'])}, true {_signed(last['true'])}",
        f"{of} by {', '.join(said)}" if said else "Nothing that could be compared",
    )


def axes() -> dict[str, Any]:
    """The layout of the axes."""
    (left, right), log = (
        PLOTS[4:6],
        {**FEW_TICKS, "tickfont": LOG_FONT, "autorangeoptions": {"clipmin": 0.01, "clipmax": 1e4}},
    )
    zero = {"zeroline": True, "zerolinecolor": "#888888", "exponentformat": "power"}
    return {
        "xaxis5": {"anchor": left.y, "nticks": 5, "title": {"text": "step"}, **AXIS},
        "yaxis6": {"anchor": left.x, "title": {"text": "change of the loss"}, **AXIS, **zero},
        "xaxis6": {"anchor": right.y, "nticks": 6, "title": {"text": "step"}, **AXIS},
        "yaxis7": {"anchor": right.x, "title": {"text": "error, % (log)"}, **AXIS, **log},
    }


def traces(probes: np.ndarray) -> list[go.Scatter]:
    """The six lines."""
    hover = ["%{y:.3g} " + said for said in ("the true change", "predicted by g·Δw", "with Δw'HΔw/2 added")]
    hover += [f"%{{y:.3g}}% off (median of {WINDOW}), {name}" for name in
              ("step, g·Δw", "step, with Δw'HΔw/2 added", "|g·w| of the weight at the threshold")]  # fmt: skip
    made = []
    for i, ((name, _, of), (x, y)) in enumerate(zip(_CHANGES + _ERRORS, curves(probes), strict=True)):
        style, plot = line(of), PLOTS[4 if i < len(_CHANGES) else 5]
        style["marker"] |= {"maxdisplayed": 0, "size": 6 if i else 9} if i < len(_CHANGES) else {}  # the truth shows
        style |= {"name": name, "hovertemplate": f"step %{{x}}: {hover[i]}<extra></extra>"}
        made.append(go.Scatter(x=x, y=y, xaxis=plot.x, yaxis=plot.y, legend=plot.legend, **style))
    return made


def update(figure: go.Figure, probes: np.ndarray, last: int | None = None) -> dict[str, str]:
    """Bring the lines up to date, in place; returns the two titles by name."""
    lines = [trace for trace in figure.data if trace.legend in LEGENDS]
    for trace, (x, y) in zip(lines, curves(probes, last), strict=True):
        if not (np.array_equal(trace.x, x) and np.array_equal(trace.y, y, equal_nan=True)):  # to set it costs 20 times
            trace.x, trace.y = x, y
    return dict(zip((plot.title for plot in PLOTS[4:6]), titles(probes), strict=True))


def _signed(x: float) -> str:
    return f"{x:+.2g}".replace("-", "−")
