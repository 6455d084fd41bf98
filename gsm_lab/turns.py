"""Whose turn it is: one thread at a time steps a run, reads it or changes it, and who waits comes next."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any


class Turns(contextlib.ContextDecorator):
    """A lock that a thread may take again while it has it, and that goes to who waits for it first.

    `with turn:`, or `@turn` over a function. A thread that lets go of an ordinary lock and takes it again at once, as
    one that does step after step, gets it again and again, and the others starve. Here it comes after those that wait.
    """

    def __init__(self) -> None:
        self._renew()
        _all.add(self)

    def __enter__(self) -> Turns:
        if self._held._is_owned():  # as `threading.Condition` asks it
            self._held.acquire()
            return self
        try:
            with self._next:  # who waits for the lock has this one, and who has just let go of the lock waits for it
                self._held.acquire()
        except BaseException:  # an interrupt while it was waiting, or in the moment after
            if self._held._is_owned():
                self._held.release()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.release()

    def _renew(self) -> None:
        self._held, self._next = threading.RLock(), threading.Lock()

    def _in_a_child(self) -> None:
        """Threads do not survive a fork: what they held is free, and what the one that forked holds, it holds on to."""
        if self._held._is_owned():
            self._next = threading.Lock()
        else:
            self._renew()


_all: weakref.WeakSet[Turns] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [turns._in_a_child() for turns in _all])

# One for all runs of a process. They share more than they seem to: a step draws from PyTorch's one generator, in which
# the run's own state stands while it lasts, and so do evaluations and the initial weights of a network.
turn = Turns()
