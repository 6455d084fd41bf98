"""`Player`: one thread, never two things at once, nothing left running. No test sleeps; all wait for what happens."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

from gsm_lab import Run
from gsm_lab.notebook import player
from gsm_lab.notebook.player import Player
from tests.notebook.players import SECONDS, Fake, done


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
    run.at = lambda left: one.pause_with("here") if left == -9_990 else None
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


def denormal() -> float:
    """One, computed by this thread: 0 where it flushes them."""
    return torch.full((2,), 1e-39).mul(0.5)[0].item()


def test_what_is_too_small_to_compute_with_is_zero_on_its_thread_and_nowhere_else(start: Callable[..., Player]) -> None:
    run, seen = Fake(), []
    run.at = lambda _: seen.append(denormal())
    start(run).play(2)
    run.until(lambda: len(seen) == 2)
    assert seen == [0, 0] and denormal() > 0


def test_passive_weights_below_the_normal_numbers_are_let_go(start: Callable[..., Player]) -> None:
    """As after some 20,000 steps: they would make each step ten times as slow."""
    run = Run("lenet300", "digits", hold=1.0, pretrain=0, seed=0)
    run.step(2)
    with torch.no_grad():
        for p in run.tensors:
            few = p.abs() < 0.02
            for values in (p, run.opt.state[p]["momentum_buffer"]):
                values[few] *= 1e-37
    one = start(run)
    one.play(3)
    done(one)
    while one.playing:
        done(one)
    weights = torch.cat([p.detach().flatten() for p in run.tensors]).double().abs()
    assert run.steps == 5 and ((weights == 0) | (weights > 1.17e-38)).all() and (weights == 0).sum() > 100_000


@pytest.mark.parametrize("watched", [True, False])
def test_idle_before_a_viewer_it_loads_what_a_first_gated_step_needs(
    start: Callable[..., Player], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """A program without a page, which may never play, loads nothing."""
    names, tidied = [], threading.Event()
    monkeypatch.setattr(player.loader, "compiled", names.append)
    monkeypatch.setattr(player, "give_back", tidied.set)
    one = start(Fake(), watched=watched)
    one.acknowledge(0)
    assert tidied.wait(SECONDS)
    assert names == ["gsm_lab.optim.fused.step", "gsm_lab.training.history_compiled"] * watched
