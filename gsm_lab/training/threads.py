"""How the threads that PyTorch computes with wait for each other: spinning, or asleep where the machine is busy.

OpenMP's threads spin for some milliseconds before they sleep, so that the next operation finds them awake. On a quiet
machine that makes a small network's steps faster by a half. On a busy one a thread that spins has the processor that
the thread it waits for needs, and steps are ten times slower. GNU's OpenMP, which PyTorch uses on Linux, spins only
while there are no more of its threads than processors. So where this process queues for processors and it helps, a few
threads are held that do nothing, and the others sleep at once; when the queue is gone, so are they. Neither changes
what is computed, with how many threads, or in which order: results are the same to the bit.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

SECONDS, STEPS = 0.25, 8  # from one look to the next, at least; where steps are slow, fewer in `PAUSED` seconds do
PAUSED = 2.0  # seconds without a step after which a look begins anew
AGAIN, TRIALS = 5.0, 0.1  # seconds until the other way is tried again; of the time, at most
# The share of the time for which one of this process's threads queues for a processor; it is the one that queues most.
BUSY, QUIET = 0.3, 0.08  # above, sleeping is tried; below, threads spin
USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # who sets one of these has decided

_TASKS = Path("/proc/self/task")


class Waiting:
    """Spins or sleeps; `look` is for whoever trains, at each step.

    Where nobody queues, threads spin. Where they do, both ways are tried for a moment, now and then, and the one with
    more steps a second stays: who comes first in the queue is for the system to say, and may differ.

    Args:
        queued: gives the seconds that each thread of this process has queued for a processor, by its id.
        clock: gives the time in seconds.
        hold: given how many threads PyTorch has, makes all of OpenMP's sleep until the event it returns is set.
    """

    def __init__(
        self,
        queued: Callable[[], dict[str, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        hold: Callable[[int], threading.Event] | None = None,
    ) -> None:
        self._queued, self._clock, self._hold = queued or _queued, clock, hold or _hold
        self._before: dict[str, float] = {}
        self._began = self._last = -1e9
        self._steps = 0
        self._let_go: threading.Event | None = None
        self._rate: float | None = None  # of the other way, in steps a second, while one is tried
        self._try_at = -1e9
        self._turn = threading.Lock()

    @property
    def asleep(self) -> bool:
        """Whether threads sleep at once where they have to wait."""
        return self._let_go is not None

    def look(self, threads: int) -> str | None:
        """Choose anew if the last look is a while ago; `threads` is the number that PyTorch computes with.

        Returns "spinning" or "asleep"; None where nothing is chosen here: with one thread, where the user has, and
        where the system does not tell or OpenMP is another one.
        """
        if threads < 2 or not can_choose():
            return None
        if self._turn.acquire(blocking=False):
            try:
                self._count(threads)
            finally:
                self._turn.release()
        return "asleep" if self.asleep else "spinning"

    def _count(self, threads: int) -> None:
        now = self._clock()
        paused, self._last = now - self._last > PAUSED, now
        passed, self._steps = now - self._began, self._steps + 1
        if paused or (passed >= SECONDS and (self._steps >= STEPS or passed >= PAUSED)):
            queued = self._queued()
            if not paused:
                share = max((s - self._before.get(task, s) for task, s in queued.items()), default=0.0) / passed
                self._choose(share, self._steps / passed, threads, passed)
            self._before, self._began, self._steps = queued, now, 0

    def _choose(self, share: float, rate: float, threads: int, passed: float) -> None:
        if self._rate is not None:
            if rate < self._rate:
                self._change(threads)
            self._rate, self._try_at = None, self._last + max(AGAIN, passed / TRIALS)
        elif self.asleep and share < QUIET:
            self._change(threads)
        elif self._last >= self._try_at and (self.asleep or share > BUSY):
            self._rate = rate
            self._change(threads)

    def _change(self, threads: int) -> None:
        if self._let_go is None:
            self._let_go = self._hold(threads)
        else:
            self._let_go.set()
            self._let_go = None


def _hold(threads: int) -> threading.Event:
    """Keep as many threads of OpenMP as make more than there are processors, until the event is set."""
    count = max(2, len(os.sched_getaffinity(0)) - threads + 2)
    there, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        library = openmp()
        nothing = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p)  # what each of them is to do
        library.GOMP_parallel(nothing, None, ctypes.c_uint(count), ctypes.c_uint(0))
        there.set()
        let_go.wait()  # OpenMP keeps a thread's team as long as the thread

    threading.Thread(target=hold, daemon=True, name="gsm_lab waiting").start()
    there.wait()
    return let_go


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile PyTorch computes with one thread: small pieces, or what spins for itself, as the LU of MKL does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def can_choose() -> bool:
    """Whether it is for us to choose, and possible here."""
    return not any(name in os.environ for name in USERS_OWN) and bool(_queued()) and openmp() is not None


def described() -> str:
    """In words, for people: how threads wait."""
    if said := [f"{name}={os.environ[name]}" for name in USERS_OWN if name in os.environ]:
        return f"waiting as {' and '.join(said)} says"
    return "spinning while they wait, or asleep where the machine is busy" if can_choose() else "waiting as OpenMP does"


@cache
def openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP, if it is GNU's."""
    import torch

    library = ctypes.CDLL(torch._C.__file__)  # and what that depends on
    gnu = hasattr(library, "GOMP_parallel") and not hasattr(library, "__kmpc_fork_call")  # LLVM's and Intel's have both
    return library if gnu else None


def _queued() -> dict[str, float]:
    """Seconds that each thread of this process has queued for a processor, by its id; none where nobody tells."""
    found = {}
    with suppress(OSError):
        for task in _TASKS.iterdir():
            with suppress(OSError, ValueError, IndexError):  # it has ended
                found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


waiting = Waiting()  # there is one OpenMP in a process
