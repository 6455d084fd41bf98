"""Ctrl-C and a notebook's stop button, held back until it is safe to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """An interrupt goes into the list that is yielded, for steps to end at, and is raised when the block is over."""
    received: list[int] = []
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as with nohup, or `&` in a script
    if ignored or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: it was not Python's
    if received:
        raise KeyboardInterrupt
