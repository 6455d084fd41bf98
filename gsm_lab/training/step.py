"""`Training`: what the steps of a run do, dense and gated, and where they stand in its plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.data import Batches
from gsm_lab.optim import GSM, budget, keep_masks
from gsm_lab.optim.prunable import clear
from gsm_lab.optim.ranks import local
from gsm_lab.training import schedule, threads
from gsm_lab.training.history import History
from gsm_lab.training.outputs import Output, answer
from gsm_lab.training.shared import Shared

_BEYOND = 1e6  # |w| that no lower learning rate brings back
_CUT_AGAIN = 0.99  # of the weights, on a ramp: to cut at every step would cost as much as the step


class Training(Shared):
    """The base of `Run`, which makes what is named here and says what it is."""

    draws: bool
    model: nn.Module
    batches: Batches
    opt: GSM
    history: History
    knobs: dict[str, Any]
    loss: Callable[[Any, Tensor], Tensor]
    output: Output | None
    recorders: list[Callable[[int, np.ndarray, list[np.ndarray]], None]]
    base: float | None
    steps: int
    dense_steps: int
    threads: int | None
    waiting: str | None = None  # "spinning" or "asleep": how these threads wait for each other, where we choose
    frozen: bool
    shorn: bool
    random_state: Tensor
    _kept: int
    _layers: list[nn.Parameter]
    _resting: list[nn.Module]  # modules that stay in evaluation mode
    _evaluate_now: Callable[[], None]

    # -- where it stands -------------------------------------------------------------------------------------------

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch."""
        return len(self.batches)

    @property
    def planned(self) -> int:
        """Gated steps the schedule is laid out for."""
        return self.knobs["epochs"] * self.epoch_steps

    @property
    def nonzeros(self) -> int:
        """Q = N / compression: how many weights get their gradient once the gate has closed, and survive the cut."""
        return budget(self.opt.weights, compression=self.knobs["compression"])

    @property
    def dense_left(self) -> int:
        """Dense steps still to do before the gate closes."""
        return 0 if self.base is not None else self.knobs["pretrain"] * self.epoch_steps - self.dense_steps

    @property
    def finished(self) -> bool:
        """Whether the schedule has run to its end (training can go on, at 1% of the learning rate)."""
        return self.knobs["hold"] < 1 and self.steps >= self.planned

    @property
    def lr(self) -> float:
        """Learning rate of the next gated step."""
        return schedule.lr(self.knobs, self.steps, self.planned)

    @property
    def compression(self) -> float:
        """C of the next gated step: the knob's, or on the way there during its ramp. (What is cut stays cut.)"""
        return schedule.compression(self.knobs, self.steps, self.planned)

    # -- one step --------------------------------------------------------------------------------------------------

    def _repeat(self, one_step: Callable[[], None], n: int, interrupted: list[int]) -> int:
        """Do `n` steps, fewer where interrupted; returns how many. Between two, other threads have a turn."""
        for done in range(n):
            if interrupted:
                return done
            with self.lock, self._one_step():
                one_step()
        return n

    @contextlib.contextmanager
    def _one_step(self) -> Iterator[None]:
        """A step of the model that the run was made with; dropout and the like draw from the run's own stream."""
        self._must_be_whole()
        self._stepping = True
        try:
            with self._own_random_numbers() if self.draws or self.recorders else contextlib.nullcontext():
                yield
        except FloatingPointError as error:
            error.args = (f"{error}{self._beyond_mending()}",)
            raise
        finally:
            self._stepping = False

    def _must_be_whole(self) -> None:
        """Train what stands in the place of a parameter that was exchanged. Raises RuntimeError where it cannot be."""
        new = self._anatomy.exchanged()
        if new is not None:
            if new:
                self._take_in(new)
            self._anatomy.look()

    def _take_in(self, new: dict[nn.Parameter, nn.Parameter]) -> None:
        """Parameters in the places of others, their momentum zero, as that of a new run is when it begins."""
        candidates = self.opt.candidates
        for group in self.opt.param_groups:
            group["params"] = [new.get(p, p) for p in group["params"]]
        for before, after in new.items():  # fused SGD takes no buffers of which some are missing
            if self.opt.state.pop(before, {}).get("momentum_buffer") is not None:
                self.opt.state[after]["momentum_buffer"] = torch.zeros_like(after)
        self.opt._start_fresh()
        self.opt.candidates = candidates
        self._layers = [new.get(p, p) for p in self._layers]

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

    def _dense_steps(self, n: int, interrupted: list[int]) -> int:
        done = self._repeat(self._dense_step, n, interrupted)
        with self.lock:
            if self.base is None and self.dense_left <= 0:
                self._close_gate()
        return done

    @torch.enable_grad()
    def _forward_backward(self, batch: int) -> float:
        x, y = self.batches.batch(batch)
        self._wake()
        self.threads = torch.get_num_threads()
        self.waiting = threads.waiting.look(self.threads)
        self.opt.zero_grad()
        loss = self.loss(answer(self.model, x, self.output), y)
        loss.backward()
        return loss.item()

    def _wake(self) -> None:
        """Into training mode, where the model is not in it; those of its modules that were not stay as they are."""
        if not self.model.training:
            self.model.train()
            for module in self._resting:
                module.training = False

    def _dense_step(self) -> None:
        if self.dense_left <= 0:  # another thread has done them
            return
        total = self.knobs["pretrain"] * self.epoch_steps
        for group in self.opt.param_groups:
            group["lr"] = self.knobs["pretrain_lr"] * schedule.cosine(self.dense_steps / total)
        self._forward_backward(self.dense_steps)
        self.opt.step()
        self.dense_steps += 1

    def _close_gate(self) -> None:
        """The dense epochs are over: see what they reached, forget their momentum, and put the knobs in force."""
        self._evaluate_now()
        self.opt.state.clear()
        self.apply_knobs()

    def _gated_step(self) -> None:
        if self.base is None:
            raise RuntimeError("the run was reset by another thread while this one trained it: begin again here, too")
        lr = self.lr
        for group in self.opt.param_groups:
            group["lr"] = lr
        self._schedule_gate()
        loss = self._forward_backward(self.dense_steps + self.steps)
        self._update()
        self.steps += 1
        active, threshold = self._gate()
        weights = [local(p.detach()).float().cpu().contiguous().numpy() for p in self._layers]
        self.history.record(self.steps, self.steps / self.epoch_steps, loss, threshold, lr, active, weights)
        for recorder in self.recorders:
            recorder(self.steps, active, weights)
        self._cut_on_the_way()
        if self.steps % self.knobs["evaluate_every"] == 0:
            self._evaluate_now()

    def _schedule_gate(self) -> None:
        """Put the ramp's C in force; freeze the active set, or let it go, where the knobs say so."""
        if self.knobs["ramp"] and not self.shorn:
            self.opt.compression = self.compression
        frozen = self.shorn or schedule.reached(self.knobs["freeze"], self.steps, self.planned)
        if frozen != self.frozen:
            masks = keep_masks(self.model, nonzeros=self.nonzeros, optimizer=self.opt).values() if frozen else ()
            self.opt.candidates = torch.cat([mask.reshape(-1).cpu() for mask in masks]) if frozen else None
            self.frozen = frozen

    @torch.no_grad()
    def _cut_on_the_way(self) -> None:
        """Where the knob `cut_at` says so, cut the network to the C in force, and stop and hold what was cut.

        Cut again where C has risen since; on a ramp that goes on, whenever another percent has to go. Where the active
        set is to be frozen, cut to the full C. At the end of a step: then nothing has changed where the step was
        refused, by whatever rank.
        """
        if not self.shorn and not schedule.reached(self.knobs["cut_at"], self.steps, self.planned):
            return
        q = self._stays()
        if self.shorn and q == self._kept:
            return
        masks = list(keep_masks(self.model, nonzeros=q, optimizer=self.opt).values())
        clear(self._layers, masks, self.opt)
        self.opt.candidates = torch.cat([mask.reshape(-1).cpu() for mask in masks])
        self.shorn = self.frozen = True
        self._kept = int(self.opt.candidates.sum())
        self.apply_knobs()

    def _stays(self) -> int:
        """How many weights a cut leaves, and one that was made before: fewer as soon as another percent has to go."""
        frozen = schedule.reached(self.knobs["freeze"], self.steps, self.planned)
        q = self.nonzeros if frozen else budget(self.opt.weights, compression=self.compression)
        if not self.shorn:
            return q
        return q if q < self._kept and q <= max(self.nonzeros, _CUT_AGAIN * self._kept) else self._kept

    def _update(self) -> None:
        """Change the weights, given their gradients."""
        self.opt.step()

    def _gate(self) -> tuple[np.ndarray, float]:
        """Who was active in the last step, bool [N], the caller's own, and the threshold that decided it."""
        return self.opt.active_mask().numpy(), self.opt.threshold

    def apply_knobs(self) -> None:
        """Hand the knobs to the optimizer: those of the dense epochs while these last, the live ones after."""
        dense = self.base is None and self.knobs["pretrain"] > 0
        self.opt.compression = 1.0 if dense else self.compression
        if self.shorn:  # nothing comes back, also where C is lowered
            self.opt.nonzeros = self._stays()
        self.opt.smoothing = 0.0 if dense else self.knobs["smoothing"]
        like_dense = dense or self.shorn
        self.opt.param_groups[0]["weight_decay"] = self.knobs["pretrain_decay" if like_dense else "weight_decay"]
        for group in self.opt.param_groups:
            group["momentum"] = 0.9 if dense else self.knobs["momentum"]

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
