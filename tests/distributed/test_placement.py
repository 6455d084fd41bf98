"""Runs over ranks against the same run in one process, and resumed against straight ones."""

import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gsm_lab as gl
from gsm_lab import Run
from gsm_lab.distributed import fsdp, world
from tests.distributed.over_ranks import (
    KINDS,
    LIKE_ONE,
    OWN,
    PRELOAD,
    SETTINGS,
    STEPS,
    TIMEOUT,
    over,
    resumed,
)
from tests.processes import Ended, in_ranks
from tests.runs import differs, everything, mine, net

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)


def counters(run: Run) -> tuple[object, ...]:
    return run.steps, run.dense_steps, run.base, run.magnitude, run.history.reactivations, run.knobs


# ------------------------------------------------------------------------------------------------ as in one process


def straight_and_resumed(kind: str, folder: Path) -> dict[str, object]:
    """In a rank: 12 steps, and 6 and 6 more after resuming, of LeNet-300-100 and of a net with dropout and norms."""
    fsdp._UNIT = 150  # parameters: two layers of `net` are sharded by themselves, the last with the whole
    with world.joined(TIMEOUT):
        found = {}
        for name, make, own in (
            ("lenet300", lambda: over(kind, **SETTINGS), lambda: {}),
            ("own", lambda: over(kind, net(), mine(), **OWN), lambda: {"model": net(8), "data": mine()}),
        ):
            run = make()
            run.step(STEPS)
            run.save(folder / name / "straight")
            found[name] = (counters(run), run.history.frame(), run.evaluate(), run.evaluate(cut=True))
            half = make()
            half.step(STEPS // 2)
            half.save(folder / name / "half")
            half = resumed(kind, folder / name / "half", **own())
            half.step(STEPS // 2)
            half.save(folder / name / "resumed")
        return found


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory) -> tuple[Path, list[Ended]]:
    """What `straight_and_resumed` left. With 3 ranks neither a batch's rows nor a tensor's divide evenly."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, in_ranks(3, straight_and_resumed, request.param, folder)


def test_it_trains_like_one_process(trained, alone):
    _, ended = trained
    _, frame, live, cut = ended[0].result["lenet300"]
    expected = alone.history.frame()
    assert list(frame) == list(expected)
    np.testing.assert_allclose(frame["loss"], expected["loss"], atol=LIKE_ONE)
    np.testing.assert_allclose(frame["threshold"], expected["threshold"], rtol=1e-3)
    assert (frame["active"] == alone.nonzeros).all()
    for column in (c for c in frame if c.split("/")[0] in ("active", "reactivated", "under_1e-3", "kept")):
        np.testing.assert_allclose(frame[column], expected[column], rtol=0.01, atol=3, err_msg=column)
    one_sample = 1 / len(alone.data.test_y) + 1e-6
    assert live == pytest.approx(alone.evaluate(), abs=one_sample)
    assert cut == pytest.approx(alone.evaluate(cut=True), abs=one_sample)
    assert ended[0].result["lenet300"][0][2] == pytest.approx(alone.base, abs=one_sample)


def test_every_rank_knows_the_same(trained):
    first, *others = (e.result for e in trained[1])
    for other in others:
        for name, (numbers, frame, live, cut) in other.items():
            assert (numbers, live, cut) == (first[name][0], *first[name][2:])
            pd.testing.assert_frame_equal(frame, first[name][1], check_exact=True)


def test_nobody_says_anything(trained):
    assert [(e.out, e.err) for e in trained[1]] == [("", "")] * len(trained[1])


@pytest.mark.parametrize("name", ["lenet300", "own"])
def test_resumed_is_straight_to_the_bit(trained, name):
    folder, _ = trained
    own = {"model": net(8), "data": mine()} if name == "own" else {}
    straight = Run.resume(folder / name / "straight", **own)
    own = {"model": net(9), "data": mine()} if name == "own" else {}
    resumed = Run.resume(folder / name / "resumed", **own)
    assert differs(everything(straight), everything(resumed)) == []
    pd.testing.assert_frame_equal(straight.history.frame(), resumed.history.frame(), check_exact=True)
    assert torch.equal(torch.from_numpy(straight.history._before), torch.from_numpy(resumed.history._before)), (
        "who was active"
    )


def test_what_is_saved_is_what_was_there(trained):
    folder, ended = trained
    run = Run.resume(folder / "lenet300" / "straight")
    numbers, frame, live, cut = ended[0].result["lenet300"]
    assert counters(run) == numbers
    assert (run.evaluate(), run.evaluate(cut=True)) == (pytest.approx(live), pytest.approx(cut))
    weights = torch.cat([p.detach().flatten() for p in gl.models.prunable(run.model).values()])
    assert frame["under_1e-3"].iloc[-1] == int((weights.abs() < 1e-3).sum())
    assert frame["active"].iloc[-1] == int(run.history._before.sum()) == run.nonzeros


def go_on(folders: dict[str, Path], steps: int) -> dict[str, list[float]]:
    """In a rank: resume each folder under the kind that is its key; the losses of the steps after that."""
    with world.joined(TIMEOUT):
        losses = {}
        for kind, folder in folders.items():
            run = resumed(kind, folder)
            run.step(steps)
            losses[kind] = run.history.frame()["loss"].to_numpy()
            run.save(folder.parent / f"4 ranks, {kind}")
        return losses


def test_a_run_goes_on_under_another_number_of_ranks_and_another_kind(tmp_path, alone):
    in_ranks(2, straight, tmp_path)
    (first, *_) = (e.result for e in in_ranks(4, go_on, {"ddp": tmp_path / "fsdp", "fsdp": tmp_path / "ddp"}, 5))
    expected = Run.resume(tmp_path / "ddp")
    expected.step(5)
    for kind in KINDS:
        np.testing.assert_allclose(first[kind], expected.history.frame()["loss"], atol=LIKE_ONE)
        run = Run.resume(tmp_path / f"4 ranks, {kind}")
        assert run.steps == 15
        run.step(2)


def straight(folder: Path) -> None:
    """In a rank: 10 steps of each kind."""
    with world.joined(TIMEOUT):
        for kind in KINDS:
            run = over(kind, **SETTINGS)
            run.step(10)
            run.save(folder / kind)


# ------------------------------------------------------------------------------------------------ one rank is no rank


def as_in_a_run(kind: str) -> dict[str, object]:
    with world.joined(TIMEOUT):
        run = over(kind, net(), mine(), **OWN)
        run.step(12)
        run.set(momentum=0.5, compression=8)
        run.step(3)
        run.reset(lr=0.2)
        run.step(9)
        return {"frame": run.history.frame(), "everything": everything(run) if kind == "ddp" else {}}


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_a_run_to_the_bit(kind):
    run = Run(net(), mine(), **OWN)
    run.step(12)
    run.set(momentum=0.5, compression=8)
    run.step(3)
    run.reset(lr=0.2)
    run.step(9)
    (ended,) = in_ranks(1, as_in_a_run, kind)
    pd.testing.assert_frame_equal(run.history.frame(), ended.result["frame"], check_exact=True)
    assert kind == "fsdp" or differs(everything(run), ended.result["everything"]) == []
