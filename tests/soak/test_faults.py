"""Kills, signals, full disks, two writers and flipped bits by the hundred; the table is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARES = 4  # side by side, each with dice of its own


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_lost_and_nothing_damaged_is_accepted():
    """200 kills, 100 signals and 300 flipped bits."""
    one = [sys.executable, "-m", "tests.faults", "--kills", "50", "--signals", "25", "--flips", "75"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*one, "--seed", str(seed)], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        for seed in range(SHARES)
    ]
    tables = [process.communicate()[0] for process in processes]
    print("\n".join(tables))
    assert [process.returncode for process in processes] == [0] * SHARES
