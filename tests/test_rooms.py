"""The order of the rooms: what may import what, as the contracts in pyproject.toml say it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def verdict(folder: Path) -> tuple[int, str]:
    line = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout


def test_imports_run_down_the_rooms() -> None:
    status, said = verdict(ROOT)
    assert status == 0, said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("training/parts.py", "import gsm_lab.methods.dns", "imports run down the rooms"),
        ("training/history.py", "import gsm_lab.training.run", "no two modules import each other"),
        ("optim/gsm.py", "import pandas", "the optimizer needs torch and numpy alone"),
        ("figures/style.py", "import torch", "figures draw tables, with no torch of their own"),
        ("attic.py", "", "imports run down the rooms"),  # a room that has no place in the order
    ],
)
def test_an_import_that_runs_back_is_noticed(module: str, line: str, contract: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gsm_lab", tmp_path / "gsm_lab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "gsm_lab" / module
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    status, said = verdict(tmp_path)
    assert status == 1, said
    assert f"{contract} BROKEN" in said or "attic" in said, said
