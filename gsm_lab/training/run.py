"""`Run`: settings, a method and a placement put together, with a model, its batches, the optimizer and a history."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import data as datasets
from gsm_lab import knobs as settings
from gsm_lab.checks import flag, kind, path, shown
from gsm_lab.metric import Metric, as_metric
from gsm_lab.optim.picks import Picks, listed
from gsm_lab.training import checkpoint, fitting
from gsm_lab.training.assembly import checked, put_together, refuse_ignored
from gsm_lab.training.evaluation import cut_tensors, evaluate_now, score, too_early
from gsm_lab.training.interrupts import uninterrupted
from gsm_lab.training.loop import Progress, advance, repeat
from gsm_lab.training.method import GSMMethod, Method
from gsm_lab.training.outputs import Output
from gsm_lab.training.parts import MOST_STEPS, Loss
from gsm_lab.training.placement import Single
from gsm_lab.training.state import arguments_of, readable, restore, state_of, whole_state
from gsm_lab.training.step import Training


class Run(Training):
    """A training run: dense epochs if asked for, then GSM; repeatable to the bit from its settings on one machine.

    Args:
        model: "lenet300", "lenet5", "resnet56", or an `nn.Module` that maps [n, ...] to logits [n, classes], or to
            [n, k] where targets are [n, k]; for two classes one output a row will do, of which the loss tells what it
            means. A module is used as it is, on the device it is on, and fed the data as it is, in the type of its
            parameters (the named ones standardise inputs, and targets are never scaled). It is trained in training
            mode, but for those of its modules that are in evaluation mode (frozen batch norm) while the whole is not.
        data: "digits", "mnist", "fashion_mnist", or a `Dataset`.
        loss: from (logits [n, classes], labels [n]) to a scalar, cross entropy unless given; or from (outputs, targets
            [n, k]), where numbers are to be predicted, the mean squared error unless given.
        metric: what the run is measured by on the test set, a `gsm_lab.Metric` or a function from (outputs, targets) of
            the whole test set to a number, of which more is better; accuracy unless given, R2 of numbers. It is
            tried when the run is made, on the model as it is.
        output: for a model that takes or gives something else: from (model, x) to what the loss takes, such as
            `lambda model, x: model(pixel_values=x).logits`. The accuracy is that of the logits in it: itself, or its
            field or key `logits`.
        include, exclude: tensors that compete and are cut beside the kernels of layers, and kernels that do not: names,
            globs, modules or lists of these, as in `gsm_lab.optim.prunable`.
        method: what decides which weights stay; GSM unless given. Others are in `gsm_lab.methods`.
        placement: where the run happens; in this process unless given. Others are in `gsm_lab.distributed`.
        **knobs: any of `gsm_lab.knobs.KNOBS`, and options of the method. What is not given takes the value that works
            for this data and model.

    Attributes:
        model, data, opt, history: as they are now. source_model, source_data: as they were given.
        method, placement: as they were given. tensors: the prunable ones, in the order of the flat masks.
        lock: whatever steps, reads or changes the run has it meanwhile, so that another thread, like a notebook's cell
            beside a playing playground, waits for the end of a step. `with run.lock:` to read several things of one
            step. (`step`, `pretrain` and `train` have a playground that plays the run pause first.) It is one lock for
            all runs of a process, which share PyTorch's generator of random numbers.
        steps: gated steps so far. settings: every setting in force, and knobs: the same by name; options: those of the
        method. base: test accuracy of the dense model when the gate closed, None before; magnitude: what it scored cut
        to Q without GSM.
        recorders: called after every gated step with (step, active: bool [N], weights: the layers' values, float32
        numpy arrays), all of them the run's own: not to be written to, nor kept beyond the call except `active`. One
        that has a method `gate_closes` has it called when the dense epochs are over. A reset empties the list; it is
        not saved.

    Raises:
        ValueError, TypeError: a knob or argument out of range, with its name, the value and what is valid; a model,
            data and loss that do not fit together: two rows pass through them when the run is made.
        FloatingPointError: from `step` and `train`, when a gradient is not finite; no weight has changed.
        RuntimeError: from `step`, `pretrain` and `train` when a layer of `model` has been exchanged since the run was
            made for one that does not fit in its place; from these, `reset`, `save` and copies, in the middle of a
            step, as from a recorder.
        KeyboardInterrupt: from `step`, `pretrain` and `train`, at an interrupt, between two steps: the run can go on.

    `pretrain` epochs happen before the first step, with the gate open and their own momentum; they are no steps. While
    it trains, numbers too small for full precision (below 1.2e-38 in float32), as passive weights become, are zero.

    A model that draws random numbers (dropout) draws from PyTorch's generator, which is the run's own while a step
    lasts: what another thread draws from it meanwhile changes both. `copy.deepcopy` and `pickle` give a run that goes
    on alike and shares nothing; they take a whole step.
    """

    def __init__(
        self,
        model: str | nn.Module = "lenet300",
        data: str | datasets.Dataset = "digits",
        *,
        loss: Loss | None = None,
        metric: Metric | Callable[[Any, Tensor], Any] | None = None,
        output: Output | None = None,
        include: Picks = None,
        exclude: Picks = None,
        method: Method | None = None,
        placement: Single | None = None,
        **knobs: Any,
    ) -> None:
        self.method = GSMMethod() if method is None else kind("method", method, Method, "a Method of gsm_lab.methods")
        self.placement = Single() if placement is None else kind("placement", placement, Single, "a Placement")
        for name, part in (("method", self.method), ("placement", self.placement)):
            if part.taken:
                raise ValueError(f"{name} must be a new one for each run, got the {type(part).__name__} of another run")
        given, options = checked(self.method, knobs)
        fitting.check_kinds(model, data, loss, output)
        self.given_loss, self.given_metric, self.output = loss, as_metric(metric), output
        self.picks = {k: None if x is None else listed(x) for k, x in (("include", include), ("exclude", exclude))}
        self.given, self.given_options = settings.checked(given), options
        self._fits: tuple[Any, Any] = (None, None)
        self.initial: dict[str, Any] | None = None
        with self.lock:
            if isinstance(model, nn.Module):
                fitting.materialise(model, data, output)
                tensors, rest = whole_state(model)  # refuses what could not be saved
                self.initial = copy.deepcopy(tensors | rest)
            put_together(self, model, data, self.given, options)
            self.method.taken = self.placement.taken = True

    # -- training --------------------------------------------------------------------------------------------------

    def step(self, n: int = 1, progress: bool = False) -> None:
        """Do `n` gated steps (and, before the first ever, the dense epochs), under a progress bar if `progress`."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"n must be a whole number of steps >= 0, got {shown(n)}")
        if n > MOST_STEPS - self.steps:
            raise ValueError(f"n must be at most {MOST_STEPS - self.steps:,}, {MOST_STEPS:,} in all, got {shown(n)}")
        if flag("progress", progress) and n:
            with Progress(self.dense_left + n, self.placement.rank == 0, phase=True, loss=True) as bar:
                advance(self, self.steps + n, [bar])
            return
        self._take_turn()
        if n and self.base is None:
            repeat(self, self.dense_step, self.dense_left, self.close_gate)
        repeat(self, self.gated_step, n)

    def pretrain(self, most: int | None = None) -> int:
        """Do the dense steps that are left, `most` at the most, then close the gate; returns how many are left."""
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ValueError(f"most must be None or a whole number of steps >= 0, got {shown(most)}")
        self._take_turn()
        repeat(self, self.dense_step, self.dense_left if most is None else min(most, self.dense_left), self.close_gate)
        return self.dense_left

    def train(self, epochs: float | None = None, progress: bool = True) -> None:
        """Train for `epochs` gated epochs, by default to the end of the plan, then evaluate.

        Shows a progress bar with rate and time left unless `progress` is False. An interrupt (Ctrl-C, or a notebook's
        stop button) ends it between two steps with KeyboardInterrupt; the run can be saved, or go on. Warns, once in a
        run, where what has been reached shows that it was too early to cut (see `evaluation.too_early`).
        """
        shown = flag("progress", progress) and self.placement.rank == 0
        steps = max(0, self.planned - self.steps) if epochs is None else self.steps_of(epochs)
        self._take_turn()
        with Progress(self.dense_left + steps, shown, phase=True, loss=True) as bar:
            if self.dense_left + steps:
                advance(self, self.steps + steps, [bar])
            if self.steps % self.settings.evaluate_every:  # else the last step has done it
                with self.placement.interruptible(), self.between_steps():
                    evaluate_now(self)
        if steps and not self._warned and (early := too_early(self)):
            self._warned = True
            warnings.warn(early, stacklevel=2)

    def set(self, **knobs: Any) -> None:
        """Move live settings; they act from the next step on, and the history records the move.

        Raises ValueError, before anything moves, for a value that is not valid, a setting that restarts the run, or one
        that the method takes no notice of.
        """
        refuse_ignored(self.method, knobs)
        moved = settings.checked(knobs, live_only=True)
        with self.lock:
            now = replace(self.settings, **moved)
            self.placement.must_allow(now)
            for name, value in moved.items():
                if value != getattr(self.settings, name):
                    self.history.moved(self.steps, name, getattr(self.settings, name), value)
            self.settings = now
            self.apply_settings()

    def reset(self, **knobs: Any) -> None:
        """Begin again with the settings in force now; any may change, `model` and `data` (by name) too.

        With another model or data set, settings that were not given take what works there. A model given as a module
        goes back to the weights it came with. Options of the method may change, too. Raises ValueError (or
        DataNotFound) before anything changes.
        """
        knobs, options = checked(self.method, knobs)
        knobs = settings.checked(knobs)
        with self.between_steps():
            model, data = knobs.pop("model", self.source_model), knobs.pop("data", self.source_data)
            same = model == self.source_model and data == self.source_data
            in_force = {name: value for name, value in self.knobs.items() if name not in ("model", "data")}
            given = (in_force if same else self.given | {"seed": self.settings.seed}) | knobs
            put_together(self, model, data, given, self.given_options | options)
            self.given |= knobs
            self.given_options |= options

    # -- evaluating ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, cut: bool = False) -> float:
        """Accuracy on the test set, 0..1; with `cut` what the model would score if it were cut now. Changes nothing.

        Of another metric its value, as its function returns it. Raises ValueError where that is no finite number.
        """
        if not isinstance(cut, bool | np.bool_):
            raise TypeError(f"cut must be True or False, got {shown(cut)}")
        with self.lock:
            return score(self, cut_tensors(self)[0] if cut else {})

    def cut(self) -> int:
        """Set all weights outside the Q of largest magnitude to exact zero; returns how many stay.

        Their momentum is cleared, so that they stay zero in further gated steps, unless compression is set to 1. Warns
        of layers that are left empty.
        """
        with self.lock:
            return self.method.cut(self)

    # -- keeping it ------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of the run, tensors and plain values: see `state.state_of`. Over ranks, every one of them calls it."""
        with self.between_steps():
            return state_of(self)

    @classmethod
    def from_state(
        cls,
        tensors: Mapping[str, Tensor],
        plain: Mapping[str, Any],
        model: nn.Module | None = None,
        data: datasets.Dataset | None = None,
        loss: Loss | None = None,
        output: Output | None = None,
        method: Method | Callable[[str], Method] | None = None,
        placement: Single | None = None,
        where: str = "the state",
        metric: Metric | Callable[[Any, Tensor], Any] | None = None,
    ) -> Run:
        """The run of a `state()`.

        What is the user's own is given again, and the method, or what makes one of its name. `where` says where the
        state is, for errors.

        Raises CheckpointError (a ValueError) where the state is none of such a run.
        """
        if not isinstance(method, Method):
            method = GSMMethod() if method is None else method(plain.get("method", "gsm"))
        usual = F.mse_loss if isinstance(data, datasets.Dataset) and data.regression else F.cross_entropy
        own = {"model": model, "data": data, "loss": None if loss is usual else loss}
        own |= {"output": output, "metric": metric}
        sources, knobs = arguments_of(plain, own, method, where)
        run = cls(*sources, loss=loss, metric=metric, output=output, method=method, placement=placement, **knobs)
        restore(run, tensors, plain, where)
        return run

    def save(self, folder: str | Path, note: dict[str, Any] | None = None) -> Path:
        """Write all of the run to `folder`, atomically; returns the folder. See `gsm_lab.training.checkpoint`.

        Over ranks, every one of them calls it, and rank 0 writes. `note`: plain values to keep with it.
        """
        folder = path("folder", folder)
        with self.placement.steps(), self.placement.together(), self.between_steps(), uninterrupted():
            tensors, plain = state_of(self)
            if self.placement.rank == 0:
                checkpoint.save(folder, tensors, plain, readable(self), note)
        return folder

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        model: nn.Module | None = None,
        data: datasets.Dataset | None = None,
        loss: Loss | None = None,
        output: Output | None = None,
        method: Method | Callable[[str], Method] | None = None,
        placement: Single | None = None,
        metric: Metric | Callable[[Any, Tensor], Any] | None = None,
    ) -> Run:
        """The run that `save` wrote; it goes on to the bit as if it had never stopped.

        A model or data set of one's own is not in the folder and has to be given again (and a loss, an output, a
        metric); a method other than GSM, too: `gsm_lab.methods.resume` finds out which. A run may go on under another
        placement.

        Raises CheckpointError (a ValueError) when the folder holds no whole run, or model or data are not those it had.
        """
        folder, placement = path("folder", folder), Single() if placement is None else placement
        if model is not None:
            kind("model", model, nn.Module, "an nn.Module")
        with placement.steps(), placement.together():
            tensors, plain = checkpoint.read_all(folder)
            where = f"the run in {folder}"
            run = cls.from_state(tensors, plain, model, data, loss, output, method, placement, where, metric)
            placement.must_agree(run)
            return run

    def __repr__(self) -> str:
        name = self.source_model if isinstance(self.source_model, str) else type(self.source_model).__name__
        rival = "" if self.method.name == "gsm" else f"{self.method.name}: "
        return (
            f"{rival}Run({name} on {self.data.name}, {self.steps:,} steps of {self.epoch_steps} an epoch, "
            f"Q = {self.nonzeros:,} of {self.opt.weights:,} weights)"
        )
