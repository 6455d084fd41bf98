"""What a run's model scores on the test set, as it is and as if it were cut, and whether it was cut too early."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gsm_lab.knobs import half_life, oscillates
from gsm_lab.metric import Metric
from gsm_lab.optim import keep_masks
from gsm_lab.optim.ranks.group import local
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.measuring import AT_ONCE, joined_rows, kept, measured
from gsm_lab.training.outputs import answer_with, predicted
from gsm_lab.training.parts import Parts

FEW = 3  # half-lives: after fewer, passive weights have not decayed far enough to be cut


def score(run: Parts, replaced: dict[str, Tensor]) -> float:
    """What the run's metric makes of the test set, with these tensors in place of the model's own.

    Of accuracy, the share that is classified rightly, 0..1; of another, what `measuring.measured` says.
    """
    x, y = run.data.test_x, run.data.test_y
    drawn = torch.random.fork_rng(devices=[], enabled=run.draws)
    with evaluating(run.model), drawn, run.placement.replacing(run.model, replaced) as given:

        def right(x: Tensor, y: Tensor) -> int:
            return int((predicted(answer_with(run.model, given, x, run.output), run.above) == y).sum())

        if run.draws:  # a model that does so even now: always the same ones
            torch.default_generator.manual_seed(run.settings.seed)
        if run.metric.is_accuracy:
            parts = zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True)
            return sum(run.placement.count(right, a, b) for a, b in parts) / len(y)

        def answered(x: Tensor) -> Any:
            return kept(answer_with(run.model, given, x, run.output))

        outputs = [run.placement.outputs(answered, part) for part in x.split(AT_ONCE)]
    return run.placement.measured(lambda: measured(run.metric, joined_rows(outputs, run.data), y.cpu()))


def cut_tensors(run: Parts) -> tuple[dict[str, Tensor], list[int]]:
    """The prunable tensors by name as a cut would leave them now, and how many weights stay in each (on this rank)."""
    masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt)
    replaced = {name: run.model.get_parameter(name) * mask for name, mask in masks.items()}
    return replaced, [int(local(mask).sum()) for mask in masks.values()]


@torch.no_grad()
def evaluate_now(run: Parts) -> None:
    """Put both scores into the history; before the first step they are those of the dense model."""
    replaced, stay = cut_tensors(run)
    live, as_cut = score(run, {}), score(run, replaced)
    if run.steps == 0:
        run.base, run.magnitude = live, as_cut
    run.history.evaluated(run.steps, live, as_cut, stay)


def too_early(run: Parts) -> str:
    """Why `run` seems to have had too few steps for a cut without loss, in words; "" where nothing says so.

    Judged by the latest evaluation: either the cut costs something of the metric, and there were fewer than `FEW`
    half-lives of gated steps, or it leaves less than a cut of the dense network by magnitude. Nothing is said of
    rivals, in which weights need not decay.
    """
    metric = run.metric
    with run.lock:
        evaluations = run.history.evaluations.array()
        if run.method.name != "gsm" or run.base is None or not run.steps or not len(evaluations):
            return ""
        live, cut = float(evaluations["live_accuracy"][-1]), float(evaluations["cut_accuracy"][-1])
        settings = [run.settings.lr, run.settings.momentum, run.settings.weight_decay]
        steps, moved = run.steps, any(e["knob"] == "compression" and e["step"] for e in run.history.events)
    life = half_life(*settings)
    least = max(metric.allowed(live), _chance(metric, live, len(run.data.test_y)))
    said = []
    if metric.cost(live, cut) > least and steps < FEW * life and not oscillates(*settings):
        lives = "never halve (no decay)" if math.isinf(life) else f"halve in {life:,.0f}"
        said.append(f"there were {steps:,} gated steps, and passive weights {lives}")
    if run.magnitude is not None and metric.cost(run.magnitude, cut) > least and not moved:
        less = "less" if metric.is_accuracy else f"worse {metric.name}"
        said.append(
            f"the cut leaves {metric.shown(cut)}, {less} than the {metric.shown(run.magnitude)} of the dense network "
            "cut by magnitude"
        )
    return "; ".join(said) and f"{'; '.join(said)}: train for more epochs, or with more weight decay or momentum"


def _chance(metric: Metric, value: float, n: int) -> float:
    """By how much a value of `n` test samples is off by chance alone: about its standard error.

    That of a share; of another metric that of a root mean square, which is right for an RMSE and a guide elsewhere.
    """
    if metric.percent:
        return math.sqrt(max(0.0, value * (1 - value)) / n)
    return abs(value) / math.sqrt(2 * n)
