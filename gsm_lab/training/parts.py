"""`Parts`: what a run consists of, and where it stands in its plan; what methods and placements are given."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab import data as datasets
from gsm_lab.checks import number, shown
from gsm_lab.knobs import Settings
from gsm_lab.metric import Metric
from gsm_lab.optim import GSM, budget
from gsm_lab.training.history import History
from gsm_lab.training.outputs import Output
from gsm_lab.turns import Turns

MOST_STEPS = 2**31 - 1  # that a history counts
RAMP_FROM = 4.0  # where a ramp of the compression begins
FLOOR = 0.01  # of the learning rate, where the cosine ends and stays: training past the planned end still trains
Loss = Callable[[Any, Tensor], Tensor]
Recorder = Callable[[int, np.ndarray, list[np.ndarray]], None]
_laid_out = attrgetter("shape", "dtype", "device", "requires_grad")


class Parts:
    """The base of a `Run`, which makes what is named here.

    Attributes:
        settings: in force. options: those of the method. data, batches, model, loss, output: what is trained, on what;
        metric: what it is measured by.
        tensors: the prunable tensors, in the order of the flat masks. opt: the optimizer. history: of this run.
        steps, dense_steps: gated and dense steps so far. base: the dense model's test accuracy, or what its metric
        says, None before the gate closed; magnitude: what it scored cut to Q. recorders: called after each gated step.
        lock: of all runs.
    """

    lock: Turns
    settings: Settings
    options: dict[str, Any]
    method: Any  # a `method.Method`, and a `placement.Single`: they are given all that is here
    placement: Any
    source_model: str | nn.Module
    source_data: str | datasets.Dataset
    data: datasets.Dataset
    batches: datasets.Batches
    model: nn.Module
    loss: Loss
    metric: Metric
    output: Output | None
    opt: GSM
    tensors: list[nn.Parameter]
    history: History
    recorders: list[Recorder]
    base: float | None
    magnitude: float | None
    steps: int
    dense_steps: int
    random_state: Tensor
    # what a run can do, and others may ask it to
    step: Callable[..., None]
    pretrain: Callable[..., int]
    one_step: Callable[[], contextlib.AbstractContextManager[None]]
    apply_settings: Callable[[], None]

    @property
    def knobs(self) -> dict[str, Any]:
        """Every setting in force, by name: a copy."""
        return dict(vars(self.settings))

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch."""
        return len(self.batches)

    @property
    def planned(self) -> int:
        """Gated steps the schedule is laid out for."""
        return self.settings.epochs * self.epoch_steps

    @property
    def nonzeros(self) -> int:
        """Q = N / compression: how many weights get their gradient once the gate has closed, and survive the cut."""
        return budget(self.opt.weights, compression=self.settings.compression)

    @property
    def dense_left(self) -> int:
        """Dense steps still to do before the gate closes."""
        return 0 if self.base is not None else self.settings.pretrain * self.epoch_steps - self.dense_steps

    @property
    def finished(self) -> bool:
        """Whether the schedule has run to its end (training can go on, at 1% of the learning rate)."""
        return self.settings.hold < 1 and self.steps >= self.planned

    @property
    def lr(self) -> float:
        """Learning rate of the next gated step: full for the share `hold` of the plan, then a cosine down to 1%."""
        held = self.settings.hold * self.planned
        if self.steps <= held or self.settings.hold >= 1:
            return self.settings.lr
        return self.settings.lr * cosine((self.steps - held) / (self.planned - held))

    @property
    def compression(self) -> float:
        """C of the next gated step: the setting, or by equal factors on the way there. (What is cut stays cut.)"""
        full, ramp = self.settings.compression, self.settings.ramp * self.planned
        if self.steps >= ramp or full <= RAMP_FROM:
            return full
        return RAMP_FROM * (full / RAMP_FROM) ** (self.steps / ramp)

    def reached(self, share: float) -> bool:
        """Whether the gated steps so far are that share of the plan; never where the share is 1."""
        return share < 1 and self.steps >= share * self.planned

    def steps_of(self, epochs: float) -> int:
        """How many steps so many epochs are. Raises TypeError, ValueError for what is none, or too many."""
        if not isinstance(epochs, str):
            epochs = number("epochs", epochs, 0)
        if isinstance(epochs, str) or epochs * self.epoch_steps > MOST_STEPS - self.steps:
            raise ValueError(
                f"epochs must be a finite number >= 0, of {MOST_STEPS:,} steps at most in all, got {shown(epochs)}"
            )
        return round(epochs * self.epoch_steps)

    # -- what methods need ------------------------------------------------------------------------------------------

    def flat(self, tensors: list[Tensor] | None = None) -> Tensor:
        """The prunable weights, or other tensors of their shapes, joined: float32 [N], a copy."""
        tensors = self.tensors if tensors is None else tensors
        return torch.cat([t.detach().float().reshape(-1) for t in tensors])

    def shaped(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor [N] as views in the shapes of the prunable tensors."""
        pieces = flat.split([p.numel() for p in self.tensors])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.tensors, strict=True)]


def cosine(share: float) -> float:
    """From 1 at 0 to `FLOOR` at 1, and `FLOOR` from there on."""
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


class Anatomy:
    """The modules and parameters of a model as they are when this is made; to ask for changes costs little."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.look()

    def look(self) -> None:
        """From now on, what is there now is as it should be."""
        self._places = [place for m in self.model.modules() for place in (m._modules, m._parameters)]
        self._parts = [part for place in self._places for part in place.values()]  # held: an id may come back else
        self._ids = [*map(id, self._parts)]
        self._named = dict(self.model.named_parameters())
        self._first = next(iter(self._named.values()))
        self._kind = self._first.dtype, self._first.device

    def exchanged(self) -> dict[nn.Parameter, nn.Parameter] | None:
        """None where nothing has changed; else parameters that were exchanged: old -> the one that is there now.

        Raises RuntimeError, naming it, for one that does not fit in the place of the one that was there.
        """
        if [*map(id, chain.from_iterable(map(dict.values, self._places)))] != self._ids:
            return self._compared()
        if (self._first.dtype, self._first.device) != self._kind:
            dtype, device = self._kind
            raise RuntimeError(
                f"run.model was moved to {self._first.dtype} on {self._first.device} after the run was made, on "
                f"{dtype} on {device}: move it before that, or move it back"
            )
        return None

    def _compared(self) -> dict[nn.Parameter, nn.Parameter]:
        now = dict(self.model.named_parameters())
        if {id(p) for p in now.values()} == {id(p) for p in self._named.values()}:
            return {}  # a module was put around others, or a parameter has another name
        for name in {**self._named, **now}:
            before, after = self._named.get(name), now.get(name)
            if before is None or after is None or _laid_out(before) != _laid_out(after):
                raise RuntimeError(
                    f"{name!r} of run.model was {_described(before)} when the run was made, and is "
                    f"{_described(after)}: optimizer and history cannot go on with that; make a new Run"
                )
        return {p: now[name] for name, p in self._named.items() if now[name] is not p}


def _described(p: nn.Parameter | None) -> str:
    if p is None:
        return "not there"
    frozen = "" if p.requires_grad else ", requires_grad=False"
    return f"{list(p.shape)} of {p.dtype} on {p.device}{frozen}"
