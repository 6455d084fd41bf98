"""Weights taken out at random: the floor that every method has to stand above."""

from __future__ import annotations

import torch

from gsm_lab.methods.base import Rival

_STREAM = 0x5EED  # apart from what else is drawn from the seed


class Random(Rival):
    """Q weights drawn from all with equal chances when the dense epochs are over; the rest is taken out at once."""

    method = "random"

    def before(self) -> None:
        """At the first step, draw."""
        if self.steps == 0:
            drawn = torch.Generator().manual_seed(self.knobs["seed"] ^ _STREAM)
            order = torch.randperm(self.opt.weights, generator=drawn)
            inside = torch.zeros(self.opt.weights, dtype=torch.bool)
            inside[order[: self.nonzeros]] = True
            self.keep(inside.to(self.inside.device))
