"""Does |g w| tell what a weight is worth, and rank rightly? Estimates of a loss change against the true one.

Setting the weights S to zero changes them by d (d = -w on S, 0 elsewhere) and the loss by L(w + d) - L(w). Estimates:

    first order            g.d                   Taylor, signed; GSM ranks by |g w| (the paper, eq. 5)
    Fisher                 sum F d^2 / 2         F: mean squared gradient of single samples (Theis et al. 2018, eq. 8)
    first + diagonal       g.d + sum diag(H) d^2 / 2
    second order           g.d + d.H d / 2       with all of H, by one Hessian-vector product

Relative errors are |estimate - truth| / |truth|. Where |truth| is below `Problem.floor`, a thousand units of rounding,
they mean nothing: they are NaN, and counted. Each table was checked on a few weights against brute force and plain
autograd: `attrs["check"]`, see `gsm_lab.studies.verification`; where they differ an ArithmeticError is raised instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from gsm_lab import checks
from gsm_lab.checks import flag, kind, number, one_of, several, shown, whole
from gsm_lab.knobs import each
from gsm_lab.optim import budget
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.studies.estimates import REGIONS, agreement, sets, singles, table_of
from gsm_lab.studies.exhaustive import loss_changes
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.runs import MOMENTA
from gsm_lab.studies.steps import steps
from gsm_lab.studies.verification import check, some, worst
from gsm_lab.training.outputs import Output
from gsm_lab.training.run import Run

__all__ = [
    "ESTIMATES", "REGIONS", "STAGES", "Problem", "agreement", "exhaustive", "misranked", "missed_by_input", "of_run",
    "rank_map", "sets", "singles", "stages", "steps",
]  # fmt: skip

STAGES = {"start": 0.0, "middle": 0.5, "end": 1.0}  # shares of the gated steps that are planned


def of_run(run: Run, samples: int = 256, dtype: torch.dtype = torch.float64, output: Output | None = None) -> Problem:
    """The problem of a run's model as it is now, on the first `samples` of its training set.

    `output`: the adapter of `gsm_lab.training.outputs`, the run's unless given.
    """
    kind("run", run, Run, "a Run")
    samples = _samples(run, samples)
    with run.lock:  # the model is between two steps, also while the run is played
        return Problem(run, run.data.train_x[:samples], run.data.train_y[:samples], dtype=dtype, output=output)


def _samples(run: Run, samples: int) -> int:
    there = len(run.data.train_x)
    if whole("samples", samples, valid="a whole number") > there:
        raise ValueError(f"samples must be from 1 to {there:,}, all there are, got {shown(samples)}")
    return int(samples)


def stages(
    make: Run, momenta: Sequence[float] = MOMENTA, samples: int = 256, per_region: int = 50,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """`singles` and `sets` at the start, in the middle and at the end of a run, for every momentum.

    Args:
        make: a run whose model, data and settings are used (by name, or a model of one's own, which is reset to its
            first weights); it is left reset. The learning rate is scaled so that lr / (1 - momentum), and with it the
            speed at which passive weights vanish, is what `make` has.
        momenta: at least one.

    Returns:
        The tables of `singles` and of `sets`, each with the columns momentum, stage and step in front.
    """
    kind("make", make, Run, "a Run")
    momenta, progress = each("momenta", momenta, "momentum"), flag("progress", progress)
    samples, per_region = _samples(make, samples), whole("per_region", per_region, valid="a whole number of weights")
    own = make.settings
    found: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    seen: dict[bytes | None, tuple[pd.DataFrame, pd.DataFrame]] = {}
    bar = tqdm(total=len(momenta) * len(STAGES), unit="stage", disable=not progress)
    for momentum in momenta:
        make.reset(momentum=momentum, lr=own.lr / (1 - own.momentum) * (1 - momentum))
        make.pretrain()
        for stage, share in STAGES.items():
            bar.set_description(f"momentum {momentum:g}, {stage}")
            make.step(round(share * make.planned) - make.steps)
            problem, c = of_run(make, samples), make.settings.compression
            weights = None if make.steps else problem.flat().cpu().numpy().tobytes()
            if weights is None or weights not in seen:  # all runs start from one network
                seen[weights] = singles(problem, per_region, c), sets(problem, c)
            for table, to in zip(seen[weights], found, strict=True):
                table = table.copy()
                for i, (name, value) in enumerate((("momentum", momentum), ("stage", stage), ("step", make.steps))):
                    table.insert(i, name, value)
                to.append(table)
            bar.update()
    bar.close()
    make.reset(lr=own.lr, momentum=own.momentum)
    joined = tuple(pd.concat(tables, ignore_index=True) for tables in found)
    for table, tables in zip(joined, found, strict=True):
        attrs = [t.attrs for t in tables]
        table.attrs = {"floor": max(a["floor"] for a in attrs), "check": worst([a["check"] for a in attrs])}
    return joined


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
