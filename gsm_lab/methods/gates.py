"""Sparse networks trained with gate variables (Srinivas, Subramanya and Babu, CVPR workshops 2017).

Each weight has a gate g in 0..1, and the network uses w * [g >= 1/2]. Their equation 3 adds two penalties to the loss,

    bimodal * sum g (1 - g)  +  sparsity * sum g

the first makes gates decide, the second shuts them. Gradients pass the step function as if it were the identity
(straight through): dL/dg = dL/d(weight used) * w, and g is clipped to 0..1 after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import UNTIL, Shadowed
from gsm_lab.training.parts import Parts


class Gates(Shadowed):
    """A learnt gate a weight, until the Q largest weights with open gates are settled on and retrained."""

    name = "gates"
    options = (
        Knob("sparsity", 1e-5, "pull of every gate towards shut", False, most=1),
        Knob("bimodal", 2e-6, "push of every gate away from 1/2", False, most=1),
        Knob("gate_lr", 10.0, "learning rate of the gates", False, most=1e6),
        UNTIL,
    )

    def start(self, run: Parts) -> None:
        """All gates are open."""
        super().start(run)
        self.gates = [torch.ones_like(w, dtype=torch.float32) for w in self.shadow]

    def penalty(self, run: Parts) -> None:
        """Take the gates' slopes, and give each weight the gradient that its gate lets through."""
        if self.settled:
            return
        toward, away = run.options["sparsity"], run.options["bimodal"]
        self.slopes = []
        for p, w, gate, mask in zip(run.tensors, self.shadow, self.gates, self.masks, strict=True):
            if p.grad is None:
                self.slopes.append(torch.zeros_like(gate))
                continue
            self.slopes.append(p.grad.float() * w.float() + away * (1 - 2 * gate) + toward)
            p.grad.mul_(mask)

    def after_step(self, run: Parts) -> None:
        """The gates move, and the network has the weights with open ones; when the time has come, settle."""
        if self.settled:
            return
        for gate, slope, mask in zip(self.gates, self.slopes, self.masks, strict=True):
            gate.sub_(slope, alpha=run.options["gate_lr"]).clamp_(0.0, 1.0)
            mask.copy_(gate >= 0.5)
        if run.steps + 1 >= self.settles(run):
            self.settle(run)

    def memory(self) -> dict[str, Tensor]:
        """As in `Shadowed`."""
        return super().memory() | {f"gate/{i}": gate for i, gate in enumerate(self.gates)}
