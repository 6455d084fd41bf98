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


def wrong(path: Path, setting: dict[str, str]) -> str:
    """What nbval has to say of a notebook, with these environment variables, that is not as it was saved; else ""."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_plugin", "-p", "no:cacheprovider", "--nbval", path]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=os.environ | setting, stdin=subprocess.DEVNULL,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return "" if done.returncode in (0, _NO_TESTS) else done.stdout or f"nbval ended with {done.returncode}"
