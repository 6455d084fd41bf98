"""Training under an L1 penalty, then a cut and retraining (Collins and Kohli 2014, section 3; Tibshirani 1996).

The penalty strength * sum |w| is applied as its proximal step, the soft threshold w <- sign(w) max(|w| - t, 0), which
makes exact zeros. SGD with momentum moves a weight by lr / (1 - momentum) times a steady gradient in the long run, and
so does t = strength * lr / (1 - momentum): where training comes to rest, |gradient| = strength, as the penalty has it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import RECIPES, UNTIL, Rival
from gsm_lab.training.parts import Parts


class L1(Rival):
    """An L1 penalty on the weights until they are cut to the Q largest, which are then retrained without it."""

    name = "l1"
    recipes: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {
        key: {"weight_decay": 0.0} for key in RECIPES
    }  # one penalty is enough
    options = (Knob("strength", 1e-4, "of the penalty, in units of the loss per unit of |w|", False, most=100), UNTIL)

    def before_step(self, run: Parts) -> None:
        """When the time has come, cut."""
        if not self.settled and run.steps >= self.settles(run):
            self.keep(run, self.best(run, run.flat().abs(), run.nonzeros))

    def after_step(self, run: Parts) -> None:
        """The proximal step."""
        if self.settled:
            return
        group = run.opt.param_groups[0]
        t = run.options["strength"] * group["lr"] / (1 - group["momentum"])
        for p, mask in zip(run.tensors, self.masks, strict=True):
            p.copy_(p.sign() * (p.abs() - t).clamp_min(0.0))
            mask.copy_(p != 0)
