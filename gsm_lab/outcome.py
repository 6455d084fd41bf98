"""What came out of a run, in numbers and in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gsm_lab.knobs import half_life, oscillates

if TYPE_CHECKING:
    from gsm_lab.training.run import Run


LOSSLESS = 0.005  # of accuracy: what a cut may cost and still be worth no warning; or a standard error, if that is more
FEW = 3  # half-lives: after fewer, passive weights have not decayed far enough to be cut


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
        """What and how much, to print."""
        if self.cut is None:
            return [("dense network so far, before the gate closes", _percent(self.live))]
        return [
            ("dense network, when the gate closed", _percent(self.dense)),
            (f"the same, cut to {number(self.first)}x by magnitude", _percent(self.magnitude)),
            ("GSM, live: all weights", _percent(self.live)),
            ("GSM, cut: the Q largest weights", _percent(self.cut)),
            ("ratio", f"{number(self.compression)}x, {self.nonzeros:,} of {self.weights:,}"),
            *([("too early to cut", self.early)] if self.early else []),
        ]


def too_early(run: Run) -> str:
    """What shows that `run` has not had the steps that a cut without loss takes, in words; "" where nothing does.

    By the latest evaluation: either the cut costs something, and there were fewer than `FEW` half-lives of gated steps,
    or it leaves less accuracy than a cut of the dense network by magnitude did. Rivals do not live by decay.
    """
    with run.lock:
        evaluations = run.history.evaluations.array()
        if run.method.name != "gsm" or run.base is None or not run.steps or not len(evaluations):
            return ""
        live, cut = float(evaluations["live_accuracy"][-1]), float(evaluations["cut_accuracy"][-1])
        settings = [run.settings.lr, run.settings.momentum, run.settings.weight_decay]
        steps, moved = run.steps, any(e["knob"] == "compression" and e["step"] for e in run.history.events)
    life = half_life(*settings)
    least = max(LOSSLESS, math.sqrt(live * (1 - live) / len(run.data.test_y)))
    said = []
    if cut < live - least and steps < FEW * life and not oscillates(*settings):
        lives = "never halve (no decay)" if math.isinf(life) else f"halve in {life:,.0f}"
        said.append(f"there were {steps:,} gated steps, and passive weights {lives}")
    if run.magnitude is not None and cut < run.magnitude - least and not moved:
        said.append(
            f"the cut leaves {_percent(cut)}, less than the {_percent(run.magnitude)} of the dense network cut by "
            "magnitude"
        )
    return "; ".join(said) and f"{'; '.join(said)}: train for more epochs, or with more weight decay or momentum"


def results(run: Run) -> Results:
    """What `run` has reached; the run itself does not change."""
    with run.lock:
        return _results(run)


def _results(run: Run) -> Results:
    from gsm_lab.optim import keep_masks

    closed = run.base is not None
    masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt) if closed else {}
    began = next(e["new"] for e in run.history.events if e["knob"] == "compression")
    return Results(
        run.base,
        run.magnitude,
        run.evaluate(),
        run.evaluate(cut=True) if closed else None,
        run.knobs["compression"],
        began,
        run.nonzeros,
        run.opt.weights,
        {name: (mask.numel(), int(mask.sum())) for name, mask in masks.items()},
        too_early(run),
    )


def finding(run: Run, found: Results) -> str:
    """What came out, in a sentence short enough for a title; why that may be too early, `found.early` says."""
    if found.cut is None or found.dense is None:
        return f"Still dense after {run.dense_steps:,} steps: {_percent(found.live)} test accuracy"
    lost = 100 * (found.live - found.cut)
    early = f"After {run.steps:,} of {run.planned:,} steps, at" if run.steps < run.planned else "At"
    costs = f"costs {lost:.2f} points" if lost >= 0.005 else "costs nothing"
    left = f"{_percent(found.cut)} test accuracy with {found.nonzeros:,} of {found.weights:,} weights"
    return f"{early} {number(found.compression)}x the cut {costs}: {left}"


def number(value: Any) -> str:
    """A knob's value, as short as it can be without losing a digit."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}%"
