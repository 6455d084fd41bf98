"""Magnitude pruning with retraining (Han, Pool, Tran and Dally, NeurIPS 2015).

Their section 3: train, take out weights below a threshold, "a quality parameter multiplied by the standard deviation of
a layer's weights", retrain what is left, and do so again. Here the quality parameter is the one that leaves the wanted
number of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.methods.base import ROUNDS, UNTIL, Rival
from gsm_lab.training.parts import Parts


class Magnitude(Rival):
    """Rounds of taking out the weights of smallest |w| / (standard deviation in their layer), and retraining."""

    name = "magnitude"
    options = (ROUNDS, UNTIL)

    def before_step(self, run: Parts) -> None:
        """In a round, take weights out."""
        if q := self.round_due(run):
            self.keep(run, self.best(run, self.score(run), q))

    @torch.no_grad()
    def score(self, run: Parts) -> Tensor:
        """|w| over the standard deviation of the layer's weights that are in the network: float32 [N]."""
        scores = []
        for p, mask in zip(run.tensors, self.masks, strict=True):
            w = p[mask].float()
            spread = w.std(correction=0) if len(w) > 1 else torch.ones(())
            scores.append(p.float().abs() / spread.clamp_min(1e-30))
        return run.flat(scores)
