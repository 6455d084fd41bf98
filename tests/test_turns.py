"""`Turns`: a lock that goes to who waits, even from a thread that takes it again at once; forks and signals."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from gsm_lab.turns import Turns, turn

SECONDS = 300


def test_who_has_it_may_take_it_again_and_others_wait() -> None:
    one, order = Turns(), []
    inside = threading.Event()

    @one
    def other() -> None:
        order.append("other")

    def work() -> None:
        inside.wait(SECONDS)
        other()

    thread = threading.Thread(target=work)
    thread.start()
    with one:
        with one:
            inside.set()
        order.append("still mine")
        deadline = time.monotonic() + SECONDS
        while not one._next.locked():  # until the other one waits
            assert time.monotonic() < deadline
        order.append("mine")
    thread.join(SECONDS)
    assert order == ["still mine", "mine", "other"]


def test_a_thread_that_takes_it_again_at_once_lets_those_in_that_wait() -> None:
    one, turns = Turns(), []
    stop = threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            with one:
                turns.append("greedy")

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for _ in range(50):
            with one:
                turns.append("polite")
    finally:
        stop.set()
        thread.join(SECONDS)
    assert turns.count("polite") == 50  # with an ordinary lock this takes as long as the scheduler pleases


def test_what_is_raised_inside_frees_it() -> None:
    one = Turns()
    with pytest.raises(KeyError), one, one:
        raise KeyError
    taken = threading.Thread(target=lambda: one.__enter__() and one.__exit__())
    taken.start()
    taken.join(SECONDS)
    assert not taken.is_alive()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends a signal to a thread")
def test_an_interrupt_while_waiting_is_raised_and_leaves_nothing_behind() -> None:
    one, held, free = Turns(), threading.Event(), threading.Event()

    def hold() -> None:
        with one:
            held.set()
            free.wait(SECONDS)

    def interrupt() -> None:
        while not one._next.locked():
            pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threads = [threading.Thread(target=hold), threading.Thread(target=interrupt)]
    threads[0].start()
    held.wait(SECONDS)
    threads[1].start()
    with pytest.raises(KeyboardInterrupt), one:
        pass
    free.set()
    for thread in threads:
        thread.join(SECONDS)
    assert not one._next.locked()
    with one:
        pass


def _take(one: Turns, said: object) -> None:
    with one:
        said.send("taken")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods() or os.name == "nt", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_is_not_locked_out_by_a_thread_that_it_does_not_have() -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            free.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(SECONDS)
    here, there = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=_take, args=(turn, there))
    child.start()
    try:
        assert here.poll(SECONDS) and here.recv() == "taken"
    finally:
        child.join(1)
        child.kill()
        free.set()
        thread.join(SECONDS)
