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


class ADMM(Rival):
    """SGD pulled towards the nearest network of Q weights, which moves once an epoch; then a cut and retraining."""

    method = "admm"
    options = (Knob("rho", 1e-3, "pull of the weights towards the sparse network", False, most=1000), UNTIL)

    def begin(self) -> None:
        """No pull yet."""
        self.z = torch.zeros(self.opt.weights, device=self.inside.device)
        self.u = torch.zeros_like(self.z)

    def before(self) -> None:
        """At the first step, find the nearest network of Q weights; at the end of the epochs that pull to it, cut."""
        if self.settled:
            return
        if self.steps >= self.settles:
            self.keep(self.best(self.flat().abs(), self.nonzeros))
        elif self.steps == 0:
            self.z = self.project(self.flat())

    def after(self) -> None:
        """Once an epoch, move Z and then U."""
        if not self.settled and (self.steps + 1) % self.epoch_steps == 0:
            w = self.flat()
            self.z = self.project(w + self.u)
            self.u += w - self.z

    def project(self, v: Tensor) -> Tensor:
        """The nearest point to `v`, float32 [N], with at most Q entries that are not zero."""
        inside = self.best(v.abs(), self.nonzeros)
        self.inside.copy_(inside)
        return v * inside

    def penalise(self) -> None:
        """Add the gradient of rho / 2 |W - Z + U|^2."""
        if self.settled:
            return
        for p, pull in zip(self._layers, self.parts(self.u - self.z), strict=True):
            if p.grad is not None:
                p.grad.add_(p + pull.to(p.dtype), alpha=self.own["rho"])

    def method_state(self) -> dict[str, Tensor]:
        """As in `Rival`."""
        return super().method_state() | {"z": self.z, "u": self.u}

    def restore_method(self, state: dict[str, Tensor]) -> None:
        """As in `Rival`."""
        super().restore_method(state)
        self.z.copy_(state["z"])
        self.u.copy_(state["u"])
