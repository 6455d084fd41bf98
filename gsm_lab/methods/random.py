"""Weights taken out at random: the floor that every method has to stand above."""

from __future__ import annotations

import torch

from gsm_lab.methods.base import Rival
from gsm_lab.training.parts import Parts

_STREAM = 0x5EED  # apart from what else is drawn from the seed


class Random(Rival):
    """Q weights drawn from all with equal chances when the dense epochs are over; the rest is taken out at once."""

    name = "random"

    def before_step(self, run: Parts) -> None:
        """At the first step, draw."""
        if run.steps == 0:
            drawn = torch.Generator().manual_seed(run.settings.seed ^ _STREAM)
            order = torch.randperm(run.opt.weights, generator=drawn)
            inside = torch.zeros(run.opt.weights, dtype=torch.bool)
            inside[order[: run.nonzeros]] = True
            self.keep(run, inside.to(self.inside.device))
