"""The step of an accelerator: as that of the CPU, and without a look from the host."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gsm_lab.optim import GSM, accelerator


def test_a_look_at_gradients_fetches_no_value() -> None:
    with FakeTensorMode():
        assert accelerator.Watch().bad([torch.rand(1000), None]).shape == ()


def test_a_watch_says_whose_gradient_was_bad_once() -> None:
    watch = accelerator.Watch()
    assert watch.first() is None
    assert watch.bad([torch.ones(3), None, torch.ones(2)]) == 0 and watch.first() is None
    assert watch.bad([torch.ones(3), None, torch.tensor([1.0, float("nan")])]) == 1
    assert watch.first() == 2 and watch.first() is None


# ------------------------------------------------------------------------------------------------ the step


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4))


def backward(model: nn.Module, step: int) -> None:
    model.zero_grad()
    random = torch.Generator().manual_seed(step)
    model(torch.randn(16, 8, generator=random).to(next(model.parameters()).device)).square().mean().backward()


def pair(place: str) -> tuple[nn.Module, GSM, nn.Module, GSM]:
    hyper = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "compression": 9, "fused": True}
    there, here = net().to(place), net()
    return there, GSM(there.parameters(), **hyper), here, GSM(here.parameters(), **hyper)


@pytest.fixture(params=["cpu", "cuda"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the weights are: on a GPU if there is one; and on the CPU, treated as if it were one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if request.param == "cpu":
        monkeypatch.setattr(accelerator, "on_accelerator", lambda tensors: True)
        monkeypatch.setattr(GSM, "_whole_step", lambda self, *_: partial(self._watch.try_step, closed=True))
    return request.param


def test_steps_are_those_of_the_cpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, there, b, here = pair(place)
    for step in range(15):
        backward(a, step)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.grad = p.grad.cpu().clone()
        there.step()
        with monkeypatch.context() as patch:
            patch.setattr(accelerator, "on_accelerator", lambda tensors: False)
            here.step()
        assert torch.equal(there.active_mask(), here.active_mask()) and there.active_mask().sum() == 26
        assert there.threshold == pytest.approx(here.threshold, rel=1e-6)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.cpu(), q, rtol=1e-6, atol=1e-8)
            q.data.copy_(p.cpu())
            here.state[q]["momentum_buffer"].copy_(there.state[p]["momentum_buffer"].cpu())


@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_bad_gradient_leaves_the_step_out_and_is_named_later(place: str, where: int) -> None:
    model, opt, _, _ = pair(place)
    for step in range(3):
        backward(model, step)
        opt.step()
    before = [p.detach().clone() for p in model.parameters()]
    momenta = [opt.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    backward(model, 4)
    list(model.parameters())[where].grad.view(-1)[1] = float("inf")
    opt.step()
    if place == "cuda":
        torch.cuda.synchronize()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(
        torch.equal(opt.state[p]["momentum_buffer"], z) for p, z in zip(model.parameters(), momenta, strict=True)
    )
    backward(model, 5)
    with pytest.raises(FloatingPointError, match=rf"parameter {where} of group 0 .* left out"):
        opt.step()
    opt.step()
    assert not torch.equal(next(model.parameters()), before[0])


def test_a_step_asks_the_host_for_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt, _, _ = pair(place)
    for step in range(2):
        backward(model, step)
        opt.step()
    backward(model, 2)
    opt._watch._flags = None  # on a GPU it is looked at when it has arrived

    def refuse(self: torch.Tensor, *_: object) -> None:
        raise AssertionError("the host looked at a value")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    if place == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        opt.step()
    finally:
        if place == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_a_graph_is_not_captured(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt, _, _ = pair(place)
    backward(model, 0)
    opt.step()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        opt.step()
