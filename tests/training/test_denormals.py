"""Denormal numbers are zero in a run's steps, in every thread that computes for them, and are numbers elsewhere."""

import signal
import threading
from collections.abc import Callable

import pytest
import torch

from gsm_lab import Run
from gsm_lab.training import denormals
from gsm_lab.training.denormals import denormals_are_zero

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")
LARGE = 1 << 17  # numbers, which PyTorch shares out among its threads


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def denormals_left() -> int:
    """Of so many products below the smallest normal number, how many are not zero."""
    return int((torch.full((LARGE,), 1e-30) * 1e-10).ne(0).sum())


def test_in_every_thread_that_computes_and_afterwards_as_before(threads: int) -> None:
    assert denormals_left() == LARGE  # all threads have computed
    for _ in range(3):
        with denormals_are_zero():
            assert denormals_left() == 0
            with denormals_are_zero():
                assert denormals_left() == 0
            assert denormals_left() == 0, "the inner block ends nothing"
        assert denormals_left() == LARGE


def test_an_error_ends_it_too(threads: int) -> None:
    with pytest.raises(FloatingPointError), denormals_are_zero():
        raise FloatingPointError
    assert denormals_left() == LARGE


def test_who_has_them_flushed_keeps_it(threads: int) -> None:
    """Also where `set_flush_denormal` came late, and was for one thread of two."""
    assert denormals_left() == LARGE
    torch.set_flush_denormal(True)
    try:
        before = denormals_left()
        with denormals_are_zero():
            assert denormals_left() == 0
        assert denormals_left() == before == (0 if threads == 1 else LARGE // 2)
    finally:
        torch.set_flush_denormal(False)


def test_other_threads_of_the_program_are_left_alone(threads: int) -> None:
    inside, seen, go = threading.Event(), [], threading.Event()

    def other() -> None:
        seen.append(denormals_left())
        inside.wait()
        seen.append(denormals_left())
        go.set()

    thread = threading.Thread(target=other)
    thread.start()
    with denormals_are_zero():
        inside.set()
        go.wait()
    thread.join()
    assert seen == [LARGE, LARGE]


def test_where_the_openmp_is_another_the_calling_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "openmp", lambda: None)
    with denormals_are_zero():
        assert denormals.flushed()
    assert not denormals.flushed()


@pytest.mark.parametrize("way", ["step", "train", "pretrain"])
def test_passive_weights_below_the_normal_numbers_are_let_go(threads: int, way: str) -> None:
    """As after a hundred half-lives: they would make each step ten times as slow."""
    run = Run("lenet300", "digits", pretrain=1, epochs=1, hold=1.0, seed=0)
    if way != "pretrain":
        run.step(2)
    with torch.no_grad():
        run.model.fc1.weight[1:].fill_(1e-39)
        for state in run.opt.state.values():
            state["momentum_buffer"].fill_(1e-39)
    if way == "train":
        run.train(progress=False)
    else:
        getattr(run, way)(3)
    weights = run.model.fc1.weight.detach()
    small = (weights != 0) & (weights.abs() < torch.finfo(torch.float32).tiny)
    assert not small.any() and denormals_left() == LARGE


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
@pytest.mark.parametrize("on", [False, True])
def test_whatever_the_default_type_is_it_is_afterwards_as_before(threads: int, kind: torch.dtype, on: bool) -> None:
    before = torch.get_default_dtype()
    torch.set_flush_denormal(on)
    torch.set_default_dtype(kind)
    try:
        with denormals_are_zero():
            assert denormals.flushed()
    finally:
        torch.set_default_dtype(before)
        assert denormals.flushed() is on
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("at", [1, 2])  # while the mode is set, and while it is set back
def test_an_interrupt_meanwhile_is_neither_lost_nor_leaves_the_mode(
    threads: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_each, calls = denormals._by_each, []

    def interrupted(task: Callable[[object], None], count: int) -> None:
        def with_a_signal(nothing: object) -> None:
            if threading.current_thread() is threading.main_thread():
                calls.append(1)
                if len(calls) == at:
                    signal.raise_signal(signal.SIGINT)
            task(nothing)

        by_each(with_a_signal, count)

    monkeypatch.setattr(denormals, "_by_each", interrupted)
    with pytest.raises(KeyboardInterrupt), denormals_are_zero():
        assert at == 2 and denormals_left() == 0
    assert denormals_left() == LARGE and len(calls) == 2
    with denormals_are_zero():
        assert denormals_left() == 0
