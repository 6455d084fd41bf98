"""Ctrl-C, a notebook's stop button, SIGTERM and SIGHUP: held back until it is safe to stop."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Sequence

# What asks a program to end: the keyboard; a service manager, a batch queue or a container; a terminal that is closed.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_BREAKS_A_SAVE = 3  # who asks that often does not want to wait for a disk that does not answer


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP (`number`), where they end a program as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


# lists for signals, and how many each takes; of the main thread, which is where these arrive; the innermost is the last
_holders: list[tuple[list[int], float]] = []


def interrupt(number: int) -> KeyboardInterrupt:
    """What a signal is raised as."""
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)


def status(stop: KeyboardInterrupt) -> int:
    """The exit status of a program that an interrupt ended, as shells have it: 130, 143 or 129."""
    return 128 + getattr(stop, "number", signal.SIGINT)


def _arrived(number: int, _: object) -> None:
    received, most = _holders[-1] if _holders else ([], 0)
    if len(received) >= most:
        raise interrupt(number)
    received.append(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def stops(numbers: Sequence[int] = STOPS) -> Iterator[None]:
    """Signals that are interrupts while the block lasts: raised at once, or held back by what is below.

    One that is ignored stays so, as SIGHUP is under `nohup`, and SIGINT in what a script starts with `&`.
    """
    before = {}
    if _in_main_thread():
        ours = [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, _arrived)]
        before = {n: signal.signal(n, _arrived) for n in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not Python's


@contextlib.contextmanager
def held_back(received: list[int], numbers: Sequence[int] = (signal.SIGINT,), most: float = math.inf) -> Iterator[None]:
    """Signals go into `received`, up to `most` of them. In another than the main thread nothing arrives anyway."""
    if not _in_main_thread():
        yield
        return
    with stops(numbers):
        # Put on after the handlers are in place and taken off before they go: an interrupt that comes in between is
        # raised. The other way round it could go into a list that nobody looks at any more.
        _holders.append((received, most))
        try:
            yield
        finally:
            _holders.pop()


@contextlib.contextmanager
def interruptible(most: float = math.inf) -> Iterator[list[int]]:
    """An interrupt goes into the list that is yielded, for steps to end at, and is raised when the block is over."""
    received: list[int] = []
    with held_back(received, most=most):
        yield received
    if received:
        raise interrupt(received[0])


def uninterrupted() -> contextlib.AbstractContextManager[object]:
    """What is short and should not be left half done: an interrupt is raised when it is over. The third one breaks it.

    Inside a block that holds interrupts back that one decides what becomes of them.
    """
    if _holders and _in_main_thread():
        return contextlib.nullcontext()
    return interruptible(_BREAKS_A_SAVE - 1)
