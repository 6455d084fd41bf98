"""Two to four runs on the same axes: a colour, dash and marker a run, a plot a quantity, titles that say who differs.

    figure = comparison({"a": run_a.history, "b": run_b.history})
    update(figure, {"a": run_a.history, "b": run_b.history})        # in place, for a live figure
    arrange(figure, columns=1)                                      # where the page is narrow

`told` says in words how runs differ: see `gsm_lab.figures.differences`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping
from html import escape, unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab.checks import kind, one_of, text
from gsm_lab.figures.comparison_titles import headline, titles
from gsm_lab.figures.differences import Account, checked, common_step, history_type, same_metric, standing, told
from gsm_lab.figures.fitting import ticks
from gsm_lab.figures.history_lines import curves
from gsm_lab.figures.style import AXIS, DASHES, FONT, finish, line
from gsm_lab.metric import Metric
from gsm_lab.wording import layer_name

if TYPE_CHECKING:
    from gsm_lab.training.history import History

__all__ = ["PANELS", "Account", "arrange", "comparison", "told", "update"]

PANELS = ("loss", "live accuracy", "cut accuracy", "under 1e-4", "re-activated", "last layer")
_NEAR = PANELS.index("under 1e-4")
_PERCENT = {"range": [0, 101], "tickmode": "linear", "dtick": 25}
_AXES: tuple[dict[str, Any], ...] = (
    {"title_text": "loss (log)", "type": "log", "autorangeoptions": {"clipmax": 100}},
    {},  # of what the runs are measured by
    {},
    {"title_text": "of all weights, %", **_PERCENT},
    {"title_text": "weights per step", "rangemode": "tozero"},
    {"title_text": "of the layer, % (log)", "type": "log"},
)
_LOG = tuple(i for i, axis in enumerate(_AXES) if axis.get("type") == "log")
_HOVER = (
    "training loss %{y:.3g}", "test {} as it is", "test {} if cut now",
    "%{y:.2f}% of weights with |w| < 1e-4", "%{y:,.0f} weights passive the step before", "%{y:.3g}% would stay",
)  # fmt: skip
# Pixels of a panel: title, plot, foot; of a row of the headline, of the legend. Characters of a title in a line.
_TITLE, _PLOT, _FOOT, _ROW, _LEGEND = 42, {1: 150, 2: 112}, 44, 21, 24
_LINE, _HEADLINE = {1: 62, 2: 45}, {1: 58, 2: 88}
_WIDE = 0.445  # of the width, a panel of two beside each other
_ROOM = {1: 500, 2: 800}  # pixels that the legend has in a row
_AXIS_LETTERS = 17  # of an axis' title beside the lower of plots
_TICKS = 6  # on a logarithmic axis


def comparison(
    histories: Mapping[str, History], columns: int = 2, note: str = "", apart: Collection[str] = ()
) -> go.Figure:
    """Six plots: loss, accuracy as it is and if cut, near zero, re-activated, what a cut keeps of the last layer.

    Or the metric of the runs, where that is another.

    In the plot of what is near zero a thin line a run says how much has to be: 1 − 1/C. Titles compare the runs at the
    last step that all have on record.

    Args:
        histories: by name, one to four.
        columns: of plots, 1 or 2; 2 from 900 pixels of width on, else 1, down to 600.
        note: what the headline has to add, such as that accuracies cannot be compared.
        apart: of "loss" and "score", those that are not on one scale, which titles then do not compare.

    Raises:
        TypeError, ValueError: no mapping of names (of 1 to 16 characters) to histories, more than four, or none;
            `columns`, `note` or `apart` is none. Histories of different metrics.
    """
    histories = _checked(histories)
    one_of("columns", columns, (1, 2))
    figure, metric = go.Figure(), next(iter(histories.values())).metric
    for panel, of_runs in enumerate(_lines(histories)):
        for i, (x, y) in enumerate(of_runs):
            figure.add_trace(go.Scatter(x=x, y=y, **_style(panel, i, list(histories), metric)))
    finish(figure, 600)
    for panel in range(len(PANELS)):
        name, small = _number(panel), {"tickfont": {"size": 11}, "title_font": {"size": 12}}
        x = {"anchor": f"y{name}", "rangemode": "tozero", "title_text": "step", "title_standoff": 2, **AXIS, **small}
        y = {"anchor": f"x{name}", "title_standoff": 6, **AXIS, **(_AXES[panel] or _measured(metric)), **small}
        figure.update_layout({f"xaxis{name}": x | ({"matches": "x"} if panel else {}), f"yaxis{name}": y})
    legend = {"orientation": "h", "yanchor": "top", "xanchor": "left", "x": 0}
    figure.update_layout(showlegend=True, legend={**legend, "font": {"size": 13}})
    title = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "align": "left",
             "showarrow": False, "font": {"size": 13, "family": FONT}}  # fmt: skip
    first = {**title, "yanchor": "top", "font": {"size": 16, "family": FONT}}
    figure.layout.annotations = [*[title] * len(PANELS), first]
    update(figure, histories, note, columns, apart)
    return figure


def update(
    figure: go.Figure,
    histories: Mapping[str, History],
    note: str = "",
    columns: int | None = None,
    apart: Collection[str] = (),
) -> None:
    """Bring a `comparison` of these runs up to date, in place; for a live figure, inside its `batch_update()`.

    `columns`: into how many to put the plots, as they are unless given. `note`, `apart`: as for `comparison`.
    """
    histories, note = _checked(histories), text("note", note)
    for one in kind("apart", apart, Collection, "a collection of names"):
        one_of("apart", one, ("loss", "score"))
    panels = _lines(histories)
    lines = [xy for of_runs in panels for xy in of_runs]
    if len(kind("figure", figure, BaseFigure, "a figure that `comparison` made").data) != len(lines):
        raise ValueError(f"figure must be a `comparison` of {len(histories)} runs")
    if columns is not None:
        one_of("columns", columns, (1, 2))
    for trace, (x, y) in zip(figure.data, lines, strict=True):
        trace.x, trace.y = x, y
    for panel in _LOG:
        axis, found = figure.layout[f"yaxis{_number(panel)}"], _ticks(np.concatenate([y for _, y in panels[panel]]))
        if axis.tickvals is None or list(axis.tickvals) != found["tickvals"]:
            axis.tickvals, axis.ticktext = found["tickvals"], found["ticktext"]
    _arrange(figure, columns or figure.layout.meta["columns"], _said(histories, note, apart))


def arrange(figure: go.Figure, columns: int) -> go.Figure:
    """Put the plots of a `comparison` into 1 or 2 columns, in place: changes the layout alone. Returns the figure."""
    one_of("columns", columns, (1, 2))
    _arrange(figure, columns, [_plain(note.text) for note in figure.layout.annotations])
    return figure


def _arrange(figure: go.Figure, columns: int, said: list[str]) -> None:
    """Titles, the headline last, and what depends on how many columns and lines there are.

    Nothing is set to what it is, which would take as long; and nothing that is set is read again, because in a live
    figure's `batch_update` it is still what it was.
    """
    said = [_wrapped(text, columns, i) for i, text in enumerate(said)]
    notes = [note.to_plotly_json() for note in figure.layout.annotations]
    names = [trace.name for trace in figure.data if trace.showlegend]
    keys = 1 + (sum(9 * len(name) + 60 for name in names) > _ROOM[columns])  # rows of the legend
    made = {"columns": columns, "lines": said[-1].count("<br>") + 1, "keys": keys}
    if figure.layout.meta != made:
        figure.layout.meta = made
        head = 24 + _ROW * made["lines"] + _LEGEND * keys
        rows, row = -(-len(PANELS) // columns), _TITLE + _PLOT[columns] + _FOOT
        inside = rows * row
        for panel in range(len(PANELS)):
            down, right = divmod(panel, columns)
            top = 1 - (down * row + _TITLE) / inside
            left, wide = (right * (1 - _WIDE), _WIDE) if columns == 2 else (0.0, 1.0)
            figure.layout[f"xaxis{_number(panel)}"].domain = [left, left + wide]
            figure.layout[f"yaxis{_number(panel)}"].domain = [top - _PLOT[columns] / inside, top]
            notes[panel] |= {"x": left, "y": top + 4 / inside}
        notes[-1] |= {"x": 0, "y": 1 + (head - 8) / inside}
        figure.update_layout(
            height=head + inside, margin={"t": head, "b": 0, "l": 66, "r": 18},
            legend_y=1 + (_LEGEND * keys + 8) / inside,
        )  # fmt: skip
    elif [note["text"] for note in notes] == said:
        return
    figure.layout.annotations = [note | {"text": text} for note, text in zip(notes, said, strict=True)]


def _number(panel: int) -> str:
    """What the names of a plot's axes end with."""
    return str(panel + 1) if panel else ""


def _checked(histories: Any) -> dict[str, History]:
    found = checked(histories, history_type(), "a History, as run.history is one")
    same_metric(found)
    return found


def _measured(metric: Metric) -> dict[str, Any]:
    """An axis of what the runs are measured by; where the whole name has no room, titles have it."""
    if metric.is_accuracy:
        return {"title_text": "accuracy, %", **_PERCENT}
    unit = "%" if metric.percent else metric.unit
    words = (metric.axis, metric.axis.removeprefix("test "), unit, "score")
    return {"title_text": next(text for text in words if 0 < len(text) <= _AXIS_LETTERS), "nticks": 4}


def _lines(histories: Mapping[str, History]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """The lines, x and y, by panel: those of the runs in order, and then of the targets."""
    every = [curves(history) for history in histories.values()]
    last = [f"layer {list(history.layers)[-1]}" for history in histories.values()]
    panels = [[of_run[name] for of_run in every] for name in PANELS[:-1]]
    panels[_NEAR] += [of_run["target"] for of_run in every]
    return [*panels, [of_run[name] for of_run, name in zip(every, last, strict=True)]]


def _style(panel: int, i: int, names: list[str], metric: Metric) -> dict[str, Any]:
    """Of a line: the run's, or, after those of all runs, of a target."""
    of, target = i % len(names), i >= len(names)
    look, hover = line(of), _HOVER[panel].replace("{}", f"{metric.name} {metric.hover()}")
    if target:  # differs in dash and marker from the runs, and from other targets
        symbol, hover = f"{look['marker']['symbol']}-open", "target 1 − 1/C = %{y:.2f}%"
        look["line"] |= {"dash": DASHES[4 + of], "width": 1, "shape": "hv"}
        look["marker"] |= {"symbol": symbol, "size": 6, "maxdisplayed": 4}
    axis, name = _number(panel), escape(names[of], quote=False)
    return {
        **look, "name": name, "legendgroup": str(of), "showlegend": not panel, "xaxis": f"x{axis}",
        "yaxis": f"y{axis}", "hovertemplate": f"%{{fullData.name}}, step %{{x}}: {hover}<extra></extra>",
    }  # fmt: skip


# -- titles ------------------------------------------------------------------------------------------------------------


def _said(histories: Mapping[str, History], note: str, apart: Collection[str]) -> list[str]:
    """The titles of the plots, and the headline."""
    step = common_step(histories)
    at = {name: standing(history, step) for name, history in histories.items()}
    layers = {layer_name(list(history.layers)[-1]) for history in histories.values()}
    layer = layers.pop() if len(layers) == 1 else "the last layer"
    return [*titles(at, layer, apart), headline(at, step) + (f"; {note}" if note else "")]


def _ticks(values: np.ndarray) -> dict[str, list]:
    """A few round numbers among the positive ones of the values: plotly's would overprint each other, or be digits."""
    values = values[values > 0]
    if not values.size:
        return ticks([1.0])
    low, high = float(values.min()), float(values.max())
    decades, found = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1), [low]
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8), (1, 2, 5), (1, 3), (1,)):
        found = [tick for e in decades for step in steps if low <= (tick := step * 10.0**e) <= high]
        if len(found) <= _TICKS:
            break
    if len(found) < 2:
        return ticks({float(f"{low:.2g}"), float(f"{high:.2g}")})
    return ticks(found[:: -(-len(found) // _TICKS)])


def _wrapped(words: str, columns: int, i: int) -> str:
    """The i-th title in lines, in bold: that of a plot, or the headline."""
    width = (_LINE if i < len(PANELS) else _HEADLINE)[columns]
    lines = textwrap.wrap(words, width, break_long_words=False)
    return f"<b>{'<br>'.join(escape(one, quote=False) for one in lines)}</b>"


def _plain(said: str) -> str:
    return unescape(said.removeprefix("<b>").removesuffix("</b>").replace("<br>", " "))
