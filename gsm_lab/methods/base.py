"""`Rival`: a `Run` in which another method than GSM decides which weights stay; one subclass a paper.

All of them begin as a `Run` does, with the same dense epochs from the same seed, and end with the same budget of
Q = N / C weights that are not zero. What they do between is said in three hooks, called at every gated step:

    before()      the method may settle who is in the network: `keep`
    penalise()    gradients are there, and may be changed
    after()       SGD has moved the weights, which may be changed once more

"Active" in the history are the weights inside the network, and the threshold is the smallest score that stayed inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import data as datasets
from gsm_lab.knobs import KNOBS, Knob, recipe_of
from gsm_lab.optim.picks import Picks
from gsm_lab.optim.prunable import clear, keep_masks, warn_of_empty
from gsm_lab.optim.selection import chosen, top_q
from gsm_lab.training.outputs import Output
from gsm_lab.training.run import Run

# Options that several methods have.
UNTIL = Knob("until", 0.6, "share of the run after which who is in the network is settled", False, most=1)
OF_THE_GATE = ("smoothing", "ramp", "freeze", "cut_at")  # knobs that say something about GSM's gate, and nothing here
ROUNDS = Knob(
    "rounds", 15, "in how many rounds, by equal factors, weights are taken out", False, least=1, high=50, most=1000
)

# What is left of a network is trained like a network: with the decay of the dense epochs, not with GSM's.
RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "lenet300"): {"lr": 0.05, "weight_decay": 5e-4, "epochs": 60},
    ("mnist", "lenet300"): {"lr": 0.1, "weight_decay": 5e-4, "epochs": 30},
    ("mnist", "lenet5"): {"lr": 0.05, "weight_decay": 5e-4, "epochs": 12},
}


class Rival(Run):
    """The base of the rivals: arguments, attributes and errors are those of `Run`, and the options of the method.

    Attributes:
        method: its name, as in `gsm_lab.methods.METHODS`. options: what can be set beside the knobs of a run.
        recipes: settings that work, by (data, model), knobs and options, where they differ from `RECIPES`.
        means_nothing: knobs that a run of this method refuses, since nothing would come of them.
        own: the options in force.
        inside: which weights are in the network, bool [N], in the order of `opt.active_mask()`.
    """

    method: ClassVar[str] = ""
    options: ClassVar[tuple[Knob, ...]] = ()
    recipes: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {}
    means_nothing: ClassVar[tuple[str, ...]] = OF_THE_GATE

    def __init__(
        self,
        model: str | nn.Module = "lenet300",
        data: str | datasets.Dataset = "digits",
        *,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        output: Output | None = None,
        include: Picks = None,
        exclude: Picks = None,
        **settings: Any,
    ) -> None:
        self._given_options = self._split_off_options(settings)
        super().__init__(model, data, loss=loss, output=output, include=include, exclude=exclude, **settings)

    def _split_off_options(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Take the options of the method out of `settings`, checked. Raises ValueError for what means nothing here."""
        mine = {knob.name: knob for knob in self.options}
        for name in settings.keys() - KNOBS.keys() - mine.keys():
            raise ValueError(
                f"{self.method} has no setting {name!r}: its options are {', '.join(mine) or 'none'}, "
                f"the knobs {', '.join(KNOBS)}"
            )
        self._refuse_what_means_nothing(settings)
        return {name: mine[name].check(settings.pop(name)) for name in list(settings) if name in mine}

    def _refuse_what_means_nothing(self, settings: dict[str, Any]) -> None:
        for name in self.means_nothing:
            if name in settings and KNOBS[name].check(settings[name]) != KNOBS[name].default:
                raise ValueError(
                    f"{name} must be {KNOBS[name].default:g} for {self.method}, got {settings[name]!r}: it is an "
                    "option of GSM's gate"
                )

    def set(self, **knobs: Any) -> None:
        """As `Run.set`. Raises ValueError for an option of GSM's gate, too."""
        self._refuse_what_means_nothing(knobs)
        super().set(**knobs)

    def reset(self, **settings: Any) -> None:
        """As `Run.reset`; options of the method may change, too."""
        before = self._given_options
        self._given_options = before | self._split_off_options(settings)
        try:
            super().reset(**settings)
        except BaseException:
            self._given_options = before
            raise

    def _start(self, source_model: str | nn.Module, source_data: str | datasets.Dataset, given: dict[str, Any]) -> None:
        super()._start(source_model, source_data, given)
        self.draws = True  # a method may
        self.own = self._resolved_options
        sizes = [p.numel() for p in self._layers]
        self.inside = torch.ones(sum(sizes), dtype=torch.bool, device=self._layers[0].device)
        self._masks = [m.view(p.shape) for m, p in zip(self.inside.split(sizes), self._layers, strict=True)]
        self.settled = False  # whether only those inside are trained
        self.lowest = 0.0  # the smallest score that stayed inside
        self.begin()

    def _resolved(self, given: dict[str, Any], data: str, model: str) -> dict[str, Any]:
        key = recipe_of(data, model)
        recipe = RECIPES.get(key, {}) | self.recipes.get(key, {})
        names = {knob.name for knob in self.options}
        defaults = {knob.name: knob.default for knob in self.options}
        self._resolved_options = defaults | {k: v for k, v in recipe.items() if k in names} | self._given_options
        return super()._resolved({k: v for k, v in recipe.items() if k not in names} | given, data, model)

    # -- what a method says ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The run stands at step 0, with `inside` all True."""

    def before(self) -> None:
        """A gated step is about to begin: `steps` are done."""

    def penalise(self) -> None:
        """The gradients of the batch are there."""

    def after(self) -> None:
        """SGD has moved the weights; `steps` does not count the step yet."""

    # -- what a method needs -----------------------------------------------------------------------------------------

    @property
    def settles(self) -> int:
        """The gated steps after which who is in the network is settled."""
        return round(self.own["until"] * self.planned)

    def flat(self, tensors: list[Tensor] | None = None) -> Tensor:
        """The weights, or other tensors of their shapes, joined: float32 [N], a copy."""
        tensors = self._layers if tensors is None else tensors
        return torch.cat([t.detach().float().reshape(-1) for t in tensors])

    def parts(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor [N] as views in the shapes of the layers."""
        pieces = flat.split([p.numel() for p in self._layers])
        return [piece.view(p.shape) for piece, p in zip(pieces, self._layers, strict=True)]

    def best(self, score: Tensor, q: int) -> Tensor:
        """The `q` weights of the greatest positive score: bool [N]; of equals the first in the model's order.

        Raises FloatingPointError when a score is NaN or infinite.
        """
        if not torch.isfinite(score).all():
            raise FloatingPointError(f"a score of {self.method} is not finite after {self.steps:,} steps")
        values = score.detach().float().cpu().numpy()
        top = top_q(values, q)
        self.lowest = float(top.threshold)
        return torch.from_numpy(chosen(values, top)).to(score.device)

    @torch.no_grad()
    def keep(self, inside: Tensor) -> None:
        """From now on only these weights, bool [N], are in the network; the others become zeros, and stay so."""
        left = {name: int(mask.sum()) for name, mask in zip(self.history.layers, self.parts(inside), strict=True)}
        warn_of_empty(self.method, left)
        self.inside.copy_(inside)
        self.settled = True
        clear(self._layers, self._masks, self.opt)

    def cut(self) -> int:
        """As `Run.cut`; who is in the network is settled by it, so that further steps train what is left."""
        with self.lock:
            masks = keep_masks(self.model, nonzeros=self.nonzeros, optimizer=self.opt)
            self.keep(torch.cat([mask.reshape(-1) for mask in masks.values()]))
            return int(self.inside.sum())

    def round_due(self) -> int | None:
        """How many weights are to stay, if there are more and one of the `rounds` is due; the last one leaves Q.

        A round that was passed over, because knobs moved, is due at once.
        """
        rounds, n = self.own["rounds"], self.opt.weights
        begun = sum(round(r / rounds * self.settles) <= self.steps for r in range(rounds))
        q = max(self.nonzeros, round(n * (self.nonzeros / n) ** (begun / rounds)))
        return q if q < int(self.inside.sum()) else None

    # -- a step ------------------------------------------------------------------------------------------------------

    def _schedule_gate(self) -> None:
        self.before()

    def _update(self) -> None:
        with torch.no_grad():
            self.penalise()
            if self.settled:
                for p, mask in zip(self._layers, self._masks, strict=True):
                    if p.grad is not None:
                        p.grad.mul_(mask)
        self.opt.step()
        with torch.no_grad():
            self.after()

    def _gate(self) -> tuple[np.ndarray, float]:
        return self.inside.cpu().numpy().copy(), self.lowest

    def apply_knobs(self) -> None:
        """Hand the knobs to the optimizer, whose own gate stays open."""
        super().apply_knobs()
        self.opt.compression, self.opt.smoothing = 1.0, 0.0

    def _take_in(self, new: dict[nn.Parameter, nn.Parameter]) -> None:
        raise RuntimeError(
            f"{len(new)} parameters of run.model were exchanged: {self.method} goes on only with those it began with"
        )

    # -- keeping it --------------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Tensor]:
        """What the method remembers, by name; a subclass adds its own."""
        return {"inside": self.inside, "settled": torch.tensor([float(self.settled), self.lowest])}

    def restore_method(self, state: dict[str, Tensor]) -> None:
        """Continue from a `method_state()`."""
        self.inside.copy_(state["inside"])
        self.settled, self.lowest = bool(state["settled"][0]), float(state["settled"][1])

    def __repr__(self) -> str:
        return f"{self.method}: {super().__repr__()}"


class Shadowed(Rival):
    """A rival that also trains weights outside the network: their values live in `shadow`, the model holds zeros there.

    The loss is that of the network, and its gradient with respect to all places of the network, zeros among them, moves
    the shadow: a weight outside can grow, and come back.
    """

    def begin(self) -> None:
        """As in `Rival`."""
        self.shadow = [p.detach().clone() for p in self._layers]

    def _close_gate(self) -> None:
        super()._close_gate()
        self.shadow = [p.detach().clone() for p in self._layers]  # what the dense epochs made of them

    def settle(self) -> None:
        """Keep the Q largest |w| of those inside, for good."""
        size = self.flat(self.shadow).abs() * self.inside
        for p, w in zip(self._layers, self.shadow, strict=True):
            p.copy_(w)
        self.keep(self.best(size, self.nonzeros))

    def _update(self) -> None:
        if self.settled:
            super()._update()
            return
        with torch.no_grad():
            self.penalise()
            for p, w in zip(self._layers, self.shadow, strict=True):
                p.copy_(w)
        try:
            self.opt.step()
            with torch.no_grad():
                for p, w in zip(self._layers, self.shadow, strict=True):
                    w.copy_(p)
                self.after()
        finally:  # also after a step that was refused
            with torch.no_grad():
                for p, mask in zip(self._layers, self._masks, strict=True):
                    p.masked_fill_(~mask, 0.0)

    def method_state(self) -> dict[str, Tensor]:
        """As in `Rival`."""
        return super().method_state() | {f"shadow/{i}": w for i, w in enumerate(self.shadow)}

    def restore_method(self, state: dict[str, Tensor]) -> None:
        """As in `Rival`."""
        super().restore_method(state)
        for i, w in enumerate(self.shadow):
            w.copy_(state[f"shadow/{i}"])
