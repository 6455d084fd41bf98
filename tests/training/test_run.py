"""`Run` against loops written by hand with plain `torch.optim.SGD` and `torch.topk`."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Run
from gsm_lab.data import Batches
from tests.runs import (
    accuracy,
    cosine,
    differs,
    everything,
    net,
    tiny,
)

# ------------------------------------------------------------------------------------------------ the loop


def by_hand(gated: int, moves: dict[int, dict[str, float]]) -> tuple[nn.Module, float, float]:
    """Two dense epochs and `gated` steps of LeNet-300-100 on digits: plain SGD, and a gate made of topk."""
    data = gl.load("digits")
    torch.manual_seed(5)
    model = gl.models.lenet300(mean=data.mean, std=data.std)
    kernels = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    batches = Batches(data, 64, seed=5)
    c = 60.0

    def sgd(lr: float, momentum: float, decay: float) -> torch.optim.SGD:
        groups = [{"params": kernels, "weight_decay": decay}, {"params": biases, "weight_decay": 0}]
        return torch.optim.SGD(groups, lr, momentum, fused=True)

    def gradients(step: int) -> None:
        model.zero_grad()
        x, y = batches.batch(step)
        F.cross_entropy(model(x), y).backward()

    opt = sgd(0.05, 0.9, 5e-4)
    for step in range(44):
        for group in opt.param_groups:
            group["lr"] = 0.05 * cosine(step / 44)
        gradients(step)
        opt.step()
    base = accuracy(model, data)
    cut = copy.deepcopy(model)
    values = torch.cat([p.detach().abs().flatten() for p in kernels])
    border = values.topk(266_200 // 60).values[-1]
    for p in cut.parameters():
        if p.ndim == 2:
            p.data[p.data.abs() < border] = 0
    magnitude = accuracy(cut, data)
    opt, alpha = sgd(0.1, 0.9, 3e-3), 0.1
    for step in range(gated):
        move = moves.get(step, {})
        c, alpha = move.get("compression", c), move.get("lr", alpha)
        for group in opt.param_groups:
            group["lr"] = alpha if step <= 22 else alpha * cosine((step - 22) / 22)  # held for half of two epochs
            group["momentum"] = move.get("momentum", group["momentum"])
        opt.param_groups[0]["weight_decay"] = move.get("weight_decay", opt.param_groups[0]["weight_decay"])
        gradients(44 + step)
        metric = torch.cat([(p.grad * p.detach()).abs().flatten() for p in kernels])
        mask = torch.zeros_like(metric).index_fill(0, metric.topk(int(266_200 / c)).indices, 1.0)
        for p, m in zip(kernels, mask.split([p.numel() for p in kernels]), strict=True):
            p.grad = torch.where(m.view_as(p) > 0, p.grad, 0.0)
        opt.step()
    return model, base, magnitude


def test_a_run_is_the_loop_one_would_write_by_hand() -> None:
    moves = {10: {"compression": 30.0}, 25: {"momentum": 0.8, "lr": 0.2, "weight_decay": 1e-2}}
    run = Run(pretrain=2, epochs=2, hold=0.5, evaluate_every=7, seed=5)
    for step in range(40):
        run.set(**moves.get(step, {}))
        run.step()
    model, base, magnitude = by_hand(40, moves)
    for (name, a), b in zip(run.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{name}: differs by up to {(a - b).abs().max():.2g}"
    assert (run.base, run.magnitude) == (pytest.approx(base), pytest.approx(magnitude))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_repeats_itself_to_the_bit(threads: int) -> None:
    torch.set_num_threads(threads)

    def once() -> dict[str, object]:
        run = Run(pretrain=1, evaluate_every=10, seed=2)
        run.step(15)
        run.set(momentum=0.95)
        run.step(10)
        return everything(run)

    first, second = once(), once()
    torch.set_num_threads(1)  # as the other tests of this module have it
    assert differs(first, second) == []


def test_a_net_with_dropout_repeats_itself_whatever_the_program_draws() -> None:
    straight = tiny(net())
    straight.step(25)
    other = tiny(net())
    for step in range(25):
        torch.manual_seed(step)
        torch.rand(step)
        other.step()
        other.evaluate(cut=True)
    assert differs(everything(straight), everything(other)) == []


def test_the_seed_changes_the_batches_and_dropout() -> None:
    a, b = tiny(net(), seed=1, pretrain=0), tiny(net(), seed=2, pretrain=0)
    a.step()
    b.step()
    assert {"weights", "random"} <= set(differs(everything(a), everything(b)))


def test_training_leaves_the_programs_random_numbers_alone() -> None:
    def drawn() -> list[object]:
        return [torch.rand(2).tolist(), np.random.rand(), random.random()]

    def seeded() -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    seeded()
    expected = drawn()
    seeded()
    run = tiny()
    run.pretrain(3)
    run.step(8)
    run.evaluate(cut=True)
    run.train(0.5, progress=False)
    run.reset()
    run.step()
    assert drawn() == expected


@pytest.mark.parametrize("evaluate_every", [1, 1000])
def test_looking_more_often_changes_nothing(evaluate_every: int) -> None:
    often, run = tiny(evaluate_every=evaluate_every), tiny()
    often.step(20)
    run.step(20)
    assert differs(everything(often), everything(run), ignore=("evaluations", "events", "knobs")) == []


def test_steps_in_portions_are_the_same_steps() -> None:
    at_once, in_portions, trained = tiny(), tiny(), tiny()
    at_once.step(35)
    for n in (1, 0, 2, 32):
        in_portions.step(n)
    trained.train(3.5, progress=False)
    assert differs(everything(at_once), everything(in_portions)) == []
    assert differs(everything(at_once), everything(trained), ignore=("evaluations",)) == []


# ------------------------------------------------------------------------------------------------ dense epochs


def test_dense_epochs_are_no_steps_and_end_with_the_gate_closed() -> None:
    run = tiny(pretrain=2)
    assert (run.dense_left, run.base, run.magnitude) == (20, None, None)
    assert run.pretrain(7) == run.dense_left == 13 and run.base is None
    assert run.opt.nonzeros == run.opt.weights == 368 and run.opt.compression == 1
    assert run.opt.active_mask().all()
    dense = copy.deepcopy(run)
    assert run.pretrain() == run.pretrain() == run.pretrain(5) == run.dense_left == 0
    assert (run.steps, run.dense_steps) == (0, 20) and run.history.frame().empty
    assert run.base == run.evaluate() == accuracy(run.model, run.data)
    assert run.magnitude == run.evaluate(cut=True)
    assert not run.opt.state, "momentum of the dense epochs is forgotten"
    run.step()
    assert run.opt.nonzeros == run.nonzeros == 92 and int(run.opt.active_mask().sum()) == 92
    assert run.history.frame()["active"].tolist() == [92]
    dense.step()  # the dense steps that are left come first
    assert differs(everything(run), everything(dense)) == []


def test_knobs_moved_while_dense_act_when_the_gate_closes() -> None:
    run = tiny()
    run.pretrain(4)
    run.set(compression=8.0, momentum=0.5, weight_decay=0.1)
    assert run.opt.nonzeros == 368
    assert [(g["momentum"], g["weight_decay"]) for g in run.opt.param_groups] == [(0.9, 5e-4), (0.9, 0.0)]
    run.step()
    assert int(run.opt.active_mask().sum()) == 46
    assert [(g["momentum"], g["weight_decay"]) for g in run.opt.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    assert run.history.frame()["compression"].tolist() == [8.0]


def test_a_run_without_dense_epochs_begins_gated() -> None:
    run = tiny(pretrain=0)
    assert run.dense_left == 0 and run.opt.nonzeros == 92
    run.step()
    assert run.dense_steps == 0 and run.base is not None and int(run.opt.active_mask().sum()) == 92


def test_q_while_dense_is_that_of_the_knob() -> None:
    run = tiny()
    run.pretrain(5)
    cut = copy.deepcopy(run.model)
    assert gl.cut(cut, nonzeros=92) == run.nonzeros == 92
    assert run.evaluate(cut=True) == accuracy(cut, run.data)
    assert "Q = 92 of 368 weights" in repr(run)
    assert run.cut() == 92
