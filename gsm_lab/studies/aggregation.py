"""What the rows of a table come to over seeds and over time, in pandas alone: figures can import it without torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsm_lab import checks
from gsm_lab.checks import one_of
from gsm_lab.metric import metric_of

COLUMNS = ("loss", "live", "cut", "distance", "turnover", "renewed")  # what `convergence.over_seeds` measures
ESTIMATES = ("first order", "|g w|", "Fisher", "first + diagonal", "second order")  # of a loss change, see `taylor`
METHODS = ("label", "model", "compression", "base", "live", "cut", "published", "seconds")  # of `gsm-lab reproduce`


def mean_and_range(values: pd.Series, by: pd.Series | str) -> pd.DataFrame:
    """The values of each group: `mean`, `low` and `high` (the least and greatest), `seeds` (how many are no NaN)."""
    return values.groupby(by).agg(["mean", "min", "max", "count"]).set_axis(["mean", "low", "high", "seeds"], axis=1)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The methods compared: over the seeds of each method, model and compression.

    Args:
        table: rows of a CSV of `gsm-lab reproduce`.

    Returns:
        `label`, `model`, `compression`, `runs`; `base`, `live`, `cut`: mean test accuracies in percent; `spread`,
        `low`, `high`: standard deviation, least and greatest of the accuracy after the cut; `lost` = live - cut, in
        points; `published`, what a paper reports; `seconds` a run. In the order in which labels come first.

    Raises TypeError or ValueError for a table without rows or without one of these columns.
    """
    checks.table("table", table, METHODS)
    if not (metric := metric_of(table)).is_accuracy:
        raise ValueError(f"table must be of accuracies, as `gsm-lab reproduce` measures them, got {metric}")
    table = table.assign(**{k: 100 * table[k] for k in ("base", "live", "cut")})
    by = table.groupby(["label", "model", "compression"], sort=False)
    result = by.agg(
        runs=("cut", "size"), base=("base", "mean"), live=("live", "mean"), cut=("cut", "mean"), spread=("cut", "std"),
        low=("cut", "min"), high=("cut", "max"), published=("published", "first"), seconds=("seconds", "mean"),
    )  # fmt: skip
    result.insert(6, "lost", result["live"] - result["cut"])
    return result.reset_index()


def bands(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column of `convergence.over_seeds` over the seeds, at each record.

    Returns:
        `epoch`, `mean`, `low`, `high` (least and greatest), `seeds`.

    Raises ValueError for another column, listing those there are, and as `summary`.
    """
    checks.table("table", table, ("step", "epoch", one_of("column", column, COLUMNS)))
    result = mean_and_range(table[column], table["step"])
    result.insert(0, "epoch", table.groupby("step")["epoch"].first())
    return result.reset_index(drop=True)


def allowed(table: pd.DataFrame, tolerance: float | None = None) -> float:
    """What a cut may cost a run and be lossless, by its `trajectories.cut_gap`: `tolerance`, or that of its metric."""
    return metric_of(table).allowed(table["live"].iloc[-1]) if tolerance is None else tolerance


def first_lossless(table: pd.DataFrame, tolerance: float | None = None) -> int:
    """From which row of a run's `trajectories.cut_gap` a cut is lossless, there and at every later row.

    The position of that row; the number of rows where not even the last one is. `tolerance`: as in `allowed`.
    """
    within = metric_of(table).lossless(table["live"], table["cut"], allowed(table, tolerance))
    costs = np.flatnonzero(~within)
    return int(costs[-1]) + 1 if len(costs) else 0
