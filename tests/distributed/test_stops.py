"""Signals, ranks that die, ranks that do not answer, and divergence: all ranks end, and what was saved is whole."""

import multiprocessing
import os
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from gsm_lab import Run
from gsm_lab.cli import run_folder
from gsm_lab.distributed import world
from gsm_lab.training import loop
from gsm_lab.training.history import History
from tests.distributed.over_ranks import (
    KINDS,
    OWN,
    PRELOAD,
    SETTINGS,
    TIMEOUT,
    over,
    status_of,
)
from tests.processes import in_ranks
from tests.runs import mine, net

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)


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
