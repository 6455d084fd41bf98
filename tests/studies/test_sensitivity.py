"""Layer sensitivity: GSM's answer and the truth, each against its definition written out by hand."""

import copy
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from gsm_lab import Run
from gsm_lab.figures import sensitivity as figures
from gsm_lab.optim import keep_masks
from gsm_lab.studies import sensitivity as study
from tests.runs import mine, net

KNOBS = {"batch_size": 8, "pretrain": 2, "epochs": 3, "compression": 4.0, "lr": 0.05}
LAYERS = ["body.0", "body.4", "head"]


def test_densities_are_those_of_runs():
    model = net()
    before = copy.deepcopy(model.state_dict())
    table = study.densities(model, mine(), seeds=(0, 4), progress=False, **KNOBS)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for seed, rows in table.groupby("seed"):
        run = Run(net(), mine(), seed=seed, **KNOBS)
        run.step(run.planned)
        kept = [int(mask.sum()) for mask in keep_masks(run.model, compression=4).values()]
        assert list(rows["layer"]) == LAYERS and list(rows["kept"]) == kept
        assert rows["density"].tolist() == [k / n for k, n in zip(kept, rows["weights"], strict=True)]
        assert rows["kept"].sum() == run.nonzeros
        assert rows["live"].iloc[0] == run.evaluate() and rows["cut"].iloc[0] == run.evaluate(cut=True)


def test_sensitivity_sums_up_the_seeds():
    table = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1, 2, 2], "layer": ["a", "b"] * 3, "weights": [100, 10] * 3,
            "kept": [10, 5, 20, 1, 30, 9], "density": [0.1, 0.5, 0.2, 0.1, 0.3, 0.9],
        }
    )  # fmt: skip
    a, b = study.summary(table).to_dict("records")
    assert (a["layer"], a["weights"], a["kept"], b["kept"]) == ("a", 100, 20, 5)
    assert (a["density"], a["low"], a["high"]) == pytest.approx((0.2, 0.1, 0.3))
    assert a["spread"] == pytest.approx(0.1)  # of 0.1, 0.2, 0.3
    assert b["sensitivity"] == pytest.approx(0.5 / (25 / 110))
    assert (a["rank"], b["rank"]) == (2, 1)
    assert a["ranked"] == b["ranked"] == pytest.approx(2 / 3)  # in seed 1 they change places


def test_sensitivity_runs_gsm():
    result = study.sensitivity(net(), mine(), seeds=range(2), progress=False, **KNOBS)
    again = study.summary(study.densities(net(), mine(), seeds=range(2), progress=False, **KNOBS))
    assert result.equals(again)


@pytest.mark.parametrize("epochs", [0, 1])
def test_alone_is_what_it_says(epochs):
    """By hand: the dense net, a layer cut, an epoch of plain SGD whose zeros stay."""
    data = mine()
    table = study.alone(net(), data, seeds=(3,), ratios=(0.5, 0.9), finetune=(epochs,), progress=False, **KNOBS)
    run = Run(net(), data, seed=3, **KNOBS)
    run.pretrain()

    def measured(layer: str | None, ratio: float) -> tuple[float, float]:
        model = copy.deepcopy(run.model)
        weights = dict(model.named_parameters())
        gone = {}
        if layer is not None:
            w = weights[f"{layer}.weight"]
            order = sorted(range(w.numel()), key=lambda i: (abs(w.data.view(-1)[i].item()), i))
            gone[w] = torch.zeros(w.numel(), dtype=torch.bool)
            gone[w][order[: round(ratio * w.numel())]] = True
            w.data.view(-1)[gone[w]] = 0
        decayed = [p for p in weights.values() if p.ndim > 1]
        others = [p for p in weights.values() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": run.knobs["pretrain_decay"]}, {"params": others}]
        opt = torch.optim.SGD(groups, lr=run.knobs["pretrain_lr"] / 10, momentum=0.9)
        model.train()
        torch.manual_seed(3)  # of the dropout, as the run has it
        for step in range(epochs * 10):
            x, y = run.batches.batch(step)
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            for p, mask in gone.items():
                p.data.view(-1)[mask] = 0
        model.eval()
        with torch.no_grad():
            out = model(data.test_x)
        return float(F.cross_entropy(out, data.test_y)), float((out.argmax(1) == data.test_y).float().mean())

    whole = measured(None, 0)
    assert len(table) == 6
    for row in table.itertuples():
        loss, accuracy = measured(row.layer, row.ratio)
        assert row.loss == pytest.approx(loss, rel=1e-3 if epochs else 1e-5)
        assert row.accuracy == pytest.approx(accuracy, abs=1.01 / 40 if epochs else 1e-6)
        assert row.more == pytest.approx(loss - whole[0], abs=1e-3 if epochs else 1e-5)
        assert row.lost == pytest.approx(whole[1] - row.accuracy, abs=1.01 / 40 if epochs else 1e-6)


def test_a_layer_that_rounds_to_nothing_is_named():
    table = {"seeds": (0,), "ratios": (0.999,), "finetune": (0,), "progress": False}
    with pytest.warns(UserWarning, match=r"^pruning one layer alone left no weight in layer '"):
        study.alone(net(), mine(), **table, **KNOBS)


def test_the_dense_network_is_left_as_it_was():
    a = study.alone(net(), mine(), seeds=(0,), ratios=(0.9,), finetune=(1, 0), progress=False, **KNOBS)
    b = study.alone(net(), mine(), seeds=(0,), ratios=(0.9,), finetune=(0,), progress=False, **KNOBS)
    pd.testing.assert_frame_equal(a[a["finetune"] == 0].reset_index(drop=True), b)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=9, unique=True))
def test_kendall_against_scipy(pairs):
    a, b = np.array(pairs).T.astype(float)
    if len(set(a)) == len(a) and len(set(b)) == len(b):
        assert study.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    else:
        total = sum(np.sign((x - u) * (y - v)) for (x, y), (u, v) in itertools.combinations(pairs, 2))
        assert study.kendall(a, b) == pytest.approx(total / (len(a) * (len(a) - 1) / 2))


def tables(order: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Four layers over three seeds; densities in that order, costs ascending in every seed."""
    rows = list(itertools.product(range(3), range(4)))
    answer = pd.DataFrame(
        [{"seed": s, "layer": "abcd"[i], "weights": [7, 9, 8, 6][i], "density": order[i] + 0.01 * s} for s, i in rows]
    )
    truth = pd.DataFrame(
        [{"seed": s, "layer": "abcd"[i], "finetune": 0, "ratio": r, "more": i + r + 0.1 * s}
         for s, i in rows for r in (0.5, 0.9)]
    )  # fmt: skip
    return answer, truth


@pytest.mark.parametrize(("order", "tau", "chance"), [
    ([0, 1, 2, 3], 1.0, 1 / 24), ([3, 2, 1, 0], -1.0, 1.0), ([0, 1, 3, 2], 2 / 3, 4 / 24),
])  # fmt: skip
def test_agreement_of_four_layers(order, tau, chance):
    row = study.agreement(*tables(order), resamples=50).iloc[0]
    assert (row["tau"], row["low"], row["high"]) == pytest.approx((tau, tau, tau))  # all seeds agree
    assert row["chance"] == pytest.approx(chance) and row["layers"] == 4
    assert row["by_size"] == pytest.approx((4 - 2) / 6)  # smallest first: d, a, c, b; ab and ac are the other way


def test_agreement_is_unsure_where_seeds_differ():
    answer, truth = tables([0, 1, 2, 3])
    answer.loc[answer["seed"] == 2, "density"] = [30.0, 20.0, 10.0, 0.0]
    row = study.agreement(answer, truth).iloc[0]
    assert row["low"] < row["high"]


def test_bad_input():
    with pytest.raises(ValueError, match="seeds must hold at least one value"):
        study.sensitivity(net(), mine(), seeds=())
    with pytest.raises(ValueError, match=r"ratios must hold shares above 0 and below 1, got 1\.0"):
        study.alone(net(), mine(), ratios=(0.5, 1.0))
    with pytest.raises(ValueError, match="finetune must hold numbers of epochs >= 0, got -1"):
        study.alone(net(), mine(), finetune=(-1,))
    answer, truth = tables([0, 1, 2, 3])
    with pytest.raises(ValueError, match="truth must be of the layers"):
        study.agreement(answer, truth[truth["layer"] != "a"])
    with pytest.raises(ValueError, match="at least two layers"):
        study.agreement(answer[answer["layer"] == "a"], truth[truth["layer"] == "a"])
    with pytest.raises(ValueError, match="has no prunable weights"):
        study.sensitivity(torch.nn.BatchNorm1d(8), mine())


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    answer = study.densities(net(), mine(), seeds=range(2), progress=False, **KNOBS)
    truth = study.alone(net(), mine(), seeds=range(2), ratios=(0.5, 0.9), progress=False, **KNOBS)
    return study.summary(answer), truth, study.agreement(answer, truth, resamples=20)


def test_figures_state_the_finding(found):
    answer, truth, agreed = found
    first = figures.densities(answer)
    most = answer.loc[answer["density"].idxmax()]
    assert f"GSM leaves {most['layer']} {100 * most['density']:.2g}%" in first.layout.title.text.replace("<br>", " ")
    assert list(first.data[0].y) == pytest.approx(100 * answer["density"])
    second = figures.alone(truth, finetune=1)
    assert [trace.name for trace in second.data] == LAYERS
    assert "after 1 epoch of fine-tuning" in second.layout.title.text.replace(
        "<br>", " "
    ) and "as it is" in figures.alone(truth).layout.title.text.replace("<br>", " ")
    third = figures.compared(answer, truth, agreed)
    assert len(third.data) == 2 and f"{agreed['tau'][0]:+.2f}" in third.layout.title.text.replace("<br>", " ")
    for figure in (first, second, third):
        assert len({(t.line.dash, t.marker.symbol) for t in figure.data}) == len(figure.data)
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
        assert all(t.hovertemplate for t in figure.data)


def test_a_layer_may_be_left_no_weight(found):
    answer, truth, agreed = found
    answer = answer.assign(density=answer["density"].where(answer["layer"] != "head", 0.0), low=0.0)
    assert figures.densities(answer).layout.title.text.replace("<br>", " ").endswith("and head 0%</b>")
    figures.compared(answer, truth, agreed)


def test_epochs_are_counted(found):
    truth = found[1].assign(finetune=11)
    assert "after 11 epochs of" in figures.alone(truth, finetune=11).layout.title.text.replace("<br>", " ")


def test_figures_need_rows(found):
    with pytest.raises(ValueError, match="table at finetune=7 must have at least one row"):
        figures.alone(found[1], finetune=7)
