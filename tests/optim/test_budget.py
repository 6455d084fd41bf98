"""The groups, their budget, and the state that goes on with them."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from gsm_lab.optim import GSM, param_groups
from tests.optim.oracle import (
    HYPER,
    KERNELS,
    SGD,
    assert_equal,
    assert_same,
    backward,
    masked_step,
    matrices,
    net,
    passes,  # noqa: F401 - every test here is run with the compiled step and without
    snapshot,
)

# ------------------------------------------------------------------------------------------------ groups


def test_a_plain_list_competes_from_two_dimensions_on() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Embedding(3, 4))
    assert GSM(model.parameters()).weights == GSM(list(model.parameters())).weights == 18 + 12
    assert GSM(param_groups(model)).weights == 18
    assert GSM([nn.Parameter(torch.ones(3))], compression=60).weights == 0  # a net without matrices: nothing to gate


def test_several_groups_learning_rates_and_a_scheduler() -> None:
    a, b = net(), net()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [
            {"params": [model[0].weight], "lr": 0.3, "momentum": 0.5},
            {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
            {"params": [model[2].weight], "lr": 0.01, "nesterov": True},
        ]

    sgd, gsm = SGD(groups(a), **HYPER), GSM(groups(b), **HYPER, compression=9)
    plans = [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 15) for opt in (sgd, gsm)]
    for step in range(15):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), 272 // 9)
        gsm.step()
        for plan in plans:
            plan.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)
    assert [g["lr"] for g in gsm.param_groups] == [g["lr"] for g in sgd.param_groups]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_learning_rate_can_be_a_tensor(kernel: str) -> None:
    a, b = net(), net()
    rate = torch.tensor(0.05)
    sgd, gsm = (
        SGD(a.parameters(), rate, 0.9, **KERNELS[kernel]),
        GSM(b.parameters(), rate, 0.9, **KERNELS[kernel], nonzeros=9),
    )
    for step in range(5):
        backward(a, step)
        backward(b, step)
        masked_step(sgd, matrices(a), 9)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_groups_that_are_not_prunable_get_plain_sgd() -> None:
    a, b = net(), net()
    gsm = GSM(
        [{"params": b[0].parameters(), "prunable": False}, {"params": b[2].parameters()}], **HYPER, compression=10
    )
    sgd = SGD(a.parameters(), **HYPER)
    assert (gsm.weights, gsm.nonzeros) == (80, 8)
    for step in range(5):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, [a[2].weight], 8)
        gsm.step()
        assert torch.equal(gsm.active(b[2].weight), mask.view(5, 16))
        assert_same(a, sgd, b, gsm)
    with pytest.raises(ValueError, match=r"shape \(16, 12\), is not among this optimizer's prunable tensors"):
        gsm.active(b[0].weight)


@pytest.mark.parametrize(("budget", "expected"), [({"compression": 8}, (10, 34)), ({"nonzeros": 11}, (11, 11))])
def test_a_group_that_joins_competes(budget: dict[str, int], expected: tuple[int, int]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a[2].parameters(), **HYPER), GSM(b[2].parameters(), **HYPER, **budget)
    for step in range(6):
        if step == 3:
            sgd.add_param_group({"params": a[0].parameters(), "lr": 0.2})
            gsm.add_param_group({"params": b[0].parameters(), "lr": 0.2})
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, [a[2].weight] if step < 3 else [a[2].weight, a[0].weight], gsm.nonzeros)
        gsm.step()
        assert torch.equal(gsm.active_mask(), mask) and int(mask.sum()) == expected[step >= 3]
        assert_same(a, sgd, b, gsm)


# ------------------------------------------------------------------------------------------------ the budget


def test_the_budget_moves_at_any_step() -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER, fused=True), GSM(b.parameters(), **HYPER, fused=True)
    for step, (name, value, q) in enumerate(
        [
            ("compression", 60, 4),
            ("compression", 1, 272),
            ("nonzeros", 7, 7),
            ("compression", 2.5, 108),
            ("nonzeros", 272, 272),
            ("compression", 1e6, 1),
            ("nonzeros", 1, 1),
        ]
    ):
        setattr(gsm, name, value)
        assert gsm.nonzeros == q and gsm.compression == (value if name == "compression" else 272 / value)
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), q)
        gsm.step()
        assert int(gsm.active_mask().sum()) == q
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)
    assert GSM(net().parameters()).compression == 1.0


def test_the_budget_is_part_of_the_state() -> None:
    gsm, other = GSM(net().parameters(), compression=60), GSM(net().parameters(), compression=2)
    state = gsm.state_dict()
    other.load_state_dict(state)
    assert (other.compression, other.nonzeros) == (60, 4)
    gsm.nonzeros = 5
    other.load_state_dict(gsm.state_dict())
    assert (other.compression, other.nonzeros) == (272 / 5, 5)
    for group in state["param_groups"]:
        group["compression"] = 125.0
    other.load_state_dict(state)
    assert (other.compression, other.nonzeros) == (125, 2)
    backward(model := net(), 0)
    gsm = GSM(model.parameters(), compression=3)
    gsm.load_state_dict(state)
    gsm.step()
    assert int(gsm.active_mask().sum()) == 2


BAD = [{"compression": c} for c in (0, 0.5, -1, math.nan, math.inf, True, "60", [2])] + [
    {"nonzeros": q} for q in (0, -1, 1.5, 273, math.nan, True, "9", [2])
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_budget_is_refused_by_name_before_anything_changes(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    valid = "a finite number >= 1" if name == "compression" else "a whole number from 1 to 272"
    with pytest.raises(ValueError, match=f"{name} must be {valid}") as error:
        GSM(net().parameters(), **bad)
    assert repr(value) in str(error.value)

    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=60)
    backward(model, 0)
    with pytest.raises(ValueError, match=f"{name} must be {valid}"):
        setattr(gsm, name, value)
    assert (gsm.compression, gsm.nonzeros) == (60, 4)
    gsm.param_groups[0].update({"compression": None, "nonzeros": None} | bad)  # not the way to set it, but possible
    with pytest.raises(ValueError, match=f"{name} must be {valid}"):
        gsm.step()
    assert_equal(model.parameters(), net().parameters())
    assert not gsm.state


def test_compression_and_nonzeros_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exactly one of compression and nonzeros, got compression=60, nonzeros=4"):
        GSM(net().parameters(), compression=60, nonzeros=4)


@pytest.mark.parametrize("bad", [{"lr": -1}, {"momentum": -1}, {"weight_decay": -1}, {"nesterov": True}])
def test_what_sgd_refuses_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
        GSM(net().parameters(), **bad)


# ------------------------------------------------------------------------------------------------ the state


def straight(steps: int, **more: Any) -> tuple[nn.Module, GSM]:
    model = net()
    opt = GSM(param_groups(model), **HYPER, **more)
    for step in range(steps):
        backward(model, step)
        opt.step()
    return model, opt


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", [copy.deepcopy, through_torch_save, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("kernel", KERNELS)
def test_interrupted_and_continued_is_the_same(way: Any, kernel: str) -> None:
    expected = straight(10, nonzeros=31, **KERNELS[kernel])
    model, opt = straight(5, nonzeros=31, **KERNELS[kernel])
    states = way(model.state_dict()), way(opt.state_dict())
    model = net(seed=1)
    opt = GSM(param_groups(model), lr=9.0, compression=3)  # everything else comes from the state
    model.load_state_dict(states[0])
    opt.load_state_dict(states[1])
    for step in range(5, 10):
        backward(model, step)
        opt.step()
    assert_same(model, opt, *expected)
    assert torch.equal(opt.active_mask(), expected[1].active_mask()) and opt.threshold == expected[1].threshold


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_optimizer_goes_on_alone(way: Any) -> None:
    expected = straight(10, compression=6, fused=True)
    original = straight(5, compression=6, fused=True)
    before = snapshot(*original)
    model, opt = way(original)
    for step in range(5, 10):
        backward(model, step)
        opt.step()
    assert_same(model, opt, *expected)
    assert torch.equal(opt.active_mask(), expected[1].active_mask())
    assert_equal(snapshot(*original), before)
    opt.compression = 2
    opt.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))]})
    assert opt.nonzeros == (272 + 16) // 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_state_of_a_plain_sgd_goes_on_gated(kernel: str) -> None:
    """A dense start with SGD, then GSM: momentum and settings are taken over, what SGD cannot know stays as it was."""
    a, b = net(), net()
    sgd = SGD(a.parameters(), **HYPER, **KERNELS[kernel])
    for step in range(5):
        backward(a, step)
        sgd.step()
    b.load_state_dict(a.state_dict())
    table = nn.Parameter(torch.ones(2, 2))
    sgd.add_param_group({"params": [table]})
    gsm = GSM(list(b.parameters()), lr=1.0, compression=10)
    gsm.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "prunable": False, "names": ["table"]})
    gsm.load_state_dict(copy.deepcopy(sgd.state_dict()))
    assert (gsm.weights, gsm.nonzeros) == (272, 27) and gsm.param_groups[1]["names"] == ["table"]
    for step in range(5, 10):
        backward(a, step)
        backward(b, step)
        masked_step(sgd, matrices(a), 27)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_a_plain_sgd_takes_the_state_of_gsm() -> None:
    a, gsm = straight(5, compression=1)
    b = copy.deepcopy(a)
    sgd = SGD(param_groups(b), lr=1.0)
    sgd.load_state_dict(copy.deepcopy(gsm.state_dict()))
    for step in range(5, 8):
        backward(a, step)
        backward(b, step)
        gsm.step()
        sgd.step()
    assert_same(a, gsm, b, sgd)
