"""Does |g w| tell what a weight is worth? Estimates of a loss change against the true one.

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

from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm

from gsm_lab import checks
from gsm_lab.checks import flag, shown, whole
from gsm_lab.knobs import each
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.studies.estimates import REGIONS, agreement, sets, singles
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.ranking import exhaustive, misranked, missed_by_input, rank_map
from gsm_lab.studies.runs import MOMENTA
from gsm_lab.studies.steps import steps
from gsm_lab.studies.verification import worst
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
    checks.kind("run", run, Run, "a Run")
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
    checks.kind("make", make, Run, "a Run")
    momenta, progress = each("momenta", momenta, "momentum"), flag("progress", progress)
    samples, per_region = _samples(make, samples), whole("per_region", per_region, valid="a whole number of weights")
    rate = make.settings.lr / (1 - make.settings.momentum)
    found: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    before = make.settings.lr, make.settings.momentum
    dense: tuple[torch.Tensor, tuple[pd.DataFrame, pd.DataFrame]] | None = None
    bar = tqdm(total=len(momenta) * len(STAGES), unit="stage", disable=not progress)
    for momentum in momenta:
        make.reset(momentum=momentum, lr=rate * (1 - momentum))
        make.pretrain()
        for stage, share in STAGES.items():
            bar.set_description(f"momentum {momentum:g}, {stage}")
            make.step(round(share * make.planned) - make.steps)
            problem, c = of_run(make, samples), make.settings.compression
            if not make.steps and dense is not None and torch.equal(problem.flat(), dense[0]):
                tables = dense[1]  # all runs start from one network
            else:
                tables = singles(problem, per_region, c), sets(problem, c)
            if not make.steps:
                dense = problem.flat(), tables
            for table, to in zip(tables, found, strict=True):
                table = table.copy()
                for i, (name, value) in enumerate((("momentum", momentum), ("stage", stage), ("step", make.steps))):
                    table.insert(i, name, value)
                to.append(table)
            bar.update()
    bar.close()
    make.reset(lr=before[0], momentum=before[1])
    joined = [pd.concat(tables, ignore_index=True) for tables in found]
    for table, tables in zip(joined, found, strict=True):
        floor, check = max(t.attrs["floor"] for t in tables), worst([t.attrs["check"] for t in tables])
        table.attrs = {"floor": floor, "check": check}
    return joined[0], joined[1]
