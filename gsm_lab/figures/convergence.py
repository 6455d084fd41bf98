"""Figures of convergence over seeds, drawn from the tables of `gsm_lab.studies.convergence`."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from gsm_lab import checks
from gsm_lab.figures.style import FEW_TICKS, band, drawn, line, scatter
from gsm_lab.metric import metric_of
from gsm_lab.studies.aggregation import COLUMNS, bands

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
    gain, metric = last["cut"] - last["live"], metric_of(table)
    mean, low, high = (metric.signed(x) for x in (gain.mean(), gain.min(), gain.max()))
    title = f"In the end the cut changes {metric.name} by {mean} {metric.points}".rstrip()
    title += f" ({low} to {high} over {len(gain)} seeds)" if len(gain) > 1 else ""
    names = {"live": "as it is", "cut": "after the cut"}
    return _banded(table, names, title, metric.axis, metric.scale, height)


def loss(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """Loss of the batches, mean over seeds in a band from the least to the greatest; arguments as for `accuracies`."""
    first, last = _ends(table, "loss")
    title = f"The loss of the batches {'falls' if last < first else 'rises'} from {first:.2g} to {last:.2g}"
    return _banded(table, {"loss": "loss"}, title, "loss (log)", 1, height, logy=True)


def distance(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """How far the network is from its cut, |W - cut(W)| / |W|; arguments as for `accuracies`."""
    first, last = (100 * end for end in _ends(table, "distance"))
    where, how = ("towards", "falls") if last < first else ("away from", "rises")
    title = f"The network moves {where} its cut: what the cut takes away {how} from {first:.2g}% to {last:.2g}%"
    return _banded(table, {"distance": "distance"}, title, "|W − cut(W)| / |W|, % (log)", 100, height, logy=True)


def turnover(table: pd.DataFrame, height: int = 420) -> go.Figure:
    """Which share of the active set is new, from one step and one record to the next; arguments as for `accuracies`."""
    first, last = (100 * end for end in _ends(table, "turnover", "renewed"))
    title = f"Of the active set {first:.2g}% is new in a step at first, in the end {last:.2g}%"
    every = table["step"].min()  # the first record comes as long after the beginning as the second after the first
    names = {"turnover": "passive one step before", "renewed": f"passive {every:,} steps before"}
    return _banded(table, names, title, "new in the active set, %", 100, height)


def _ends(table: pd.DataFrame, column: str, *others: str) -> tuple[float, float]:
    """What a column is at first and in the end, mean over the seeds. Raises TypeError, ValueError for another table."""
    checks.table("table", table, (*_AT, column, *others))
    by = table.groupby("seed")[column]
    return by.first().mean(), by.last().mean()


def _banded(
    table: pd.DataFrame, names: dict[str, str], title: str, y: str, scale: float, height: int, logy: bool = False
) -> go.Figure:
    figure = go.Figure()
    for i, (column, name) in enumerate(names.items()):
        rows = bands(table, column).dropna()
        low, mean, high = (scale * rows[k] for k in ("low", "mean", "high"))
        figure.add_trace(band(i, rows["epoch"], low, high))
        hover = f"{name}: %{{y:.3g}}, %{{customdata[0]:.3g}} to %{{customdata[1]:.3g}} over %{{customdata[2]}} seeds"
        data = pd.DataFrame({"low": low, "high": high, "seeds": rows["seeds"]})
        style = line(i, customdata=data, name=name)
        figure.add_trace(scatter(rows["epoch"], mean, f"{hover}<br>epoch %{{x:.1f}}", style))
    figure = drawn(figure, title, "epoch since the gate closed", y, height)
    return figure.update_yaxes(FEW_TICKS) if logy else figure
