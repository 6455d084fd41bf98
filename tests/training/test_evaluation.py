"""Accuracies, as the model is and as if cut, against a copy; models and losses of one's own."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Dataset, Run
from tests.runs import (
    Net,
    Tied,
    accuracy,
    differs,
    equal,
    everything,
    mine,
    net,
    tiny,
)

# ------------------------------------------------------------------------------------------------ evaluate, cut


@pytest.mark.parametrize("compression", [1.0, 4.0, 50.0])
def test_evaluate_is_what_the_model_and_its_cut_copy_score(compression: float) -> None:
    run = tiny(compression=compression)
    run.step(30)
    assert run.evaluate() == accuracy(run.model, run.data)
    cut = copy.deepcopy(run.model)
    gl.cut(cut, compression=compression)
    assert run.evaluate(cut=True) == accuracy(cut, run.data)


def test_evaluation_takes_test_sets_of_any_size() -> None:
    data, model = mine(), net()
    big = Dataset(data.train_x, data.train_y, data.test_x.repeat(111, 1), data.test_y.repeat(111))
    run = Run(model, big, batch_size=8, compression=4)
    assert run.evaluate() == pytest.approx(accuracy(model, data), abs=1e-12)


def test_evaluate_changes_nothing() -> None:
    run = tiny()
    run.step(10)
    run.model.body[3].eval()
    before, modes = everything(run), [m.training for m in run.model.modules()]
    where = [p.data_ptr() for p in run.model.parameters()]
    first = run.evaluate(), run.evaluate(cut=True)
    assert (run.evaluate(), run.evaluate(cut=True)) == first
    assert differs(before, everything(run)) == []
    assert [m.training for m in run.model.modules()] == modes and len(set(modes)) == 2
    assert [p.data_ptr() for p in run.model.parameters()] == where
    assert all(p.requires_grad for p in run.model.parameters())


def test_a_net_that_draws_numbers_even_when_evaluated_always_gets_the_same() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        run = tiny(Noisy())
    run.step(10)
    before = run.random_state.clone()
    assert len({run.evaluate() for _ in range(5)}) == 1
    assert torch.equal(run.random_state, before)


def test_cut_leaves_exact_zeros_and_the_accuracy_that_was_announced() -> None:
    run = tiny()
    run.step(30)
    announced = run.evaluate(cut=True)
    assert run.cut() == 92
    assert sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values()) == 92
    assert run.evaluate() == run.evaluate(cut=True) == announced


# ------------------------------------------------------------------------------------------------ one's own


def test_named_models_fit_data_of_ones_own() -> None:
    run = Run("lenet300", mine(), batch_size=8, pretrain=1, compression=10)
    run.step(3)
    assert run.knobs["data"] == "corners" and run.model.fc3.out_features == 4
    assert run.model.mean == torch.tensor(run.data.mean) and run.model.std == torch.tensor(run.data.std)


def test_a_model_is_used_as_it_is() -> None:
    model = net()
    run = tiny(model)
    assert run.model is model and run.source_model is model and run.knobs["model"] == "Net"
    run.step(5)
    run.reset()
    assert run.model is model and equal(dict(model.state_dict()), dict(net().state_dict()))


def test_a_loss_of_ones_own() -> None:
    seen = []

    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.shape)
        return F.mse_loss(logits, F.one_hot(labels, 4).float())

    run = Run(net(), mine(), loss=squared, batch_size=8, pretrain=0, compression=4)
    assert seen == [(2, 4)] * 2  # whether it fits, asked before any training
    seen.clear()
    run.step(5)
    assert seen == [(8, 4)] * 5 and (run.history.frame()["loss"] < 3).all()


def test_tied_weights_count_once_and_are_cut_together() -> None:
    run = tiny(Tied(), compression=3)
    run.step(20)
    assert run.opt.weights == 96 and list(run.history.layers) == ["one.weight", "out.weight"]
    assert run.model.two.weight is run.model.one.weight
    cut = copy.deepcopy(run.model)
    assert gl.cut(cut, nonzeros=32) == run.nonzeros == 32
    assert run.evaluate(cut=True) == accuracy(cut, run.data)


def test_frozen_layers_stay() -> None:
    model = net()
    model.body[0].requires_grad_(False)
    before = model.body[0].weight.clone()
    run = tiny(model)
    run.step(15)
    assert torch.equal(model.body[0].weight, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"model": "lenet6"},
            ValueError,
            "model must be one of lenet300, lenet5, resnet56 or an nn.Module, got 'lenet6'",
        ),
        ({"model": nn.Linear}, TypeError, "model must be one of lenet300"),
        ({"model": nn.ReLU()}, ValueError, "model must have parameters, ReLU has none"),
        ({"data": "cifar"}, ValueError, "'cifar'"),
        (
            {"data": np.zeros(3)},
            TypeError,
            "data must be one of digits, mnist, fashion_mnist or a Dataset, got ndarray",
        ),
        ({"momentum": 1.0}, ValueError, "momentum must be a number from 0 to below 1, got 1.0"),
        ({"beta": 1.0}, ValueError, "no knob 'beta'"),
        ({"batch_size": 81}, ValueError, "batch_size is 81; valid: an integer in 1 .. 80"),
        ({"model": "lenet5"}, ValueError, r"lenet5 takes images of shape \(channels, 28, 28\), got .* \(8,\)"),
    ],
)
def test_what_a_run_cannot_be_made_of(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Run(**{"model": net(), "data": mine()} | arguments)
