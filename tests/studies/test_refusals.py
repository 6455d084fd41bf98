"""Models, losses and data that a study refuses, or takes although they are unusual, each in a sentence."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import gsm_lab as gl
from gsm_lab.models import copied
from gsm_lab.studies import communication, sensitivity, taylor
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.steps import steps
from tests.studies.test_any_loss import HARD, LOSSES, REAL, WEIGHTS
from tests.studies.test_any_model import NETS, Net, checkpointed, mlp, problem

KNOBS = {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 4, "seed": 0}


def corners() -> gl.Dataset:
    random = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = (random.normal(size=(3, 6))[y] + random.normal(size=(48, 6))).astype(np.float32)
    return gl.Dataset(x[:32], y[:32], x[32:], y[32:], name="corners")


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    net, x, y = mlp(), torch.randn(4, 6), torch.arange(4) % 3
    for loss, kind, words in (
        (nn.CrossEntropyLoss, TypeError, "loss must be a function from .outputs, labels. to a scalar, got <class"),
        ("cross_entropy", TypeError, "loss must be a function"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "loss must give one number, .* gives a tensor of shape"),
        (lambda a, b: float(a.sum()), ValueError, "loss must give one number, .* gives float"),
        (lambda a, b: F.cross_entropy(a, b) + net[0].weight.square().sum(), ValueError,
         "loss <lambda> must depend on weights through the model's answer only, and takes '0.weight'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            Problem(net, x, y, loss=loss)
    with pytest.raises(TypeError, match="x must be a tensor of one row a sample, got list"):
        Problem(net, [1, 2], y)
    with pytest.raises(TypeError, match="output must be a function from"):
        Problem(net, x, y, output="logits")
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype"):
        Problem(net, x, y, dtype=torch.int64)
    with pytest.raises(ValueError, match="model must be as written in Python, not compiled to TorchScript"):
        Problem(torch.jit.trace(net, x), x, y)
    with pytest.raises(ValueError, match=r"layers must be of 0\.weight, 2\.weight, got 'fc'"):
        taylor.exhaustive(Problem(net, x, y), ["fc"])
    with pytest.raises(ValueError, match=r"per_region must be a whole number of weights >= 1, got 2\.5"):
        taylor.singles(Problem(net, x, y), 2.5)


def test_a_loss_without_second_derivatives() -> None:
    p = problem(mlp, nn.MultiMarginLoss())
    with pytest.warns(UserWarning, match="the column first . diagonal is empty: model and loss must have second"):
        table = taylor.singles(p, 2, compression=5)
    assert table["first + diagonal"].isna().all() and table["Fisher"].notna().all()
    with pytest.warns(UserWarning, match="the column second order is empty"):
        table = taylor.sets(p, 5, shares=(0.1,))
    assert table["second order"].isna().all() and table["true"].notna().all()
    run = gl.Run(mlp(), corners(), loss=nn.MultiMarginLoss(), **KNOBS)
    with pytest.raises(ValueError, match="must have second derivatives in PyTorch, and have not"):
        steps(run, 1)
    assert run.steps == 0 and run.dense_steps == 0
    assert len(steps(run, 1, second_order=False)) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_steps_of_a_network_with_checkpoints(reentrant: bool) -> None:
    def run(net: nn.Module) -> gl.Run:
        return gl.Run(net, corners(), **KNOBS)

    tables = []
    for make in (lambda: checkpointed(reentrant),
                 lambda: Net(lambda s, x: s.o(torch.tanh(s.b(torch.tanh(s.a(x))))), a=nn.Linear(6, 5),
                             b=nn.Linear(5, 5), o=nn.Linear(5, 3))):  # fmt: skip
        torch.manual_seed(3)
        tables.append(steps(run(make()), 2))
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6, atol=1e-12)
    assert tables[0].attrs["check"]["difference"] <= tables[0].attrs["check"]["tolerance"]


def test_fisher_pruning_of_what_has_no_samples_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="has no gradients of single samples"):
        gl.methods.prune("fisher", model=NETS["samples see each other"](), data=corners(), **KNOBS)
    for name in ("straight through", "backward hook", "LSTM", "attention"):
        torch.manual_seed(0)
        run = gl.methods.prune("fisher", model=NETS[name](), data=corners(), progress=False, rounds=2, **KNOBS)
        assert run.steps == run.planned


def test_copies_of_modules_that_keep_what_they_computed() -> None:
    net = mlp()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    x = torch.randn(4, 6)
    with pytest.raises(RuntimeError):
        net(x)
        copy.deepcopy(net)
    again, _ = copied(net)
    torch.testing.assert_close(again(x), net(x))
    with torch.no_grad():
        again[0].weight_orig.zero_()
    assert not torch.allclose(again(x), net(x)) and (net[0].weight_orig != 0).any()

    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(ValueError, match=r"model Sequential must be one that copy\.deepcopy can copy, .*_thread\.lock"):
        copied(nn.Sequential(Locked(3, 3)))


@pytest.mark.parametrize("name", ["class weights", "sum", "root of mean squares"])
def test_ranks_need_a_loss_that_is_a_mean(name: str) -> None:
    loss, y, *_ = LOSSES[name]
    data = corners()
    if y is REAL:
        loss = functools.partial(lambda a, b: F.mse_loss(a, F.one_hot(b, 3).to(a)).sqrt())
    with pytest.raises(ValueError, match="loss must be the mean over the samples, for the mean over ranks"):
        communication.local_gradients({"model": mlp(), "data": data, "loss": loss, **KNOBS}, progress=False)


def test_a_layer_of_no_weights_is_refused_by_name() -> None:
    net = Net(lambda s, x: s.a(x) + s.z(x[:, :0]), a=nn.Linear(6, 3), z=nn.Linear(0, 3))
    for study in (sensitivity.sensitivity, sensitivity.alone):
        with pytest.raises(ValueError, match=r"model must have weights in every layer, 'z\.weight' has none"):
            study(net, corners(), seeds=[0], progress=False, **KNOBS)


def test_the_loss_of_held_out_data_is_of_this_loss_and_adapter() -> None:
    """More rows than are passed at a time: class weights of a part are not those of the whole."""
    random, loss = torch.Generator().manual_seed(0), nn.CrossEntropyLoss(weight=WEIGHTS)
    x, y = torch.randn(4100, 6, generator=random), (torch.arange(4100) > 1900).long()
    data = gl.Dataset(x[:64], torch.arange(64) % 3, x, y, name="held")
    torch.manual_seed(0)
    net = Net(lambda s, x: {"logits": s.m(x)}, m=mlp())
    adapter = lambda net, x: net(x)["logits"]  # noqa: E731
    table = sensitivity.alone(net, data, seeds=[0], ratios=(0.5,), finetune=(0,), progress=False, loss=loss,
                              output=adapter, **KNOBS)  # fmt: skip
    run = gl.Run(copied(net)[0], data, loss=loss, output=adapter, **KNOBS)
    run.pretrain()
    w = run.model.m[0].weight
    with torch.no_grad():
        w.view(-1)[w.abs().reshape(-1).argsort(stable=True)[: w.numel() // 2]] = 0
        expected = float(loss(adapter(run.model.eval(), data.test_x), data.test_y))
    assert table["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_studies_look_at_the_tensors_that_are_picked() -> None:
    torch.manual_seed(0)
    net, x, y = mlp(), torch.randn(8, 6), HARD[:8]
    kernels = list(Problem(net, x, y).weights)
    assert list(Problem(net, x, y, exclude=kernels[0]).weights) == kernels[1:]
    with pytest.raises(ValueError, match=r"exclude .*'nothing'"):
        Problem(net, x, y, exclude="nothing")
    net.gain = nn.Parameter(torch.ones(2, 2))
    net.get_parameter(kernels[0]).requires_grad_(False)
    picked = Problem(net, x, y, include=["gain", kernels[0]], exclude=net.get_parameter(kernels[1]))
    assert set(picked.weights) == {"gain", *kernels} - {kernels[1]}
    run = gl.Run(mlp(), corners(), exclude=kernels[0], **KNOBS)
    assert list(Problem(run, *run.batches.batch(0)).weights) == kernels[1:]
    assert list(Problem(run, *run.batches.batch(0), include=kernels[0], exclude=kernels[1]).weights) == [
        name for name in kernels if name != kernels[1]
    ]
