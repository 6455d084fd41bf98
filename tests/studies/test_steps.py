"""`studies.steps`: the optimizer's own steps against brute force, exact cases and a run that nobody looked at."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsm_lab import Dataset, Run
from gsm_lab.studies.steps import Before, relative_error, steps


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).tanh())


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.4),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def corners() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (rng.normal(size=(3, 6))[y] + rng.normal(size=(90, 6))).astype(np.float32)
    return Dataset(x[:60], y[:60], x[60:], y[60:], name="corners")


def make(model: type = Net, **more: object) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = model()
    knobs = {"hold": 1.0, "pretrain": 1, "batch_size": 8, "compression": 4.0, "lr": 0.1} | more
    return Run(built, corners(), **knobs)


@pytest.mark.parametrize("model", [Net, conv])
@pytest.mark.parametrize("compression", [1.0, 4.0])
def test_against_brute_force(model: type, compression: float) -> None:
    """Losses by hand, gradient and Hessian of all parameters, biases too, by `torch.autograd.functional`."""
    run, twin = make(model, compression=compression), make(model, compression=compression)
    table = steps(run, 4)
    twin.pretrain()
    for row in table.itertuples(index=False):
        x, y = twin.batches.batch(twin.dense_steps + twin.steps)
        net = model().double().eval()
        net.load_state_dict(twin.model.state_dict())
        shapes = [(name, p.shape) for name, p in net.named_parameters()]

        def loss(flat: torch.Tensor, net=net, shapes=shapes, x=x, y=y) -> torch.Tensor:
            parts = flat.split([math.prod(shape) for _, shape in shapes])
            replaced = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
            return F.cross_entropy(torch.func.functional_call(net, replaced, (x.double(),)), y)

        def flat(of: nn.Module) -> torch.Tensor:
            return torch.cat([p.detach().double().reshape(-1) for p in of.parameters()])

        before = flat(twin.model)
        twin.step(1)
        dw = flat(twin.model) - before
        gradient = torch.autograd.functional.jacobian(loss, before)
        hessian = torch.autograd.functional.hessian(loss, before)
        first = float(gradient @ dw)
        second = first + float(dw @ hessian @ dw) / 2
        true = float(loss(before + dw) - loss(before))
        assert row[:5] == pytest.approx((twin.steps, float(loss(before)), true, first, second), rel=1e-9, abs=1e-14)
        assert row[5:] == pytest.approx((abs(first - true) / abs(true), abs(second - true) / abs(true)), rel=1e-6)
    assert table.attrs["below_floor"] == 0 and 0 < table.attrs["floor"] < 1e-11


@pytest.mark.parametrize("model", [Net, conv])
def test_the_run_goes_where_it_would_have_gone(model: type) -> None:
    run, alone = make(model, pretrain=2, evaluate_every=3), make(model, pretrain=2, evaluate_every=3)
    outside = torch.get_rng_state()
    table = steps(run, 5)
    run.step(2)
    again = steps(run, 3, second_order=False)
    assert torch.equal(outside, torch.get_rng_state())
    alone.step(10)
    for (name, a), b in zip(run.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for p, q in zip(run.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(run.opt.state[p]["momentum_buffer"], alone.opt.state[q]["momentum_buffer"])
    pd.testing.assert_frame_equal(run.history.frame(), alone.history.frame())
    assert torch.equal(run.random_state, alone.random_state)
    assert run.model.training and table["step"].tolist() == [1, 2, 3, 4, 5] and again["step"].tolist() == [8, 9, 10]
    if model is Net:  # nothing differs between training and evaluation mode
        trained = alone.history.frame()["loss"]
        np.testing.assert_allclose(table["loss"], trained[:5], rtol=1e-5)


def test_second_order_is_exact_for_a_quadratic_loss() -> None:
    def squares(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (out - F.one_hot(y, 3)).square().mean()

    run = make(lambda: nn.Linear(6, 3), loss=squares, lr=0.5)
    table = steps(run, 20)
    assert table["error of second"].max() < 1e-9 < 1e-2 < table["error of first"].median()


def test_first_order_is_exact_for_a_linear_loss() -> None:
    run = make(lambda: nn.Linear(6, 3), loss=lambda out, y: out.mean())
    table = steps(run, 3)
    assert table["error of first"].max() < 1e-9
    assert table["first"].tolist() == table["second"].tolist()


def test_small_steps_are_predicted_well() -> None:
    errors = [steps(make(lr=lr, pretrain=0), 5)["error of first"].max() for lr in (1e-1, 1e-3, 1e-5)]
    assert errors[2] < 1e-2 * errors[0] and errors[2] < 1e-4


def test_errors_below_the_floor_are_counted() -> None:
    run = make(lambda: nn.Linear(6, 3), pretrain=0, loss=lambda out, y: 0 * out.mean() + 1)
    table = steps(run, 4)
    assert (table["true"] == 0).all() and table["error of first"].isna().all() and table["error of second"].isna().all()
    assert table.attrs["below_floor"] == 4 and table.attrs["floor"] == pytest.approx(1e3 * 2.0**-52)


def test_relative_error() -> None:
    assert relative_error(-3.0, -2.0, 0.1) == relative_error(-1.0, -2.0, 0.1) == 0.5
    for nothing in ((1, 0.01, 0.1), (1, 0, 0), (math.nan, 1, 0), (1, math.inf, 0), (math.inf, 1, 0)):
        assert math.isnan(relative_error(*nothing))


def test_columns() -> None:
    columns = ["step", "loss", "true", "first", "second", "error of first", "error of second"]
    assert list(steps(make(), 1)) == columns
    assert list(steps(make(), 1, second_order=False)) == ["step", "loss", "true", "first", "error of first"]


def test_a_weight_that_takes_part_in_nothing() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    table = steps(make(Spare), 2)
    assert np.isfinite(table.drop(columns="step").to_numpy()).all()


@pytest.mark.parametrize("compression", [4.0, 9.0])
def test_at_the_threshold(compression: float) -> None:
    run = make(compression=compression)
    run.step(3)
    before, old = Before(run), {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.step(1)
    metric, without = before.at_threshold()
    assert metric == run.opt.threshold > 0
    named = dict(run.model.named_parameters())
    (name, at), = [(n, i) for n in ("one.weight", "two.weight")
                   for i in ((old[n] * named[n].grad).abs() == metric).nonzero().tolist()]  # fmt: skip
    x, y = run.batches.batch(run.dense_steps + run.steps - 1)
    net = Net().double()
    net.load_state_dict(old)
    with torch.no_grad():
        loss = F.cross_entropy(net(x.double()), y)
        net.get_parameter(name)[tuple(at)] = 0
        assert without == pytest.approx(float(F.cross_entropy(net(x.double()), y) - loss), rel=1e-9)
    assert relative_error(metric, abs(without), before.problem.floor) < 1


def test_at_the_threshold_of_a_smoothed_gate() -> None:
    """The weight is the one ranked last among the active, by |w| times mean |gradient|; what is told is its T."""
    run = make(compression=9.0, smoothing=0.9)
    run.step(12)
    before, old = Before(run), {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.step(1)
    metric, without = before.at_threshold()
    named, names = dict(run.model.named_parameters()), ("one.weight", "two.weight")
    means = [run.opt.state[named[n]]["gradient_average"] for n in names]
    ranked = torch.cat([(old[n] * m).abs().reshape(-1) for n, m in zip(names, means, strict=True)])
    slopes = torch.cat([(old[n] * named[n].grad).abs().reshape(-1) for n in names])
    last = int(torch.where(run.opt.active_mask(), ranked, torch.inf).argmin())
    assert metric == slopes[last] and ranked[last] == run.opt.threshold
    assert not math.isnan(without) and int((slopes > metric).sum()) != run.nonzeros - 1, "another weight than T's"


def test_no_threshold_where_the_gate_is_open() -> None:
    run = make(compression=1.0)
    run.pretrain()
    before = Before(run)
    run.step(1)
    assert all(map(math.isnan, before.at_threshold()))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3", None])
def test_bad_n(n: object) -> None:
    run = make()
    with pytest.raises(ValueError, match="n must be a whole number of steps >= 1, got"):
        steps(run, n)
    assert run.steps == 0 and run.dense_steps == 0


def test_no_run() -> None:
    with pytest.raises(TypeError, match="run must be a Run, got Net"):
        steps(Net(), 3)


def test_a_loss_that_is_not_finite() -> None:
    run = make(pretrain=0, lr=100, loss=lambda out, y: out.square().exp().mean())
    with pytest.raises((ValueError, FloatingPointError), match=r"loss of this batch is|gradient of"):
        steps(run, 20)
    run = make(pretrain=0)
    run.step(2)
    run.loss = lambda out, y: out.mean() * math.nan
    with pytest.raises(ValueError, match="the loss of this batch is nan"):
        steps(run, 1)
    assert run.steps == 2
