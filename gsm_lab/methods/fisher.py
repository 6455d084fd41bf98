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
from gsm_lab.training.sample_gradients import of_samples

_STREAM = 0xF15E
_TRIED = 4  # samples that tell whether there are gradients of single ones


class Fisher(Rival):
    """Rounds of taking out the weights of smallest w^2 F / 2, and fine-tuning."""

    method = "fisher"
    options = (
        Knob("samples", 500, "training samples that a round looks at", False, least=1, most=10**9),
        ROUNDS,
        UNTIL,
    )

    def begin(self) -> None:
        """Raises ValueError where the loss has no gradients of single samples, before any step is done."""
        self.information(most=_TRIED)

    def before(self) -> None:
        """In a round, take weights out."""
        if q := self.round_due():
            self.keep(self.best(self.score(), q))

    def score(self) -> Tensor:
        """w^2 / 2 times the mean squared gradient of single samples, float32 [N]."""
        w = self.flat()
        return 0.5 * w.square() * self.information()

    def information(self, most: int | None = None) -> Tensor:
        """Mean over some training samples of each one's squared gradient, weighted as the loss does: float32 [N].

        `most`: take no more samples than that. Raises ValueError where the loss has no gradients of single samples.
        """
        drawn = torch.Generator().manual_seed(self.knobs["seed"] ^ _STREAM)
        rows = torch.randperm(len(self.data.train_y), generator=drawn)[: self.own["samples"]][:most]
        rows = rows.to(self.data.train_y.device)
        weights = dict(zip(self.history.layers, self._layers, strict=True))
        x, y = self.data.train_x[rows], self.data.train_y[rows]
        with evaluating(self.model):
            return of_samples(self.model, self.loss, weights, x, y, self.output).squared.float()
