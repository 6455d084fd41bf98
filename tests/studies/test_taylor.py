"""The Taylor study against brute force, `torch.autograd.functional`, and problems with known answers."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab.models import prunable
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
    """One copy of the model for each weight, with that weight set to zero."""
    changes = []
    for i in indices:
        model = copy.deepcopy(p.model)
        layer, at = p.place(i)
        with torch.no_grad():
            dict(model.named_parameters())[layer].view(-1)[at] = 0.0
            changes.append(float(p.loss(model(p.x), p.y)) - p.value)
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


# ------------------------------------------------------------------------------------------------ the tables


def quadratic(n: int = 40) -> Problem:
    """A loss whose second order is exact: squares of the outputs of a linear map."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(n, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.w(x)

    torch.manual_seed(1)
    return Problem(Linear(), torch.randn(60, n), torch.randn(60, 1), loss=F.mse_loss)


def test_second_order_is_exact_where_the_loss_is_quadratic() -> None:
    p = quadratic()
    table = taylor.singles(p, per_region=6, compression=8)
    np.testing.assert_allclose(table["first + diagonal"], table["true"], rtol=1e-9)
    assert (table["first order"] != table["true"]).all()
    table = taylor.sets(p, compression=8, hessian_diagonal=True)
    np.testing.assert_allclose(table["second order"], table["true"], rtol=1e-9)
    assert table["error of second order"].max() < 1e-9 < table["error of first + diagonal"].median()


def test_singles_are_drawn_by_their_rank() -> None:
    p = problem()
    table = taylor.singles(p, per_region=4, compression=4, seed=3)
    metric = (p.flat() * p.gradient()).abs()
    order = torch.argsort(metric, descending=True, stable=True)
    assert set(table["region"]) == set(taylor.REGIONS)
    names = list(p.weights)
    for _, row in table.iterrows():
        flat = sum(p.sizes[: names.index(row["layer"])]) + row["index"]
        assert flat == order[row["rank"]] and row["|g w|"] == metric[flat]
        assert row["first order"] == -row["gradient"] * row["weight"] and row["weight"] == p.flat()[flat]
        assert row["Fisher"] == pytest.approx(0.5 * float(p.squared_gradients[flat]) * row["weight"] ** 2)
    q, n = p.count // 4, p.count
    ranks = table.groupby("region")["rank"]
    assert list(ranks.get_group("top")) == [0, 1, 2, 3]
    assert ranks.get_group("around Q").between(0.9 * q - 1, 1.1 * q).all()
    assert (
        ranks.get_group("middle").between(0.45 * n - 1, 0.55 * n + 1).all()
        and (ranks.get_group("bottom") >= 0.9 * n - 1).all()
    )
    pd.testing.assert_frame_equal(table, taylor.singles(p, per_region=4, compression=4, seed=3))


def test_sets_are_what_they_say() -> None:
    p = problem()
    table = taylor.sets(p, compression=4, shares=[0.1, 1.0]).set_index(["kind", "size"])
    k, n = round(0.1 * p.count), p.count
    metric = (p.flat() * p.gradient()).abs()
    top = metric.topk(k).indices
    assert table.loc[("top", k), "|g w|"] == pytest.approx(float(metric[top].sum()))
    delta = torch.zeros(n, dtype=torch.float64)
    delta[top] = -p.flat()[top]
    assert table.loc[("top", k), "true"] == pytest.approx(p.change(delta))
    everything = {table.loc[(kind, n), "true"] for kind in ("top", "bottom", "smallest |w|", "random")}
    assert max(everything) == pytest.approx(min(everything))
    model = copy.deepcopy(p.model).requires_grad_()
    kept = gl.cut(model, compression=4)
    assert table.loc[("cut", n - kept), "true"] == pytest.approx(float(p.loss(model(p.x), p.y)) - p.value)
    assert table["first + diagonal"].notna().all()


def test_without_the_diagonal_where_it_would_take_long() -> None:
    p = problem("convolution")
    assert taylor.sets(p, 4)["first + diagonal"].isna().all()
    assert taylor.sets(p, 4, hessian_diagonal=True)["first + diagonal"].notna().all()


def test_agreement_by_hand() -> None:
    table = pd.DataFrame(
        {
            "region": ["a"] * 4 + ["b"],
            "true": [1.0, -2.0, 4.0, 1e-9, 3.0],
            "first order": [1.1, -2.0, 2.0, 5.0, 3.3],
            "|g w|": [1.1, 2.0, 2.0, 5.0, 3.3],
        }
    )
    table.attrs["floor"] = 1e-6
    result = taylor.agreement(table).set_index(["region", "estimate"])
    a = result.loc[("a", "first order")]
    assert a["weights"] == 4 and a["below_floor"] == 1 and a["relative_error"] == pytest.approx(0.1)  # of 0.1, 0, 0.5
    ranks = np.corrcoef([2, 3, 4, 1], [1, 2.5, 2.5, 4])[0, 1]
    assert a["rank_correlation"] == pytest.approx(ranks)
    assert result.loc[("b", "|g w|"), "relative_error"] == pytest.approx(0.1)


def test_the_floor_is_honest() -> None:
    """Weights of 1e-15 change the loss by less than rounding: no relative error is claimed for them."""
    torch.manual_seed(0)
    model = chain(nn.ReLU())
    with torch.no_grad():
        for w in prunable(model).values():
            w.view(-1)[::2] *= 1e-15
    p = Problem(model, torch.randn(20, 6), torch.randint(0, 3, (20,)))
    table = taylor.singles(p, per_region=1000, compression=2)
    tiny = table["weight"].abs() < 1e-12
    assert tiny.any() and (table["true"][tiny].abs() < p.floor).all()
    result = taylor.agreement(table).groupby("region")["below_floor"].max()
    assert result["random"] >= p.count // 2 - 1
    single = Problem(model, p.x, p.y, dtype=torch.float32)
    assert single.floor > 1e6 * p.floor


def test_misranked_and_the_rank_map_by_hand() -> None:
    table = pd.DataFrame(
        {
            "layer": pd.Categorical(["a", "a", "a", "b", "b", "b"]),
            "metric": [6.0, 5, 1, 4, 3, 2],
            "true": [6.0, -1, 0.5, 5, -4, 0.1],
        }
    )
    result = taylor.misranked(table, compression=2).set_index("layer")
    assert result.loc["a", ["weights", "by_truth", "by_metric", "missed"]].tolist() == [3, 1, 2, 0]
    assert result.loc["b", ["weights", "by_truth", "by_metric", "missed"]].tolist() == [3, 2, 1, 1]
    assert result.loc["all", "missed_share"] == pytest.approx(1 / 3)
    ranks = taylor.rank_map(table, bins=3)
    assert ranks.to_numpy().sum() == 6 and ranks.shape == (3, 3) and ranks.iloc[0, 0] == 1


def test_exhaustive_on_the_real_network() -> None:
    run = gl.Run(pretrain=1)
    run.pretrain()
    p = taylor.of_run(run, samples=8)
    table = taylor.exhaustive(p, ["fc2.weight", "fc3.weight"], progress=False)
    assert len(table) == 31_000 and table.attrs["floor"] == p.floor
    first = table[table["layer"] == "fc3.weight"].iloc[[0, 500]]
    start = p.count - 1000
    np.testing.assert_allclose(first["true"], p.changes_without([start, start + 500]), rtol=1e-6, atol=p.floor)


def test_stages_of_every_momentum() -> None:
    run = gl.Run(pretrain=1, epochs=2, evaluate_every=1000, lr=0.1, momentum=0.9)
    singles, sets = taylor.stages(run, momenta=(0.5, 0.9), samples=8, per_region=3, progress=False)
    steps = {"start": 0, "middle": run.epoch_steps, "end": 2 * run.epoch_steps}
    for table in (singles, sets):
        assert set(table["momentum"]) == {0.5, 0.9} and dict(zip(table["stage"], table["step"], strict=True)) == steps
        assert table.attrs["floor"] > 0
    assert run.steps == 0 and run.knobs["lr"] == 0.1 and run.knobs["momentum"] == 0.9
    alone = gl.Run(pretrain=1, epochs=2, evaluate_every=1000, lr=0.5, momentum=0.5)
    alone.step(steps["middle"])
    expected = taylor.singles(taylor.of_run(alone, 8), 3)
    found = singles[(singles["momentum"] == 0.5) & (singles["stage"] == "middle")].drop(
        columns=["momentum", "stage", "step"]
    )
    np.testing.assert_array_equal(found["true"], expected["true"])
    assert len(taylor.agreement(singles, ["momentum", "stage", "region"])) == 2 * 3 * 5 * 4


# ------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_studied_is_refused() -> None:
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="no prunable weights"):
        Problem(nn.BatchNorm1d(6), x, y)
    with pytest.raises(ValueError, match="the loss of this batch is nan"):
        Problem(nn.Linear(6, 3), x * torch.nan, y)
    with pytest.raises(ValueError, match="as many inputs as labels, and some, got 0 and 0"):
        Problem(nn.Linear(6, 3), x[:0], y[:0])
    with pytest.raises(TypeError, match=r"model must be an nn\.Module or a Run, got str"):
        Problem("lenet300", x, y)
    p = problem()
    with pytest.raises(ValueError, match=r"layer must be one of 0\.weight, .*, got 'fc9'"):
        loss_changes(p, "fc9")
    with pytest.raises(ValueError, match="layers must name at least one of"):
        taylor.exhaustive(p, [])
    with pytest.raises(ValueError, match="shares must be some numbers above 0 and up to 1, got"):
        taylor.sets(p, 4, shares=[0.5, 1.5])
    with pytest.raises(ValueError, match="shares"):
        taylor.sets(p, 4, shares=[])
    with pytest.raises(ValueError, match="per_region must be a whole number of weights >= 1, got 0"):
        taylor.singles(p, 0)
    with pytest.raises(IndexError, match="index must be from 0 to"):
        p.place(p.count)
    run = gl.Run()
    with pytest.raises(ValueError, match=r"samples must be from 1 to 1,437"):
        taylor.of_run(run, 5000)
    with pytest.raises(ValueError, match="momenta must hold at least one"):
        taylor.stages(run, [])
