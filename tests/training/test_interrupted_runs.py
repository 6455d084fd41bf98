"""Runs that are interrupted between two steps, or whose loss is not finite."""

import copy
import math
import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import gsm_lab as gl
from gsm_lab import Run
from tests.runs import (
    Breaks,
    Net,
    differs,
    everything,
    interrupt_at,
    mine,
    net,
    raised,
    tiny,
)

# ------------------------------------------------------------------------------------------------ interrupts


def sent() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("how", [raised, sent])
@pytest.mark.parametrize(
    ("begin", "call", "dense", "steps"),
    [
        (lambda run: run.train(progress=False), 23, 10, 13),
        (lambda run: run.train(progress=False), 4, 4, 0),
        (lambda run: run.train(progress=False), 10, 10, 0),
        (lambda run: run.step(40), 18, 10, 8),
        (lambda run: run.step(40), 4, 4, 0),
        (lambda run: run.pretrain(), 9, 9, 0),
    ],
    ids=["train", "train-dense", "train-last-dense", "step", "step-dense", "pretrain"],
)
def test_an_interrupt_ends_it_between_two_steps(
    begin: Callable[[Run], None], call: int, dense: int, steps: int, how: Callable[[], None]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    run, straight = tiny(net()), tiny(net())
    interrupt_at(run.model, call, how)
    with pytest.raises(KeyboardInterrupt):
        begin(run)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (run.dense_steps, run.steps, len(run.history.frame())) == (dense, steps, steps)
    run.step(30 - run.steps)
    straight.step(30)
    assert differs(everything(run), everything(straight)) == []


def test_no_interrupt_is_lost_after_the_last_step() -> None:
    run = tiny(pretrain=0)
    interrupt_at(run.model, 5, raised)
    with pytest.raises(KeyboardInterrupt):
        run.step(5)
    assert run.steps == 5


def test_a_program_that_ignores_interrupts_is_not_interrupted() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = tiny(pretrain=0)
        interrupt_at(run.model, 3, raised)
        run.step(6)
        assert run.steps == 6 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_train_without_touching_the_handler() -> None:
    run, straight = tiny(net()), tiny(net())
    handlers = []
    run.model.register_forward_hook(lambda *_: handlers.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=run.step, args=(12,))
    thread.start()
    thread.join()
    straight.step(12)
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}
    assert differs(everything(run), everything(straight)) == []


# ------------------------------------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("by", [math.nan, math.inf])
@pytest.mark.parametrize("call", [5, 10, 11, 17], ids=["dense", "last-dense", "first-gated", "gated"])
def test_a_loss_that_is_not_finite_changes_no_weight_and_the_run_goes_on(call: int, by: float) -> None:
    run = Run(net(drop=0.0), mine(), loss=Breaks(call, by=by), batch_size=8, pretrain=1, epochs=6, compression=4)
    straight = Run(net(drop=0.0), mine(), batch_size=8, pretrain=1, epochs=6, compression=4)
    for r in (run, straight):
        r.pretrain(min(call, 10) - 1)
        if call > 10:
            r.step(call - 11)
            r.pretrain()
    before = everything(run)
    with pytest.raises(FloatingPointError, match=r"the gradient of '(body|head)\.[\w.]+', .* no weight was changed"):
        run.step()
    after = everything(run)
    norm = [name for name in before["weights"] if "running" in name or "num_batches" in name]
    for state in (before, after):  # the forward pass was all right, and batch norm has seen it
        for name in norm:
            del state["weights"][name]
    assert differs(before, after) == []
    assert 0 <= run.evaluate() <= 1
    run.step(5)
    assert len(run.history.frame()) == run.steps and run.history.frame()["loss"].notna().all()


def test_a_step_done_again_is_the_same_step() -> None:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.body[1] = nn.Identity()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Plain()
    run = Run(copy.deepcopy(model), mine(), loss=Breaks(13), batch_size=8, pretrain=1, epochs=6, compression=4)
    straight = Run(model, mine(), batch_size=8, pretrain=1, epochs=6, compression=4)
    with pytest.raises(FloatingPointError):
        run.train(progress=False)
    run.step(20 - run.steps)
    straight.step(20)
    assert differs(everything(run), everything(straight)) == []


def test_recorders_see_every_gated_step() -> None:
    run = gl.Run(pretrain=1, seed=3)
    seen = []
    run.recorders.append(
        lambda step, active, weights: seen.append((step, active.copy(), np.concatenate([w.ravel() for w in weights])))
    )
    run.step(3)
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert all(active.sum() == run.nonzeros for _, active, _ in seen)
    now = np.concatenate([p.detach().numpy().ravel() for p in gl.models.prunable(run.model).values()])
    np.testing.assert_array_equal(seen[-1][2], now)
    np.testing.assert_array_equal(seen[-1][1], run.opt.active_mask().numpy())
    run.reset()
    assert run.recorders == []
