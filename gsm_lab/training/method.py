"""`Method`: what decides which weights of a run stay; and its plain form, GSM.

A method is handed to a run, `Run(method=...)`, and asked at every gated step, in this order:

    before_step(run)    the step is about to begin; who is in the network may be settled
    penalty(run)        the gradients of the batch are there, and may be changed
    update(run)         the optimizer changes the weights
    after_step(run)     the weights have moved, and may be changed once more; `run.steps` does not count the step yet
    active(run)         who took part in the step, for the history
    recorded(run)       the step is in the history; weights may be taken out for good

A method holds what it remembers of one run, and belongs to that run alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.knobs import Knob
from gsm_lab.optim import budget, cut, keep_masks
from gsm_lab.optim.groups import clear, flat_mask
from gsm_lab.optim.ranks.group import is_distributed
from gsm_lab.training.parts import Parts

_CUT_AGAIN = 0.99  # of the weights, on a ramp: to cut at every step would cost as much as the step


class Method:
    """The base of all methods: a training in which every weight takes part.

    Attributes:
        name: what it is called in a checkpoint, and in `gsm_lab.methods.METHODS`. room: what the names of its tensors
            begin with there.
        options: what can be set beside the settings of a run, given to `Run` like these.
        recipes: settings and options that work, by (data, model), where they differ from the defaults.
        ignores: settings that the method takes no notice of, and that a run with it refuses.
        shards: whether it can do with a part of each tensor on every rank (FSDP2).
        draws: whether it draws random numbers: then its steps draw from the run's own stream.
        taken: whether a run has it, which it then belongs to alone.
        finetunes: whether what is left is trained as a dense network is, with the weight decay of the dense epochs.
    """

    name: ClassVar[str] = ""
    room: ClassVar[str] = "method"
    options: ClassVar[tuple[Knob, ...]] = ()
    recipes: ClassVar[Mapping[tuple[str, str], Mapping[str, Any]]] = {}
    ignores: ClassVar[tuple[str, ...]] = ()
    shards: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    taken = False
    finetunes: bool = False

    def recipe(self, key: tuple[str, str]) -> dict[str, Any]:
        """Settings and options that work for this (data, model), where they differ from the defaults."""
        return dict(self.recipes.get(key, {}))

    def start(self, run: Parts) -> None:
        """The run stands at step 0, for the first time or after a reset."""

    def gate_closes(self, run: Parts) -> None:
        """The dense epochs are over."""

    def set_gate(self, run: Parts, dense: bool) -> None:
        """Settings moved: hand the optimizer what concerns its gate. `dense`: the dense epochs are not over yet."""
        run.opt.compression, run.opt.smoothing = 1.0, 0.0

    def before_step(self, run: Parts) -> None:
        """A gated step is about to begin: `run.steps` are done."""

    def penalty(self, run: Parts) -> None:
        """The gradients of the batch are there."""

    def update(self, run: Parts) -> None:
        """Have the optimizer change the weights."""
        run.opt.step()

    def after_step(self, run: Parts) -> None:
        """The optimizer has moved the weights; `run.steps` does not count the step yet."""

    def active(self, run: Parts) -> tuple[np.ndarray, float]:
        """Who was active in the last step, bool [N], the caller's own, and the threshold that decided it."""
        return run.opt.active_mask().numpy(), run.opt.threshold

    def recorded(self, run: Parts) -> None:
        """The step is counted, and in the history."""

    def move(self, run: Parts) -> None:
        """Change the weights, given their gradients. Called at every gated step."""
        with torch.no_grad():
            self.penalty(run)
        self.update(run)
        with torch.no_grad():
            self.after_step(run)

    def cut(self, run: Parts) -> int:
        """Set all weights outside the Q of largest magnitude to exact zero; returns how many stay."""
        return cut(run.model, nonzeros=run.nonzeros, optimizer=run.opt)

    def exchanged(self, run: Parts, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Somebody has put other parameters in the place of some. Raises RuntimeError where that cannot be."""

    def state(self, run: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the method remembers beside all that a run does: tensors by name, and plain values (JSON)."""
        return {}, {}

    def restore(self, run: Parts, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from a `state()`; settings are not in force yet. Raises ValueError where that cannot be."""


class GSMMethod(Method):
    """GSM: the optimizer's gate decides at each step, and the Q weights of largest magnitude survive the cut.

    Attributes:
        frozen: whether the active set is held, by the setting `freeze` or since the network was cut on its way.
        was_cut: whether the setting `cut_at` has cut the network.
        kept: to how many weights it was cut.
    """

    name, room = "gsm", "gate"
    shards = True

    def start(self, run: Parts) -> None:
        """Nothing is frozen, nothing is cut."""
        self.frozen = self.was_cut = False
        self.kept = 0

    @property
    def finetunes(self) -> bool:
        """Whether the network was cut on its way."""
        return self.was_cut

    def set_gate(self, run: Parts, dense: bool) -> None:
        """C and the smoothing in force; the gate is open while the dense epochs last."""
        run.opt.compression = 1.0 if dense else run.compression
        if self.was_cut:  # nothing comes back, also where C is lowered
            run.opt.nonzeros = self._stays(run)
        run.opt.smoothing = 0.0 if dense else run.settings.smoothing

    def before_step(self, run: Parts) -> None:
        """Put the ramp's C in force; freeze the active set, or let it go, where the settings say so."""
        if run.settings.ramp and not self.was_cut:
            run.opt.compression = run.compression
        frozen = self.was_cut or run.reached(run.settings.freeze)
        if frozen != self.frozen:
            run.opt.candidates = _largest(run, run.nonzeros)[1] if frozen else None
            self.frozen = frozen

    @torch.no_grad()
    def recorded(self, run: Parts) -> None:
        """Where the setting `cut_at` says so, cut the network to the C in force, and stop and hold what was cut.

        The network is cut again where C has risen since: on a ramp that goes on, whenever another percent has to go.
        Where the active set is to be frozen, it is cut to the full C. This happens at the end of a step: so nothing has
        changed where the step was refused, by whatever rank.
        """
        if not self.was_cut and not run.reached(run.settings.cut_at):
            return
        q = self._stays(run)
        if self.was_cut and q == self.kept:
            return
        masks, run.opt.candidates = _largest(run, q)
        clear(run.tensors, masks, run.opt)
        self.was_cut = self.frozen = True
        self.kept = int(run.opt.candidates.sum())
        run.apply_settings()

    def _stays(self, run: Parts) -> int:
        """How many weights a cut leaves, and one that was made before: fewer as soon as another percent has to go."""
        frozen = run.reached(run.settings.freeze)
        q = run.nonzeros if frozen else budget(run.opt.weights, compression=run.compression)
        if not self.was_cut:
            return q
        return q if q < self.kept and q <= max(run.nonzeros, _CUT_AGAIN * self.kept) else self.kept

    def exchanged(self, run: Parts, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """The optimizer goes on with the new ones, their momentum zero, as that of a new run is when it begins."""
        candidates = run.opt.candidates
        for group in run.opt.param_groups:
            group["params"] = [new.get(p, p) for p in group["params"]]
        for before, after in new.items():  # fused SGD takes no buffers of which some are missing
            if run.opt.state.pop(before, {}).get("momentum_buffer") is not None:
                run.opt.state[after]["momentum_buffer"] = torch.zeros_like(after)
        run.opt._start_fresh()
        run.opt.candidates = candidates

    def state(self, run: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The active set, where it is frozen, and whether the network was cut on its way."""
        return ({"candidates": run.opt.candidates} if self.frozen else {}), {"shorn": self.was_cut}

    def restore(self, run: Parts, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from a `state()`. Raises ValueError for a frozen set where weights are spread over ranks."""
        if "candidates" not in tensors:
            return
        if any(map(is_distributed, run.tensors)):
            raise ValueError(
                "its active set is frozen, or was cut on its way, and goes on only where no weights are spread over "
                "ranks: in one process, or with DDP"
            )
        run.opt.candidates, self.frozen = tensors["candidates"], True
        self.was_cut = plain.get("shorn", False)  # absent where no run could be cut on its way
        self.kept = int(run.opt.candidates.sum())


def _largest(run: Parts, q: int) -> tuple[list[Tensor], Tensor]:
    """Which weights are the q of largest magnitude: a mask a tensor, and all of them as bool [N] on the CPU."""
    masks = list(keep_masks(run.model, nonzeros=q, optimizer=run.opt).values())
    return masks, flat_mask(masks)
