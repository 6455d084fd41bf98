"""Run a notebook under a setting and compare it with what it was saved with; see `test_notebooks`.

What is saved must not depend on the machine. So each notebook runs twice: with two threads, and with one on a stand-in
for another CPU, whose arithmetic differs in the last digits. Each time is an nbval run of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
# Passive: threads that wait for each other on a busy machine give way instead of spinning.
SETTINGS = {
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread, another CPU": {
        "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}  # fmt: skip
_NO_TESTS = 5  # what pytest says where a notebook has no code


def _own_processor() -> None:
    """In the child: this worker's processor alone, one of those there are (where the system lets a program choose)."""
    if hasattr(os, "sched_setaffinity"):
        there = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {there[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % len(there)]})


def wrong(path: Path, setting: dict[str, str]) -> str:
    """What nbval has to say of a notebook, with these environment variables, that is not as it was saved; else ""."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_plugin", "-p", "no:cacheprovider", "--nbval", path]
    # Two threads on two processors that others want, too, wait for each other at every operation; what they compute is
    # the same where they share one, and takes half of the time.
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=os.environ | setting, stdin=subprocess.DEVNULL,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          preexec_fn=_own_processor if setting.get("OMP_NUM_THREADS") == "2" else None)  # fmt: skip
    return "" if done.returncode in (0, _NO_TESTS) else done.stdout or f"nbval ended with {done.returncode}"
