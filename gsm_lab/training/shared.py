"""`Shared`: what keeps a run whole while several threads, a player among them, have to do with it; and copies of it."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

from gsm_lab.models import computed
from gsm_lab.training.anatomy import Anatomy
from gsm_lab.training.parts import Parts
from gsm_lab.training.placement import Single
from gsm_lab.turns import turn


class Shared(Parts):
    """The base of `Training`: whose turn it is, and copies that are of a whole step.

    `lock` is what whoever steps, reads or changes the run has meanwhile; see `gsm_lab.turns`.
    """

    lock = turn
    placement: Single
    _anatomy: Anatomy
    _stepping = False  # whether a step is being done, by the thread that has the lock
    _player: weakref.ref[Any] | None = None  # who plays it, see `gsm_lab.notebook.player`

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
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
