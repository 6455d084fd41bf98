"""`Player` drives a `Run` from a thread of its own: play, pause, step, reset, never two at once.

Whoever calls `post` only leaves a message; the player's thread does the work, between two steps. So a widget's callback
returns at once whatever thread it runs in, and a knob that moved is in force from the very next step.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from gsm_lab.run import Run

UNWATCHED = 15.0  # seconds without an acknowledged frame after which a player pauses
FRAME = 0.2  # seconds from one frame to the next, at least
_SLICE = 20  # dense steps at a time, so that pausing stays quick

_current: weakref.ReferenceType[Player] | None = None
_taking_over = threading.Lock()


class Player:
    """A thread that trains `run` while it plays. A new player closes the one before: one per kernel.

    Args:
        run: what to drive. Nobody else may step it meanwhile, except inside `with player.lock`.
        draw: called on the player's thread, at most five times a second and never twice at once, whenever there is
            something new to show. It returns the number of the frame it sent, or None if it sent none.
        watched: whether a viewer acknowledges frames (`acknowledge`). If so, no frame is sent before the last one was
            seen, and playing pauses by itself after 15 seconds without a sign of life.
    """

    def __init__(self, run: Run, draw: Callable[[], int | None] = lambda: None, watched: bool = False) -> None:
        global _current
        self.run, self.draw, self.watched = run, draw, watched
        self.lock = threading.RLock()
        self.playing = False
        self.closed = False
        self.error: Exception | None = None
        self.note = ""  # why it paused by itself
        self.rate = 0.0  # steps a second, smoothed
        self._posted: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._stale = True  # there is something that no frame has shown
        self._sent = self._seen = 0
        self._sent_at = self._seen_at = time.monotonic()
        with _taking_over:
            before = _current() if _current is not None else None
            _current = weakref.ref(self)
        if before is not None:
            before.close()
        self._thread = threading.Thread(target=_drive, args=(weakref.ref(self),), daemon=True, name="gsm_lab player")
        self._thread.start()

    # -- what anybody may ask, from any thread ---------------------------------------------------------------------

    def post(self, action: Callable[[], object]) -> None:
        """Have `action` done by the player's thread, under the lock, before the next step."""
        self._posted.append(action)
        self._notify()

    def play(self) -> None:
        """Train until `pause`, an error, the end of the schedule, or nobody watching."""
        if self.closed:
            raise RuntimeError("this player was closed, because another one was made; run the cell again")
        self.error, self.note = None, ""
        self._seen_at = time.monotonic()
        self.playing = True
        self._notify()

    def pause(self) -> None:
        """Stop after the step that is being done; returns when it is done (at once on the player's own thread)."""
        self.playing = False
        self._notify()
        with self.lock:
            pass

    def step(self, n: int = 1) -> None:
        """Pause, then do `n` steps here and now; what training raises is raised."""
        self.pause()
        with self.exclusive():
            self.error, self.note = None, ""
            self.run.step(n)

    def close(self) -> None:
        """Stop for good and end the thread."""
        self.playing, self.closed = False, True
        self._notify()
        if threading.current_thread() is not self._thread:
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
        self._stale = True
        self._notify()

    def acknowledge(self, frame: int) -> None:
        """A viewer has seen this frame."""
        self._seen, self._seen_at = max(self._seen, frame), time.monotonic()
        self._notify()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do what was posted, then a step if playing, then a frame if one is due; else wait."""
        with self.lock:
            self._do_posted()
            if self.playing and not self.closed:
                self._advance()
        due = self._draw_due()
        if due <= 0:
            self._draw()
        if not self.playing:
            with self._wake:
                if not self._posted and not self.closed and not self.playing:
                    self._wake.wait(min(1.0, max(due, 0.01)) if self._stale else 1.0)

    def _do_posted(self) -> None:
        while self._posted:
            self._stale = True
            try:
                self._posted.popleft()()
            except Exception as error:
                self._stop(error)

    def _advance(self) -> None:
        before = time.perf_counter()
        try:
            if self.run.base is None:
                self.run.pretrain(_SLICE)
            else:
                self.run.step(1)
                took = time.perf_counter() - before
                self.rate += 0.03 * (1.0 / max(took, 1e-6) - self.rate) if self.rate else 1.0 / max(took, 1e-6)
        except Exception as error:
            self._stop(error)
        self._stale = True
        if self.run.finished:
            self._pause_with("the schedule has come to its end; Reset to begin again")
        elif self.watched and time.monotonic() - self._seen_at > UNWATCHED:
            self._pause_with(f"nobody was watching for {UNWATCHED:.0f} seconds")

    def _stop(self, error: Exception) -> None:
        self.error, self.playing = error, False

    def _pause_with(self, note: str) -> None:
        if self.playing:
            self.note, self.playing = note, False

    def _draw_due(self) -> float:
        """Seconds until a frame is due: 0 now, a second if there is nothing to show or the viewer is still busy."""
        if not self._stale:
            return 1.0
        since = time.monotonic() - self._sent_at
        if self.watched and self._seen < self._sent and since < 2.0:  # after two seconds try again: it may be gone
            return max(0.01, min(FRAME, 2.0 - since))
        return max(0.0, FRAME - since)

    def _draw(self) -> None:
        self._stale = False
        self._sent_at = time.monotonic()
        try:
            sent = self.draw()
        except Exception as error:
            self._stop(error)
            return
        if sent is not None:
            self._sent = sent

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()


def _drive(reference: weakref.ReferenceType[Player]) -> None:
    """Turn after turn, without keeping alive a player that nobody else holds."""
    while (player := reference()) is not None and not player.closed:
        player._turn()
        del player
