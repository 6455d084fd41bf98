"""Sharded files from two ranks to four to one, and the command line under a real torchrun."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Run
from gsm_lab.distributed import world
from tests.cli.commands import environ
from tests.distributed.over_ranks import (
    LIKE_ONE,
    PRELOAD,
    ROOT,
    SETTINGS,
    TIMEOUT,
)
from tests.processes import in_ranks

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)


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
    # a slow machine draws the end of a bar twice, in the same line
    bars = [line for line in result.stderr.split("\n") if "gate closed, C = 60: 100%" in line]
    assert len(bars) == 1, "one progress bar"


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
