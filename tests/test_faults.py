"""The short form of `tests/soak/test_faults.py`: a few moments of each kind, none of which depends on the clock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_lost_and_nothing_damaged_is_accepted():
    line = [sys.executable, "-m", "tests.faults", "--kills", "4", "--signals", "3", "--flips", "7", "--seed", "3"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
