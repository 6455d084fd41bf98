"""What a run's model scores on the test set, as it is and as if it were cut."""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.optim import keep_masks
from gsm_lab.optim.ranks.group import local
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.outputs import answer_with, predicted
from gsm_lab.training.shared import Shared

_AT_ONCE = 2000  # samples; bounds memory


def accuracy(run: Shared, replaced: dict[str, Tensor]) -> float:
    """The share of the test set that is classified rightly, 0..1, with these tensors in place of the model's own."""
    x, y = run.data.test_x, run.data.test_y
    drawn = torch.random.fork_rng(devices=[], enabled=run.draws)
    with evaluating(run.model), drawn, run.placement.replacing(run.model, replaced) as given:

        def right(x: Tensor, y: Tensor) -> int:
            return int((predicted(answer_with(run.model, given, x, run.output), run.above) == y).sum())

        if run.draws:  # a model that does so even now: always the same ones
            torch.default_generator.manual_seed(run.settings.seed)
        parts = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
        return sum(run.placement.count(right, a, b) for a, b in parts) / len(y)


def cut_tensors(run: Shared) -> tuple[dict[str, Tensor], list[int]]:
    """The prunable tensors by name as a cut would leave them now, and how many weights stay in each (on this rank)."""
    masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt)
    replaced = {name: run.model.get_parameter(name) * mask for name, mask in masks.items()}
    return replaced, [int(local(mask).sum()) for mask in masks.values()]


@torch.no_grad()
def evaluate_now(run: Shared) -> None:
    """Put both accuracies into the history; before the first step they are those of the dense model."""
    replaced, kept = cut_tensors(run)
    live, as_cut = accuracy(run, {}), accuracy(run, replaced)
    if run.steps == 0:
        run.base, run.magnitude = live, as_cut
    run.history.evaluated(run.steps, live, as_cut, kept)
