"""Figures draw tables: none of their modules needs torch, so that one can read and draw results where it is not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKED = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
figures = importlib.import_module("gsm_lab.figures")
for module in pkgutil.iter_modules(figures.__path__):
    print(importlib.import_module(f"gsm_lab.figures.{module.name}").__name__)
"""


def test_all_modules_of_figures_load_without_torch() -> None:
    command = [sys.executable, "-c", BLOCKED]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    loaded = {name.removeprefix("gsm_lab.figures.") for name in found.stdout.split()}
    assert {"dashboard", "rivals", "style", "taylor_view", "trajectories"} <= loaded
