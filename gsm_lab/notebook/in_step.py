"""`InStep`: several runs to a player that are one run, of which each step is a step of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from gsm_lab.checks import flag, whole
from gsm_lab.training.loop import Progress, advance, portion
from gsm_lab.training.run import Run
from gsm_lab.turns import turn


class InStep:
    """Runs that take steps in turn: after each step of all together, each has done as many gated steps as the others.

    It stands for a run where a `Player` asks for one. Before the first step in common come the dense epochs of each run
    that has any left, and then those steps by which some are behind the one that is furthest: to compare runs at
    different steps would compare how long they have trained. Dense steps and those of catching up do not count as
    steps in common, so that `step(50)` is fifty of each after all that.

    Where a run raises an error, the others keep what they have done, and the name is in `failed` and in the message.

    Args:
        runs: by name.
    """

    lock = turn  # that of all runs

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        self.failed: str | None = None

    # -- what a player asks of a run -------------------------------------------------------------------------------

    @property
    def base(self) -> float | None:
        """None until all have closed their gates and are at the same step."""
        return None if any(self.to_do().values()) else 0.0

    @property
    def steps(self) -> int:
        """Gated steps that all have done."""
        return min(run.steps for run in self.runs.values())

    @property
    def dense_steps(self) -> int:
        """What else has been done: dense steps, and those of runs that are ahead."""
        return sum(run.dense_steps + run.steps for run in self.runs.values()) - self.steps

    @property
    def finished(self) -> bool:
        """Whether the schedule of one has run to its end."""
        return any(run.finished for run in self.runs.values())

    @property
    def at_its_end(self) -> str:
        """Why it pauses then."""
        ended = " and ".join(name for name, run in self.runs.items() if run.finished)
        return f"the schedule of {ended} has come to its end"

    @property
    def _player(self) -> Any:
        """A weak reference to who plays it: each run has it, for when somebody else steps that run."""
        return next(iter(self.runs.values()))._player

    @_player.setter
    def _player(self, player: Any) -> None:
        for run in self.runs.values():
            run._player = player

    def step(self, n: int = 1, progress: bool = False) -> None:
        """Dense epochs and catching up, as far as needed, then `n` steps of each, under a progress bar if `progress`.

        Raises ValueError for an `n` that is no whole number.
        """
        n = whole("n", n, 0, "a whole number of steps")
        if flag("progress", progress) and n:
            until = max(run.steps for run in self.runs.values()) + n
            left = sum(run.dense_left + until - run.steps for run in self.runs.values())
            with Progress(left) as bar:
                advance(self, until, [bar])
            return
        while n and self.base is None:
            self.pretrain(1)
        for _ in range(n):
            for name, run in self.runs.items():
                with self._named(name):
                    run.step()

    def pretrain(self, most: int) -> None:
        """At most so many steps of each run that has to do some before steps in common: dense ones, or to catch up."""
        for _ in range(most):
            for name, left in self.to_do().items():
                if left:
                    with self._named(name):
                        portion(self.runs[name], 1)

    # -- what it says ------------------------------------------------------------------------------------------------

    def to_do(self) -> dict[str, int]:
        """How many steps each run has to do before steps in common: dense ones first, then gated ones to catch up."""
        most = max(run.steps for run in self.runs.values())
        return {name: run.dense_left or int(run.base is None) or most - run.steps for name, run in self.runs.items()}

    @property
    def waits_for(self) -> str:
        """In words, what comes before steps in common; nothing where they go on."""
        said = []
        for name, left in self.to_do().items():
            run = self.runs[name]
            if left and (run.base is not None or run.dense_left):  # without dense epochs, the gate has but to close
                what = "begins with its dense epochs" if run.base is None else "catches up"
                said.append(f"{name} {what}, {left:,} step{'s'[: left > 1]} to go")
        return "; ".join(said)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        self.failed = None
        try:
            yield
        except Exception as error:
            self.failed = name
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (f"{name}: {error.args[0]}",)
            else:
                error.add_note(f"in the run {name!r}")
            raise
