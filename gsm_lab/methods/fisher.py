"""Fisher pruning, weight by weight (Theis, Korshunova, Tejani and Huszar 2018).

Their equation 8: taking out weight k of a trained network changes the loss by about w_k^2 / 2 * mean over samples of
g_nk^2, the diagonal of the empirical Fisher information standing in for the Hessian's; the first-order term is dropped.
Rounds of taking out the weights whose loss is least, and fine-tuning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.derivatives import sample_gradients
from gsm_lab.fitting import evaluating
from gsm_lab.knobs import Knob
from gsm_lab.methods.rival import ROUNDS, UNTIL, Rival

_STREAM = 0xF15E


class Fisher(Rival):
    """Rounds of taking out the weights of smallest w^2 F / 2, and fine-tuning."""

    method = "fisher"
    options = (
        Knob("samples", 500, "training samples that a round looks at", False, least=1, most=10**9),
        ROUNDS,
        UNTIL,
    )

    def before(self) -> None:
        """In a round, take weights out."""
        if q := self.round_due():
            self.keep(self.best(self.score(), q))

    def score(self) -> Tensor:
        """w^2 / 2 times the mean squared gradient of single samples, float32 [N]."""
        w = self.flat()
        return 0.5 * w.square() * self.information()

    def information(self) -> Tensor:
        """Mean over some training samples of each one's squared gradient: float32 [N]."""
        drawn = torch.Generator().manual_seed(self.knobs["seed"] ^ _STREAM)
        rows = torch.randperm(len(self.data.train_y), generator=drawn)[: self.own["samples"]]
        rows = rows.to(self.data.train_y.device)
        weights = {name: p.detach() for name, p in zip(self.history.layers, self._layers, strict=True)}
        total = torch.zeros(self.opt.weights, device=self.inside.device)
        x, y = self.data.train_x[rows], self.data.train_y[rows]
        with evaluating(self.model):
            for gradients in sample_gradients(self.model, self.loss, weights, x, y):
                total += gradients.float().square().sum(0)
        return total / len(rows)
