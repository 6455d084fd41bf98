"""Pruning by ADMM (Zhang, Ye, Zhang, Tang, Wen, Fardad and Wang, ECCV 2018).

Minimise the loss over W subject to W = Z, where Z has at most Q weights that are not zero. With the scaled dual U, in
turns (their equations 7-9):

    W  by SGD on  loss + rho / 2 |W - Z + U|^2
    Z  <- projection of W + U: its Q entries of largest magnitude, zeros elsewhere
    U  <- U + W - Z

Then the Q largest |w| are kept and retrained. They set a budget a layer; here one is set for all layers together, as
for every method in this comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import UNTIL, Rival
from gsm_lab.training.parts import Parts


class ADMM(Rival):
    """SGD pulled towards the nearest network of Q weights, which moves once an epoch; then a cut and retraining."""

    name = "admm"
    options = (Knob("rho", 1e-3, "pull of the weights towards the sparse network", False, most=1000), UNTIL)

    def start(self, run: Parts) -> None:
        """No pull yet."""
        super().start(run)
        self.z = torch.zeros(run.opt.weights, device=self.inside.device)
        self.u = torch.zeros_like(self.z)

    def before_step(self, run: Parts) -> None:
        """At the first step, find the nearest network of Q weights; at the end of the epochs that pull to it, cut."""
        if self.settled:
            return
        if run.steps >= self.settles(run):
            self.keep(run, self.best(run, run.flat().abs(), run.nonzeros))
        elif run.steps == 0:
            self.z = self.project(run, run.flat())

    def after_step(self, run: Parts) -> None:
        """Once an epoch, move Z and then U."""
        if not self.settled and (run.steps + 1) % run.epoch_steps == 0:
            w = run.flat()
            self.z = self.project(run, w + self.u)
            self.u += w - self.z

    def project(self, run: Parts, v: Tensor) -> Tensor:
        """The nearest point to `v`, float32 [N], with at most Q entries that are not zero."""
        inside = self.best(run, v.abs(), run.nonzeros)
        self.inside.copy_(inside)
        return v * inside

    def penalty(self, run: Parts) -> None:
        """Add the gradient of rho / 2 |W - Z + U|^2."""
        if self.settled:
            return
        for p, pull in zip(run.tensors, run.shaped(self.u - self.z), strict=True):
            if p.grad is not None:
                p.grad.add_(p + pull.to(p.dtype), alpha=run.options["rho"])

    def memory(self) -> dict[str, Tensor]:
        """As in `Rival`."""
        return super().memory() | {"z": self.z, "u": self.u}
