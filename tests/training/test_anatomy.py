"""Layers that are exchanged while a run trains them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Run
from tests.runs import (
    cosine,
    mine,
    plain,
    tiny,
)


def assigned(run: Run) -> None:
    run.model.load_state_dict({k: v.clone() for k, v in run.model.state_dict().items()}, assign=True)


def new_head(run: Run) -> None:
    run.model[2] = plain(5)[2]


def new_tensor(run: Run) -> None:
    run.model[0].weight = nn.Parameter(run.model[0].weight.detach().clone())


@pytest.mark.parametrize("exchange", [assigned, new_head, new_tensor])
@pytest.mark.parametrize("dense", [True, False])
def test_a_parameter_in_the_place_of_another_is_gated_as_in_a_new_optimizer(
    exchange: Callable[[Run], None], dense: bool
) -> None:
    run = tiny(plain(), pretrain=1 if dense else 0)
    run.pretrain(4)
    if not dense:
        run.step(4)
    momenta = {p: run.opt.state[p]["momentum_buffer"].clone() for p in run.model.parameters()}
    exchange(run)
    model = copy.deepcopy(run.model)
    opt = gl.GSM(gl.param_groups(model), 0.1, fused=True)
    opt.load_state_dict(copy.deepcopy(run.opt.state_dict()) | {"state": {}})
    for p, q in zip(run.model.parameters(), model.parameters(), strict=True):
        opt.state[q]["momentum_buffer"] = momenta.get(p, torch.zeros_like(q))  # kept where p is
    for group in opt.param_groups:
        group["lr"] = run.knobs["pretrain_lr"] * cosine(0.4) if dense else run.lr
    x, y = run.batches.batch(4)
    F.cross_entropy(model(x), y).backward()
    opt.step()
    run.pretrain(1) if dense else run.step()
    assert all(map(torch.equal, run.model.parameters(), model.parameters()))
    run.step(3)
    assert int(run.opt.active_mask().sum()) == run.nonzeros


def wider(run: Run) -> None:
    run.model[2] = nn.Linear(16, 7)


def deeper(run: Run) -> None:
    run.model.append(nn.Linear(4, 4))


def gone(run: Run) -> None:
    run.model[0].bias = None


def doubled(run: Run) -> None:
    run.model.double()


@pytest.mark.parametrize(
    ("exchange", "said"),
    [
        (wider, r"'2.weight' of run.model was \[4, 16\].*and is \[7, 16\]"),
        (deeper, "'3.weight' of run.model was not there"),
        (gone, "'0.bias' of run.model was .* and is not there"),
        (doubled, "run.model was moved to torch.float64"),
    ],
)
def test_a_model_that_became_another_is_refused_by_name_step_after_step(
    exchange: Callable[[Run], None], said: str
) -> None:
    run = tiny(plain())
    run.step(2)
    exchange(run)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=said):
            run.step()
    assert run.steps == 2


def test_what_is_put_around_layers_is_no_exchange() -> None:
    run, other = tiny(plain()), tiny(plain())
    for one in (run, other):
        one.step(2)
    run.model[1] = nn.Sequential(nn.ReLU(), nn.Identity())
    for one in (run, other):
        one.step(5)
    assert all(map(torch.equal, run.model.parameters(), other.model.parameters()))


def test_rivals_say_that_they_cannot_go_on() -> None:
    run = gl.Run(plain(), mine(), batch_size=8, pretrain=0, epochs=6, compression=4.0, method=gl.methods.kind("dns")())
    run.step(2)
    assigned(run)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="dns goes on only with those it began with"):
            run.step()
