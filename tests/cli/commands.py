"""`gsm-lab` as a process, and what its tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

import gsm_lab as gl

ROOT = Path(__file__).parents[2]
SHORT = ["--pretrain", "1", "--epochs", "2", "--threads", "1"]
ALL = ("checkpoint.safetensors", "knobs.json", "history.csv", "weights.safetensors", "report.html")  # in a folder
STEPS = 22  # an epoch of the digits at batch 64


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "gsm_lab.cli", *map(str, args)]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def gsm_lab(*args: str | Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=cwd, env=environ(**more), capture_output=True, text=True, timeout=300)


def folder_of(cwd: Path) -> Path:
    return cwd / "runs/digits-lenet300-60x-seed0"


def same_state(a: gl.Run, b: gl.Run) -> None:
    """Two runs are equal to the bit, history included."""
    assert (a.steps, a.dense_steps, a.knobs) == (b.steps, b.dense_steps, b.knobs)
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(a.opt.state[p]["momentum_buffer"], b.opt.state[q]["momentum_buffer"])
    pd.testing.assert_frame_equal(a.history.frame(), b.history.frame(), check_exact=True)
    assert a.history.events == b.history.events


def at_step(monkeypatch, number: int, does) -> None:
    """After so many gated steps of any run something happens, once."""
    real = gl.Run.gated_step

    def step(run: gl.Run) -> None:
        real(run)
        if run.steps == number:
            monkeypatch.setattr(gl.Run, "gated_step", real)
            does()

    monkeypatch.setattr(gl.Run, "gated_step", step)
