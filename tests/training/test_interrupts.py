"""Signals that are held back, raised when it is safe, and left alone where they are ignored."""

import os
import signal
import threading

import pytest

from gsm_lab.training.interrupts import STOPS, Stopped, held_back, interruptible, status, stops, uninterrupted


@pytest.fixture(autouse=True)
def handlers_stay_as_they_are():
    before = [signal.getsignal(number) for number in STOPS]
    yield
    assert [signal.getsignal(number) for number in STOPS] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPS)
def test_raised_at_once_outside_and_at_the_end_inside(number: int) -> None:
    done = []
    with stops():
        with pytest.raises(KeyboardInterrupt) as at_once:
            send(number)
        with pytest.raises(KeyboardInterrupt) as at_the_end, interruptible() as received:
            send(number)
            send(number)
            done.append(list(received))
    assert done == [[number, number]]
    for error in (at_once, at_the_end):
        assert status(error.value) == 128 + number
        assert isinstance(error.value, Stopped) == (number != signal.SIGINT)


def test_a_notebook_holds_back_its_stop_button_only() -> None:
    term = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible() as received:
        assert signal.getsignal(signal.SIGTERM) is term
        send(signal.SIGINT)
        assert received == [signal.SIGINT]


@pytest.mark.parametrize("number", STOPS)
def test_what_is_ignored_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stops(), interruptible() as received:
            send(number)
            assert received == []
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_third_one_breaks_what_is_not_to_be_interrupted(times: int) -> None:
    done = 0
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        for _ in range(times):
            send(signal.SIGINT)
            done += 1
        done = 10
    assert done == (10 if times < 3 else 2)


def test_inside_what_holds_back_that_one_decides() -> None:
    received: list[int] = []
    with held_back(received, STOPS):
        with uninterrupted():
            for number in STOPS * 2:
                send(number)
        with pytest.raises(KeyboardInterrupt), interruptible() as inner:
            send(signal.SIGINT)
            assert inner == [signal.SIGINT]
        send(signal.SIGTERM)
    assert received == [*STOPS * 2, signal.SIGTERM]


def test_a_thread_holds_nothing_back_from_the_main_one() -> None:
    inside, leave = threading.Event(), threading.Event()

    def works() -> None:
        with interruptible(), uninterrupted():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=works)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    leave.set()
    thread.join()


def test_an_error_inside_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), interruptible():
        send(signal.SIGINT)
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
