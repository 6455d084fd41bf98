"""Figures of layer sensitivity, drawn from the tables of `gsm_lab.studies.sensitivity`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import number
from gsm_lab.figures.style import drawn, error_bars, line, round_numbers, scatter, ticks
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import mean_and_range


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
    title = f"GSM leaves {most['layer']} {100 * most['density']:.2g}% of its weights"
    if most["layer"] != least["layer"]:
        title += f", and {least['layer']} {100 * least['density']:.2g}%"
    return drawn(figure, title, "layer", "weights that stay, %", height, logy=True)


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
    for i, (layer, rows) in enumerate(part.groupby("layer", sort=False)):
        lost = mean_and_range(metric.scale * rows["lost"], rows["ratio"])
        left = 100 * (1 - lost.index)
        hover = f"{layer} with %{{x:.3g}}% of its weights: {metric.hover(change=True)}"
        hover += f"<br>{metric.hover('customdata[0]', True)} to {metric.hover('customdata[1]', True)} by seed"
        style = line(i, name=str(layer), error_y=error_bars(lost), customdata=lost[["low", "high"]])
        figure.add_trace(scatter(left, lost["mean"], hover, style))
        worst[layer] = lost["mean"].iloc[-1]
    ratio = part["ratio"].max()
    most, least = max(worst, key=worst.get), min(worst, key=worst.get)
    how = f"after {finetune:g} epoch{'' if finetune == 1 else 's'} of fine-tuning" if finetune else "as it is"
    digits, unit = (".1f" if metric.percent else ".3g"), f" {metric.points}".rstrip()
    loses = "loses" if metric.is_accuracy else f"is worse in {metric.name} by"
    title = f"Without {100 * ratio:g}% of {most} the net {loses} {worst[most]:{digits}}{unit} {how}"
    if most != least:
        title += f", of {least} {worst[least]:{digits}}"
    figure = drawn(figure, title, "weights of the layer that stay, % (log)", metric.lost_axis, height)
    shares = sorted({round(100 * (1 - r), 6) for r in part["ratio"]})
    return figure.update_xaxes(type="log", autorange="reversed", **ticks(shares))


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
        hover = f"%{{text}}, {name}: %{{x:.3g}}% stay under GSM, pruned alone the loss rises by %{{y:.3g}}"
        style = line(i, mode="markers+text", name=name, text=answer["layer"])
        style["textposition"] = ("top center", "bottom center")[i % 2]
        figure.add_trace(scatter(100 * answer["density"], cost, hover, style))
    rows = agreement.set_index("finetune")
    said = [f"{tau:+.2f} ({low:+.2f} to {high:+.2f})" for tau, low, high in rows[["tau", "low", "high"]].to_numpy()]
    title = f"Order of the {rows['layers'].iloc[0]} layers, GSM against the truth: Kendall's tau {', '.join(said)}"
    y = "rise of the loss, mean over ratios"
    figure = drawn(figure, title, "weights that stay under GSM, % (log)", y, height)
    return figure.update_xaxes(type="log", **ticks(round_numbers(100 * answer["density"].to_numpy())))
