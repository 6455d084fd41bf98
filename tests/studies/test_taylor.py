"""The tables of the Taylor study against brute force, and problems with known answers."""

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
from gsm_lab.studies.exhaustive import loss_changes
from gsm_lab.studies.problem import Problem
from tests.studies.test_problem import chain, problem


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
    def made(**knobs: float) -> gl.Run:
        torch.manual_seed(0)
        small = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10))
        return gl.Run(small, pretrain=1, epochs=2, evaluate_every=1000, **knobs)

    run = made(lr=0.1, momentum=0.9)
    singles, sets = taylor.stages(run, momenta=(0.5, 0.9), samples=8, per_region=3, progress=False)
    steps = {"start": 0, "middle": run.epoch_steps, "end": 2 * run.epoch_steps}
    for table in (singles, sets):
        assert set(table["momentum"]) == {0.5, 0.9} and dict(zip(table["stage"], table["step"], strict=True)) == steps
        assert table.attrs["floor"] > 0
    assert run.steps == 0 and run.knobs["lr"] == 0.1 and run.knobs["momentum"] == 0.9
    alone = made(lr=0.5, momentum=0.5)
    alone.step(steps["middle"])
    expected = taylor.singles(taylor.of_run(alone, 8), 3)
    found = singles[(singles["momentum"] == 0.5) & (singles["stage"] == "middle")]
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
