"""When the player draws, and when it pauses because nobody watches. The clock stands still until a test moves it."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from gsm_lab.notebook import player
from gsm_lab.notebook.player import Player
from tests.notebook.players import SECONDS, Fake, done


class Screen:
    """Counts the frames it is sent."""

    def __init__(self) -> None:
        self.frames = 0
        self.changed = threading.Condition()
        self.threads: set[int] = set()

    def __call__(self) -> int:
        with self.changed:
            self.frames += 1
            self.threads.add(threading.get_ident())
            self.changed.notify_all()
            return self.frames

    def until(self, frames: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.frames >= frames, SECONDS), "no frame came"


def turns(one: Player, run: Fake, n: int = 20) -> None:
    """Let the thread go round for a while, in which a frame that is due is drawn."""
    reached = run.steps
    run.until(lambda: run.steps >= reached + n)


def test_at_most_five_frames_a_second(start: Callable[..., Player], clock: SimpleNamespace) -> None:
    run, screen = Fake(), Screen()
    one = start(run, draw=screen)
    one.play()
    turns(one, run)
    assert screen.frames == 0
    for frame in range(1, 6):
        clock.now += 0.1999
        turns(one, run)
        assert screen.frames == frame - 1
        clock.now += 0.0002
        screen.until(frame)
        turns(one, run)
        assert screen.frames == frame
    assert screen.threads == {one._thread.ident}


def test_one_frame_in_flight(start: Callable[..., Player], clock: SimpleNamespace) -> None:
    run, screen = Fake(), Screen()
    one = start(run, draw=screen, watched=True)
    one.play()
    clock.now += 1
    screen.until(1)
    clock.now += 1.9  # the viewer is busy
    turns(one, run, 200)
    assert screen.frames == 1
    one.acknowledge(1)
    screen.until(2)
    clock.now += 1.9
    one.acknowledge(1)  # of an old frame
    turns(one, run, 200)
    assert screen.frames == 2
    clock.now += 0.2  # the acknowledgement may be lost: once every two seconds a frame comes anyway
    screen.until(3)
    turns(one, run, 200)
    assert screen.frames == 3


def test_nothing_new_nothing_drawn(start: Callable[..., Player], clock: SimpleNamespace) -> None:
    screen = Screen()
    one = start(None, draw=screen)
    clock.now += 1
    one.refresh()
    screen.until(1)
    clock.now += 100
    one._wake.set()
    with one.lock:
        pass
    assert not one._stale and one._draw_due() > 0
    done(one)  # what was posted may have changed something
    screen.until(2)
    one.step(0)
    clock.now += 1
    one.refresh()
    screen.until(3)


def test_unwatched_pauses(
    start: Callable[..., Player], clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, screen = Fake(), Screen()
    one = start(run, draw=screen, watched=True)
    clock.now += 1000  # before Play nobody has to watch
    one.play()
    turns(one, run)
    clock.now += player.UNWATCHED - 0.1
    turns(one, run)
    one.acknowledge(screen.frames)
    clock.now += player.UNWATCHED - 0.1
    turns(one, run)
    assert one.playing
    one.post(lambda: None)  # somebody who moves a knob is there, also where the page has no time to paint
    clock.now += player.UNWATCHED - 0.1
    turns(one, run)
    assert one.playing
    clock.now += 0.2
    run.until(lambda: not one.playing)
    assert "nobody was watching for 15 seconds" in one.note and one.error is None
    one.play()
    turns(one, run)
    assert one.playing and one.note == ""
    monkeypatch.setattr(player, "UNWATCHED", 1.0)
    clock.now += 1.1
    run.until(lambda: not one.playing)


def test_without_a_viewer_it_goes_on(start: Callable[..., Player], clock: SimpleNamespace) -> None:
    run = Fake()
    one = start(run)
    one.play()
    clock.now += 10_000
    turns(one, run, 200)
    assert one.playing


def test_slow_drawing_leaves_time_for_training(start: Callable[..., Player], clock: SimpleNamespace) -> None:
    run, screen = Fake(), Screen()
    one = start(run, draw=screen, watched=True)
    one.play()
    clock.now += 1
    screen.until(1)
    turns(one, run)
    clock.now += 0.1  # that the browser took
    one.acknowledge(1)
    clock.now += 0.7
    turns(one, run)
    assert screen.frames == 1
    clock.now += 0.06  # 0.86 s in all, of which an eighth was drawing
    screen.until(2)
    turns(one, run)
    clock.now += 0.1
    one.acknowledge(2)
    clock.now += 0.11
    turns(one, run)
    assert screen.frames == 2
    done(one)  # somebody moved a knob, and sees it without waiting that long
    screen.until(3)
