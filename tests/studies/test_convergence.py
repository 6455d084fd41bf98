"""The study of convergence: each column against its own slow definition, taken down by another hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gsm_lab import Run, methods
from gsm_lab.figures import convergence as figures
from gsm_lab.optim import cut
from gsm_lab.studies import convergence
from tests.runs import mine, net

SETTINGS = {"compression": 4, "batch_size": 8, "pretrain": 1, "epochs": 4, "momentum": 0.5, "lr": 0.05}


class Log:
    """Every mask and every network of a run, in full."""

    def __init__(self, run: Run) -> None:
        self.masks, self.networks = [], []
        run.recorders.append(self)

    def __call__(self, step, active, weights):
        self.masks.append(active.copy())
        self.networks.append([w.copy() for w in weights])


@pytest.mark.parametrize("method", ["gsm", "dns"])
def test_columns_are_what_they_say(method):
    run = methods.build(method, model=net(), data=mine(), **SETTINGS, seed=3)
    log, watch = Log(run), convergence.Distances(run, 5)
    run.step(20)
    frame, history = watch.frame(), run.history.frame()
    assert list(frame["step"]) == [5, 10, 15, 20]
    for i, step in enumerate(frame["step"]):
        row, masks = frame.loc[i], log.masks
        flat = np.concatenate([w.reshape(-1) for w in log.networks[step - 1]]).astype(np.float64)
        kept = np.argsort(-np.abs(flat), kind="stable")[: run.nonzeros]
        gone = np.delete(flat, kept)
        assert row["distance"] == pytest.approx(np.linalg.norm(gone) / np.linalg.norm(flat), abs=1e-7)
        assert row["loss"] == pytest.approx(history["loss"][step - 5 : step].mean(), rel=1e-6)
        new = sum((masks[k] & ~masks[k - 1]).sum() for k in range(max(1, step - 5), step))
        assert row["turnover"] == pytest.approx(new / sum(masks[k].sum() for k in range(step - 5, step)))
        if i:
            earlier, now = masks[step - 6], masks[step - 1]
            assert row["renewed"] == pytest.approx((now & ~earlier).sum() / now.sum())
        assert row["live"] == pytest.approx(history["live_accuracy"][step - 1])
        assert row["epoch"] == pytest.approx(step / run.epoch_steps)
    assert np.isnan(frame["renewed"][0])
    assert frame["live"].iloc[-1] == pytest.approx(run.evaluate())
    assert frame["cut"].iloc[-1] == pytest.approx(run.evaluate(cut=True))


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=32)), st.integers(1, 45))
def test_distance_is_that_of_the_cut(flat, q):
    layer = torch.nn.Linear(len(flat), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(flat))
    cut(layer, nonzeros=min(q, len(flat)))
    away = np.linalg.norm(flat.astype(np.float64) - layer.weight.detach().numpy()[0])
    whole = np.linalg.norm(flat.astype(np.float64))
    expected = away / whole if whole else 0.0
    assert convergence.distance([flat], q) == pytest.approx(expected, abs=1e-7)


def test_over_seeds_trains_each_seed_as_a_run_does():
    model, data = net(), mine()
    settings = {**SETTINGS, "model": model, "data": data}
    before = [p.clone() for p in model.parameters()]
    table = convergence.over_seeds(settings, seeds=(0, 5), looks=4, progress=False)
    assert list(table.columns) == ["seed", "step", "epoch", *figures.COLUMNS]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert table.groupby("seed").size().nunique() == 1
    for seed, rows in table.groupby("seed"):
        run = Run(net(), data, **SETTINGS, seed=seed)
        run.step(run.planned)
        assert rows["live"].iloc[-1] == pytest.approx(run.evaluate())
        assert rows["step"].iloc[-1] <= run.planned


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_whole_number(every):
    with pytest.raises(ValueError, match=f"every must be a whole number of steps >= 1, got {every}"):
        convergence.Distances(Run(net(), mine(), **SETTINGS), every)


def test_bad_input():
    settings = {**SETTINGS, "model": net(), "data": mine()}
    with pytest.raises(ValueError, match="seeds must hold at least one value"):
        convergence.over_seeds(settings, seeds=())
    with pytest.raises(ValueError, match="looks must be a whole number >= 1, got 0"):
        convergence.over_seeds(settings, looks=0)
    with pytest.raises(ValueError, match=r"column must be one of loss, live, .*, got 'speed'"):
        figures.bands(pd.DataFrame(), "speed")


# -- figures -----------------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {
        "seed": [0, 0, 1, 1], "step": [10, 20] * 2, "epoch": [1.0, 2.0] * 2, "loss": [0.5, 0.1, 0.7, 0.3],
        "live": [0.90, 0.98, 0.92, 0.96], "cut": [0.50, 0.97, 0.60, 0.96], "distance": [0.8, 0.2, 0.6, 0.4],
        "turnover": [0.4, 0.1, 0.6, 0.3], "renewed": [np.nan, 0.3, np.nan, 0.5],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("draw", "title"),
    [
        (figures.accuracies, "In the end the cut changes accuracy by -0.50 points (-1.00 to +0.00 over 2 seeds)"),
        (figures.loss, "The loss of the batches falls from 0.6 to 0.2"),
        (figures.distance, "The network moves towards its cut: what the cut takes away falls from 70% to 30%"),
        (figures.turnover, "Of the active set 50% is new in a step at first, in the end 20%"),
    ],
)
def test_figures_say_what_the_table_holds(draw, title):
    figure = draw(TABLE)
    assert figure.layout.title.text.replace("<br>", " ") == f"<b>{title}</b>"
    shown = [trace for trace in figure.data if trace.name]
    looks = {(t.line.dash, t.marker.symbol, t.line.color) for t in shown}
    assert len(looks) == len(shown) and all(t.hovertemplate for t in shown)
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    assert all(t.hoverinfo == "skip" for t in figure.data if not t.name)  # the bands


def test_titles_do_not_say_that_what_rises_falls():
    table = TABLE.assign(loss=TABLE["loss"].to_numpy()[::-1], distance=TABLE["distance"].to_numpy()[::-1])
    assert figures.loss(table).layout.title.text == "<b>The loss of the batches rises from 0.2 to 0.6</b>"
    assert "moves away from its cut: what the cut takes away rises from" in figures.distance(
        table
    ).layout.title.text.replace("<br>", " ")


def test_renewal_is_named_by_the_steps_between_two_looks():
    names = [[trace.name for trace in figures.turnover(t).data] for t in (TABLE, TABLE[TABLE["step"] == 10])]
    assert all("passive 10 steps before" in each for each in names)


def test_bands_are_over_the_seeds():
    rows = figures.bands(TABLE, "live")
    assert rows[["mean", "low", "high"]].round(6).values.tolist() == [[0.91, 0.90, 0.92], [0.97, 0.96, 0.98]]
    assert list(rows["epoch"]) == [1, 2] and list(rows["seeds"]) == [2, 2]
