"""`Run`: a model, its batches, the optimizer and a history. All training happens here; a step is in `training`."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import data as datasets
from gsm_lab import knobs as settings
from gsm_lab import models
from gsm_lab.checks import flag, number, path, shown
from gsm_lab.optim import GSM, cut, keep_masks, param_groups
from gsm_lab.optim.picks import Picks, listed
from gsm_lab.optim.ranks import local
from gsm_lab.outcome import too_early
from gsm_lab.training import checkpoint, fitting
from gsm_lab.training.anatomy import Anatomy
from gsm_lab.training.history import History
from gsm_lab.training.interrupts import interruptible
from gsm_lab.training.model_state import whole_state
from gsm_lab.training.outputs import Output, answer_with, predicted
from gsm_lab.training.step import Training

_EVALUATED_AT_ONCE = 2000  # samples; bounds memory
_STEPS_A_LOOK = 10  # of the progress bar
_MOST_STEPS = 2**31 - 1  # that a history counts


class Run(Training):
    """A training run: dense epochs if asked for, then GSM; repeatable to the bit from its settings on one machine.

    Args:
        model: "lenet300", "lenet5", "resnet56", or an `nn.Module` that maps [n, ...] to logits [n, classes]; for two
            classes one output a row will do, of which the loss tells what it means. A module is used as it is, on the
            device it is on, and fed the data as it is, in the type of its parameters (the named ones standardise
            inputs). It is trained in training mode, but for those of its modules that are in evaluation mode (frozen
            batch norm) while the whole is not.
        data: "digits", "mnist", "fashion_mnist", or a `Dataset`.
        loss: from (logits [n, classes], labels [n]) to a scalar; cross entropy unless given.
        output: for a model that takes or gives something else: from (model, x) to what the loss takes, such as
            `lambda model, x: model(pixel_values=x).logits`. The accuracy is that of the logits in it: itself, or its
            field or key `logits`.
        include, exclude: tensors that compete and are cut beside the kernels of layers, and kernels that do not: names,
            globs, modules or lists of these, as in `gsm_lab.optim.prunable`.
        **knobs: any of `gsm_lab.knobs.KNOBS`. What is not given takes the value that works for this data and model.

    Attributes:
        model, data, opt, history: as they are now. source_model, source_data: as they were given.
        lock: whatever steps, reads or changes the run has it meanwhile, so that another thread, like a notebook's cell
            beside a playing playground, waits for the end of a step. `with run.lock:` to read several things of one
            step. (`step`, `pretrain` and `train` have a playground that plays the run pause first.) It is one lock for
            all runs of a process, which share PyTorch's generator of random numbers.
        steps: gated steps so far. knobs: every setting in force. base: test accuracy of the dense model when the gate
        closed, None before; magnitude: what it scored cut to Q without GSM.
        recorders: called after every gated step with (step, active: bool [N], weights: the layers' values, float32
        numpy arrays), all of them the run's own: not to be written to, nor kept beyond the call except `active`. A
        reset empties the list; it is not saved.

    Raises:
        ValueError, TypeError: a knob or argument out of range, with its name, the value and what is valid; a model,
            data and loss that do not fit together: two rows pass through them when the run is made.
        FloatingPointError: from `step` and `train`, when a gradient is not finite; no weight has changed.
        RuntimeError: from `step`, `pretrain` and `train` when a layer of `model` has been exchanged since the run was
            made for one that does not fit in its place; from these, `reset`, `save` and copies, in the middle of a
            step, as from a recorder.
        KeyboardInterrupt: from `step`, `pretrain` and `train`, at an interrupt, between two steps: the run can go on.

    `pretrain` epochs happen before the first step, with the gate open and their own momentum; they are no steps.

    A model that draws random numbers (dropout) draws from PyTorch's generator, which is the run's own while a step
    lasts: what another thread draws from it meanwhile changes both. `copy.deepcopy` and `pickle` give a run that goes
    on alike and shares nothing; they take a whole step.
    """

    method = "gsm"  # what decides who stays: otherwise in `gsm_lab.methods`
    options: tuple[settings.Knob, ...] = ()  # what can be set beside the knobs of a run
    own: dict[str, Any] = {}  # noqa: RUF012  (those options in force)
    means_nothing: tuple[str, ...] = ()  # knobs that the method takes no notice of
    rank = 0  # of this process among those that train the run together : here it is alone
    breakdowns: tuple[type[Exception], ...] = (FloatingPointError,)  # that end training; what was saved is still good
    unsaved: tuple[type[Exception], ...] = (OSError,)  # from `save`, where nothing could be written

    def __init__(
        self,
        model: str | nn.Module = "lenet300",
        data: str | datasets.Dataset = "digits",
        *,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        output: Output | None = None,
        include: Picks = None,
        exclude: Picks = None,
        **knobs: Any,
    ) -> None:
        fitting.check_kinds(model, data, loss, output)
        self.loss, self.output = loss, output
        self._picks = {k: None if x is None else listed(x) for k, x in (("include", include), ("exclude", exclude))}
        self._given = settings.checked(knobs)
        self._fits: tuple[Any, Any] = (None, None)
        self._initial: dict[str, Any] | None = None
        with self.lock:
            if isinstance(model, nn.Module):
                fitting.materialise(model, data, output)
                tensors, rest = whole_state(model)  # refuses what could not be saved
                self._initial = copy.deepcopy(tensors | rest)
            self._start(model, data, self._given)

    def _start(self, source_model: str | nn.Module, source_data: str | datasets.Dataset, given: dict[str, Any]) -> None:
        """Begin at step 0. What can fail comes first, so that a run that cannot begin again stays as it was."""
        data = datasets.load(source_data) if isinstance(source_data, str) else source_data
        name = source_model if isinstance(source_model, str) else type(source_model).__name__
        knobs = self._resolved(given, data.name, name)
        self._refuse(knobs)
        model = source_model
        if isinstance(model, str):
            model = models.build(name, data.shape, data.classes, data.mean, data.std, knobs["seed"])
        ours = isinstance(source_model, str) and self.loss is F.cross_entropy and self.output is None
        above = None
        if not ours:  # else they are known to fit
            same = self._fits == (source_model, source_data)
            above = self._above if same else self._tried(model, data, knobs["batch_size"])
        resting = [m for m in model.modules() if not m.training] if model.training else []
        model = self._placed(model)
        weights = models.prunable(model, **self._picks)
        groups = param_groups(model, **self._picks)
        fed = data.to(next(model.parameters()).device, fitting.dtype_of(model))
        batches = datasets.Batches(fed, knobs["batch_size"], knobs["seed"])
        opt = GSM(groups, knobs["lr"], knobs["momentum"], weight_decay=knobs["weight_decay"], fused=_can_fuse(model))
        if self._initial is not None and model is source_model:
            checkpoint.fill(model, self._initial)
        self._fits, self._above, self.draws, self._resting = (source_model, source_data), above, not ours, resting
        self.source_model, self.source_data = source_model, source_data
        self.model, self.data, self.batches, self.opt = model, batches.dataset, batches, opt
        self.knobs = knobs
        self.history = self._new_history(weights)
        self._layers = list(weights.values())
        self._anatomy = Anatomy(model)
        self.recorders: list[Callable[[int, np.ndarray, list[np.ndarray]], None]] = []
        self.steps = self.dense_steps = 0
        self.frozen = False  # whether the active set is held, by the knob `freeze` or since the net was cut
        self.shorn, self._kept = False, 0  # whether the knob `cut_at` has cut the net, and to how many weights
        self.threads: int | None = None  # that PyTorch computed the last step with, if there was one in this process
        self.base: float | None = None
        self.magnitude: float | None = None
        self._warned = False  # that it ended too early
        self.random_state = torch.Generator().manual_seed(knobs["seed"]).get_state()
        for knob in settings.LIVE:
            self.history.moved(0, knob, None, knobs[knob])
        self.apply_knobs()

    def _tried(self, model: nn.Module, data: datasets.Dataset, batch_size: int) -> float | None:
        return fitting.tried(model, data, self.loss, self.output, batch_size)

    def _resolved(self, given: dict[str, Any], data: str, model: str) -> dict[str, Any]:
        """All knobs, those given and what works for this data and model."""
        return settings.resolve(given, data, model)

    # -- training --------------------------------------------------------------------------------------------------

    def step(self, n: int = 1) -> None:
        """Do `n` gated steps (and, before the first ever, the dense epochs)."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"n must be a whole number of steps >= 0, got {shown(n)}")
        if n > _MOST_STEPS - self.steps:
            raise ValueError(f"n must be at most {_MOST_STEPS - self.steps:,}, {_MOST_STEPS:,} in all, got {shown(n)}")
        self._take_turn()
        with self._interruptible() as interrupted:
            if n:
                self._dense_steps(self.dense_left, interrupted)
            self._repeat(self._gated_step, n, interrupted)

    def pretrain(self, most: int | None = None) -> int:
        """Do the dense steps that are left, `most` at the most, then close the gate; returns how many are left."""
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ValueError(f"most must be None or a whole number of steps >= 0, got {shown(most)}")
        self._take_turn()
        with self._interruptible() as interrupted:
            self._dense_steps(self.dense_left if most is None else min(most, self.dense_left), interrupted)
        return self.dense_left

    def train(self, epochs: float | None = None, progress: bool = True) -> None:
        """Train for `epochs` gated epochs, by default to the end of the plan, then evaluate.

        Shows a progress bar with rate and time left unless `progress` is False. An interrupt (Ctrl-C, or a notebook's
        stop button) ends it between two steps with KeyboardInterrupt; the run can be saved, or go on. Warns, once in a
        run, where what has been reached shows that it was too early to cut (see `outcome.too_early`).
        """
        hidden = not flag("progress", progress) or self.rank > 0
        steps = max(0, self.planned - self.steps) if epochs is None else self._steps_of(epochs)
        self._take_turn()
        from tqdm.auto import tqdm

        dense = self.dense_left
        bar = tqdm(total=dense + steps, unit="step", disable=hidden)
        with bar, self._interruptible() as interrupted:
            done, told = 0, ""
            while done < dense + steps and not interrupted:
                n = min(dense + steps - done, _STEPS_A_LOOK)
                phase = "dense" if self.base is None else f"gate closed, C = {self.knobs['compression']:g}"
                if phase != told:
                    bar.set_description(told := phase)
                if self.base is None:
                    n = self._dense_steps(min(n, self.dense_left), interrupted)
                else:
                    n = self._repeat(self._gated_step, n, interrupted)
                done += n
                bar.update(n)
                with self.lock:
                    rows = self.history.steps.array()
                    if len(rows):
                        bar.set_postfix(loss=f"{rows['loss'][-1]:.3f}", refresh=False)
            if self.steps % self.knobs["evaluate_every"] and not interrupted:  # else the last step has done it
                with self.between_steps():
                    self._evaluate_now()
        if steps and not self._warned and (early := too_early(self)):
            self._warned = True
            warnings.warn(early, stacklevel=2)

    def _steps_of(self, epochs: float) -> int:
        if not isinstance(epochs, str):
            epochs = number("epochs", epochs, 0)
        if isinstance(epochs, str) or epochs * self.epoch_steps > _MOST_STEPS - self.steps:
            raise ValueError(
                f"epochs must be a finite number >= 0, of {_MOST_STEPS:,} steps at most in all, got {shown(epochs)}"
            )
        return round(epochs * self.epoch_steps)

    def set(self, **knobs: Any) -> None:
        """Move live knobs; they act from the next step on, and the history takes the move down.

        Raises ValueError, before anything moves, for a value that is not valid or a knob that restarts the run.
        """
        moved = settings.checked(knobs, live_only=True)
        with self.lock:
            self._refuse(self.knobs | moved)
            for name, value in moved.items():
                if value != self.knobs[name]:
                    self.history.moved(self.steps, name, self.knobs[name], value)
                    self.knobs[name] = value
            self.apply_knobs()

    def reset(self, **knobs: Any) -> None:
        """Begin again with the settings in force now; any knob may change, `model` and `data` (by name) too.

        With another model or data set, knobs that were not given take what works there. A model given as a module goes
        back to the weights it came with. Raises ValueError (or DataNotFound) before anything changes.
        """
        knobs = settings.checked(knobs)
        with self.between_steps():
            model, data = knobs.pop("model", self.source_model), knobs.pop("data", self.source_data)
            same = model == self.source_model and data == self.source_data
            in_force = {name: value for name, value in self.knobs.items() if name not in ("model", "data")}
            self._start(model, data, (in_force if same else self._given | {"seed": self.knobs["seed"]}) | knobs)
            self._given |= knobs

    # -- looking at it ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, cut: bool = False) -> float:
        """Accuracy on the test set, 0..1; with `cut` what the model would score if it were cut now. Changes nothing."""
        if not isinstance(cut, bool | np.bool_):
            raise TypeError(f"cut must be True or False, got {shown(cut)}")
        with self.lock:
            replaced = {}
            if cut:
                masks = keep_masks(self.model, nonzeros=self.nonzeros, optimizer=self.opt)
                replaced = {name: self.model.get_parameter(name) * mask for name, mask in masks.items()}
            return self._accuracy(replaced)

    def cut(self) -> int:
        """Set all weights outside the Q of largest magnitude to exact zero; returns how many stay.

        Their momentum is cleared, so that they stay zero in further gated steps, unless compression is set to 1. Warns
        of layers that are left empty.
        """
        with self.lock:
            return cut(self.model, nonzeros=self.nonzeros, optimizer=self.opt)

    def _accuracy(self, replaced: dict[str, Tensor]) -> float:
        x, y = self.data.test_x, self.data.test_y
        drawn = torch.random.fork_rng(devices=[], enabled=self.draws)
        with fitting.evaluating(self.model), drawn:
            if self.draws:  # a model that does so even now: always the same ones
                torch.default_generator.manual_seed(self.knobs["seed"])
            pieces = zip(x.split(_EVALUATED_AT_ONCE), y.split(_EVALUATED_AT_ONCE), strict=True)
            right = sum(self._right(a, b, replaced) for a, b in pieces)
        return right / len(y)

    def _right(self, x: Tensor, y: Tensor, replaced: dict[str, Tensor]) -> int:
        found = predicted(answer_with(self.model, replaced, x, self.output), self._above)
        return int((found == y).sum())

    def _evaluate_now(self) -> None:
        with torch.no_grad():
            masks = keep_masks(self.model, nonzeros=self.nonzeros, optimizer=self.opt)
            kept = [int(local(mask).sum()) for mask in masks.values()]
            replaced = {name: self.model.get_parameter(name) * mask for name, mask in masks.items()}
            live, as_cut = self._accuracy({}), self._accuracy(replaced)
        if self.steps == 0:
            self.base, self.magnitude = live, as_cut
        self.history.evaluated(self.steps, live, as_cut, kept)

    # -- keeping it ------------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Tensor]:
        """What the method remembers beside all that a run does, by name: nothing, it is in the optimizer."""
        return {}

    def restore_method(self, state: dict[str, Tensor]) -> None:
        """Continue from a `method_state()`."""

    def save(self, folder: str | Path) -> Path:
        """Write all of the run to `folder`, atomically; returns the folder. See `gsm_lab.training.checkpoint`."""
        with self.between_steps():
            return checkpoint.save(self, path("folder", folder))

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        model: nn.Module | None = None,
        data: datasets.Dataset | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        output: Output | None = None,
    ) -> Run:
        """The run that `save` wrote; it goes on to the bit as if it had never stopped.

        A model or data set of one's own is not in the folder and has to be given again (and a loss, and an output).

        Raises CheckpointError (a ValueError) when the folder holds no whole run, or model or data are not those it had.
        """
        return checkpoint.resume(cls, path("folder", folder), model, data, loss, output)

    # -- what is otherwise where ranks share the work, see `gsm_lab.distributed` ---------------------------------------

    _interruptible = staticmethod(interruptible)

    def alone(self, folder: Path) -> Run:
        """The run in this process alone, given the folder in which it was just saved: to look at what came out."""
        return self

    def first_rank_says(self, flag: bool) -> bool:
        """`flag` as it is on rank 0: for what depends on a clock."""
        return flag

    @contextlib.contextmanager
    def by_first_rank(self) -> Iterator[bool]:
        """Whether it is this process that does what only one of them is to do; what it raises, all raise."""
        yield True

    def _placed(self, model: nn.Module) -> nn.Module:
        """The model on the device, and in the parts, in which it is trained."""
        return model

    def _refuse(self, knobs: dict[str, Any]) -> None:
        """Raises ValueError for settings that cannot be had here."""

    def _new_history(self, weights: dict[str, nn.Parameter]) -> History:
        return History({layer: p.numel() for layer, p in weights.items()})

    def __repr__(self) -> str:
        name = self.source_model if isinstance(self.source_model, str) else type(self.source_model).__name__
        return (
            f"Run({name} on {self.data.name}, {self.steps:,} steps of {self.epoch_steps} an epoch, "
            f"Q = {self.nonzeros:,} of {self.opt.weights:,} weights)"
        )


def _can_fuse(model: nn.Module) -> bool:
    """Whether fused SGD may be used: on a CPU it leaves 16-bit weights as they are (PyTorch issue 191763)."""
    full = (torch.float32, torch.float64)
    return all(p.is_cuda or (p.device.type == "cpu" and p.dtype in full) for p in model.parameters())
