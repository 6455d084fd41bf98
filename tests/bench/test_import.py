"""`import gsm_lab` beside `import torch` (target: at most 1.15 times)."""

import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.test_history import machine

ROOT = Path(__file__).parents[2]
ROUNDS = 11


def seconds(module: str) -> float:
    """How long a fresh process takes to import it."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


def test_import_costs_what_torch_costs() -> None:
    for module in ("torch", "gsm_lab"):  # once, for the disk's sake
        seconds(module)
    times = [(seconds("torch"), seconds("gsm_lab")) for _ in range(ROUNDS)]
    torch_alone, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = ours / torch_alone
    print(f"\n{machine()}\n| import | s, median of {ROUNDS} |\n|---|---|")
    print(f"| torch | {torch_alone:.3f} |\n| gsm_lab | {ours:.3f} |\n| ratio | {ratio:.3f} |")
    assert ratio <= 1.15
