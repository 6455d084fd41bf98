"""Does |g w| rank rightly? Every weight's true loss change, and where its rank by T = |g w| is another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gsm_lab import checks
from gsm_lab.checks import flag, kind, number, one_of, several, shown, whole
from gsm_lab.optim import budget
from gsm_lab.studies.exhaustive import loss_changes
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.verification import check, some


def exhaustive(problem: Problem, layers: Iterable[str] | None = None, progress: bool = True) -> pd.DataFrame:
    """The true loss change of every single weight, beside T = |g w|.

    Fast for fully-connected layers (see `gsm_lab.studies.exhaustive`); LeNet-300-100's 266,200 weights on 256 samples
    take some ten seconds. `layers`: names of prunable tensors, all unless given.

    Returns:
        One row a weight: layer, index (flat, in the layer), weight, metric (T), true. `attrs["check"]`: see
        `gsm_lab.studies.verification`.

    Raises:
        ValueError: no layers, or one that there is not.
        ArithmeticError: the check failed.
    """
    kind("problem", problem, Problem, "a Problem, as taylor.of_run makes one")
    progress = flag("progress", progress)
    names = list(problem.weights) if layers is None else several("layers", layers, empty=True)
    if not names:
        raise ValueError(f"layers must name at least one of {', '.join(problem.weights)}")
    for name in names:
        if not isinstance(name, str) or name not in problem.weights:
            raise ValueError(f"layers must be of {', '.join(problem.weights)}, got {shown(name)}")
    gradient = problem.gradient()
    gradients = problem.parts(gradient)
    parts, changes = [], torch.full_like(gradient, torch.nan)
    for name in names:
        true = loss_changes(problem, name, progress)
        w = problem.weights[name].reshape(-1)
        problem.parts(changes)[name].copy_(true)
        metric = (w * gradients[name].reshape(-1)).abs()
        columns = {"index": range(len(w)), "weight": w, "metric": metric, "true": true.reshape(-1)}
        parts.append(table_of(problem, {"layer": pd.Categorical([name] * len(w), names), **columns}))
    table = pd.concat(parts, ignore_index=True)
    at = some(torch.isfinite(changes).nonzero()[:, 0].tolist())
    first = -(gradient * problem.flat())[at]
    table.attrs = parts[0].attrs | {"check": check(problem, at, first=first, true=changes[at])}
    return table


def misranked(table: pd.DataFrame, compression: float = 60) -> pd.DataFrame:
    """Where |g w| ranks wrongly, by layer: the Q weights of greatest T against the Q of greatest true |loss change|.

    Args:
        table: from `exhaustive`.

    Returns:
        One row a layer, and one for all: layer, weights, by_truth and by_metric (how many of the Q each gives the
        layer), missed (among the Q by truth, not by T), missed_share (of by_truth).
    """
    truth, metric = _tops(table, compression)
    marked = pd.DataFrame({"layer": table["layer"], "by_truth": truth, "by_metric": metric, "missed": truth & ~metric})
    counts = marked.groupby("layer", observed=True).sum()
    counts.insert(0, "weights", table.groupby("layer", observed=True).size())
    counts.loc["all"] = counts.sum()
    counts["missed_share"] = counts["missed"] / counts["by_truth"].clip(lower=1)
    return counts.reset_index()


def _tops(table: pd.DataFrame, compression: float) -> list[pd.Series]:
    """Which weights are among the Q by truth, and which by T. Raises TypeError or ValueError for another table."""
    checks.table("table", table, ("layer", "true", "metric"))
    q = budget(len(table), compression=number("compression", compression, 1))
    return [rank <= q for rank in _ranks(table)]


def _ranks(table: pd.DataFrame) -> list[pd.Series]:
    """Ranks by true |loss change| and by T, 1 for the greatest."""
    return [table[name].abs().rank(ascending=False, method="first") for name in ("true", "metric")]


def rank_map(table: pd.DataFrame, bins: int = 24) -> pd.DataFrame:
    """How many weights have which rank by T and by truth: [bins, bins] counts, ranks 1 to N in logarithmic steps.

    The index is the (geometric) middle of the bin of the rank by true |loss change|, the columns that of T.
    """
    checks.table("table", table, ("true", "metric"))
    bins = whole("bins", bins)
    edges = np.geomspace(1, len(table) + 1, bins + 1)
    counts, _, _ = np.histogram2d(*_ranks(table), bins=[edges, edges])
    middle = np.sqrt(edges[1:] * edges[:-1])
    return pd.DataFrame(counts.astype(int), pd.Index(middle, name="rank by truth"), pd.Index(middle, name="rank by T"))


def missed_by_input(table: pd.DataFrame, layer: str, shape: tuple[int, int], compression: float = 60) -> pd.DataFrame:
    """How many weights that `misranked` counts as missed each input of a layer has, as a picture of `shape`.

    Args:
        table: from `exhaustive`.
        layer: a fully-connected layer with shape[0] * shape[1] inputs.

    Raises:
        ValueError: an unknown layer, or one whose inputs are not that many.
    """
    truth, metric = _tops(table, compression)
    one_of("layer", layer, dict.fromkeys(table["layer"]))
    if not (isinstance(shape, tuple | list) and len(shape) == 2):
        raise TypeError(f"shape must be two whole numbers, rows and columns, got {shown(shape)}")
    shape = tuple(whole("shape", size) for size in shape)
    missed = (truth & ~metric)[table["layer"] == layer].to_numpy()
    if missed.size % (shape[0] * shape[1]):
        raise ValueError(f"shape must have as many pixels as {layer} has inputs, got {shape}")
    return pd.DataFrame(missed.reshape(-1, *shape).sum(0))


def table_of(problem: Problem, columns: dict | list[dict]) -> pd.DataFrame:
    """A table from columns or rows, tensors as numbers, with the problem's floor in `attrs`."""
    if isinstance(columns, dict):
        columns = {k: v.detach().double().cpu().numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}
    table = pd.DataFrame(columns)
    table.attrs["floor"] = problem.floor
    return table
