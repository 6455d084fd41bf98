"""Figures of re-activation, drawn from the tables of `gsm_lab.studies.reactivation`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.checks import kind, text
from gsm_lab.figures.fitting import log_axis, short_names, ticks
from gsm_lab.figures.style import drawn, error_bars, line, named, scatter
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import mean_and_range
from gsm_lab.wording import counted, share

_SHARES = ("share", "woken_share", "near_zero_share", "reactivated", "woken", "near_zero")
_EPOCH = "epoch since the gate closed"
_CHANCE = "of the passive weights, % a step"


def shares(table: pd.DataFrame, name: str = "", height: int = 420) -> go.Figure:
    """Of the passive weights, how many come back in a step, how many of these were woken, and from near zero.

    Args:
        table: from `per_step`.
        name: of the layer or run, for the title.
        height: in pixels.
    """
    checks.table("table", table, ("epoch", "steps", *_SHARES))
    text("name", name)
    figure = go.Figure()
    kinds = zip(("re-activated", "woken", "once under 1e-3"), _SHARES[:3], _SHARES[3:], strict=True)
    for i, (what, column, count) in enumerate(kinds):
        hover = f"{what}: %{{customdata[0]:,.1f}} weights a step, %{{y:.3g}}% of the passive ones"
        hover += "<br>epoch %{x:.1f}, mean of %{customdata[1]} steps"
        per_step = pd.DataFrame({"count": table[count] / table["steps"], "steps": table["steps"]})
        y = 100 * table[column].where(table[column] > 0)
        figure.add_trace(scatter(table["epoch"], y, hover, line(i, name=what, customdata=per_step)))
    known = table["share"].dropna()  # it is of the passive weights, where there are any
    where = f" in {name}" if name not in ("", "all") else ""
    if known.empty:
        title = f"There are no passive weights{where}"
    elif len(known) == 1:
        title = f"In a step {share(known.iloc[0])} of the passive weights{where} come back"
    else:
        title = f"At first {share(known.iloc[0])} of the passive weights{where} come back in a step, "
        title += f"in the end {share(known.iloc[-1])}"
    return drawn(figure, title, _EPOCH, _CHANCE, height, logy=True)


def compared(tables: Mapping[object, pd.DataFrame], what: str = "momentum", height: int = 420) -> go.Figure:
    """The same share of several runs, or layers, in one plot.

    Args:
        tables: label -> table from `per_step`.
        what: the labels are.
        height: in pixels.
    """
    _several(tables, what, "epoch", "share", "reactivated", "pool")
    figure, mean, names = go.Figure(), {}, _names(tables, what)
    for i, (label, table) in enumerate(tables.items()):
        if table["pool"].sum() > 0:
            mean[label] = table["reactivated"].sum() / table["pool"].sum()
        hover = f"{what} {label}: %{{y:.3g}}% of the passive weights come back in a step, epoch %{{x:.1f}}"
        y = 100 * table["share"].where(table["share"] > 0)
        figure.add_trace(scatter(table["epoch"], y, hover, line(i, name=names[i])))
    title = f"With none of these {what}s is there a passive weight"
    if mean:
        least, most = min(mean, key=mean.get), max(mean, key=mean.get)
        title = f"Passive weights come back most often with {what} {most}: {share(mean[most])} of them in a step"
        if share(mean[least]) != share(mean[most]):
            title += f"; least with {least}: {share(mean[least])}"
        elif len(mean) > 1:
            title = f"Passive weights come back as often with every {what}: {share(mean[most])} of them in a step"
    shown = 100 * pd.concat([table["share"] for table in tables.values()])
    wide = shown.max() > 5 * shown[shown > 0].min()
    figure = drawn(figure, title, _EPOCH, _CHANCE, height, logy=wide)
    return figure if wide else figure.update_yaxes(rangemode="tozero")


def survival(tables: Mapping[object, pd.DataFrame], what: str = "momentum", height: int = 420) -> go.Figure:
    """Share of passive stretches that last longer than so many steps.

    Args:
        tables: label -> table from `survival`.
        what: the labels are.
        height: in pixels.
    """
    _several(tables, what, "steps", "longer")
    figure, names = go.Figure(), _names(tables, what)
    for i, (label, table) in enumerate(tables.items()):
        hover = f"{what} {label}: %{{y:.3g}}% of passive stretches last longer than %{{x:,}} steps"
        style = line(i, name=names[i])
        figure.add_trace(scatter(table["steps"], 100 * table["longer"], hover, style))
    table = next(iter(tables.values()))
    once, end, n = 1 - table["longer"].iloc[0], table["longer"].iloc[-1], int(table["steps"].iloc[0])
    title = f"{share(once)} of passive stretches end {'after one step' if n == 1 else f'within {n:,} steps'}, "
    title += f"{share(end)} not within the run"
    first = next(iter(tables))
    if len(tables) > 1 and first != "all":
        title += f" ({what} {first})"
    y = "stretches that last longer, %"
    figure = drawn(figure, title, "length of a passive stretch, steps (log)", y, height)
    longest = max(table["steps"].max() for table in tables.values())
    figure.update_xaxes(log_axis([1, max(longest, 10)]))
    return figure.update_yaxes(rangemode="tozero")


def layers(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """For each layer, which share of its weights was ever active, ever woken, is kept, and is both kept and woken.

    Args:
        table: from `per_layer`.
        height: in pixels.
    """
    checks.table("table", table, ("layer", "weights", "active", "woken", "kept", "kept_woken"))
    kinds = {"ever active": "active", "woken": "woken", "kept": "kept", "kept and woken": "kept_woken"}
    figure = go.Figure()
    for i, (what, column) in enumerate(kinds.items()):
        hover = f"%{{x}}: %{{customdata:,}} weights {what}, %{{y:.3g}}% of the layer"
        y = 100 * table[column] / table["weights"]
        style = line(i, name=what, customdata=table[column])
        figure.add_trace(scatter(table["layer"], y.where(y > 0), hover, style))
    single = table[table["layer"] != "all"]
    woken = (single["woken"] / single["weights"]).dropna()
    if woken.max() > 0:
        most, least = woken.idxmax(), woken.idxmin()
        title = f"{single['layer'][most]} wakes {share(woken[most])} of its weights"
        title += f", {single['layer'][least]} {share(woken[least])}" if most != least else ""
    else:
        title = "No layer wakes any of its weights" if len(woken) else "Of all layers together"
    figure = drawn(figure, title, "layer", "share of the layer's weights, %", height, logy=True)
    return named(figure, table["layer"])


def kept(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """What the weights went through: all of them, and those that survive the cut.

    Args:
        table: from `kept`.
        height: in pixels.
    """
    checks.table("table", table, ("what", "weights", "kept", "share", "kept_share"))
    what = table.set_index("what")
    rows = what.drop("all weights")
    figure = go.Figure()
    kinds = (("of all weights", "weights", "share"), ("of those the cut keeps", "kept", "kept_share"))
    for i, (name, count, part) in enumerate(kinds):
        hover = f"%{{x}}: %{{customdata:,}} {name}, %{{y:.3g}}%"
        y = 100 * rows[part].where(rows[part] > 0)
        figure.add_trace(scatter(rows.index, y, hover, line(i, name=name, customdata=rows[count])))
    n, woken, near = (int(what["kept"][row]) for row in ("all weights", "woken", "once under 1e-3"))
    were = [f"{k:,} {'was' if k == 1 else 'were'}" for k in (woken, near)]
    title = f"Of the {counted(n, 'weight')} the cut keeps, {were[0]} woken, and {were[1]} once under 1e-3"
    title = title if n else "The cut keeps no weight"
    figure = drawn(figure, title, "what the weight went through", "share of weights, %", height, logy=True)
    return named(figure, rows.index)


def controls(table: pd.DataFrame, height: int = 460) -> go.Figure:
    """Accuracy when weights may not come back, live and cut, against the plain run of the seed: mean, least and most.

    Or the metric of the runs, where that is another.

    Args:
        table: from `controls`.
        height: in pixels.
    """
    checks.table("table", table, ("seed", "variant", "after", "live", "cut", "tested"))
    names = {"frozen": "frozen", "forbidden": "woken forbidden"}
    what = {"frozen": "only weights active then may be active", "forbidden": "who stays passive for long, stays so"}
    columns, metric = {"live": "as it is", "cut": "after the cut"}, metric_of(table)
    plain = table[table["variant"] == "plain"].set_index("seed")
    if missing := set(table["seed"]) - set(plain.index):
        raise ValueError(f"table must hold a plain run of every seed, and has none of seed {min(missing)}")
    figure, found = go.Figure(), {}
    for i, (variant, column) in enumerate(itertools.product(names, columns)):
        runs = table[table["variant"] == variant]
        if runs.empty:
            continue
        change = mean_and_range(metric.scale * (runs[column] - runs["seed"].map(plain[column])), runs["after"])
        y, low, high = (metric.hover(of, change=True) for of in ("y", "customdata[0]", "customdata[1]"))
        hover = f"{what[variant]}, from epoch %{{customdata[3]:g}} on<br>{metric.name} {columns[column]}: {y}"
        hover += f", mean of %{{customdata[2]:.0f}} seeds ({low} to {high})"
        style = line(i, name=f"{names[variant]}, {columns[column]}", error_y=error_bars(change))
        style["customdata"] = change[["low", "high", "seeds"]].assign(after=change.index)
        x = change.index * 1.03**i  # set apart a little, or the bars from least to most cover each other
        figure.add_trace(scatter(x, change["mean"], hover, style))
        if column == "live":
            ends = (change["mean"].min() / metric.scale, change["mean"].max() / metric.scale)
            low, high = (metric.signed(end, 1) for end in ends)
            found[variant] = low if low == high else f"{low} to {high}"
    figure.add_hline(y=0, line={"color": "#888888", "width": 1}, annotation_text="plain run")
    verbs = {"frozen": "freezing the active set", "forbidden": "forbidding the woken to come back"}
    title = f"{metric.title} changes by these points: " if metric.percent else f"{metric.name} changes by"
    title += "" if metric.percent else f" ({metric.unit}): " if metric.unit else ": "
    title += ", ".join(f"{verbs[variant]} {span}" for variant, span in found.items())
    title = title if found else "There are only plain runs: nothing was forbidden"
    x = "from this epoch on they may not (log)"
    x += f"; one test sample is {100 / table['tested'].iloc[0]:.2g} points" if metric.is_accuracy else ""
    figure = drawn(figure, title, x, metric.change_axis, height)
    return figure.update_xaxes(type="log", **ticks(table["after"].dropna().unique()))


def _names(tables: Mapping[object, pd.DataFrame], what: str) -> list[str]:
    return [f"{what} {label}" for label in short_names([str(label) for label in tables])]


def _several(tables: Any, what: Any, *columns: str) -> None:
    """Raises TypeError or ValueError unless `tables` maps labels to tables with these columns, and `what` is text."""
    kind("tables", tables, Mapping, "a mapping of labels to tables")
    if not len(tables):
        raise ValueError("tables must have at least one row, got none")
    for label, one in tables.items():
        checks.table(f"tables[{label!r}]", one, columns)
    text("what", what)
