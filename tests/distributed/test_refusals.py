"""What is wrong is one sentence on every rank, before a weight has changed."""

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import gsm_lab as gl
from gsm_lab import Run, distributed
from gsm_lab.distributed import world
from tests.distributed.over_ranks import (
    KINDS,
    OWN,
    PRELOAD,
    TIMEOUT,
    over,
    resumed,
    status_of,
)
from tests.processes import in_ranks
from tests.runs import Net, differs, everything, mine, net

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)


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
