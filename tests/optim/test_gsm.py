"""`GSM` against its definition, `torch.optim.SGD` on gradients masked by a naive top Q; the step as any optimizer's."""

import copy
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import optimizer as torch_optimizer

from gsm_lab import data, models
from gsm_lab.optim import GSM, param_groups
from tests.optim.oracle import (
    HYPER,
    KERNELS,
    SGD,
    GradientsKept,
    assert_equal,
    assert_same,
    backward,
    every_way,
    masked_step,
    matrices,
    metric,
    net,
    passes,  # noqa: F401 - every test here is run with the compiled step and without
    snapshot,
)

# ------------------------------------------------------------------------------------------------ SGD with a gate


@every_way
def test_at_compression_1_it_is_sgd_bit_for_bit(hyper: dict[str, Any]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **hyper), GSM(b.parameters(), **hyper, compression=1)
    sign = -1.0 if hyper["maximize"] else 1.0
    for step in range(200):
        backward(a, step, sign)
        backward(b, step, sign)
        sgd.step()
        with GradientsKept(b):
            gsm.step()
        assert_equal(a.parameters(), b.parameters())
    assert_same(a, sgd, b, gsm)
    assert gsm.threshold == 0 and gsm.active_mask().all()


@every_way
def test_a_gated_step_is_sgd_on_masked_gradients_bit_for_bit(hyper: dict[str, Any]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **hyper), GSM(b.parameters(), **hyper, nonzeros=31)
    sign = -1.0 if hyper["maximize"] else 1.0
    for step in range(30):
        backward(a, step, sign)
        backward(b, step, sign)
        t = metric(matrices(b))
        mask = masked_step(sgd, matrices(a), 31)
        with GradientsKept(b):
            gsm.step()
        assert_same(a, sgd, b, gsm)
        assert torch.equal(gsm.active_mask(), mask) and int(mask.sum()) == 31
        assert gsm.threshold == t[mask].min() == t.topk(31).values[-1]


@pytest.fixture(scope="session")
def mnist() -> data.Dataset:
    for folder in (os.environ.get("GSM_LAB_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GSM_LAB_DATA", str(folder))
                return data.load("mnist")
    pytest.skip("MNIST is not on this machine: neither GSM_LAB_DATA nor ../shared/data")


def test_the_active_set_at_every_step_of_a_real_mnist_run(mnist: data.Dataset) -> None:
    """One epoch of LeNet-300-100 at 60x against a naive loop and `torch.topk`, and its weights against masked SGD."""
    torch.manual_seed(0)
    a = models.lenet300()
    b = copy.deepcopy(a)
    hyper = {"lr": 0.03, "momentum": 0.98, "weight_decay": 1e-3, "fused": True}
    sgd, gsm = SGD(param_groups(a), **hyper), GSM(param_groups(b), **hyper, compression=60)
    q = 266_200 // 60
    assert gsm.nonzeros == q == 4436
    batches = data.Batches(mnist, 1000, seed=0)
    losses = []
    for step in range(len(batches)):
        x, y = batches.batch(step)
        for model in (a, b):
            model.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
        losses.append(loss.item())
        t = metric(matrices(b))
        with GradientsKept(b):
            gsm.step()
        mask = masked_step(sgd, matrices(a), q)
        assert torch.equal(gsm.active_mask(), mask)
        top = t.topk(q)
        assert int(mask.sum()) == q and gsm.threshold == top.values[-1].item() > 0
        untied = t[top.indices] > gsm.threshold  # among ties at the threshold topk takes any
        assert mask[top.indices[untied]].all() and (t[mask] == gsm.threshold).sum() == q - untied.sum()
        assert_equal(a.parameters(), b.parameters())
    assert_same(a, sgd, b, gsm)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])  # it did learn


# ------------------------------------------------------------------------------------------------ the step


def test_closure_is_called_once_with_gradients_on() -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER), GSM(b.parameters(), **HYPER, compression=5)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(b, len(calls))

    for step in (1, 2, 3):
        loss = backward(a, step)
        masked_step(sgd, matrices(a), 54)
        with torch.no_grad():
            assert torch.equal(gsm.step(closure), loss)
        assert_same(a, sgd, b, gsm)
    assert calls == [True] * 3
    assert gsm.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER), GSM(b.parameters(), **HYPER, compression=5)
    x = torch.randn(4, 12)
    for _ in range(4):
        for model, opt in ((a, sgd), (b, gsm)):
            opt.zero_grad(set_to_none)
            assert all(p.grad is None or not p.grad.any() for p in model.parameters())
            model(x).square().sum().backward()
        masked_step(sgd, matrices(a), 54)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_gradients_accumulate_over_a_step_without_zero_grad() -> None:
    model = net()
    gsm = GSM(model.parameters(), lr=0.0, compression=20, fused=True)
    model(torch.ones(1, 12)).sum().backward()
    once = [p.grad.clone() for p in model.parameters()]
    gsm.step()  # lr 0: the weights stay
    model(torch.ones(1, 12)).sum().backward()
    assert_equal([p.grad for p in model.parameters()], [2 * g for g in once])


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("subclass", [True, False])
def test_hooks_run_once_a_step(hooked: bool, subclass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch wraps `SGD.step` once an SGD exists in the process, and runs the hooks in that wrapper."""
    bare = SGD.step
    monkeypatch.setattr(SGD, "step", bare.__wrapped__ if getattr(bare, "hooked", False) else bare)
    if hooked:
        SGD(net().parameters())
    assert getattr(SGD.step, "hooked", False) == hooked
    model = net()
    gsm = (type("Mine", (GSM,), {}) if subclass else GSM)(model.parameters(), **HYPER, compression=60)
    calls: list[str] = []
    gradients: list[Tensor] = []
    handles = [
        gsm.register_step_pre_hook(lambda *_: calls.append("pre")),
        gsm.register_step_post_hook(lambda *_: calls.append("post")),
        gsm.register_step_post_hook(lambda *_: gradients.append(model[0].weight.grad)),
        torch_optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        torch_optimizer.register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        for step in range(2):
            backward(model, step)
            calls.clear()
            gsm.step()
            assert sorted(calls) == ["global post", "global pre", "post", "pre"]
            assert gradients[-1] is model[0].weight.grad  # hooks see the model's own gradients
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("compression", [1, 60])
@pytest.mark.parametrize("kernel", [{"fused": True, "maximize": True}, {"foreach": True, "nesterov": True}])
def test_gradients_come_back_when_sgd_raises(
    compression: float, kernel: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=compression, **kernel)
    backward(model, 0)
    monkeypatch.setattr(sys.modules[torch.optim.SGD.__module__], "sgd", out_of_memory)
    with GradientsKept(model), pytest.raises(MemoryError):
        gsm.step()


@pytest.mark.parametrize("kernel", KERNELS)
def test_grad_scaler_changes_nothing_but_the_scale(kernel: str) -> None:
    """Scaled by a power of two and back is the same to the bit."""
    expected, opt = net(), None
    opt = GSM(expected.parameters(), **HYPER, compression=7, **KERNELS[kernel])
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=7, **KERNELS[kernel])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        backward(expected, step)
        opt.step()
        backward(model, step, scaler.get_scale())
        if step % 2:
            scaler.unscale_(gsm)
        scaler.scale(torch.zeros(1))  # creates the scaler's own tensors, as scaling the loss does
        scaler.step(gsm)
        scaler.update()
        assert_same(model, gsm, expected, opt)
        assert torch.equal(gsm.active_mask(), opt.active_mask()) and gsm.threshold == opt.threshold


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["0.weight", "2.bias"])
@pytest.mark.parametrize("compression", [1, 60])
def test_an_overflow_under_grad_scaler_skips_the_step(kernel: str, bad: float, where: str, compression: float) -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=compression, **KERNELS[kernel])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(torch.zeros(1))
    for step, overflow in enumerate([False, True, True, False]):
        backward(model, step, scaler.get_scale())
        if overflow:
            model.get_parameter(where).grad.view(-1)[-1] = bad
        before, scale = snapshot(model, gsm), scaler.get_scale()
        scaler.step(gsm)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if overflow else scale)
        if overflow:
            assert_equal(snapshot(model, gsm), before)
        else:
            assert not torch.equal(model[0].weight, before[0])
