"""Figures of layer sensitivity, drawn from the tables of `gsm_lab.studies.sensitivity`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import number
from gsm_lab.figures.fitting import few, log_axis, placed, short_names, ticks
from gsm_lab.figures.style import drawn, error_bars, line, named, scatter
from gsm_lab.metric import Metric, metric_of
from gsm_lab.studies.aggregation import mean_and_range
from gsm_lab.wording import share as percents
from gsm_lab.wording import signed


def densities(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """The share of its weights that GSM leaves each layer: mean, least and most over the seeds.

    Args:
        table: from `sensitivity`.
        height: in pixels.
    """
    checks.table("table", table, ("layer", "weights", "kept", "density", "low", "high"))
    share = 100 * table[["density", "low", "high"]]
    hover = "%{x}: %{y:.3g}% of %{customdata[0]:,} weights stay, %{customdata[1]:.0f} of them"
    hover += "<br>%{customdata[2]:.3g} to %{customdata[3]:.3g}% by seed"
    data = pd.concat([table[["weights", "kept"]], share[["low", "high"]]], axis=1)
    figure = go.Figure()
    style = line(0, mode="markers", name="GSM", error_y=error_bars(share, "density"), customdata=data)
    figure.add_trace(scatter(table["layer"], share["density"], hover, style))
    whole = 100 * table["kept"].sum() / table["weights"].sum()
    hover = f"whole network: {whole:.3g}% stay"
    figure.add_trace(scatter(table["layer"], [whole] * len(table), hover, line(1, name="whole network")))
    most, least = table.loc[table["density"].idxmax()], table.loc[table["density"].idxmin()]
    title = f"GSM leaves {most['layer']} {percents(most['density'])} of its weights"
    if most["layer"] != least["layer"]:
        title += f", and {least['layer']} {percents(least['density'])}"
    figure = drawn(figure, title, "layer", "weights that stay, %", height, logy=True)
    return named(figure, table["layer"])


def alone(table: pd.DataFrame, finetune: float = 0, height: int = 420) -> go.Figure:
    """Accuracy lost when one layer alone is pruned, by the share of its weights that is taken out.

    Or how much worse the metric of the runs is, where that is another.

    Args:
        table: from `alone`.
        finetune: which of its lengths of fine-tuning, in epochs.
        height: in pixels.

    Raises ValueError where the table has no such rows.
    """
    checks.table("table", table, ("layer", "ratio", "finetune", "lost"))
    finetune = number("finetune", finetune, 0)
    part = table[table["finetune"] == finetune]
    checks.table(f"table at finetune={finetune:g}", part)
    figure, worst, metric = go.Figure(), {}, metric_of(table)
    ratio, every = part["ratio"].max(), list(dict.fromkeys(part["layer"]))
    shown = few(every)
    short = dict(zip(shown, short_names([str(layer) for layer in shown]), strict=True))
    for layer, rows in part[part["ratio"] == ratio].groupby("layer", sort=False):
        worst[layer] = rows["lost"].mean()
    for i, layer in enumerate(shown):
        rows = part[part["layer"] == layer]
        lost = mean_and_range(metric.scale * rows["lost"], rows["ratio"])
        left = 100 * (1 - lost.index)
        hover = f"{layer} with %{{x:.3g}}% of its weights: {metric.hover(change=True)}"
        hover += f"<br>{metric.hover('customdata[0]', True)} to {metric.hover('customdata[1]', True)} by seed"
        style = line(i, name=short[layer], error_y=error_bars(lost), customdata=lost[["low", "high"]])
        figure.add_trace(scatter(left, lost["mean"], hover, style))
    most, least = max(worst, key=worst.get), min(worst, key=worst.get)
    how = f"after {finetune:g} epoch{'' if finetune == 1 else 's'} of fine-tuning" if finetune else "as it is"
    title = f"Without {100 * ratio:g}% of {most} the net {_loses(worst[most], metric)} {how}"
    if most != least:
        title += f", without that of {least} it {_loses(worst[least], metric)}"
    if len(shown) < len(every):
        title += f" ({len(shown)} of {len(every)} layers shown)"
    figure = drawn(figure, title, "weights of the layer that stay, % (log)", metric.lost_axis, height)
    shares = sorted({round(100 * (1 - r), 6) for r in part["ratio"]})
    return figure.update_xaxes(type="log", autorange="reversed", **ticks(share for share in shares if share > 0))


def compared(answer: pd.DataFrame, truth: pd.DataFrame, agreement: pd.DataFrame, height: int = 420) -> go.Figure:
    """GSM's density of each layer against what it costs to prune that layer alone.

    Args:
        answer: from `sensitivity`. truth: from `alone`. agreement: from `agreement`.
        height: in pixels.
    """
    checks.table("answer", answer, ("layer", "density"))
    checks.table("truth", truth, ("layer", "finetune", "more"))
    checks.table("agreement", agreement, ("finetune", "tau", "low", "high", "layers"))
    if missing := [layer for layer in answer["layer"] if layer not in set(truth["layer"])]:
        raise ValueError(f"truth must be of the layers of answer, and has no {', '.join(map(str, missing))}")
    figure = go.Figure()
    for i, (epochs, part) in enumerate(truth.groupby("finetune")):
        cost = part.groupby("layer")["more"].mean()[answer["layer"]]
        name = f"{epochs:g} epoch{'' if epochs == 1 else 's'} of fine-tuning" if epochs else "no fine-tuning"
        hover = f"%{{customdata}}, {name}: %{{x:.3g}}% stay under GSM, pruned alone the loss rises by %{{y:.3g}}"
        style = line(i, mode="markers+text", name=name, customdata=answer["layer"], cliponaxis=False)
        figure.add_trace(scatter(100 * answer["density"], cost, hover, style))
    _label(figure, short_names([str(layer) for layer in answer["layer"]], 14))
    rows = agreement.set_index("finetune")
    n, said = rows["layers"].iloc[0], []
    for epochs, (tau, low, high) in zip(rows.index, rows[["tau", "low", "high"]].to_numpy(), strict=True):
        after = f" {_after(epochs)}" if len(rows) > 1 else ""
        span = f"{signed(tau, 2)} ({signed(low, 2)} to {signed(high, 2)})" if tau == tau else "unknown"
        said.append(span + after)
    title = f"Order of the {n} layers, GSM against the truth: Kendall's tau {', '.join(said)}"
    title = title if n > 1 else "There is one layer, and nothing to put in order"
    figure = drawn(figure, title, "weights that stay under GSM, % (log)", "rise of the loss, mean over ratios", height)
    return figure.update_xaxes(log_axis(100 * answer["density"], 6))


def _label(figure: go.Figure, names: list[str]) -> None:
    """Put the names at the points of all traces where they have room; elsewhere there is the hover text."""
    x = np.concatenate([np.log10(np.maximum(trace.x, 1e-9)) for trace in figure.data])
    y = np.concatenate([np.asarray(trace.y, float) for trace in figure.data])
    places = placed(x, y, names * len(figure.data), 150)
    for i, trace in enumerate(figure.data):
        own = places[i * len(names) : (i + 1) * len(names)]
        trace.text = [text if place else "" for text, place in zip(names, own, strict=True)]
        trace.textposition = [place or "top center" for place in own]


def _after(epochs: float) -> str:
    return f"after {epochs:g} epoch{'' if epochs == 1 else 's'} of fine-tuning" if epochs else "without fine-tuning"


def _loses(lost: float, metric: Metric) -> str:
    """What a loss of accuracy, or of another metric, is called."""
    if not metric.is_accuracy:
        return f"is {'worse' if lost >= 0 else 'better'} in {metric.name} by {metric.amount(lost)}"
    points = round(100 * lost, 1)
    size, verb = f"{abs(points):.1f}", "gains" if points < 0 else "loses"
    return f"{verb} {size} point{'' if size == '1.0' else 's'}" if float(size) else "loses nothing"
