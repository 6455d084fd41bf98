"""`Player` drives a `Run` from a thread of its own: play, pause, step, reset, never two at once.

Whoever calls `post` only leaves a message; the player's thread does the work, between two steps. So a widget's callback
returns at once whatever thread it runs in, and a knob that moved is in force from the very next step.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import torch

from gsm_lab.checks import integer
from gsm_lab.notebook.in_step import InStep
from gsm_lab.notebook.memory import give_back
from gsm_lab.optim.fused import loader
from gsm_lab.training import history
from gsm_lab.training.denormals import denormals_are_zero
from gsm_lab.training.loop import portion
from gsm_lab.training.run import Run

UNWATCHED = 15.0  # seconds without an acknowledged frame after which a player pauses
FRAME = 0.2  # seconds from one frame to the next, at least
_SHARE = 0.12  # of the time that the browser may take to draw while nobody touches anything; the rest is for training
_SLOWEST = 1.5  # seconds from one frame to the next that it comes to, at most
TIDY = 20.0  # seconds of play after which memory that is not needed is given back

_current: weakref.ReferenceType[Player] | None = None
_taking_over = threading.Lock()


class Player:
    """A thread that trains `run` while it plays. A new player closes the one before: one per kernel.

    Args:
        run: the run to drive, or several `InStep`. When somebody else steps or trains one of them, the player pauses;
            all other reading and changing of it is done between two steps.
        draw: called on the player's thread whenever there is something new to show, at most five times a second and
            never twice at once. It returns the number of the frame it sent, or None if it sent none.
        watched: whether a viewer acknowledges frames (`acknowledge`). If so, no frame is sent before the last one was
            seen, and playing pauses by itself after 15 seconds without a sign of life.
        threads: how many threads PyTorch uses in the player's steps; by default as many as elsewhere. Give one less
            than there are cores where a page is drawn on this machine: a step waits for its slowest thread, which
            would share a core with the page. Whatever else the program computes keeps its number of threads.

    Raises:
        TypeError, ValueError: `threads` is no integer >= 1; the player before this one then goes on.
    """

    def __init__(
        self,
        run: Run | InStep,
        draw: Callable[[], int | None] = lambda: None,
        watched: bool = False,
        threads: int | None = None,
    ) -> None:
        global _current
        threads = None if threads is None else integer("threads", threads, 1)  # an error in its thread would be lost
        self.run, self.draw, self.watched, self.threads = run, draw, watched, threads
        self.lock = run.lock
        run._player = weakref.ref(self)
        self.playing = False
        self.closed = False
        self.error: Exception | None = None
        self.note = ""  # why it paused by itself
        self.rate = 0.0  # steps a second, drawing included, smoothed
        self._took = 0.0  # seconds a step, smoothed
        self._stepped_at: float | None = None  # None where the last step was before a pause
        self._left = math.inf  # steps until it pauses by itself
        self._posted: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._stale = True  # there is something that no frame has shown
        self._hurry = False  # somebody did something and wants to see it
        self._untidy = True  # something was done since memory was last given back
        self._painting = 0.0  # seconds from sending the last frame to seeing it
        self._sent = self._seen = 0
        self._sent_at = self._seen_at = self._tidied_at = time.monotonic()
        with _taking_over:
            before = _current() if _current is not None else None
            _current = weakref.ref(self)
        if before is not None:
            before.close()
        others, ready = torch.get_num_threads(), threading.Event()
        arguments = (weakref.ref(self), threads, ready)
        self._thread = threading.Thread(target=_drive, args=arguments, daemon=True, name="gsm_lab player")
        self._thread.start()
        ready.wait()
        if threads is not None:  # it sets its own number, and with it what threads to come begin with
            torch.set_num_threads(others)

    # -- what anybody may ask, from any thread ---------------------------------------------------------------------

    def post(self, action: Callable[[], object]) -> None:
        """Have `action` done by the player's thread, under the lock, before the next step.

        Raises RuntimeError if the player is closed, as `play` does.
        """
        self._must_be_open()
        self._seen_at = time.monotonic()  # whoever moves something is there, even if the page has no time to paint
        self._posted.append(action)
        self._wake.set()

    def play(self, steps: int | None = None) -> None:
        """Train until `pause`, an error, nobody watching, or: `steps` steps if given, else the end of the schedule."""
        self._must_be_open()
        self.error, self.note = None, ""
        self._left = math.inf if steps is None else steps
        self._seen_at, self._stepped_at = time.monotonic(), None
        self.playing = True
        self._wake.set()

    def pause(self) -> None:
        """Stop after the step that is being done; returns when it is done (at once on the player's own thread)."""
        self.playing = False
        self._wake.set()
        with self.lock:
            pass

    def pause_with(self, note: str) -> None:
        """Stop after the step that is being done, if playing, and say why; returns at once."""
        if self.playing:
            self.note, self.playing = note, False

    def step(self, n: int = 1, progress: bool = False) -> None:
        """Pause, then do `n` steps here and now, as `Run.step` does; what training raises is raised."""
        self._must_be_open()
        self.pause()
        with self.exclusive(), self._as_on_its_thread():
            self.error, self.note = None, ""
            self.run.step(n, progress)

    def close(self) -> None:
        """Stop for good and end the thread."""
        self.playing, self.closed = False, True
        self._wake.set()
        if not self.is_this_thread:
            self._thread.join(timeout=10)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Between two steps, with all that was posted done; what is done inside is drawn afterwards."""
        with self.lock:
            self._do_posted()
            yield
        self.refresh()

    def refresh(self) -> None:
        """Draw again, also if nothing happened (a view was opened)."""
        self._stale = self._hurry = self._untidy = True
        self._wake.set()

    def acknowledge(self, frame: int) -> None:
        """A viewer has seen this frame."""
        now = time.monotonic()
        if self._seen < self._sent <= frame:
            self._painting = now - self._sent_at
        self._seen, self._seen_at = max(self._seen, frame), now
        self._wake.set()

    @contextlib.contextmanager
    def _as_on_its_thread(self) -> Iterator[None]:
        """Compute with the player's number of threads. (To set it at every step has PyTorch forget what it keeps.)"""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _must_be_open(self) -> None:
        if self.closed:
            raise RuntimeError("this player was closed, because another one was made; run the cell again")

    # -- for whoever inspects a step while it is done ------------------------------------------------------------------

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller is on the player's own thread."""
        return threading.current_thread() is self._thread

    @property
    def ending(self) -> bool:
        """Whether the step that its thread is doing is the last one before it pauses."""
        return self.is_this_thread and (not self.playing or self._left <= 1)

    @property
    def frame_due(self) -> bool:
        """Whether the step in progress will be drawn, as far as can be foreseen."""
        return self._draw_due() <= self._took

    # -- the thread ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do what was posted, then a step if playing, then a frame if one is due; else wait."""
        with self.lock:
            self._do_posted()
            if self.playing and not self.closed:
                self._advance()
        if self._draw_due() <= 0:
            self._draw()
        if self.playing and time.monotonic() - self._tidied_at > TIDY:
            self._tidy()
        self._wake.clear()  # before it looks: whoever changes something from here on wakes it
        idle = not (self.playing or self._posted or self.closed)
        if idle and (rest := self._draw_due()) > 0 and not self._wake.wait(rest) and self._untidy:
            self._tidy()

    def _tidy(self) -> None:
        """While nobody asks for anything: what the first gated step would wait for a second, and memory given back."""
        if self.watched and not self.playing:
            for name in (loader.STEP, history.COMPILED):
                loader.compiled(name)
        self._untidy, self._tidied_at = False, time.monotonic()
        give_back()

    def _do_posted(self) -> None:
        while self._posted:
            self._stale = self._hurry = True
            try:
                self._posted.popleft()()
            except Exception as error:
                self._stop(error)

    def _advance(self) -> None:
        try:
            gated = self.run.base is not None  # one dense step at a time too: a pause has not to wait for all of them
            portion(self.run, 1)
            if gated:
                self._left -= 1
                self._clock()
        except Exception as error:
            self._stop(error)
        self._stale = self._untidy = True
        if self._left <= 0:
            self.playing = False
        elif self.run.finished and math.isinf(self._left):
            self.pause_with(getattr(self.run, "at_its_end", "the schedule has come to its end; Reset to begin again"))
        elif self.watched and time.monotonic() - self._seen_at > UNWATCHED:
            self.pause_with(f"nobody was watching for {UNWATCHED:.0f} seconds")

    def _clock(self) -> None:
        now = time.monotonic()
        if self._stepped_at is not None:
            took = now - self._stepped_at
            self._took += (0.03 if self._took else 1.0) * (took - self._took)
            self.rate = 1.0 / max(self._took, 1e-6)
        self._stepped_at = now

    def _stop(self, error: Exception) -> None:
        self.error, self.playing = error, False

    def _draw_due(self) -> float:
        """Seconds until a frame is due: 0 now, a second if there is nothing to show or the viewer is still busy."""
        if not self._stale:
            return 1.0
        since = time.monotonic() - self._sent_at
        if self.watched and self._seen < self._sent and since < 2.0:  # after two seconds try again: it may be gone
            return max(0.01, min(FRAME, 2.0 - since))
        pace = FRAME if self._hurry or not self.playing else max(FRAME, min(self._painting / _SHARE, _SLOWEST))
        return max(0.0, pace - since)

    def _draw(self) -> None:
        self._stale = self._hurry = False
        self._sent_at = time.monotonic()
        try:
            if (sent := self.draw()) is not None:
                self._sent = sent
        except Exception as error:
            self._stop(error)


def _drive(reference: weakref.ReferenceType[Player], threads: int | None, ready: threading.Event) -> None:
    """Turn after turn, without keeping alive a player that nobody else holds."""
    if threads is not None:
        torch.get_num_threads()  # the first call in a thread takes over the program's number, even over one set before
        torch.set_num_threads(threads)
    with denormals_are_zero():  # for all of its steps, not at each anew
        ready.set()
        while (player := reference()) is not None and not player.closed:
            player._turn()
            del player
