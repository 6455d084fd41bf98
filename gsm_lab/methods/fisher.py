"""Fisher pruning, weight by weight (Theis, Korshunova, Tejani and Huszar 2018).

Their equation 8: taking out weight k of a trained network changes the loss by about w_k^2 / 2 * mean over samples of
g_nk^2, the diagonal of the empirical Fisher information standing in for the Hessian's; the first-order term is dropped.
Rounds of taking out the weights whose loss is least, and fine-tuning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import ROUNDS, UNTIL, Rival
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.parts import Parts
from gsm_lab.training.sample_gradients import of_samples

_STREAM = 0xF15E
_TRIED = 4  # samples that tell whether there are gradients of single ones


class Fisher(Rival):
    """Rounds of taking out the weights of smallest w^2 F / 2, and fine-tuning."""

    name = "fisher"
    options = (
        Knob("samples", 500, "training samples that a round looks at", False, least=1, most=10**9),
        ROUNDS,
        UNTIL,
    )

    def start(self, run: Parts) -> None:
        """Raises ValueError where the loss has no gradients of single samples, before any step is done."""
        super().start(run)
        self.information(run, most=_TRIED)

    def before_step(self, run: Parts) -> None:
        """In a round, take weights out."""
        if q := self.round_due(run):
            self.keep(run, self.best(run, self.score(run), q))

    def score(self, run: Parts) -> Tensor:
        """w^2 / 2 times the mean squared gradient of single samples, float32 [N]."""
        w = run.flat()
        return 0.5 * w.square() * self.information(run)

    def information(self, run: Parts, most: int | None = None) -> Tensor:
        """Mean over some training samples of each one's squared gradient, weighted as the loss does: float32 [N].

        `most`: take no more samples than that. Raises ValueError where the loss has no gradients of single samples.
        """
        drawn = torch.Generator().manual_seed(run.settings.seed ^ _STREAM)
        rows = torch.randperm(len(run.data.train_y), generator=drawn)[: run.options["samples"]][:most]
        rows = rows.to(run.data.train_y.device)
        weights = dict(zip(run.history.layers, run.tensors, strict=True))
        x, y = run.data.train_x[rows], run.data.train_y[rows]
        with evaluating(run.model):
            return of_samples(run.model, run.loss, weights, x, y, run.output).squared.float()
