"""The results of a run, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from gsm_lab.metric import ACCURACY, Metric
from gsm_lab.optim import keep_masks
from gsm_lab.training.evaluation import too_early
from gsm_lab.training.run import Run
from gsm_lab.wording import number


@dataclass(frozen=True)
class Results:
    """What a run scores on the test set as it stands, and its weights; `cut` and `layers` come with the gate.

    `metric`: what the scores are of, accuracies in 0..1 unless the run has another.

    `dense`: when the gate closed; `magnitude`: the same cut without GSM, to `first` times fewer weights; `live`: with
    all weights; `cut`: with the Q largest only; `layers`: of each, weights and how many of them the cut keeps.
    """

    dense: float | None
    magnitude: float | None
    live: float
    cut: float | None
    compression: float
    first: float
    nonzeros: int
    weights: int
    layers: dict[str, tuple[int, int]]
    early: str = ""  # why the cut came too early, see `too_early`
    metric: Metric = ACCURACY

    def rows(self) -> list[tuple[str, str]]:
        """What was measured and how much it is, to print."""
        told = self.metric.shown
        if self.cut is None:
            return [("dense network so far, before the gate closes", told(self.live))]
        return [
            ("dense network, when the gate closed", told(self.dense)),
            (f"the same, cut to {number(self.first)}x by magnitude", told(self.magnitude)),
            ("GSM, live: all weights", told(self.live)),
            ("GSM, cut: the Q largest weights", told(self.cut)),
            ("ratio", f"{number(self.compression)}x, {self.nonzeros:,} of {self.weights:,}"),
            *([("too early to cut", self.early)] if self.early else []),
        ]


def results(run: Run) -> Results:
    """The results of `run` as it stands; the run itself does not change."""
    with run.lock:
        closed = run.base is not None
        masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt) if closed else {}
        return Results(
            dense=run.base,
            magnitude=run.magnitude,
            live=run.evaluate(),
            cut=run.evaluate(cut=True) if closed else None,
            compression=run.settings.compression,
            first=next(e["new"] for e in run.history.events if e["knob"] == "compression"),
            nonzeros=run.nonzeros,
            weights=run.opt.weights,
            layers={name: (mask.numel(), int(mask.sum())) for name, mask in masks.items()},
            early=too_early(run),
            metric=run.metric,
        )


def finding(run: Run, found: Results) -> str:
    """The results in a sentence short enough for a title; `found.early` says why they may be too early."""
    if found.cut is None or found.dense is None:
        return f"Still dense after {run.dense_steps:,} steps: {found.metric.on_test(found.live)}"
    lost = found.metric.cost(found.live, found.cut)
    early = f"After {run.steps:,} of {run.planned:,} steps, at" if run.steps < run.planned else "At"
    least = 5e-5 if found.metric.percent else 5e-4 * abs(found.live)  # what would be written as nothing
    costs = f"costs {found.metric.amount(lost)}" if lost >= least and lost else "costs nothing"
    left = f"{found.metric.on_test(found.cut)} with {found.nonzeros:,} of {found.weights:,} weights"
    return f"{early} {number(found.compression)}x the cut {costs}: {left}"
