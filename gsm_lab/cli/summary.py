"""The results of a run, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from gsm_lab.optim import keep_masks
from gsm_lab.training.evaluation import too_early
from gsm_lab.training.run import Run
from gsm_lab.wording import number, percent


@dataclass(frozen=True)
class Results:
    """Accuracies on the test set, 0..1, and weights, of a run as it stands; `cut` and `layers` come with the gate.

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

    def rows(self) -> list[tuple[str, str]]:
        """What was measured and how much it is, to print."""
        if self.cut is None:
            return [("dense network so far, before the gate closes", percent(self.live))]
        return [
            ("dense network, when the gate closed", percent(self.dense)),
            (f"the same, cut to {number(self.first)}x by magnitude", percent(self.magnitude)),
            ("GSM, live: all weights", percent(self.live)),
            ("GSM, cut: the Q largest weights", percent(self.cut)),
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
        )


def finding(run: Run, found: Results) -> str:
    """The results in a sentence short enough for a title; `found.early` says why they may be too early."""
    if found.cut is None or found.dense is None:
        return f"Still dense after {run.dense_steps:,} steps: {percent(found.live)} test accuracy"
    lost = 100 * (found.live - found.cut)
    early = f"After {run.steps:,} of {run.planned:,} steps, at" if run.steps < run.planned else "At"
    costs = f"costs {lost:.2f} points" if lost >= 0.005 else "costs nothing"
    left = f"{percent(found.cut)} test accuracy with {found.nonzeros:,} of {found.weights:,} weights"
    return f"{early} {number(found.compression)}x the cut {costs}: {left}"
