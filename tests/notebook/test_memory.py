"""What a kernel holds, and what it gives back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gsm_lab.notebook.memory import instructions

ROOT = Path(__file__).parents[2]
MAPS = """7f0000000000-7f0000001000 r--p 00000000 08:01 12 /a b/lib/libllvmlite.so
Size:                  4 kB
Anonymous:             0 kB
7f0000001000-7f0000003000 r-xp 00001000 08:01 12 /a b/lib/libllvmlite.so
Anonymous:             0 kB
7f0000003000-7f0000004000 r-xp 00003000 08:01 12 /a b/lib/libllvmlite.so (deleted)
Anonymous:             8 kB
7f0000004000-7f0000005000 rw-p 00004000 08:01 12 /a b/lib/libllvmlite.so
Anonymous:             0 kB
7f0000005000-7f0000006000 r-xp 00000000 00:00 0
Anonymous:             0 kB
7f0000006000-7f0000007000 r-xp 00000000 08:01 13 /a b/lib/libother.so
Anonymous:             0 kB
"""

PLAYED = """
import json, sys
import gsm_lab as gl
from gsm_lab.notebook import memory
board = gl.Playground()
board.step(3)
held = {}
def rss():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) / 1024
held["before"] = rss()
memory.give_back()
held["after"] = rss()
board.step(3)  # with LLVM's pages gone
held["again"] = rss()
import numba
held["compiled"] = numba.njit(lambda x: 2 * x)(21)
loaded = [name for name in ("sympy", "pandas", "nbformat", "kaleido", "lark", "scipy.linalg") if name in sys.modules]
board.close()
print(json.dumps({**held, "loaded": loaded}))
"""


def test_only_instructions_that_are_as_in_the_file_are_let_go() -> None:
    assert instructions(MAPS, "libllvmlite") == [(0x7F0000001000, 0x7F0000003000)]
    assert instructions(MAPS, "libmissing") == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux")
def test_a_board_that_played_holds_no_compiler_and_loads_nothing_it_does_not_use() -> None:
    pytest.importorskip("numba")
    done = subprocess.run([sys.executable, "-c", PLAYED], cwd=ROOT, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["loaded"] == []
    assert said["compiled"] == 42
    assert said["after"] < said["before"] - 20 and said["again"] < said["before"], said
