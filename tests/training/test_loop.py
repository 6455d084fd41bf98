"""The one loop: how many steps it does, when it calls back, and what ends it; against counts by hand."""

import os
import signal

import pytest

from gsm_lab import Run
from gsm_lab.training import loop
from gsm_lab.training.loop import Progress, Regularly, advance, portion
from tests.runs import differs, everything, tiny


def test_callbacks_are_told_of_every_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PORTION", 4)
    run, told = tiny(), []
    advance(run, 9, [lambda run, done: told.append((run.dense_steps, run.steps, done))])
    # ten dense steps, of which the last two are a portion of their own, and nine gated ones
    assert [done for *_, done in told] == [0, 4, 4, 2, 4, 4, 1]
    assert told[3][:2] == (10, 0) and told[-1][:2] == (10, 9) and run.base is not None


@pytest.mark.parametrize("pretrain", [0, 1])
def test_it_trains_what_step_does_in_one_go(pretrain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PORTION", 3)
    run, straight = tiny(pretrain=pretrain), tiny(pretrain=pretrain)
    advance(run, 17)
    straight.step(17)
    assert differs(everything(run), everything(straight)) == []
    advance(run, 5)  # it is there already
    assert run.steps == 17


def test_a_portion_stays_in_its_phase() -> None:
    run = tiny()
    assert [portion(run, 7), portion(run, 7), portion(run, 7, until=5), portion(run, 7, until=5)] == [7, 3, 5, 0]
    assert (run.dense_steps, run.steps) == (10, 5)


def test_without_gated_steps_it_still_closes_the_gate() -> None:
    for pretrain in (0, 1):
        run = tiny(pretrain=pretrain)
        advance(run, 0)
        assert run.base is not None and run.steps == 0


@pytest.mark.parametrize("at", [3, 14])
def test_an_interrupt_ends_it_between_two_steps(at: int) -> None:
    run, straight = tiny(), tiny()
    real = type(run)._forward_backward

    def interrupted(self: Run, batch: int) -> float:
        if batch == at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    type(run)._forward_backward = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            advance(run, 20)
    finally:
        type(run)._forward_backward = real
    assert run.dense_steps + run.steps == at + 1, "the step that was being done is done"
    advance(run, 20)
    straight.step(20)
    assert differs(everything(run), everything(straight)) == []


def test_what_a_callback_raises_ends_it() -> None:
    def enough(run: Run, done: int) -> None:
        if run.steps >= 10:
            raise StopIteration

    run = tiny()
    with pytest.raises(StopIteration):
        advance(run, 60, [enough])
    assert run.steps == 10
    run.step()


def test_regularly_is_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [0.0], []
    monkeypatch.setattr("gsm_lab.training.loop.time.monotonic", lambda: now[0])
    save = Regularly(60.0, lambda: done.append(now[0]))
    for now[0] in (0.0, 59.0, 61.0, 100.0, 121.0, 200.0):
        save(tiny(), 1)
    assert done == [61.0, 121.0, 200.0]


def test_the_bar_counts_dense_and_gated_steps_of_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(44, phase=True) as bar:
        for _ in range(2):
            advance(tiny(), 12, [bar])
        assert bar.bar.n == 44
    assert "gate closed, C = 4" in capsys.readouterr().err
