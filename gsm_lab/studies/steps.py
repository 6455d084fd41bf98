"""The optimizer's own steps: the change of the loss that Taylor predicts for a step, against the change it really made.

    table = steps(run, 100)      # trains 100 gated steps; one row each
    table["error of first"].median()

A step moves the parameters by dw. To first order the loss of its batch changes by g.dw, to second order by
g.dw + dw'H dw / 2, with g and H of the loss before the step. The sums run over all parameters, biases and norms too.

Both losses are those of a float64 copy in evaluation mode, with the buffers of before the step: nothing random and no
batch statistics differ between them. For a model without dropout and batch norm this is the loss that was trained on;
for one with them, g is not the noisy gradient that the step used. Where |true change| is below `Problem.floor`, a
thousand units of rounding, a relative error says nothing: it is NaN there, and counted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsm_lab.checks import flag, kind, whole
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.verification import check, some
from gsm_lab.training.derivatives import products_with
from gsm_lab.training.run import Run

if TYPE_CHECKING:
    import pandas as pd

ORDERS = ("first", "second")
_CHECKED = 3  # weights


class Before:
    """The loss around the parameters a run has now, on the batch of its next gated step; it changes nothing.

    Args:
        run: with its gate closed (`run.pretrain()` sees to that).

    Attributes:
        problem: a float64 copy of the model, with that batch; value: its loss L(w). step: the number of the step that
        is about to be done.

    Raises:
        ValueError: the loss of that batch is not finite.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.step = run, run.steps + 1
        with self.repeatable():
            self.problem = Problem(run, *run.batches.batch(run.dense_steps + run.steps))
        self.value = self.problem.value
        self.parameters = dict(self.problem.model.named_parameters())

    @contextlib.contextmanager
    def repeatable(self) -> Iterator[None]:
        """For models that draw numbers even in evaluation mode: the same each time, and none of the program's."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.run.settings.seed)
            yield

    def moved(self) -> dict[str, Tensor]:
        """dw, what has been added to each parameter since: float64, by name."""
        now = dict(self.run.model.named_parameters())
        return {name: now[name].detach().to(p) - p for name, p in self.parameters.items()}

    def change(self, dw: dict[str, Tensor]) -> float:
        """L(w + dw) - L(w)."""
        with self.repeatable():
            return self.problem.loss_at({name: p + dw[name] for name, p in self.parameters.items()}) - self.value

    def predicted(self, dw: dict[str, Tensor], second_order: bool = True) -> tuple[float, float]:
        """g.dw, and g.dw + dw'H dw / 2 (NaN without `second_order`)."""
        along = list(dw.values())
        with self.repeatable(), self.problem.graph(list(dw), twice=second_order) as (tensors, gradient):
            slope = _dot(gradient, along)
            first = float(slope.detach())
            if not second_order:
                return first, math.nan
            return first, first + 0.5 * float(_dot(products_with([slope], tensors), along))

    def check(self, second_order: bool = True) -> dict[str, float]:
        """The check of `gsm_lab.studies.verification` at a few weights. Raises ArithmeticError."""
        at = some(range(self.problem.count), _CHECKED)
        with self.repeatable():
            w = self.problem.flat()[at]
            second = self.problem.hessian_diagonal(at) * w.square() / 2 if second_order else None
            return check(self.problem, at, first=-self.problem.gradient()[at] * w, second=second)

    def at_threshold(self) -> tuple[float, float]:
        """For the weight at which the gate closed: its T = |g w|, and the true change of the loss without it.

        To be asked after the step, before the next gradient. T is what the optimizer formed, from the gradient of
        training mode; the weight is the first whose T equals the threshold, or where the gate is smoothed the first
        whose |w| times mean |gradient| does. Both NaN where the gate is open (Q = N); T is 0 and the change NaN where
        the threshold is 0, as fewer than Q weights have anything to be ranked by.
        """
        opt = self.run.opt
        threshold = opt.threshold
        if opt.nonzeros >= opt.weights or not threshold > 0:
            return (math.nan if opt.nonzeros >= opt.weights else threshold), math.nan
        nearest, index, metric, start = math.inf, None, math.nan, 0
        for name, w in self.problem.weights.items():
            p = self.run.model.get_parameter(name)
            grad = p.grad
            ranked = opt.state[p]["gradient_average"] if opt.smoothing else grad
            if ranked is not None:
                distance = (w.float() * ranked.float()).abs_().sub_(threshold).abs_().reshape(-1)
                at = int(distance.argmin())
                if float(distance[at]) < nearest:
                    nearest, index = float(distance[at]), start + at
                    slope = 0.0 if grad is None else grad.reshape(-1)[at].float()
                    metric = float((w.reshape(-1)[at].float() * slope).abs())
            start += w.numel()
        assert index is not None, "a threshold above 0 is what some weight is ranked by"
        with self.repeatable():
            return metric, float(self.problem.changes_without([index])[0])


def _dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def relative_error(estimate: float, true: float, floor: float) -> float:
    """|estimate - true| / |true|; NaN where |true| is below `floor` or either is not finite."""
    if not (math.isfinite(estimate) and math.isfinite(true)) or abs(true) < max(floor, 5e-324):
        return math.nan
    return abs(estimate - true) / abs(true)


def steps(run: Run, n: int, second_order: bool = True) -> pd.DataFrame:
    """Train `run` for `n` gated steps (dense epochs first, if some are left), and hold each against its prediction.

    Any model and data; the run goes where `run.step(n)` would have taken it, to the bit.

    Args:
        run: what to train.
        n: how many steps, at least 1.
        second_order: whether to form dw'H dw / 2 as well; that is some four times the work.

    Returns:
        One row a step: step (its number), loss (of its batch, before it), true (the change of that loss by the step;
        inf or NaN where the step blew it up), first (g.dw), second (g.dw + dw'H dw / 2), and "error of first", "error
        of second": |estimate - true| / |true|, NaN below the floor. Losses in the loss function's units.
        `attrs["floor"]`: where the floor of these rows is highest; `attrs["below_floor"]`: how many are below theirs;
        `attrs["check"]`: of the derivatives before all of this, see `gsm_lab.studies.verification`.

    Raises:
        TypeError: `run` is no Run.
        ValueError: `n` is no whole number >= 1; `second_order` of a model or loss without second derivatives; or the
            loss of a batch is not finite (the steps before it are done).
        FloatingPointError: from the step, as in `Run.step`.
        ArithmeticError: the check failed; nothing was trained.
    """
    kind("run", run, Run, "a Run")
    n, second_order = whole("n", n, valid="a whole number of steps"), flag("second_order", second_order)
    orders = ORDERS if second_order else ORDERS[:1]
    with run.lock:
        checked = Before(run).check(second_order)  # what cannot be studied is said before any training
    run.pretrain()
    rows, below, floors = [], 0, []
    for _ in range(n):
        before = Before(run)
        run.step(1)
        dw = before.moved()
        true, floor = before.change(dw), before.problem.floor
        estimates = before.predicted(dw, second_order)[: len(orders)]
        rows.append((before.step, before.value, true, *estimates, *(relative_error(e, true, floor) for e in estimates)))
        below += abs(true) < floor
        floors.append(floor)
    import pandas as pd

    table = pd.DataFrame(rows, columns=["step", "loss", "true", *orders, *(f"error of {order}" for order in orders)])
    table.attrs = {"floor": max(floors), "below_floor": int(below), "check": checked}
    return table
