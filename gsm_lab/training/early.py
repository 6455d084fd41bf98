"""Whether a run was cut too early: before its passive weights had the steps to decay."""

from __future__ import annotations

import math

from gsm_lab.knobs import LOSSLESS, half_life, oscillates
from gsm_lab.training.step import Training
from gsm_lab.wording import percent

FEW = 3  # half-lives: after fewer, passive weights have not decayed far enough to be cut


def too_early(run: Training) -> str:
    """Why `run` seems to have had too few steps for a cut without loss, in words; "" where nothing says so.

    Judged by the latest evaluation: either the cut costs accuracy, and there were fewer than `FEW` half-lives of gated
    steps, or it leaves less accuracy than a cut of the dense network by magnitude. Nothing is said of rivals, in which
    weights need not decay.
    """
    with run.lock:
        evaluations = run.history.evaluations.array()
        if run.method.name != "gsm" or run.base is None or not run.steps or not len(evaluations):
            return ""
        live, cut = float(evaluations["live_accuracy"][-1]), float(evaluations["cut_accuracy"][-1])
        settings = [run.settings.lr, run.settings.momentum, run.settings.weight_decay]
        steps, moved = run.steps, any(e["knob"] == "compression" and e["step"] for e in run.history.events)
    life = half_life(*settings)
    # what a cut may cost and still be worth no warning: the tolerance, or a standard error, if that is more
    least = max(LOSSLESS, math.sqrt(live * (1 - live) / len(run.data.test_y)))
    said = []
    if cut < live - least and steps < FEW * life and not oscillates(*settings):
        lives = "never halve (no decay)" if math.isinf(life) else f"halve in {life:,.0f}"
        said.append(f"there were {steps:,} gated steps, and passive weights {lives}")
    if run.magnitude is not None and cut < run.magnitude - least and not moved:
        said.append(
            f"the cut leaves {percent(cut)}, less than the {percent(run.magnitude)} of the dense network cut by "
            "magnitude"
        )
    return "; ".join(said) and f"{'; '.join(said)}: train for more epochs, or with more weight decay or momentum"
