"""`Problem` against brute force and `torch.autograd.functional`, on networks of many kinds."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gsm_lab as gl
from gsm_lab.studies import taylor
from gsm_lab.studies.curvature import diagonal
from gsm_lab.studies.exhaustive import _chain, loss_changes
from gsm_lab.studies.problem import Problem


class Residual(nn.Module):
    """Units that reach the loss on two ways, so that one column of the next layer does not tell all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.last(x + torch.relu(self.second(x)))


class Twice(nn.Module):
    """A layer that is used two times, and a tied tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.again(torch.tanh(self.again(torch.relu(self.first(x)))))))


class Mixing(nn.Module):
    """What stands between the layers mixes the units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.first(x), 1))


class Branching(nn.Module):
    """A model that `vmap` cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.relu(x) if x.mean() > -1e9 else x)


def chain(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


MODELS = {
    "relu": lambda: chain(nn.ReLU()),
    "tanh, norm, dropout": lambda: chain(nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5)),
    "gelu": lambda: chain(nn.GELU()),
    "one layer": lambda: nn.Linear(6, 3),
    "residual": Residual,
    "used twice": Twice,
    "mixing": Mixing,
    "branching": Branching,
    "convolution": conv,
}
CHAINS = {"relu", "tanh, norm, dropout", "gelu", "one layer", "branching"}
models = pytest.mark.parametrize("name", MODELS)


def problem(name: str = "relu", samples: int = 7, **more) -> Problem:
    torch.manual_seed(0)
    model = MODELS[name]()
    if isinstance(model, nn.Sequential):  # norms with statistics that are not those of a new one
        model(torch.randn(50, 6) * 2 + 1)
    return Problem(model, torch.randn(samples, 6), torch.randint(0, 3, (samples,)), **more)


def brute_force(p: Problem, indices: list[int]) -> np.ndarray:
    """A copy of the model, with one weight after the other set to zero."""
    model, changes = copy.deepcopy(p.model), []
    for i in indices:
        layer, at = p.place(i)
        weights = model.get_parameter(layer).detach().view(-1)
        before, weights[at] = float(weights[at]), 0.0
        with torch.no_grad():
            changes.append(float(p.loss(model(p.x), p.y)) - p.value)
        weights[at] = before
    return np.array(changes)


# ------------------------------------------------------------------------------------------------ derivatives


@models
def test_derivatives_are_those_of_autograd(name: str) -> None:
    p = problem(name)
    names, tensors = list(p.weights), tuple(p.weights.values())

    def loss(*weights: Tensor) -> Tensor:
        return p.of(dict(zip(names, weights, strict=True)))

    blocks = torch.autograd.functional.hessian(loss, tensors)
    h = torch.cat(
        [torch.cat([b.reshape(w.numel(), -1) for b in row], 1) for w, row in zip(tensors, blocks, strict=True)]
    )
    v = torch.randn(p.count, dtype=torch.float64)
    torch.testing.assert_close(p.hessian_vector(v), h @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(p.hessian_vector(torch.stack([v, -v]))[1], -h @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(p.hessian_diagonal(range(p.count)), h.diagonal(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(diagonal(p, all_layers=True), h.diagonal(), rtol=1e-10, atol=1e-12)
    jacobians = torch.autograd.functional.jacobian(loss, tensors)
    torch.testing.assert_close(p.gradient(), torch.cat([j.reshape(-1) for j in jacobians]))
    if name != "branching":
        rows = []
        for x, y in zip(p.x, p.y, strict=True):
            one = Problem(p.model, x[None], y[None])
            rows.append(one.gradient())
        torch.testing.assert_close(torch.cat(list(p.sample_gradients())), torch.stack(rows))
        torch.testing.assert_close(p.squared_gradients, torch.stack(rows).square().mean(0))


def test_the_whole_diagonal_is_only_computed_where_it_is_quick_unless_asked() -> None:
    assert diagonal(problem("convolution")) is None and diagonal(problem("relu")) is not None


def test_more_samples_than_are_batched_at_once() -> None:
    p = problem(samples=70)
    torch.testing.assert_close(torch.cat(list(p.sample_gradients())).mean(0), p.gradient())


# ------------------------------------------------------------------------------------------------ the truth


@models
def test_every_weight_against_brute_force(name: str) -> None:
    p = problem(name)
    truth = brute_force(p, list(range(p.count)))
    np.testing.assert_allclose(p.changes_without(range(p.count)), truth, rtol=1e-9, atol=1e-14)
    ours = torch.cat([loss_changes(p, layer, progress=False).reshape(-1) for layer in p.weights])
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-14)
    with torch.no_grad():
        chains = [_chain(p, layer) is not None for layer in p.weights]
    if name in CHAINS:
        assert all(chains)
    elif name == "residual":  # the last layer of any network is one
        assert chains == [False, True, True] or chains == [False, False, True]
    elif name == "convolution":
        assert chains == [False, True, True]
    else:
        assert not chains[0]


@pytest.mark.parametrize("model", ["lenet300", "lenet5"])
def test_500_weights_of_the_real_networks_against_brute_force(model: str) -> None:
    """The target of the study: 1e-6 relative in float64, the exhaustive truth 1e-5, where the change is no rounding."""
    run = gl.Run(model, pretrain=1, seed=1)
    run.pretrain()
    p = taylor.of_run(run, samples=16)
    random = np.random.default_rng(0)
    indices = random.choice(p.count, 500, replace=False).tolist()
    truth = brute_force(p, indices)
    ours = p.changes_without(indices).numpy()
    counts = np.abs(truth) > p.floor
    assert counts.sum() > 300
    np.testing.assert_allclose(ours[counts], truth[counts], rtol=1e-6)
    assert np.abs(ours - truth).max() < p.floor
    layer = {"lenet300": "fc2.weight", "lenet5": "fc2.weight"}[model]
    first = sum(p.sizes[: list(p.weights).index(layer)])
    some = random.choice(p.weights[layer].numel(), 200, replace=False)
    every = loss_changes(p, layer, progress=False).reshape(-1)[some].numpy()
    truth = brute_force(p, (first + some).tolist())
    counts = np.abs(truth) > p.floor
    assert counts.sum() > 100
    np.testing.assert_allclose(every[counts], truth[counts], rtol=1e-5)


def test_a_loss_of_ones_own() -> None:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.gather(1, y[:, None]) - 1).square().mean()

    p = problem(loss=loss)
    ours = torch.cat([loss_changes(p, layer, progress=False).reshape(-1) for layer in p.weights])
    np.testing.assert_allclose(ours, brute_force(p, list(range(p.count))), rtol=1e-9, atol=1e-14)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = chain(nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    p = Problem(model, torch.randn(9, 6), torch.randint(0, 3, (9,)))
    taylor.singles(p, 3, compression=5)
    taylor.sets(p, 5)
    taylor.exhaustive(p, progress=False)
    assert model.training and all(w.grad is None and w.requires_grad for w in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
