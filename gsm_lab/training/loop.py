"""The one loop in which runs are trained: dense steps, then gated ones, in portions, with callbacks between these.

    advance(run, until=run.planned, callbacks=[progress, saves])

`Run.step`, `Run.pretrain` and `Run.train` are this loop, and so is all else that trains: the command line, the player,
the studies and the processes of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from gsm_lab.training.denormals import denormals_are_zero
from gsm_lab.training.parts import Parts

PORTION = 10  # steps between two calls of the callbacks
Callback = Callable[[Parts, int], None]  # takes the run, and the steps done since the last call; 0 before the first


def advance(run: Parts, until: int, callbacks: Iterable[Callback] = ()) -> None:
    """Do the dense steps that are left, then gated steps until there are `until` of them.

    Args:
        run: any run; another thread may step it meanwhile.
        until: gated steps, of all that the run does; `run.steps + n` for n more.
        callbacks: called before the first step and between portions of steps, without the run's lock. What one of them
            raises ends the loop between two steps.

    Raises:
        FloatingPointError, RuntimeError, KeyboardInterrupt: as `Run.step`.
    """
    callbacks, done = tuple(callbacks), 0
    with denormals_are_zero():  # once, not for each portion
        while True:
            for callback in callbacks:
                callback(run, done)
            if run.base is not None and run.steps >= until:
                return
            done = portion(run, until=until)


def portion(run: Parts, most: int | None = None, until: int | None = None) -> int:
    """Do at most `most` steps (`PORTION`) of the phase in which the run is, dense or gated; returns how many were done.

    Gated steps end where there are `until` of them. The last dense step closes the gate.
    """
    before, most = run.dense_steps + run.steps, PORTION if most is None else most
    if run.base is None:
        run.pretrain(most)
    else:
        run.step(most if until is None else max(0, min(most, until - run.steps)))
    return run.dense_steps + run.steps - before


def repeat(run: Parts, one_step: Callable[[], None], n: int, afterwards: Callable[[], None] | None = None) -> None:
    """Do `n` steps of a kind, then what is to be done `afterwards`, under the lock.

    Between two steps other threads have a turn, and an interrupt ends them. In them numbers below 1.2e-38 are zero.

    Raises KeyboardInterrupt at an interrupt, when the step that was being done is over; and what a step raises.
    """
    with run.placement.interruptible() as interrupted:
        with denormals_are_zero(), run.placement.steps():
            for _ in range(n):
                if interrupted:
                    break
                with run.lock, run.one_step():
                    one_step()
        if afterwards is not None:
            with run.lock:
                afterwards()


class Progress(AbstractContextManager["Progress"]):
    """A progress bar with rate and time left, over the steps of one run or of several; closed when its block ends.

    Args:
        total: steps, dense and gated, of all runs.
        shown: whether it is.
        phase: whether it says in which phase the run is, dense or gated.
        loss: whether it shows the loss of the last gated step.
        more: arguments of `tqdm`.
    """

    def __init__(self, total: int, shown: bool = True, phase: bool = False, loss: bool = False, **more: Any) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=total, unit="step", disable=not shown, **more)
        self.phase, self.loss = phase, loss

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, run: Parts, done: int) -> None:
        """So many steps of the run are done since the last call."""
        self.bar.update(done)
        if self.bar.disable:
            return
        if self.phase:
            phase = "dense" if run.base is None else f"gate closed, C = {run.settings.compression:g}"
            if self.bar.desc != f"{phase}: ":
                self.bar.set_description(phase)
        if self.loss and done:
            with run.lock:
                rows = run.history.steps.array()
                if len(rows):
                    self.bar.set_postfix(loss=f"{rows['loss'][-1]:.3f}", refresh=False)


class Regularly:
    """Has something done whenever so many seconds have passed; over ranks, by the clock of rank 0.

    Args:
        seconds: from one time to the next, at least.
        do: what is done, between two portions of steps.
    """

    def __init__(self, seconds: float, do: Callable[[], object]) -> None:
        self.seconds, self.do, self.last = seconds, do, time.monotonic()

    def __call__(self, run: Parts, done: int) -> None:
        """Do it, if it is time; not before the first step."""
        if done and run.placement.first_rank_says(time.monotonic() - self.last >= self.seconds):
            self.do()
            self.last = time.monotonic()
