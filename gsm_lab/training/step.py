"""`Training`: what the steps of a run do, dense and gated, and what keeps it whole where several threads step it."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gsm_lab.models import computed
from gsm_lab.optim.ranks.group import local
from gsm_lab.training import threads
from gsm_lab.training.evaluation import evaluate_now
from gsm_lab.training.method import Method
from gsm_lab.training.outputs import answer
from gsm_lab.training.parts import Anatomy, Parts, cosine
from gsm_lab.training.placement import Single
from gsm_lab.turns import turn

_BEYOND = 1e6  # |w| that no lower learning rate brings back


class Training(Parts):
    """The base of `Run`, which puts it together: its steps, whose turn it is to do them, and copies of a whole step.

    Attributes:
        method, placement: what decides who stays, and where it happens.
        lock: whoever steps, reads or changes the run has it meanwhile; see `gsm_lab.turns`.
        draws: whether a step may draw random numbers; random_state: of the run's own stream of them.
        threads: that PyTorch computed the last step with, None where there was none in this process; waiting:
            "spinning" or "asleep", how these wait for each other, where it is gsm_lab that chooses.
    """

    lock = turn
    method: Method
    placement: Single
    draws: bool
    threads: int | None
    waiting: str | None = None
    _resting: list[nn.Module]  # modules that stay in evaluation mode
    _anatomy: Anatomy
    _stepping = False  # whether a step is being done, by the thread that has the lock
    _player: weakref.ref[Any] | None = None  # who plays it, see `gsm_lab.notebook.player`

    # -- one step --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def one_step(self) -> Iterator[None]:
        """A step of the model that the run was made with; dropout and the like draw from the run's own stream."""
        if not self.placement.exchanges:
            self._take_in_what_was_exchanged()
        self._stepping = True
        try:
            with self._own_random_numbers() if self.draws or self.recorders else contextlib.nullcontext():
                yield
        except FloatingPointError as error:
            error.args = (f"{error}{self._beyond_mending()}",)
            raise
        finally:
            self._stepping = False

    def _take_in_what_was_exchanged(self) -> None:
        """Train what stands in the place of a parameter that was exchanged. Raises RuntimeError where it cannot be."""
        if (new := self._anatomy.exchanged()) is not None:
            if new:
                self.placement.exchanged(len(new))
                self.method.exchanged(self, new)
                self.tensors = [new.get(p, p) for p in self.tensors]
            self._anatomy.look()

    def _beyond_mending(self) -> str:
        """What is to be said where weights have grown so far that a lower learning rate does not help any more."""
        for name, p in self.model.named_parameters():
            largest = local(p.detach()).abs().max().item() if local(p).numel() else 0.0
            if not largest <= _BEYOND:
                return (
                    f". But {name!r} has grown to {largest:.2g}, which no setting mends: begin again, with "
                    "reset(lr=...), or from what was saved before"
                )
        return ""

    @torch.enable_grad()
    def _forward_backward(self, batch: int) -> float:
        x, y, weight = self.placement.rows(self.batches, batch)
        self.wake()
        self.threads = torch.get_num_threads()
        self.waiting = threads.waiting.look(self.threads)
        self.opt.zero_grad()
        with self.placement.random_numbers():
            loss = self.loss(answer(self.placement.forward, x, self.output), y)
            (loss if weight == 1 else loss * weight).backward()
        return self.placement.mean(self, loss.item() * weight)

    def wake(self) -> None:
        """Into training mode, where the model is not in it; those of its modules that were not stay as they are."""
        if not self.model.training:
            self.model.train()
            for module in self._resting:
                module.training = False

    def dense_step(self) -> None:
        """One step of the dense epochs, under `lock` and within `one_step`."""
        if self.dense_left <= 0:  # another thread has done them
            return
        total = self.settings.pretrain * self.epoch_steps
        for group in self.opt.param_groups:
            group["lr"] = self.settings.pretrain_lr * cosine(self.dense_steps / total)
        self._forward_backward(self.dense_steps)
        self.opt.step()
        self.dense_steps += 1

    def close_gate(self) -> None:
        """Where the dense epochs are over: evaluate what they reached, forget their momentum, put settings in force."""
        if self.base is None and self.dense_left <= 0:
            evaluate_now(self)
            self.opt.state.clear()
            self.apply_settings()
            self.method.gate_closes(self)
            for recorder in self.recorders:
                if (closes := getattr(recorder, "gate_closes", None)) is not None:
                    closes()

    def gated_step(self) -> None:
        """One gated step, under `lock` and within `one_step`."""
        if self.base is None:
            raise RuntimeError("the run was reset by another thread while this one trained it: begin again here, too")
        lr = self.lr
        for group in self.opt.param_groups:
            group["lr"] = lr
        self.method.before_step(self)
        loss = self._forward_backward(self.dense_steps + self.steps)
        self.method.move(self)
        self.steps += 1
        active, threshold = self.method.active(self)
        weights = [local(p.detach()).float().cpu().contiguous().numpy() for p in self.tensors]
        self.history.record(self.steps, self.steps / self.epoch_steps, loss, threshold, lr, active, weights)
        for recorder in self.recorders:
            recorder(self.steps, active, weights)
        self.method.recorded(self)
        if self.steps % self.settings.evaluate_every == 0:
            evaluate_now(self)

    def apply_settings(self) -> None:
        """Hand the settings to the optimizer: those of the dense epochs while these last, the live ones after."""
        dense = self.base is None and self.settings.pretrain > 0
        self.method.set_gate(self, dense)
        like_dense = dense or self.method.finetunes
        decay = self.settings.pretrain_decay if like_dense else self.settings.weight_decay
        self.opt.param_groups[0]["weight_decay"] = decay
        for group in self.opt.param_groups:
            group["momentum"] = 0.9 if dense else self.settings.momentum

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """The run's own stream in place of the program's, which is left alone."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        try:
            yield
        finally:
            self.random_state = torch.get_rng_state()
            torch.set_rng_state(outside)

    # -- turns, and copies -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """The lock, for what must find a whole step. Raises RuntimeError in the middle of one, as in a recorder."""
        with self.lock:
            if self._stepping:
                raise RuntimeError("this cannot be done in the middle of a step, as by a recorder: do it between steps")
            yield

    def _take_turn(self) -> None:
        """About to be stepped by this thread: a player that plays it pauses, as for steps of its own.

        Raises RuntimeError in the middle of a step.
        """
        player = self._player() if self._player is not None else None
        if player is not None and not player.is_this_thread:
            player.pause_with("the run is stepped from elsewhere")
        with self.between_steps():
            pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Training:
        with self.between_steps():
            new = object.__new__(type(self))
            memo[id(self)] = new
            memo.update(computed(*vars(self).values()) | memo)  # what has been copied already stays that copy
            new.__setstate__(copy.deepcopy(self._kept_state(), memo))
            return new

    def __getstate__(self) -> dict[str, Any]:
        with self.between_steps():  # of which it must be a whole; pickle takes its time after this
            return copy.deepcopy(self._kept_state(), computed(*vars(self).values()) | {id(self): self})

    def _kept_state(self) -> dict[str, Any]:
        self.placement.must_be_copyable()
        return {name: value for name, value in vars(self).items() if name not in ("_player", "_anatomy")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _player=None)
        self._anatomy = Anatomy(self.model)
