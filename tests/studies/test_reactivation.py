"""The tables of re-activation against a naive log, and runs that forbid it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gsm_lab.studies import reactivation
from gsm_lab.studies.recording import Recorder
from gsm_lab.studies.runs import _Gatekeeper
from tests.runs import mine, net, tiny
from tests.studies.test_recording import Log, fed, naive

# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[Recorder, Log]:
    run = tiny(epochs=20, weight_decay=0.02)
    log, recorder = Log(run), Recorder(run, patience=7)
    run.train(progress=False)
    return recorder, log


def test_the_history_counts_the_same(trained: tuple[Recorder, Log]) -> None:
    recorder, _ = trained
    frame = recorder.run.history.frame()
    table = reactivation.per_step(recorder, rows=10**6)
    assert table["reactivated"].sum() == frame["reactivated"].sum()
    assert table["pool"].sum() == (recorder.run.opt.weights - frame["active"].iloc[:-1]).sum()
    assert table["steps"].sum() == len(frame) - 1 and table["step"].iloc[-1] == len(frame)
    for layer in recorder.layers:
        part = reactivation.per_step(recorder, layer)
        assert part["reactivated"].sum() == frame[f"reactivated/{layer}.weight"].sum()


def test_layers_add_up_and_kept_weights_are_those_the_cut_leaves(trained: tuple[Recorder, Log]) -> None:
    recorder, log = trained
    table = reactivation.per_layer(recorder)
    assert table["layer"].tolist() == [*recorder.layers, "all"]
    counts = table.drop(columns=["layer", "share"])
    pd.testing.assert_series_equal(counts.iloc[:-1].sum(), counts.iloc[-1], check_names=False)
    size = log.sizes[-1]
    stays = size >= np.sort(size)[-recorder.run.nonzeros]
    know = naive(log.masks, log.sizes, 7)
    near = know["smallest"] < 1e-3
    last = table.iloc[-1]
    assert last["kept"] == stays.sum() == recorder.run.nonzeros
    assert last["kept_woken"] == (stays & know["woken"]).sum() and last["returned"] == (stays & near).sum()
    assert last["active"] == np.any(log.masks, axis=0).sum()
    assert last["share"] == pytest.approx(know["per_step"][:, 1].sum() / know["per_step"][:, 0].sum())
    what = reactivation.kept(recorder).set_index("what")
    assert what.loc["woken", "kept"] == last["kept_woken"] and what.loc["once under 1e-3", "kept"] == last["returned"]
    assert what.loc["once under 1e-4", "weights"] == (know["smallest"] < 1e-4).sum()
    assert what.loc["all weights", ["share", "kept_share"]].tolist() == [1, 1]


def test_survival_is_kaplan_meier(trained: tuple[Recorder, Log]) -> None:
    recorder, log = trained
    know, table = naive(log.masks, log.sizes, 7), reactivation.survival(recorder)
    ended = np.array([length for _, length in know["ended"]])
    running = know["stretch"][know["stretch"] > 0]
    alive = 1.0
    for k, row in enumerate(table[table["steps"] < 64].itertuples(), 1):
        assert row.steps == k
        alive *= 1 - (ended == k).sum() / ((ended >= k).sum() + (running >= k).sum())
        assert row.longer == pytest.approx(alive) and row.longer_ended == pytest.approx((ended > k).mean())
        assert (row.ended, row.running) == ((ended == k).sum(), (running == k).sum())
    assert table["ended"].sum() == len(ended) and table["running"].sum() == len(running)
    assert table["longer"].is_monotonic_decreasing and table["longer"].between(0, 1).all()
    layers = [reactivation.survival(recorder, layer) for layer in recorder.layers]
    assert sum(t["ended"].sum() for t in layers) == len(ended)


def test_survival_of_stretches_that_never_end_and_of_none() -> None:
    never = reactivation.survival(fed(np.zeros((9, 5), bool)))
    assert never["longer"].tolist() == [1.0] * 9 and never["running"].tolist() == [0] * 8 + [5]
    assert never["longer_ended"].isna().all()
    assert reactivation.survival(fed(np.ones((9, 5), bool))).empty


# -- runs to compare ---------------------------------------------------------------------------------------------------

SMALL = {"batch_size": 8, "pretrain": 1, "epochs": 6, "compression": 4.0, "weight_decay": 0.02}


def test_watch_scales_the_rate_and_leaves_the_model_alone() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    recorders = reactivation.watch({"model": model, "data": mine(), "lr": 0.1, **SMALL}, [0.5, 0.9], progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    table = reactivation.per_momentum(recorders)
    assert table["momentum"].tolist() == [0.5, 0.9] and np.allclose(table["lr"], [0.5, 0.1])
    alone = tiny(epochs=6, weight_decay=0.02, lr=0.1)
    recorder = Recorder(alone)
    alone.step(alone.planned)
    np.testing.assert_array_equal(recorders[0.9].reactivations, recorder.reactivations)
    same_rate = reactivation.watch({"model": model, "data": mine(), **SMALL}, [0.5], matched=False, progress=False)
    assert same_rate[0.5].run.knobs["lr"] == tiny().knobs["lr"]


def test_controls_forbid_what_they_say() -> None:
    settings = {"model": net(), "data": mine(), **SMALL}
    table = reactivation.controls(settings, after=[1, 3], seeds=[0, 1], patience=4, progress=False)
    assert table["variant"].tolist() == ["plain", "frozen", "frozen", "forbidden", "forbidden"] * 2
    plain = table[table["variant"] == "plain"].set_index("seed")["cut"]
    np.testing.assert_allclose(table["lost"], plain[table["seed"]].to_numpy() - table["cut"])
    alone = tiny(epochs=6, weight_decay=0.02)
    alone.step(alone.planned)
    assert table["cut"][0] == alone.evaluate(cut=True) and table["live"][0] == alone.evaluate()
    frozen = tiny(epochs=6, weight_decay=0.02)  # the dense epochs of a seed are done once: as if each did its own
    seen: list[np.ndarray] = []
    frozen.recorders.append(lambda step, active, weights: seen.append(active.copy()))
    frozen.step(frozen.epoch_steps)
    frozen.opt.candidates = torch.from_numpy(seen[-1])
    frozen.step(frozen.planned - frozen.steps)
    assert table["cut"][1] == frozen.evaluate(cut=True) and table["live"][1] == frozen.evaluate()


@pytest.mark.parametrize("patience", [None, 4])
def test_the_gatekeeper_against_the_masks(patience: int | None) -> None:
    run = tiny(epochs=10)
    log = Log(run)
    run.recorders.append(_Gatekeeper(run, closes=20, patience=patience))
    run.step(80)
    masks = np.array(log.masks)
    if patience is None:
        assert not (masks[20:] & ~masks[19]).any() and masks[20:].any()
        return
    streak, barred = np.zeros(masks.shape[1], int), np.zeros(masks.shape[1], bool)
    for mask in masks[20:]:
        assert not (mask & barred).any()
        streak = np.where(mask, 0, streak + 1)
        barred |= streak >= patience
    assert barred.any() and not barred.all()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_is_checked(patience: object) -> None:
    run = tiny()
    with pytest.raises(ValueError, match="patience must be a whole number of steps >= 1, got"):
        Recorder(run, patience)
    assert not run.recorders


def test_what_cannot_be_answered_is_refused(trained: tuple[Recorder, Log]) -> None:
    recorder, _ = trained
    with pytest.raises(ValueError, match=r"layer must be one of all, body\.0, .*got 'fc9'"):
        reactivation.per_step(recorder, layer="fc9")
    with pytest.raises(ValueError, match="rows must be a whole number >= 1, got 0"):
        reactivation.per_step(recorder, rows=0)
    with pytest.raises(TypeError, match=r"run must be a gsm_lab\.Run, got Net"):
        Recorder(net())
    empty = Recorder(tiny())
    for table in (reactivation.per_step, reactivation.per_layer, reactivation.survival, reactivation.kept):
        with pytest.raises(ValueError, match="recorder must have watched at least"):
            table(empty)
    with pytest.raises(ValueError, match="momenta must hold at least one"):
        reactivation.watch({}, momenta=[])
    with pytest.raises(ValueError, match="seeds must hold at least one"):
        reactivation.controls({}, seeds=[])
    with pytest.raises(ValueError, match="recorders must hold at least one"):
        reactivation.per_momentum({})
    with pytest.raises(ValueError, match="after must hold epochs between 0 and 6, got 9"):
        reactivation.controls({"model": net(), "data": mine(), **SMALL}, after=[9], progress=False)
    with pytest.raises(ValueError, match="momentum must be"):
        reactivation.watch({"model": net(), "data": mine(), **SMALL}, [2.0], progress=False)
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match="no prunable weights"):
        reactivation.watch({"model": flat, "data": mine(), **SMALL}, [0.9], progress=False)


def test_a_step_that_was_missed_is_noticed() -> None:
    run = tiny()
    recorder = Recorder(run)
    run.step(5)
    run.recorders.clear()
    run.step()
    run.recorders.append(recorder)
    with pytest.raises(ValueError, match=r"step must be 6, .*got 7"):
        run.step()


def test_a_run_that_went_on_without_the_recorder_is_noticed() -> None:
    run = tiny()
    recorder = Recorder(run)
    run.step(5)
    run.recorders.clear()
    run.step(2)
    with pytest.raises(ValueError, match="to where it stands, step 7; it was there up to step 5"):
        reactivation.kept(recorder)
    run.reset()
    run.step(5)
    with pytest.raises(ValueError, match="before the run was reset"):
        reactivation.per_layer(recorder)
