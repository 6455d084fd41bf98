"""Dynamic network surgery (Guo, Yao and Chen, NeurIPS 2016).

The loss is that of W o T with T binary, and its gradient with respect to W o T moves all of W (their equation 2), so
that a weight taken out wrongly can grow and be spliced in again. T follows |w| with hysteresis (equation 3):

    T <- 0 where |w| < a;   as it is where a <= |w| < b;   1 where b <= |w|

with a and b some 10% below and above mean + c * standard deviation of the layer's |w|. T is updated with a probability
that falls with the steps, (1 + gamma * step)^-1, and in the end no more. The paper sets c by hand, layer by layer. Here
Q weights have to be left at or above mean + c * standard deviation, so that the budget is the same as that of the other
methods: by one c for all layers, or by such c that all layers share one threshold of |w|. One c leaves a small layer
hardly a weight: of the first one of LeNet-5 3 of 500 at 108x, where the paper keeps 14%.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import OF_THE_GATE, UNTIL, Shadowed
from gsm_lab.optim.selection import budget
from gsm_lab.training.parts import Parts


class DNS(Shadowed):
    """Pruning and splicing at any step, until the network is settled at Q weights and only these are trained."""

    name = "dns"
    ignores = tuple(name for name in OF_THE_GATE if name != "ramp")
    recipes: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {
        ("mnist", "lenet300"): {"lr": 0.05},
        ("mnist", "lenet5"): {"lr": 0.01, "thresholds": "size"},  # at 0.05 splicing shakes it, a point lower in the end
    }
    options = (
        Knob("margin", 0.1, "of both thresholds: between them a weight stays where it is", False, most=0.9),
        Knob(
            "thresholds", "deviations", "what layers share: c, mean + c deviations of |w|, or the threshold's size",
            False, scale="choice", choices=("deviations", "size"), later=True,
        ),
        Knob("gamma", 1e-5, "the probability of surgery is 1 / (1 + gamma * step)", False, most=1),
        UNTIL,
    )  # fmt: skip

    def after_step(self, run: Parts) -> None:
        """Perhaps prune and splice; when the time has come, settle."""
        if self.settled:
            return
        if run.steps + 1 >= self.settles(run):
            missing = run.nonzeros - int(self.inside.sum())
            if missing > 0:  # hysteresis leaves about Q, not Q: the largest |w| outside are spliced in
                self.inside |= self.best(run, run.flat(self.shadow).abs() * ~self.inside, missing)
            self.settle(run)
        elif torch.rand(()) < 1 / (1 + run.options["gamma"] * run.steps):
            self.operate(run, budget(run.opt.weights, compression=run.compression))

    def operate(self, run: Parts, q: int) -> None:
        """Bring T up to date with the shadow's |w|: equation 3, with about `q` weights inside."""
        sizes = [w.abs().float() for w in self.shadow]
        means, spreads = [0.0] * len(sizes), [1.0] * len(sizes)
        if run.options["thresholds"] == "deviations":
            means = [size.mean() for size in sizes]
            spreads = [size.std(correction=0).clamp_min(1e-30) for size in sizes]
        layers = list(zip(sizes, means, spreads, self.masks, strict=True))
        score = run.flat([(size - mean) / spread for size, mean, spread, _ in layers])
        place = len(score) - q  # of the q-th largest; torch.topk takes eight times as long for it
        c = torch.as_tensor(np.partition(score.cpu().numpy(), place)[place]).to(score)
        margin = run.options["margin"]
        for size, mean, spread, mask in layers:
            middle = (mean + c * spread).clamp_min(0.0)
            mask.copy_((size >= (1 + margin) * middle) | (mask & (size >= (1 - margin) * middle)))
        self.lowest = float(c)
