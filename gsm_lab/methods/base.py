"""`Rival`: a method other than GSM that decides which weights stay; one subclass a paper.

All of them begin as GSM does, with the same dense epochs from the same seed, and end with the same budget of Q = N / C
weights that are not zero. What they do between is said in three hooks, called at every gated step:

    before_step(run)    the method may settle who is in the network: `keep`
    penalty(run)        gradients are there, and may be changed
    after_step(run)     SGD has moved the weights, which may be changed once more

"Active" in the history are the weights inside the network, and the threshold is the smallest score that stayed inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.knobs import KNOBS, Knob
from gsm_lab.optim import keep_masks
from gsm_lab.optim.groups import clear, flat_mask, warn_of_empty
from gsm_lab.optim.selection import chosen, top_q
from gsm_lab.training.method import Method
from gsm_lab.training.parts import Parts

# Options that several methods have.
UNTIL = Knob("until", 0.6, "share of the run after which who is in the network is settled", False, most=1)
ROUNDS = Knob(
    "rounds", 15, "in how many rounds, by equal factors, weights are taken out", False, least=1, high=50, most=1000
)
OF_THE_GATE = tuple(name for name, knob in KNOBS.items() if knob.gate)

# What is left of a network is trained like a network: with the decay of the dense epochs, not with GSM's.
RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "lenet300"): {"lr": 0.05, "weight_decay": 5e-4, "epochs": 60},
    ("mnist", "lenet300"): {"lr": 0.1, "weight_decay": 5e-4, "epochs": 30},
    ("mnist", "lenet5"): {"lr": 0.05, "weight_decay": 5e-4, "epochs": 12},
}


class Rival(Method):
    """The base of the rivals.

    Attributes:
        recipes: settings and options that work, by (data, model), where they differ from `RECIPES`.
        inside: which weights are in the network, bool [N], in the order of `run.opt.active_mask()`; masks: the same as
            views in the shapes of the prunable tensors.
        settled: whether only those inside are trained.
        lowest: the smallest score that stayed inside.
    """

    ignores = OF_THE_GATE
    draws = True  # a method may

    def recipe(self, key: tuple[str, str]) -> dict[str, Any]:
        """As in `Method`: its own before those of all rivals."""
        return RECIPES.get(key, {}) | super().recipe(key)

    def start(self, run: Parts) -> None:
        """All weights are in the network."""
        self.inside = torch.ones(run.opt.weights, dtype=torch.bool, device=run.tensors[0].device)
        self.masks = run.shaped(self.inside)
        self.settled = False
        self.lowest = 0.0

    # -- what a method needs -----------------------------------------------------------------------------------------

    def settles(self, run: Parts) -> int:
        """The gated steps after which who is in the network is settled."""
        return round(run.options["until"] * run.planned)

    def best(self, run: Parts, score: Tensor, q: int) -> Tensor:
        """The `q` weights of the greatest positive score: bool [N]; of equals the first in the model's order.

        Raises FloatingPointError when a score is NaN or infinite.
        """
        if not torch.isfinite(score).all():
            raise FloatingPointError(f"a score of {self.name} is not finite after {run.steps:,} steps")
        values = score.detach().float().cpu().numpy()
        top = top_q(values, q)
        self.lowest = float(top.threshold)
        return torch.from_numpy(chosen(values, top)).to(score.device)

    @torch.no_grad()
    def keep(self, run: Parts, inside: Tensor) -> None:
        """From now on only these weights, bool [N], are in the network; the others become zeros, and stay so."""
        left = {name: int(mask.sum()) for name, mask in zip(run.history.layers, run.shaped(inside), strict=True)}
        warn_of_empty(self.name, left)
        self.inside.copy_(inside)
        self.settled = True
        clear(run.tensors, self.masks, run.opt)

    def cut(self, run: Parts) -> int:
        """As `Run.cut`; who is in the network is settled by it, so that further steps train what is left."""
        masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt)
        self.keep(run, flat_mask(masks.values()))
        return int(self.inside.sum())

    def round_due(self, run: Parts) -> int | None:
        """How many weights are to stay, if there are more and one of the `rounds` is due; the last one leaves Q.

        A round that was passed over, because settings moved, is due at once.
        """
        rounds, n = run.options["rounds"], run.opt.weights
        begun = sum(round(r / rounds * self.settles(run)) <= run.steps for r in range(rounds))
        q = max(run.nonzeros, round(n * (run.nonzeros / n) ** (begun / rounds)))
        return q if q < int(self.inside.sum()) else None

    # -- a step ------------------------------------------------------------------------------------------------------

    def update(self, run: Parts) -> None:
        """SGD, of those inside alone once they are settled."""
        if self.settled:
            with torch.no_grad():
                for p, mask in zip(run.tensors, self.masks, strict=True):
                    if p.grad is not None:
                        p.grad.mul_(mask)
        run.opt.step()

    def active(self, run: Parts) -> tuple[np.ndarray, float]:
        """Who is in the network, and the smallest score that stayed inside."""
        return self.inside.cpu().numpy().copy(), self.lowest

    def exchanged(self, run: Parts, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Raises RuntimeError: what the method remembers belongs to the parameters that it began with."""
        raise RuntimeError(
            f"{len(new)} parameters of run.model were exchanged: {self.name} goes on only with those it began with"
        )

    # -- keeping it --------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Tensor]:
        """The tensors that the method remembers, by name; `restore` writes to them."""
        return {"inside": self.inside}

    def state(self, run: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the method remembers, by name."""
        return self.memory() | {"settled": torch.tensor([float(self.settled), self.lowest])}, {}

    def restore(self, run: Parts, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from a `state()`."""
        for name, own in self.memory().items():
            own.copy_(tensors[name])
        self.settled, self.lowest = bool(tensors["settled"][0]), float(tensors["settled"][1])


class Shadowed(Rival):
    """A rival that also trains weights outside the network: their values live in `shadow`, the model holds zeros there.

    The loss is that of the network, and its gradient with respect to all places of the network, zeros among them, moves
    the shadow: a weight outside can grow, and come back.
    """

    def start(self, run: Parts) -> None:
        """As in `Rival`; the shadow is the model."""
        super().start(run)
        self.shadow = [p.detach().clone() for p in run.tensors]

    def gate_closes(self, run: Parts) -> None:
        """The shadow is what the dense epochs made of the model."""
        self.shadow = [p.detach().clone() for p in run.tensors]

    def settle(self, run: Parts) -> None:
        """Keep the Q largest |w| of those inside, for good."""
        size = run.flat(self.shadow).abs() * self.inside
        torch._foreach_copy_(run.tensors, self.shadow)
        self.keep(run, self.best(run, size, run.nonzeros))

    def move(self, run: Parts) -> None:
        """As in `Method`, of the shadow until the network is settled."""
        if self.settled:
            super().move(run)
            return
        with torch.no_grad():
            self.penalty(run)
            torch._foreach_copy_(run.tensors, self.shadow)
        try:
            run.opt.step()
            with torch.no_grad():
                torch._foreach_copy_(self.shadow, run.tensors)
                self.after_step(run)
        finally:  # also after a step that was refused
            with torch.no_grad():
                for p, mask in zip(run.tensors, self.masks, strict=True):
                    p.masked_fill_(~mask, 0.0)

    def memory(self) -> dict[str, Tensor]:
        """As in `Rival`, with the shadow."""
        return super().memory() | {f"shadow/{i}": w for i, w in enumerate(self.shadow)}
