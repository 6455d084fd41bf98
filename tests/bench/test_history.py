"""What taking everything down costs a training step (target: at most 15% at batch 64)."""

import os
import platform
import statistics
import time
from pathlib import Path

import pytest
import torch

from gsm_lab import Run

STEPS, ROUNDS = 25, 24  # of a block; of blocks with and without history, in turns


def machine() -> str:
    """What it was measured on, in a line."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(": ", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    cpu = names[0] if names else platform.processor() or platform.machine()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{cpu}, {os.cpu_count()} cores (load {busy:.1f}), {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} torch threads; torch {torch.__version__}, Python {platform.python_version()}"
    )


def block(run: Run) -> float:
    """Seconds a step, over a block of steps."""
    start = time.perf_counter()
    run.step(STEPS)
    return (time.perf_counter() - start) / STEPS


@pytest.mark.parametrize("threads", [1, 2])
def test_share_of_history(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = Run(model="lenet300", data="digits", compression=60, batch_size=64, pretrain=2, evaluate_every=10**9)
        run.step(100)
        mask = run.opt.active_mask()
        with_history, without = [], []
        for _ in range(ROUNDS):
            with_history.append(block(run))
            with monkeypatch.context() as patch:
                patch.setattr(run.opt, "active_mask", lambda: mask)
                patch.setattr(run.history, "record", lambda *_: None)
                without.append(block(run))
        told = machine()
    finally:
        torch.set_num_threads(before)
    share = statistics.median(1 - b / a for a, b in zip(with_history, without, strict=True))
    full, bare = (1e3 * statistics.median(times) for times in (with_history, without))
    print(f"\n{told}\n| LeNet-300-100, 60x, batch 64 | ms a step |\n|---|---|")
    print(f"| with history | {full:.3f} |\n| without | {bare:.3f} |\n| share of history | {100 * share:.1f}% |")
    assert share <= 0.15
