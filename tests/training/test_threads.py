"""Threads that wait: when they spin, when they sleep, who decides; and that results are the same."""

import threading

import pytest
import torch

import gsm_lab as gl
from gsm_lab.cli.report import report
from gsm_lab.training import threads
from gsm_lab.training.checkpoint import FILE
from gsm_lab.training.threads import Waiting


@pytest.fixture
def anew(monkeypatch):
    """What was found out about this process is found out again, before and after."""
    for name in threads.USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    threads.can_choose.cache_clear()
    yield
    threads.can_choose.cache_clear()


class Machine:
    """A clock, a queue and an OpenMP made up: a step takes as long as the way of waiting has it."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(threads, "can_choose", lambda: True)
        self.now, self.queue, self.share = 100.0, 0.0, 0.0
        self.step = {"spinning": 0.01, "asleep": 0.015}
        self.held = []
        self.waiting = Waiting(lambda: {"1": 0.0, "2": self.queue}, lambda: self.now, self.hold)

    def hold(self, count):
        self.held.append(threading.Event())
        return self.held[-1]

    def train(self, seconds):
        """Returns the share of the time in which threads slept."""
        asleep, end = 0.0, self.now + seconds
        while self.now < end:
            took = self.step["asleep" if self.waiting.asleep else "spinning"]
            asleep += took * self.waiting.asleep
            self.now, self.queue = self.now + took, self.queue + self.share * took
            assert self.waiting.look(2) == ("asleep" if self.waiting.asleep else "spinning")
            assert sum(not let_go.is_set() for let_go in self.held) == self.waiting.asleep
        return asleep / seconds


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_where_nobody_queues_threads_spin(machine):
    machine.share = 0.07
    assert machine.train(60) == 0 and machine.held == []


def test_where_they_queue_and_it_helps_they_sleep_and_spin_again_when_the_queue_is_gone(machine):
    machine.train(5)
    machine.share, machine.step["spinning"] = 0.6, 0.1
    assert machine.train(5) > 0.5
    assert machine.train(60) > 0.8, "spinning is tried now and then, for a moment"
    machine.share, machine.step["spinning"] = 0.02, 0.01
    assert machine.train(5) < 0.3
    assert machine.train(60) == 0


def test_where_they_queue_and_it_does_not_help_they_spin(machine):
    machine.share = 0.6  # say, beside a program that is to give way to this one
    assert machine.train(60) < 0.1
    machine.step["spinning"] = 0.1
    assert machine.train(60) > 0.7, "it is tried again"


def test_steps_that_take_long_are_counted_too(machine):
    machine.share, machine.step = 0.6, {"spinning": 1.0, "asleep": 0.3}
    assert machine.train(120) > 0.5


def test_a_pause_tells_nothing(machine):
    machine.train(5)
    for _ in range(20):  # single steps by hand; in between the process does other things, and queues
        machine.now, machine.queue = machine.now + 10, machine.queue + 9
        machine.train(0.05)
    assert machine.held == []


def test_one_thread_waits_for_nobody(machine):
    machine.share = 0.9
    for _ in range(100):
        machine.now, machine.queue = machine.now + 0.1, machine.queue + 0.09
        assert machine.waiting.look(1) is None
    assert machine.held == []


@pytest.mark.parametrize("name, value", [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000")])
def test_who_has_set_it_has_decided(name, value, monkeypatch, anew):
    monkeypatch.setenv(name, value)
    assert not threads.can_choose() and Waiting().look(2) is None
    assert threads.described() == f"waiting as {name}={value} says"


def needs_gnu():
    if not threads.can_choose():
        pytest.skip("another OpenMP, another system, or the user's own choice")


def test_a_system_that_does_not_tell_is_left_alone(monkeypatch, tmp_path, anew):
    monkeypatch.setattr(threads, "_TASKS", tmp_path / "none")
    assert not threads.can_choose() and Waiting().look(2) is None
    assert threads.described() == "waiting as OpenMP does"


def test_it_sees_its_own_queue():
    needs_gnu()
    queued = threads._queued()
    assert str(threading.main_thread().native_id) in queued
    assert all(seconds >= 0 for seconds in queued.values())


def test_results_are_the_same_to_the_bit():
    needs_gnu()

    def trained(asleep):
        let_go = threads._hold(2) if asleep else None
        run = gl.Run("lenet300", "digits", compression=20, pretrain=0, seed=1)
        for i in range(6):
            run.step(1)
            if asleep and i == 3:  # in the midst
                let_go.set()
        return run

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spinning, sleeping = trained(False), trained(True)
    finally:
        torch.set_num_threads(before)
    assert spinning.threads == sleeping.threads == 2
    for a, b in zip(spinning.model.parameters(), sleeping.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert spinning.history.frame().equals(sleeping.history.frame())


def test_the_threads_held_are_openmps_and_end():
    needs_gnu()

    def count():
        return len(threads._queued())

    before, others = count(), set(threading.enumerate())
    let_go = threads._hold(2)
    (keeper,) = set(threading.enumerate()) - others
    assert count() >= before + 2, "one of Python's, and one of OpenMP's at least"
    let_go.set()
    keeper.join(20)
    assert not keeper.is_alive()


def test_a_run_says_how_its_threads_waited(monkeypatch, tmp_path):
    monkeypatch.setattr(threads.waiting, "look", lambda count: "asleep")
    run = gl.Run("lenet300", "digits", compression=20, pretrain=0)
    assert run.waiting is None
    run.step(1)
    assert run.waiting == "asleep"
    assert "1 threads (asleep where they wait)" in report(run)
    run.save(tmp_path)
    assert b'"waiting": "asleep"' in (tmp_path / FILE).read_bytes().replace(b'\\"', b'"')
