"""Figures draw tables: none of their modules needs torch, so that one can read and draw results where it is not."""

import subprocess
import sys

import gsm_lab

BLOCKED = """
import importlib, pkgutil, sys, types

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
package = sys.modules["gsm_lab"] = types.ModuleType("gsm_lab")  # the real one imports torch
package.__path__ = [sys.argv[1]]
figures = importlib.import_module("gsm_lab.figures")
for module in pkgutil.iter_modules(figures.__path__):
    print(importlib.import_module(f"gsm_lab.figures.{module.name}").__name__)
"""


def test_all_modules_of_figures_load_without_torch() -> None:
    command = [sys.executable, "-c", BLOCKED, gsm_lab.__path__[0]]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    loaded = {name.removeprefix("gsm_lab.figures.") for name in found.stdout.split()}
    assert {"dashboard", "rivals", "style", "taylor_view", "trajectories"} <= loaded
