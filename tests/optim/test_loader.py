"""The loader of compiled modules: without numba, and where numba finds no folder to keep compiled code in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gsm_lab
from gsm_lab.optim.fused import loader

# A run with all three kinds of compiled module: the step, the tally of a history, the scan of a recorder.
RUN = """
import sys
if sys.argv[1] == "blocked":
    sys.modules["numba"] = None
import torch
from gsm_lab import Dataset, Run
from gsm_lab.optim.fused import loader
from gsm_lab.studies import scan
from gsm_lab.training import history
from gsm_lab.studies.recording import Recorder
x, y = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
run = Run(model, Dataset(x, y, x, y), compression=5, batch_size=16, pretrain=1, epochs=1, seed=3)
recorder = Recorder(run)
run.step(4)
names = ["gsm_lab.optim.fused.step", history.COMPILED, scan.COMPILED]
print([loader.compiled(name) is not None for name in names], int(run.opt.active_mask().sum()), run.opt._fused)
"""


def said(where: str, path: Path, environ: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", RUN, where]
    environ = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"} | environ
    done = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numba(tmp_path: Path) -> None:
    assert said("blocked", Path(gsm_lab.__file__).parents[1], {}, tmp_path).startswith("[False, False, False] 217 ")


def test_where_no_cache_can_be_written(tmp_path: Path) -> None:
    """Numba tries the folder it is told, the package's own and the user's; here each would lie below a file."""
    pytest.importorskip("numba")
    package = tmp_path / "gsm_lab"
    shutil.copytree(Path(gsm_lab.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, *filter(Path.is_dir, package.rglob("*"))):
        (folder / "__pycache__").touch()
    file = tmp_path / "file"
    file.touch()
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "IPYTHONDIR"), str(file / "folder"))
    assert said("unwritable", tmp_path, nowhere, tmp_path).startswith("[False, False, False] 217 ")


def test_a_mistake_of_our_own_is_not_taken_for_a_lack_of_numba() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        loader.compiled("gsm_lab.no_such_module")
    assert loader.compiled("no_such_package.at_all") is None
