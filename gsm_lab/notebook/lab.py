"""`python -m gsm_lab.notebook.lab ARGS`: JupyterLab as `python -m jupyterlab` starts it; it trusts our notebooks.

In a notebook that is not trusted JupyterLab shows no saved output that could run something: no live figure, and after
a reload no playground, though its kernel has it. Notebooks of other names stay as they are.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "notebooks"
SHIPPED = (
    "00_start_here", "01_playground", "02_taylor_vs_true_loss", "03_reactivation", "04_sparsity_trajectories",
    "05_rivals", "06_winning_tickets", "07_layer_sensitivity", "09_distributed", "10_the_papers_tables",
)  # fmt: skip


def trust(folder: Path) -> list[str]:
    """Sign the notebooks of these names that nobody has signed as they are; returns the names of those.

    Where the user's own folder of Jupyter cannot be written to, or a notebook not be read, all goes on without.
    """
    import nbformat
    from nbformat.sign import NotebookNotary

    signed = []
    with contextlib.suppress(Exception):
        notary = NotebookNotary()
        with contextlib.closing(notary.store):
            for name in SHIPPED:
                with contextlib.suppress(OSError, ValueError):  # not there, or no notebook
                    notebook = nbformat.read(folder / f"{name}.ipynb", nbformat.NO_CONVERT)
                    if not notary.check_signature(notebook):
                        notary.sign(notebook)
                        signed.append(name)
    return signed


def main() -> None:
    """Trust, and start JupyterLab with the arguments of the command line."""
    trust(FOLDER)
    from jupyterlab.labapp import main as lab

    sys.exit(lab())


if __name__ == "__main__":
    main()
