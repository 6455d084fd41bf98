"""Figures of training on several ranks: tables of `gsm_lab.studies.communication` in, plotly figures out.

Titles are computed from the tables, so that they stay true when these change.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gsm_lab import checks
from gsm_lab.checks import is_number, one_of, shown
from gsm_lab.figures.fitting import ROOM, log_axis, ticks
from gsm_lab.figures.style import DOTS, error_bars, line, scatter, shown_on, titled
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import mean_and_range
from gsm_lab.wording import count, counted, duration, layer_name, size, whole_percent

__all__ = ["accuracy", "overlap", "quantised", "recall", "volume"]

_WHO = {"single": "sent by one rank", "intersection": "sent by all ranks", "union": "sent by at least one",
        "chosen": "chosen from what arrives"}  # fmt: skip


def recall(table: pd.DataFrame, layer: str = "all") -> go.Figure:
    """Share of the global top Q among local top kQ against k, a line a stage; of one rank, of all, of any.

    And how much of it the gate would choose from the mean of what was sent.

    Args:
        table: from `agreement`.
        layer: one of the table's, or "all".

    Raises ValueError: an empty table, or a layer it does not have.
    """
    table = _of_layer(table, layer)
    mean = table.groupby("factor")[list(_WHO)].mean()
    least, most = mean.index.min(), mean.index.max()
    title = f"One rank's own top {_times_q(least)} holds {whole_percent(mean['single'][least])} of the global top Q"
    chosen = [whole_percent(mean["chosen"][least])]
    title += _inside(layer)
    if most != least:
        title += f", its top {_times_q(most)} {whole_percent(mean['single'][most])}"
        chosen.append(whole_percent(mean["chosen"][most]))
    sends = "sends" if table["ranks"].iloc[0] == 1 else "send"
    title += f"; from what {_ranks(table)} {sends}, the gate chooses {' and '.join(chosen)} of it"
    figure = make_subplots(
        rows=1, cols=len(_WHO), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(_WHO.values())
    )
    for col, who in enumerate(_WHO, 1):
        for i, (stage, rows) in enumerate(table.groupby("stage", sort=False)):
            one = rows.groupby("factor")[[who, "travel"]].mean()
            hover = f"{stage}, top %{{x:g}}Q: %{{y:.2f}}% of the global top Q are {_WHO[who]}"
            hover += "<br>%{customdata:,.0f} weights travel in all"
            style = line(i, name=stage, legendgroup=stage, showlegend=col == 1, customdata=one["travel"])
            figure.add_trace(scatter(one.index, 100 * one[who], hover, style), 1, col)
    figure.update_yaxes(title_text="of the global top Q, %", range=[0, 102], col=1)
    room = ROOM / len(_WHO)
    return titled(figure, title, "sends top kQ: k (log)", 440, len(_WHO), type="log", **ticks(mean.index, room))


def overlap(table: pd.DataFrame, factor: float = 1, layer: str = "all") -> go.Figure:
    """Over the steps: what a rank, all and any of them hold of the global top Q, and what two ranks share.

    Args:
        table: from `agreement`.
        factor: k, one of the table's.
        layer: one of the table's, or "all".

    Raises ValueError: an empty table, or a layer or k it does not have.
    """
    table = _of_layer(table, layer)
    if not is_number(factor) or factor not in set(table["factor"]):
        valid = ", ".join(f"{k:g}" for k in table["factor"].unique())
        raise ValueError(f"factor must be one of {valid}, got {shown(factor)}")
    table = table[table["factor"] == factor]
    names = {"union": "in any rank's", "single": "in one rank's, mean", "intersection": "in every rank's",
             "between": "shared by two ranks"}  # fmt: skip
    shared, stages = table.groupby("stage", sort=False)["between"].mean(), table["stage"].unique()
    first, last = (whole_percent(part) if part == part else "nothing" for part in (shared.iloc[0], shared.iloc[-1]))
    who = "Two ranks" if table["ranks"].iloc[0] == 2 else f"Two of {_ranks(table)}"
    title = f"{who} share {first} of their top {_times_q(factor)}{_inside(layer)}"
    title += f" {stages[0]} in the run" + (f", {last} {stages[-1]}" if len(stages) > 1 else "") + "; one"
    title = title if len(shared) and table["ranks"].iloc[0] > 1 else "One rank"
    title += f" alone finds {whole_percent(table['single'].mean())} of the global top Q"
    figure = go.Figure()
    for i, (column, text) in enumerate(names.items()):
        name, what = f"global top Q {text}", f"of the global top Q {text}"
        if column == "between":
            name, what = text, f"of two ranks' top {_times_q(factor)} are the same"
        hover = f"step %{{x:,}}: %{{y:.1f}}% {what}"
        figure.add_trace(scatter(table["step"], 100 * table[column], hover, line(i, name=name)))
    figure.update_yaxes(title_text=f"weights in local top {_times_q(factor)}, %", range=[0, 102])
    return titled(figure, title, "step since the gate closed", 454)


def quantised(table: pd.DataFrame) -> go.Figure:
    """What quantised gradients leave of the global top Q, by bits, and how much of it |w| alone would choose.

    Takes `quantised(...)` of the study. Raises ValueError for an empty table.
    """
    checks.table("table", table, ("stage", "bits", "recall", "by_size", "exact_by_size"))
    mean = table.groupby("bits")[["recall", "by_size", "exact_by_size"]].mean()
    kept = mean["recall"].sort_index(ascending=False)
    title = "Quantised gradients keep of the exact top Q: "
    title += ", ".join(f"{whole_percent(share)} at {b} bit{'' if b == 1 else 's'}" for b, share in kept.items())
    titles = ("of the exact top Q, still chosen", "of the chosen, among the Q largest |w|")
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    for i, (stage, rows) in enumerate(table.groupby("stage", sort=False)):
        one = rows.groupby("bits")[["recall", "by_size"]].mean()
        for col, (column, what) in enumerate((("recall", "of the exact top Q are still chosen"),
                                             ("by_size", "of the chosen are among the Q largest |w|")), 1):  # fmt: skip
            style = line(i, name=stage, legendgroup=stage, showlegend=col == 1)
            hover = f"{stage}, %{{x}} bits a weight: %{{y:.1f}}% {what}"
            figure.add_trace(scatter(one.index, 100 * one[column], hover, style), 1, col)
    exact = 100 * float(mean["exact_by_size"].iloc[0])
    rule = {"mode": "lines", "line": DOTS, "name": "exact gradients"}
    hover = "%{y:.1f}% of the exact top Q are among the Q largest |w|"
    figure.add_trace(scatter([kept.index[-1], kept.index[0]], [exact, exact], hover, rule), 1, 2)
    figure.update_yaxes(title_text="share of Q, %", range=[0, 102], col=1)
    return titled(figure, title, "bits a weight (log)", 430, 2, type="log", **ticks(mean.index, ROOM / 2))


def volume(table: pd.DataFrame, what: str = "bytes") -> go.Figure:
    """What a rank sends in a step by each scheme, or the seconds that takes, against the number of weights or ranks.

    Args:
        table: from `cost`, of several `weights` or several `ranks`, not both. What sends nothing is not drawn.
        what: "bytes" or "seconds".

    Raises ValueError: another `what`, or a table in which neither or both vary.
    """
    checks.table("table", table, ("weights", "ranks", "scheme", "exact", "bytes", "seconds", "formula"))
    one_of("what", what, ("bytes", "seconds"))
    varies = [column for column in ("weights", "ranks") if table[column].nunique() > 1]
    if len(varies) != 1:
        raise ValueError(f"table must hold several weights or several ranks, got {' and '.join(varies) or 'neither'}")
    x, figure = varies[0], go.Figure()
    said = size if what == "bytes" else duration
    for i, (scheme, rows) in enumerate(table[table[what] > 0].groupby("scheme", sort=False)):
        ways = np.where(rows["exact"], "exact", "not exact")
        text = list(zip(map(said, rows[what]), rows["formula"], ways, strict=True))
        hover = f"{scheme}, %{{x:,}} {x}: %{{customdata[0]}} a step<br>%{{customdata[1]}}, top Q %{{customdata[2]}}"
        figure.add_trace(scatter(rows[x], rows[what], hover, {"name": scheme, "customdata": text, **line(i)}))
    end = table[table[x] == table[x].max()].set_index("scheme")[what]
    title = f"At {count(table[x].max())} {x} the dense exchange takes {said(end['dense all-reduce'])} a rank and step"
    title += f", GSM's counts {said(end['GSM under FSDP2, in addition'])} more, and under DDP nothing"
    others = {"weights": "ranks", "ranks": "weights"}[x]
    at = f"{x} (log), at {count(table[others].iloc[0])} {others}"
    unit = "bytes that a rank sends in a step" if what == "bytes" else "seconds a step, for the exchange alone"
    figure.update_yaxes(title_text=f"{unit} (log)", **log_axis(shown_on(figure)))
    return titled(figure, title, at, 500, **log_axis(table[x], 5))


def accuracy(table: pd.DataFrame) -> go.Figure:
    """Accuracy of runs whose ranks sent only their local top kQ, against the dense exchange: mean, least and most.

    Or their metric, where that is another. Takes `with_hook(...)` of the study. Raises ValueError for a table without
    sparse or without dense runs.
    """
    checks.table("table", table, ("seed", "factor", "live", "cut", "lost", "share", "tested", "ranks"))
    dense, sparse = table[np.isinf(table["factor"])], table[~np.isinf(table["factor"])]
    if dense.empty or sparse.empty:
        raise ValueError("table must hold runs with the dense exchange and runs with a finite factor")
    metric = metric_of(table)
    gained = (sparse.groupby("factor")["lost"].mean() * (-1 if metric.higher_is_better else 1)).items()
    words = ", ".join(f"{metric.signed(x, 1)} (top {_times_q(k)})" for k, x in gained)
    seeds = table["seed"].nunique()
    title = f"Sending only the local top kQ changes {metric.name} after the cut by {words} {metric.points}".rstrip()
    title += f", mean of {seeds} seeds" if seeds > 1 else ", one seed"
    figure = go.Figure()
    ends = [sparse["factor"].min() / 1.15, sparse["factor"].max() * 1.15]
    for i, (column, text) in enumerate((("live", "as it is"), ("cut", "after the cut"))):
        at = mean_and_range(metric.scale * sparse[column], sparse["factor"])
        share = 100 * sparse.groupby("factor")["share"].mean()
        data = np.column_stack([at["low"], at["high"], share, at.index])
        ends_are = " to ".join(metric.hover(f"customdata[{j}]").removesuffix("%") for j in (0, 1))
        hover = f"top %{{customdata[3]:g}}Q, {text}: {metric.hover()} ({ends_are})"
        hover += "<br>%{customdata[2]:.1f}% of the dense bytes"
        style = line(i, name=f"local top kQ, {text}", error_y=error_bars(at), customdata=data)
        figure.add_trace(scatter(at.index * 1.03**i, at["mean"], hover, style))  # apart, so that bars show
        level = metric.scale * dense[column].mean()
        style = line(i + 2, name=f"dense exchange, {text}")
        figure.add_trace(scatter(ends, [level, level], f"dense exchange, {text}: {metric.hover()}", style))
    x = f"k: each of {_ranks(table)} sends its top kQ (log)"
    x += f"; one test sample is {100 / table['tested'].iloc[0]:.2g} points" if metric.is_accuracy else ""
    figure.update_yaxes(title_text=metric.axis)
    if metric.is_accuracy:
        shown = 100 * table[["live", "cut"]].to_numpy()
        figure.update_yaxes(range=[shown.min() - 1, min(100.5, shown.max() + 1)])
    return titled(figure, title, x, 464, type="log", **ticks(sparse["factor"].unique()))


def _of_layer(table: pd.DataFrame, layer: str) -> pd.DataFrame:
    columns = ("step", "stage", "ranks", "layer", "wanted", "factor", "between", "travel", *_WHO)
    checks.table("table", table, columns)
    one_of("layer", layer, table["layer"].unique())
    return table[table["layer"] == layer]


def _inside(layer: str) -> str:
    return "" if layer == "all" else f" in {layer_name(layer)}"


def _ranks(table: pd.DataFrame) -> str:
    return counted(int(table["ranks"].iloc[0]), "rank")


def _times_q(factor: float) -> str:
    return "Q" if factor == 1 else f"{factor:g}Q"
