"""Figures of convergence over seeds, drawn from the tables of `gsm_lab.studies.convergence`."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.figures.style import band, drawn, line, scatter
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import COLUMNS, bands
from gsm_lab.wording import counted, digits, share

__all__ = ["COLUMNS", "accuracies", "bands", "distance", "loss", "turnover"]

_AT = ("seed", "step", "epoch")


def accuracies(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """Accuracy as the network is and after the cut, mean over seeds in a band from the least to the greatest.

    Or the metric of the runs, where that is another.

    Args:
        table: from `over_seeds`.
        height: in pixels.
    """
    checks.table("table", table, (*_AT, "live", "cut"))
    last = table.groupby("seed").last()
    gain, metric = (last["cut"] - last["live"]).dropna(), metric_of(table)
    mean, low, high = (metric.signed(x) for x in (gain.mean(), gain.min(), gain.max()))
    title = f"In the end the cut changes {metric.name} by {mean} {metric.points}".rstrip()
    title += f" ({low} to {high} over {len(gain)} seeds)" if len(gain) > 1 else ""
    title = title if len(gain) else f"{metric.title} was not measured"
    names = {"live": "as it is", "cut": "after the cut"}
    return _banded(table, names, title, metric.axis, metric.scale, height)


def loss(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """Loss of the batches, mean over seeds in a band from the least to the greatest; arguments as for `accuracies`."""
    first, last = _ends(table, "loss")
    title = f"The loss of the batches {_went(first, last, digits)}"
    return _banded(table, {"loss": "loss"}, title, "loss", 1, height, logy=True)


def distance(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """How far the network is from its cut, |W - cut(W)| / |W|; arguments as for `accuracies`."""
    first, last = _ends(table, "distance")
    where = "moves towards" if last < first else "moves away from"
    where = "comes no nearer to" if share(first) == share(last) else where
    title = f"The network {where} its cut: what the cut takes away {_went(first, last, share)}"
    return _banded(table, {"distance": "distance"}, title, "|W − cut(W)| / |W|, %", 100, height, logy=True)


def turnover(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """Which share of the active set is new, from one step and one record to the next; arguments as for `accuracies`."""
    first, last = _ends(table, "turnover", "renewed")
    title = f"Of the active set {share(first)} is new in a step at first, in the end {share(last)}"
    title = title if first == first else "What is new in the active set was not measured"
    every = table["step"].min()  # the first record comes as long after the beginning as the second after the first
    names = {"turnover": "passive one step before", "renewed": f"passive {counted(int(every), 'step')} before"}
    return _banded(table, names, title, "new in the active set, %", 100, height)


def _ends(table: pd.DataFrame, column: str, *others: str) -> tuple[float, float]:
    """What a column is at first and in the end, mean over the seeds. Raises TypeError, ValueError for another table."""
    checks.table("table", table, (*_AT, column, *others))
    by = table.groupby("seed")[column]
    return by.first().mean(), by.last().mean()


def _went(first: float, last: float, said: Callable[[float], str]) -> str:
    if said(first) == said(last):
        return f"stays at {said(last)}"
    return f"{'falls' if last < first else 'rises'} from {said(first)} to {said(last)}"


def _banded(
    table: pd.DataFrame, names: dict[str, str], title: str, y: str, scale: float, height: int, logy: bool = False
) -> go.Figure:
    figure = go.Figure()
    for i, (column, name) in enumerate(names.items()):
        rows = bands(table, column).dropna()
        low, mean, high = (scale * rows[k] for k in ("low", "mean", "high"))
        if logy:  # what has no logarithm would take the band's edge with it
            low, mean = low.where(low > 0, mean), mean.where(mean > 0)
        figure.add_trace(band(i, rows["epoch"], low, high))
        hover = f"{name}: %{{y:.3g}}, %{{customdata[0]:.3g}} to %{{customdata[1]:.3g}} over %{{customdata[2]}} seeds"
        data = pd.DataFrame({"low": low, "high": high, "seeds": rows["seeds"]})
        style = line(i, customdata=data, name=name)
        figure.add_trace(scatter(rows["epoch"], mean, f"{hover}<br>epoch %{{x:.1f}}", style))
    return drawn(figure, title, "epoch since the gate closed", y, height, logy)
