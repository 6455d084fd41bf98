"""Which notebooks JupyterLab trusts when it is started here."""

import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.sign import NotebookNotary

from gsm_lab.notebook import lab


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two of our notebooks, one that is none, and one of the user's; nothing was ever signed."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter's own"))
    folder = tmp_path / "with spaces"
    folder.mkdir()
    for name in ("00_start_here", "01_playground", "11_mine"):
        write(folder / f"{name}.ipynb", "shown")
    (folder / "02_taylor_vs_true_loss.ipynb").write_text("no notebook")
    return folder


def write(path: Path, text: str) -> None:
    shown = nbformat.v4.new_output("display_data", {"text/html": f"<b>{text}</b>"})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[shown])]), path)


def trusted(path: Path) -> bool:
    notary = NotebookNotary()
    try:
        return notary.check_signature(nbformat.read(path, 4))
    finally:
        notary.store.close()


def test_ours_are_trusted_once_and_nobody_else_s(folder: Path) -> None:
    assert not trusted(folder / "01_playground.ipynb")
    assert lab.trust(folder) == ["00_start_here", "01_playground"]
    assert trusted(folder / "00_start_here.ipynb") and trusted(folder / "01_playground.ipynb")
    assert not trusted(folder / "11_mine.ipynb")
    assert lab.trust(folder) == []
    write(folder / "01_playground.ipynb", "a new version")
    assert lab.trust(folder) == ["01_playground"]


def test_it_goes_on_where_nothing_can_be_signed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "00_start_here.ipynb" / "below a file"))
    assert lab.trust(folder) == []
    assert lab.trust(folder / "nowhere") == []


def test_the_names_are_those_of_the_notebooks_that_git_has() -> None:
    command = ["git", "ls-files", "*.ipynb"]
    listed = subprocess.run(command, cwd=lab.FOLDER, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert sorted(lab.SHIPPED) == sorted(Path(line).stem for line in listed.stdout.splitlines())
