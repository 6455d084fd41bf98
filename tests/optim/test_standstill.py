"""Where fewer weights have T > 0 than the gate has places for, a warning says so once, and why."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab.optim import GSM, cut, param_groups, standstill


class LoRA(nn.Module):
    """A frozen layer and the product of two small ones beside it, the second zero: as peft has it."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.A, self.B = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.B(self.A(x))


def lora(all_of_it: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LoRA(20, 30), nn.ReLU(), LoRA(30, 5) if all_of_it else nn.Linear(30, 5))


def train(model: nn.Module, opt: GSM, steps: int) -> None:
    x, y = torch.randn(64, 20, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 5
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()


@pytest.mark.parametrize("kernel", [{"fused": True}, {}, {"smoothing": 0.5}], ids=str)
def test_where_no_weight_can_ever_be_active_it_is_said_once(kernel: dict[str, object]) -> None:
    model = lora()
    opt = GSM(param_groups(model), lr=0.1, momentum=0.9, compression=2, **kernel)
    before = [p.clone() for p in opt.param_groups[0]["params"]]
    with pytest.warns(UserWarning, match="no weight has had T") as said:
        train(model, opt, 3 * standstill.AT_ONCE)
    assert len(said) == 1 and said[0].filename == __file__
    assert "all zeros: '0.B.weight', '2.B.weight'; no gradient: '0.A.weight', '2.A.weight'" in str(said[0].message)
    assert "dense steps first (compression=1" in str(said[0].message)
    assert all(torch.equal(p, was) for p, was in zip(opt.param_groups[0]["params"], before, strict=True))

    with warnings.catch_warnings():  # what it advises helps
        warnings.simplefilter("error")
        model = lora()
        opt = GSM(param_groups(model), lr=0.1, momentum=0.9, **kernel)
        train(model, opt, 2)
        opt.compression = 2
        train(model, opt, 3 * standstill.AT_ONCE)
    assert model[0].B.weight.any() and int(opt.active_mask().sum()) == opt.nonzeros


def test_where_some_can_never_be_it_is_said_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "LOOK", 5)
    model = lora(all_of_it=False)
    opt = GSM(param_groups(model), lr=0.01, compression=1.5, fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, 5 * standstill.LOOKS - 1)
    with pytest.warns(UserWarning, match=r"for 25 steps fewer than Q = 166 weights have .* now 150, .*'0.B.weight'"):
        train(model, opt, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, 60)


def test_a_network_that_was_cut_is_not_called_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "LOOK", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    opt = GSM(param_groups(model), lr=0.01, momentum=0.9, compression=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, 20)
        cut(model, optimizer=opt)
        with torch.no_grad():  # a unit that is never active, so that some of what is left has no gradient
            model[0].bias[3] = -1e6
        train(model, opt, 20)
        assert int(opt.active_mask().sum()) < opt.nonzeros
        opt.compression = 1
        train(model, opt, 20)


def test_a_loss_without_slope_is_not_the_gates_fault() -> None:
    model = nn.Linear(4, 4)
    opt = GSM(param_groups(model), lr=0.1, compression=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * standstill.AT_ONCE):
            opt.step()  # without a gradient
            model.weight.grad = torch.zeros_like(model.weight)
            opt.step()


def test_a_run_without_dense_steps_says_it_too() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 20), torch.arange(64) % 5
    data = gl.Dataset(x, y, x, y)
    knobs = {"compression": 2, "batch_size": 8, "epochs": 3}
    with pytest.warns(UserWarning, match=r"no weight has had T .* in a Run pretrain="):
        gl.Run(lora(), data, pretrain=0, **knobs).step(standstill.AT_ONCE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gl.Run(lora(), data, pretrain=1, **knobs).step(standstill.AT_ONCE)
