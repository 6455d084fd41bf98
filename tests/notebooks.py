"""Run every notebook under every setting and compare it with what it was saved with: `python -m tests.notebooks`.

What is saved must not depend on the machine. So each notebook runs twice: with two threads, and with one on a stand-in
for another CPU, whose arithmetic differs in the last digits. Each time is an nbval run of its own; as many go side by
side as there are cores, up to four.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
# Passive: threads that wait for each other on a busy machine give way instead of spinning.
SETTINGS = {
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread, another CPU": {
        "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}  # fmt: skip
NO_TESTS = 5  # what pytest says where a notebook has no code


def main() -> int:
    """Returns how many failed; says how each went when it has ended, and all of it where it failed."""
    # the later ones take longer, and are begun first: begun last, the other cores would wait for the one that runs it
    paths = sorted(FOLDER.glob("*.ipynb"), reverse=True)
    if not paths:
        print(f"nbval: there is no notebook in {FOLDER}")
    jobs = [(path, name) for path in paths for name in SETTINGS]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        failed = sum(pool.map(lambda job: run(*job), jobs))
    print(f"{len(paths)} notebooks under {len(SETTINGS)} settings ({'; '.join(SETTINGS)}): {failed or 'none'} failed")
    return failed


def run(path: Path, setting: str) -> bool:
    """One notebook under one setting; whether it failed."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_plugin", "-p", "no:cacheprovider", "--nbval", path]
    began = time.monotonic()
    environ = os.environ | SETTINGS[setting]
    done = subprocess.run(command, cwd=FOLDER.parent, env=environ, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    failed = done.returncode not in (0, NO_TESTS)
    print(f"{'FAILED' if failed else 'passed'}  {path.name}, {setting}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(done.stdout, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
