"""The check of the notebooks, checked: nbval passes a notebook that is as it was, and notices what changed.

A notebook prints an `expect` line, digests of traces and a summary of widgets; all of it comes from a module beside it,
which stands for the library. Then the module changes and the notebook does not.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gsm_lab import expect

ROOT = Path(__file__).parents[1]

LIBRARY = """
import ipywidgets
import numpy as np
import plotly.graph_objects as go

NOISE = 0.0
x = np.arange(50, dtype=np.float32)

def accuracy():
    return 0.978 + NOISE

def losses():
    return go.Figure(go.Scatter(x=x, y=np.exp(-x / 10) + NOISE, name="loss", mode="lines"))

def targets():
    return go.Figure(go.Scatter(x=x, y=90 + NOISE + x / 10, name="target", mode="lines", line_dash="dot", yaxis="y2"))

def controls():
    slider = ipywidgets.FloatLogSlider(value=60, min=0, max=2.5, description="compression C")
    return ipywidgets.VBox([ipywidgets.Button(description="Play"), slider])
"""
OTHER_CPU = (("NOISE = 0.0", "NOISE = 0.0012345678"),)
# a change, the cell it shows in, and what must be said there
CHANGES = (
    (("return 0.978", "return 0.878"), 1, r"cut accuracy: got 0\.878, stored 0\.978; they differ by 0\.1, more than"),
    (("np.exp(-x / 10)", "np.exp(-x / 2)"), 2, r"trace 'loss': \w+ is [\d.e-]+, stored [\d.]+; they differ by"),
    (('"dot"', '"dash"'), 3, r"'target': looks like 'scatter lines dash - x y2', stored 'scatter lines dot - x y2'"),
    (("value=60", "value=50"), 4, r"ion C' += 50 +from 0 to 2\.5"),
)
NOTEBOOKS = {"unchanged": (), "other_cpu": OTHER_CPU, "changed": tuple(change for change, _, _ in CHANGES)}


def notebook() -> nbformat.NotebookNode:
    library: dict = {}
    exec(LIBRARY, library)
    loss, target = (expect.digest(library[name]()) for name in ("losses", "targets"))
    cells = [
        "import library\nfrom gsm_lab import expect",
        "expect('cut accuracy', library.accuracy(), 0.978, 0.02)",
        f"expect.trace(library.losses(), {loss!r})",
        f"expect.trace(library.targets(), {target!r})",
        "print(expect.describe(library.controls()))",
        "expect('points', len(library.x), 50, 0)",
    ]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook with its outputs, as it would be committed."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "library.py").write_text(LIBRARY)
    one = notebook()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("PYTHONPATH", path)
        environ.setenv("IPYTHONDIR", str(folder / "ipython"))
        NotebookClient(one, resources={"metadata": {"path": folder}}).execute()
    return one


@pytest.fixture(scope="module")
def said(saved, tmp_path_factory) -> str:
    """What the check that `make nbval` runs has to say about each of `NOTEBOOKS`."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name, changes in NOTEBOOKS.items():
        text = LIBRARY
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / name).mkdir()
        (folder / name / "library.py").write_text(text)
        nbformat.write(saved, folder / name / f"{name}.ipynb")
    line = [sys.executable, "-m", "pytest", "-p", "tests.nbval_plugin", "--nbval", "-rA", "-p", "no:cacheprovider"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    result = subprocess.run([*line, folder], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1, result.stdout + result.stderr
    return re.sub(r"\x1b\[[\d;]*m", "", result.stdout)


def fates(said: str, name: str) -> list[str]:
    """PASSED or FAILED, cell by cell."""
    found = re.findall(rf"^(PASSED|FAILED|ERROR) \S*/{name}\.ipynb::Cell (\d)", said, re.MULTILINE)
    return [fate for fate, _ in sorted(found, key=lambda pair: pair[1])]


def test_saved_outputs_hold_what_was_stored_and_what_was_measured(saved):
    texts = ["".join(out.text for out in cell.outputs) for cell in saved.cells]
    assert texts[1] == "ok  cut accuracy: 0.978 within 0.02 (measured 0.978)\n"
    loss = "ok  trace loss: scatter lines solid - x y, 45..55 points, y within 0.05 (measured first, last: 1, 0.00745)"
    assert texts[2].splitlines()[0] == loss
    assert texts[4].splitlines()[1] == "FloatLogSlider      'compression C'  = 60  from 0 to 2.5"


@pytest.mark.parametrize("name", ["unchanged", "other_cpu"])
def test_what_did_not_change_passes(said, name):
    assert fates(said, name) == ["PASSED"] * 6, said


def test_nothing_fails_but_what_changed(said):
    wrong = {cell for _, cell, _ in CHANGES}
    assert fates(said, "changed") == ["FAILED" if i in wrong else "PASSED" for i in range(6)], said


@pytest.mark.parametrize(("change", "cell", "why"), CHANGES)
def test_the_failure_says_why(said, change, cell, why):
    (part,) = re.findall(rf"^_+ \S*changed/changed\.ipynb::Cell {cell} _+$(.*?)(?=^_+ |^=+ )", said, re.M | re.S)
    assert re.search(why, part), part
