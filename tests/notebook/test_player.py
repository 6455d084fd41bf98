"""`Player`: one thread, never two things at once, nothing left running. No test sleeps; all wait for what happens."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from gsm_lab import Run
from gsm_lab.notebook import player
from gsm_lab.notebook.player import Player
from gsm_lab.turns import Turns

SECONDS = 20  # that something may take before a test gives up on it


class Fake:
    """Stands for a run: counts, takes no time, and notices if two come at once. `changed` is notified at every step."""

    def __init__(self, dense: int = 0, end: float = float("inf")) -> None:
        self.steps, self.dense_left, self.end = 0, dense, end
        self.base = None if dense else 0.9
        self.threads: set[int] = set()
        self.changed = threading.Condition()
        self.at: Callable[[int], object] = lambda steps: None  # called in each step
        self.lock, self._busy = Turns(), threading.Lock()

    @property
    def finished(self) -> bool:
        return self.steps >= self.end

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            with self.alone():
                self.at(self.steps)
                self.steps += 1

    def pretrain(self, most: int) -> int:
        with self.alone():
            self.dense_left -= min(most, self.dense_left)
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


@pytest.fixture
def made() -> Iterator[list[Player]]:
    """Players to close at the end of the test."""
    players: list[Player] = []
    yield players
    for one in players:
        one.close()


@pytest.fixture
def start(made: list[Player]) -> Callable[..., Player]:
    def new(run: object = None, *args: object, **kwargs: object) -> Player:
        made.append(Player(Fake() if run is None else run, *args, **kwargs))
        return made[-1]

    return new


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The player's clock, standing still until a test moves it: `clock.now += 1`."""
    held = SimpleNamespace(now=100.0)
    monkeypatch.setattr(player, "time", SimpleNamespace(monotonic=lambda: held.now))
    return held


def done(one: Player, action: Callable[[], object] = lambda: None) -> None:
    """Have the thread do this, and wait until it has."""
    event = threading.Event()
    one.post(lambda: (action(), event.set()))
    assert event.wait(SECONDS)


def test_plays_on_its_own_thread_until_paused(start: Callable[..., Player]) -> None:
    run = Fake()
    one = start(run)
    assert not one.playing and run.steps == 0
    one.play()
    run.until(lambda: run.steps > 50)
    assert one.playing and one.rate > 0
    one.pause()
    reached = run.steps
    done(one)
    done(one)
    assert run.steps == reached and not one.playing
    assert run.threads == {one._thread.ident}
    one.play()
    run.until(lambda: run.steps > reached)


def test_steps_where_it_is_called(start: Callable[..., Player]) -> None:
    run = Fake()
    one = start(run)
    one.play()
    run.until(lambda: run.steps > 5)
    one.step(0)
    reached = run.steps
    assert not one.playing
    one.step()
    one.step(7)
    assert run.steps == reached + 8 and threading.get_ident() in run.threads


def test_plays_a_number_of_steps(start: Callable[..., Player]) -> None:
    run = Fake(dense=30, end=4)
    one = start(run)
    one.play(3)
    run.until(lambda: not one.playing)
    assert (run.steps, run.dense_left) == (3, 0)
    one.play(50)  # past the end of the schedule, because somebody wants it
    run.until(lambda: not one.playing)
    assert run.steps == 53 and one.note == ""
    one.play()
    run.until(lambda: not one.playing)
    assert run.steps == 54 and "end" in one.note


def test_nobody_comes_between_a_step(start: Callable[..., Player]) -> None:
    run = Fake()  # its steps, and what is done below, fail if they meet
    one = start(run, draw=lambda: None)
    one.play()

    def posted() -> None:
        with run.alone():
            run.posted = True

    def meddle() -> None:
        for _ in range(100):
            with one.exclusive(), run.alone():
                pass
            one.post(posted)

    threads = [threading.Thread(target=meddle) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "the player never let it in"
    reached = run.steps
    run.until(lambda: run.steps > reached)
    assert one.playing and one.error is None and run.posted


def test_lets_others_in_while_it_plays(start: Callable[..., Player]) -> None:
    """The lock goes to whoever waits, not again and again to the thread that has just let go of it."""
    run = Fake()
    one = start(run)
    one.play()
    run.until(lambda: run.steps > 0)
    for _ in range(50):
        before = run.steps
        with one.exclusive():
            assert run.steps - before < 2000
    assert one.playing


def test_posted_comes_before_the_next_step(start: Callable[..., Player]) -> None:
    run = Fake()
    one = start(run)
    seen: list[tuple[int, int]] = []

    def at(steps: int) -> None:
        if steps == 10:
            one.post(lambda: seen.append((run.steps, threading.get_ident())))
            one.post(lambda: seen.append((run.steps, threading.get_ident())))

    run.at = at
    one.play(20)
    run.until(lambda: not one.playing)
    assert seen == [(11, one._thread.ident)] * 2


def test_posted_is_done_while_paused_and_by_exclusive(start: Callable[..., Player]) -> None:
    one = start()
    done(one)
    order: list[str] = []
    with one.lock:
        one.post(lambda: order.append("posted"))
        with one.exclusive():
            order.append("inside")
    assert order == ["posted", "inside"]


def test_error_in_training_stops_and_is_kept(start: Callable[..., Player]) -> None:
    run = Fake()
    one = start(run)

    def at(steps: int) -> None:
        if steps == 5:
            raise FloatingPointError("nan in fc1")

    run.at = at
    one.play()
    run.until(lambda: not one.playing)
    assert isinstance(one.error, FloatingPointError) and run.steps == 5
    done(one)
    assert one.error is not None
    with pytest.raises(FloatingPointError):
        one.step()
    run.at = lambda steps: None
    one.play()
    run.until(lambda: run.steps > 6)
    assert one.error is None and one.playing


def test_error_in_posted_and_in_drawing_stops(start: Callable[..., Player]) -> None:
    run, drawn = Fake(), threading.Event()
    one = start(run)
    one.play()
    done(one)
    one.post(lambda: 1 / 0)
    run.until(lambda: not one.playing)
    assert isinstance(one.error, ZeroDivisionError)

    def draw() -> None:
        if run.steps > 3:
            drawn.set()
            raise TypeError("no such trace")

    two = start(run, draw=draw)
    two.play()
    assert drawn.wait(SECONDS)
    run.until(lambda: not two.playing)
    assert isinstance(two.error, TypeError)


def test_new_player_closes_the_one_before(start: Callable[..., Player]) -> None:
    run = Fake()
    before = start(run)
    before.play()
    run.until(lambda: run.steps > 3)
    after = start(run)
    assert before.closed and not before.playing and not before._thread.is_alive()
    with pytest.raises(RuntimeError, match="run the cell again"):
        before.play()
    with pytest.raises(RuntimeError, match="run the cell again"):
        before.post(lambda: None)
    with pytest.raises(RuntimeError, match="run the cell again"):
        before.step()
    after.play(3)
    run.until(lambda: not after.playing)


def test_closing_waits_for_the_step_and_ends_the_thread(start: Callable[..., Player]) -> None:
    run, inside, go_on = Fake(), threading.Event(), threading.Event()
    run.at = lambda steps: (inside.set(), go_on.wait(SECONDS))
    one = start(run)
    one.play()
    assert inside.wait(SECONDS)
    closing = threading.Thread(target=one.close)
    closing.start()
    go_on.set()
    closing.join(SECONDS)
    assert not one._thread.is_alive() and run.steps == 1
    one.close()  # once more does no harm


def test_closes_itself_from_its_own_thread(start: Callable[..., Player]) -> None:
    one = start()
    one.post(one.close)
    one._thread.join(SECONDS)
    assert not one._thread.is_alive()


def test_thread_ends_with_its_last_owner() -> None:
    one = Player(Fake())
    thread, gone = one._thread, weakref.ref(one)
    done(one)
    del one
    gc.collect()
    thread.join(SECONDS)
    assert not thread.is_alive()
    gc.collect()
    assert gone() is None


def test_end_of_schedule_pauses(start: Callable[..., Player]) -> None:
    run = Fake(end=12)
    one = start(run)
    one.play()
    run.until(lambda: not one.playing)
    assert run.steps == 12 and "schedule" in one.note and one.error is None


def test_dense_steps_one_at_a_time(start: Callable[..., Player]) -> None:
    run = Fake(dense=10_000)
    one = start(run)
    run.at = lambda left: one._pause_with("here") if left == -9_990 else None
    one.play()
    run.until(lambda: not one.playing)
    done(one)
    assert run.dense_left == 9_990 and run.steps == 0
    run.at = lambda left: None
    one.play(2)
    run.until(lambda: run.steps == 2)


def test_its_steps_have_its_threads_and_nothing_else_has(start: Callable[..., Player]) -> None:
    run, seen = Fake(), []
    run.at = lambda steps: seen.append(torch.get_num_threads())
    before = torch.get_num_threads()
    one = start(run, threads=before + 1)
    one.step(2)
    assert torch.get_num_threads() == before
    one.play(3)
    run.until(lambda: run.steps >= 5)
    one.pause()
    assert seen == [before + 1] * 5 and torch.get_num_threads() == before
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert elsewhere == [before]


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_a_number_of_threads_that_is_none_is_refused(start: Callable[..., Player], threads: float) -> None:
    before = start(Fake())
    with pytest.raises((TypeError, ValueError), match=f"^threads is {threads}; valid: an integer >= 1"):
        Player(Fake(), threads=threads)
    assert not before.closed


def test_with_a_real_run(start: Callable[..., Player]) -> None:
    run = Run(model="lenet300", data="digits", pretrain=1)
    drawn = threading.Event()
    one = start(run, draw=lambda: drawn.set() if run.steps >= 3 else None)
    one.play(3)
    assert drawn.wait(SECONDS)
    assert run.steps == 3 and run.base is not None and one.error is None


# -- frames and viewers ----------------------------------------------------------------------------------------------


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
    one._notify()
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
