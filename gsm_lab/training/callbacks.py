"""What `loop.advance` calls between portions of steps: a progress bar, and what is done every so many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from gsm_lab.training.parts import Parts


class Progress:
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

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
