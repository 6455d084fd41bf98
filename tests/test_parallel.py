"""Runs over ranks against the run of one process; real process groups, and `torchrun` as a user types it."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Run, cli, distributed
from gsm_lab.cli import run_folder
from gsm_lab.distributed import fsdp, world
from gsm_lab.training import loop
from gsm_lab.training.history import History
from tests.cli.commands import environ
from tests.processes import Ended, in_ranks
from tests.test_run import Net, differs, everything, mine, net

# What every rank would import for itself, some seconds each time: imported once, before ranks are forked.
PRELOAD = [__name__, "gsm_lab.optim.fused.step", "gsm_lab.train", "sklearn.model_selection", "torch._dynamo"]
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)

ROOT = Path(__file__).parents[1]
KINDS = ("ddp", "fsdp")
SETTINGS = {"pretrain": 1, "epochs": 2, "evaluate_every": 10, "seed": 5}
OWN = {"batch_size": 8, "pretrain": 1, "epochs": 6, "compression": 4.0, "evaluate_every": 7}
STEPS = 12  # of the runs that are compared
LIKE_ONE = 1e-5  # of the losses, as long as two runs pick the same weights but for rounding
TIMEOUT = 600.0  # seconds: far more than anything here takes


def status_of(*line: object) -> int:
    """Of the command line, in this process."""
    try:
        return cli.main([str(part) for part in line])
    except SystemExit as end:
        return end.code


def over(kind: str, *args: object, **settings: object) -> Run:
    return Run(*args, **settings, placement=distributed.kind(kind)())


def resumed(kind: str, folder: Path, *args: object, **own: object) -> Run:
    return Run.resume(folder, *args, **own, placement=distributed.kind(kind)())


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


@pytest.fixture(scope="module")
def alone() -> Run:
    run = Run(**SETTINGS)
    run.step(STEPS)
    return run


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


# ------------------------------------------------------------------------------------------------ what is refused


def refusals(kind: str, folder: Path) -> list[str]:
    """In one of two ranks: what goes wrong, as often on both; after each the group is as good as before."""
    said = []

    def expect(work, *args, **kwargs):
        try:
            work(*args, **kwargs)
            said.append("nothing")
        except (ValueError, OSError, TypeError) as error:
            said.append(f"{type(error).__name__}: {error}")

    with world.joined(TIMEOUT) as group:
        make = partial(over, kind)
        expect(make, compression=60 if group.rank else 30)
        expect(make, batch_size=1, pretrain=0)
        expect(make, batch_size=5000)
        expect(resumed, kind, folder / ("nowhere" if group.rank else ""), net(), mine())
        dense = nn.Sequential(nn.AvgPool1d(2), nn.LayerNorm(4))  # takes the data, and has nothing to prune
        expect(make, dense, mine())
        own = gl.Dataset(mine().train_x + group.rank, mine().train_y, mine().test_x, mine().test_y)
        expect(make, net(), own, **OWN)
        expect(make, net(), mine(), loss=nn.CrossEntropyLoss(weight=torch.arange(1.0, 5)), **OWN)
        run = make(net(group.rank), mine(), **OWN)  # the weights of rank 0 count
        run.step(2)
        if group.rank:
            run.set(lr=0.5, compression=2)
        before = [p.to_local().clone() if kind == "fsdp" else p.clone() for p in run.model.parameters()]
        expect(run.step)
        after = [p.to_local() if kind == "fsdp" else p for p in run.model.parameters()]
        assert all(map(torch.equal, before, after)) and run.steps == 2
        run.set(lr=0.5, compression=2)
        run.step()
        expect(run.save, folder / "a file" / "run")
        run.step()
        run.save(folder / "run")
        for name in ("freeze", "smoothing", "cut_at"):
            expect(lambda name=name: make(net(), mine(), **OWN | {name: 0.5}).step())
        if kind == "ddp":
            cutting = make(net(), mine(), **OWN)
            cutting.step(2)
            before = [p.clone() for p in cutting.model.parameters()]
            cutting.set(cut_at=0.0 if group.rank else 1.0)
            expect(cutting.step)
            assert all(map(torch.equal, before, cutting.model.parameters()))
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_one_sentence_on_every_rank(kind, tmp_path):
    run = Run(net(), mine(), **OWN)
    run.step(2)
    run.save(tmp_path)
    (tmp_path / "a file").write_text("")
    zero, one = (e.result for e in in_ranks(2, refusals, kind, tmp_path))
    assert (
        zero[0]
        == one[0]
        == ("ValueError: compression must be the same on every rank, got 30.0 on rank 0 and 60.0 on rank 1")
    )
    assert zero[1] == one[1] and "batch_size must be at least the number of ranks, 2, got 1" in zero[1]
    assert zero[2] == one[2] == "ValueError: batch_size is 5000; valid: an integer in 1 .. 1437"
    assert zero[3].startswith("Elsewhere: rank 1: there is no run in")
    assert one[3].startswith("CheckpointError: there is no run in")
    assert zero[4] == one[4] and "no prunable weights" in zero[4]
    assert zero[5] == one[5] and "data must be the same on every rank" in zero[5]
    assert zero[6] == one[6] and "loss must be the mean over the samples" in zero[6]
    assert (
        zero[7]
        == one[7]
        == "ValueError: compression must be the same on every rank, got 4.0 on rank 0 and 2.0 on rank 1"
    )
    assert zero[8].startswith(("NotADirectoryError", "FileExistsError")) and one[8].startswith("Elsewhere: rank 0: ")
    assert Run.resume(tmp_path / "run", Net(), mine()).steps == 4
    if kind == "fsdp":
        assert zero[9] == one[9] == "ValueError: freeze must be 1 where weights are spread over ranks, got 0.5"
        assert zero[10] == one[10] == "ValueError: smoothing must be 0 where weights are spread over ranks, got 0.5"
        assert zero[11] == one[11] == "ValueError: cut_at must be 1 where weights are spread over ranks, got 0.5"
    else:
        said = "ValueError: cut_at must be the same on every rank, got 1.0 on rank 0 and 0.0 on rank 1"
        assert zero[-1] == one[-1] == said


def cut_on_a_ramp(folder: Path) -> tuple[list[int], dict[str, object]]:
    """In a rank: how many weights are left after steps of a run that is cut on its way, and all of it in the end."""
    with world.joined(TIMEOUT):
        make, left = partial(over, "ddp"), []
        run = make(net(), mine(), **OWN | CUT)
        for _ in range(3):
            run.step(15)
            left.append(sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values()))
            run.save(folder)
            run = resumed("ddp", folder, net(8), mine())
        return left, everything(run)


CUT = {"compression": 40, "ramp": 0.75, "cut_at": 0.25, "smoothing": 0.9}


def test_ranks_cut_alike_on_the_way_and_like_one_process(tmp_path):
    (left, zero), (other, one) = (e.result for e in in_ranks(2, cut_on_a_ramp, tmp_path))
    assert left == other and differs(zero, one) == []
    run, expected = Run(net(), mine(), **OWN | CUT), []
    for _ in range(3):
        run.step(15)
        expected.append(sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values()))
    assert left == expected and left[-1] == run.nonzeros == 9 < left[0] < 92
    assert Run.resume(tmp_path, net(8), mine()).method.was_cut
    run.set(cut_at=1.0, smoothing=0.0)  # what was cut stays cut
    run.save(tmp_path / "set")
    for ended in in_ranks(2, resumed_under_fsdp, tmp_path, tmp_path / "set"):
        knob, state = ended.result
        assert knob == "smoothing must be 0 where weights are spread over ranks, got 0.9"
        assert "goes on only where no weights are spread over ranks" in state


def resumed_under_fsdp(*folders: Path) -> list[str]:
    said = []
    with world.joined(TIMEOUT):
        for folder in folders:
            try:
                said.append(str(resumed("fsdp", folder, net(8), mine())))
            except ValueError as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--parallel", "pipeline"], "invalid choice: 'pipeline' (choose from"),
        (["--timeout", "0"], "timeout must be a number of seconds > 0, got '0'"),
        (["--parallel", "fsdp"], "torchrun did not start this process (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
    ],
)
def test_wrong_arguments(line, sentence, capsys):
    status = status_of("run", *line)
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("gsm-lab: ") and sentence in said and said.count("\n") == 1


def test_without_torchrun_the_trainer_says_what_to_type(capsys):
    from gsm_lab import train

    with pytest.raises(SystemExit) as end:
        train.main(["--epochs", "1"])
    assert end.value.code == 2
    assert "`torchrun --nproc-per-node 2 -m gsm_lab.train ...`" in capsys.readouterr().err


def test_a_run_over_ranks_needs_ranks():
    with pytest.raises(
        RuntimeError, match=r"there is no process group: put `with gsm_lab.distributed.joined\(\):` around it"
    ):
        distributed.DDP()
    with pytest.raises(ValueError, match="parallel must be one of ddp, fsdp, got 'tp'"):
        distributed.kind("tp")


# ------------------------------------------------------------------------------------------------ interrupts and losses


def interrupted(kind: str, number: int, folder: Path) -> tuple[object, ...]:
    """In a rank: rank 1 gets a signal in step 7, and another one while it is saving."""
    with world.joined(TIMEOUT) as group:
        run = over(kind, **SETTINGS)
        if group.rank == 1:
            run.recorders.append(lambda step, *_: os.kill(os.getpid(), number) if step == 7 else None)
        try:
            run.train(progress=False)
        except KeyboardInterrupt:
            if group.rank == 1:
                os.kill(os.getpid(), number)
            run.save(folder)
            return "interrupted", run.steps
        return "not interrupted", run.steps


@pytest.mark.parametrize(("kind", "number"), [("ddp", signal.SIGINT), ("fsdp", signal.SIGTERM)])
def test_a_signal_on_one_rank_stops_all_after_the_same_step(kind, number, tmp_path):
    results = [e.result for e in in_ranks(3, interrupted, kind, number, tmp_path)]
    assert results == [("interrupted", 8)] * 3
    assert Run.resume(tmp_path).steps == 8


def dies(kind: str, folder: Path) -> int:
    """In a rank: train with the command line, saving every 5 steps; rank 1 ends without a word in step 18."""
    run_folder.SAVE_EVERY, loop.PORTION = 0.0, 5
    record = History.record

    def die(self, step, *args):
        if step == 18 and os.environ["RANK"] == "1":
            os._exit(17)
        record(self, step, *args)

    History.record = die
    return status_of("run", "--parallel", kind, "--pretrain", "0", "--epochs", "2", "--out", folder, "--timeout", "300")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_rank_is_one_sentence_and_the_last_checkpoint_is_whole(kind, tmp_path):
    zero, one, two = in_ranks(3, dies, kind, tmp_path, fails=True)
    assert one.status == 17
    for rank, survivor in ((0, zero), (2, two)):
        assert survivor.result == 1, survivor
        said = survivor.err.split("\r")[-1].strip().splitlines()[-1]
        assert re.fullmatch(
            rf"gsm-lab: rank {rank}: another of the 3 ranks has ended \(.*\) \(the state after 15 steps is in .*\)",
            said,
        ), survivor.err
        assert "Traceback" not in survivor.err
    run = Run.resume(tmp_path)
    assert run.steps == 15
    run.train(progress=False)
    assert run.steps == run.planned


def hangs(kind: str) -> str:
    """In a rank: rank 1 does not come to the next step any more."""
    with world.joined(TIMEOUT) as group:
        store = dist.distributed_c10d._get_default_store()
        run = over(kind, net(), mine(), **OWN)
        run.step(3)
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2), dist.group.WORLD)
        try:
            if group.rank == 1:
                store.wait(["given up"], timedelta(seconds=TIMEOUT))
                return ""
            run.step()
        except world.RankLost as error:
            store.set("given up", "")
            return str(error)


def test_a_rank_that_does_not_answer_is_given_up_after_the_timeout():
    said = in_ranks(2, hangs, "ddp")[0].result
    assert said.startswith("rank 0: another of the 2 ranks did not answer in time (")


def diverges(kind: str, folder: Path) -> int:
    return status_of("run", "--parallel", kind, "--lr", "100", "--pretrain", "0", "--out", folder, "--timeout", "300")


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_ends_all_ranks_with_one_sentence(kind, tmp_path):
    zero, one = in_ranks(2, diverges, kind, tmp_path / "d")
    assert (zero.result, one.result) == (1, 1)
    *_, said = zero.err.strip().splitlines()
    assert said.startswith("gsm-lab: the gradient of ") and "no weight was changed" in said
    assert one.err == one.out == ""
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ sharded files


class Loop:
    """A loop of a user's own: LeNet-300-100 on digits with GSM, saved by torch.distributed.checkpoint."""

    def __init__(self, seed: int, compression: float, shard: bool) -> None:
        self.data = gl.load("digits")
        self.model = gl.models.build("lenet300", (1, 28, 28), 10, self.data.mean, self.data.std, seed)
        if shard:
            fully_shard(self.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.opt = gl.GSM(gl.param_groups(self.model), 0.1, 0.9, weight_decay=3e-3, compression=compression)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            rows = slice(64 * step, 64 * step + 64)
            self.opt.zero_grad()
            F.cross_entropy(self.model(self.data.train_x[rows]), self.data.train_y[rows]).backward()
            self.opt.step()

    def state(self) -> dict[str, object]:
        model, opt = get_state_dict(self.model, self.opt)
        return {"model": model, "opt": opt}

    def load(self, folder: Path) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(self.model, self.opt, model_state_dict=state["model"], optim_state_dict=state["opt"])

    def reached(self) -> list[torch.Tensor]:
        """All weights and momenta, and who was active, whole."""
        params = list(self.model.parameters())
        momenta = [self.opt.state[p]["momentum_buffer"] for p in params]
        active = [self.opt.active(p).float() for p in params if p.ndim > 1]
        every = [t.detach() for t in (*params, *momenta, *active)]
        return [t.full_tensor() if hasattr(t, "full_tensor") else t.clone() for t in every]


def saves_shards(folder: Path) -> list[torch.Tensor]:
    with world.joined(TIMEOUT):
        loop = Loop(0, 60, True)
        loop.steps(0, 5)
        dcp.save(loop.state(), checkpoint_id=folder)
        loop.steps(5, 8)
        return loop.reached()


def loads_shards(folder: Path, shard: bool, again: Path | None) -> tuple[float, int, list[torch.Tensor]]:
    with world.joined(TIMEOUT):
        loop = Loop(1, 10, shard)
        loop.load(folder)
        if again is not None:
            dcp.save(loop.state(), checkpoint_id=again)
        loop.steps(5, 8)
        return loop.opt.compression, loop.opt.nonzeros, loop.reached()


def test_sharded_files_go_from_two_ranks_to_four_to_one(tmp_path):
    one = Loop(0, 60, False)
    one.steps(0, 8)
    two = in_ranks(2, saves_shards, tmp_path / "two")[0].result
    assert len(list((tmp_path / "two").glob("*.distcp"))) == 2
    four = in_ranks(4, loads_shards, tmp_path / "two", True, tmp_path / "four")[0].result
    (alone,) = (e.result for e in in_ranks(1, loads_shards, tmp_path / "four", False, None))
    for compression, nonzeros, reached in (four, alone):
        assert (compression, nonzeros) == (60, 4436)
        for a, b in zip(reached, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(one.reached(), two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ torchrun


def torchrun(size: int, *args: str | Path) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return [*launch, *map(str, args)]


SHORT = [
    "--data",
    "digits",
    "--pretrain",
    "1",
    "--epochs",
    "2",
    "--seed",
    "5",
    "--evaluate-every",
    "10",
    "--threads",
    "1",
]


@pytest.mark.parametrize(
    "line", [("-m", "gsm_lab.train"), ("-m", "gsm_lab.cli", "run", "--parallel", "fsdp")], ids=["train", "run"]
)
def test_torchrun_leaves_what_one_process_leaves(line, tmp_path):
    command = torchrun(2, *line, *SHORT, "--out", tmp_path)
    result = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.safetensors", "weights.safetensors", "report.html", "history.csv", "knobs.json",
    }  # fmt: skip
    one = Run(**SETTINGS)
    one.train(progress=False)
    run = Run.resume(tmp_path)
    losses, expected = run.history.frame()["loss"], one.history.frame()["loss"]
    np.testing.assert_allclose(losses[:20], expected[:20], atol=LIKE_ONE)
    np.testing.assert_allclose(losses, expected, atol=1e-3)
    sample = 1 / len(one.data.test_y) + 1e-6
    assert run.evaluate(cut=True) == pytest.approx(one.evaluate(cut=True), abs=3 * sample)
    assert result.stdout.count("GSM, cut: the Q largest weights") == 1, "rank 0 prints the table, nobody else"
    assert f"{100 * run.evaluate(cut=True):.2f}%" in result.stdout
    assert result.stderr.count("gate closed, C = 60: 100%") == 1, "one progress bar"


def test_ctrl_c_of_torchrun_keeps_what_was_reached(tmp_path):
    line = torchrun(2, "-m", "gsm_lab.train", "--pretrain", "0", "--epochs", "500", "--threads", "1", "--out", tmp_path)
    with subprocess.Popen(line, env=environ(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen = b""
        while b"gate closed" not in seen:
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, seen.decode()
            seen += piece
        process.send_signal(signal.SIGINT)
        out, err = (text.decode() for text in process.communicate(timeout=600))
    assert process.returncode != 0
    assert out.count(f"`gsm-lab resume {tmp_path}` goes on") == 1, out + err
    run = Run.resume(tmp_path)
    assert 0 < run.steps < run.planned
    assert f"0 dense and {run.steps:,} of {run.planned:,} gated steps" in out
    run.set(epochs=max(1, run.steps // run.epoch_steps))  # at its end, to see that it is found
    run.step(max(0, run.planned - run.steps))
    run.save(tmp_path)
    line = torchrun(2, "-m", "gsm_lab.cli", "resume", tmp_path, "--parallel", "fsdp")
    again = subprocess.run(line, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and again.stdout.count(f"at the end of its {run.knobs['epochs']} epochs") == 1
