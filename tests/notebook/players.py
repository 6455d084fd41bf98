"""A run to drive that takes no time, for tests of the player."""

import threading
import time
from collections.abc import Callable

from gsm_lab.notebook.player import Player
from gsm_lab.turns import Turns

SECONDS = 120  # that something may take before a test gives up on it


class Fake:
    """Stands for a run: counts, takes no time, and notices if two come at once. `changed` is notified at every step."""

    def __init__(self, dense: int = 0, end: float = float("inf")) -> None:
        self.steps, self.dense_steps, self.dense_left, self.end = 0, 0, dense, end
        self.base = None if dense else 0.9
        self.threads: set[int] = set()
        self.changed = threading.Condition()
        self.at: Callable[[int], object] = lambda steps: None  # called in each step
        self.lock, self._busy = Turns(), threading.Lock()

    @property
    def finished(self) -> bool:
        return self.steps >= self.end

    def step(self, n: int = 1, progress: bool = False) -> None:
        for _ in range(n):
            with self.alone():
                self.at(self.steps)
                self.steps += 1

    def pretrain(self, most: int) -> int:
        with self.alone():
            done = min(most, self.dense_left)
            self.dense_steps, self.dense_left = self.dense_steps + done, self.dense_left - done
            self.at(-self.dense_left)
            if not self.dense_left:
                self.base = 0.9
        return self.dense_left

    def alone(self) -> "Fake":
        return self

    def __enter__(self) -> None:
        assert self._busy.acquire(blocking=False), "two at once"
        self.threads.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self._busy.release()
        with self.changed:
            self.changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, step by step, until it holds; also if what makes it hold comes a moment after a step."""
        deadline = time.monotonic() + SECONDS
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline, "it never came"
                self.changed.wait(0.05)


def done(one: Player, action: Callable[[], object] = lambda: None) -> None:
    """Have the thread do this, and wait until it has."""
    event = threading.Event()
    one.post(lambda: (action(), event.set()))
    assert event.wait(SECONDS)
