"""The dense epochs of a network and a seed, which all rows of a table begin with: made once, kept beside the CSV."""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path

import torch
from filelock import FileLock

from gsm_lab._version import __version__
from gsm_lab.knobs import KNOBS
from gsm_lab.paper.csv_store import SHELF
from gsm_lab.training import tensor_files
from gsm_lab.training.files import sha256, write_atomically
from gsm_lab.training.run import Run
from gsm_lab.training.state import fill, whole_state


def keep(run: Run, folder: Path, seconds: float) -> None:
    """Write the network for other rows, right after its dense epochs."""
    state = whole_state(run.model)[0] | {"/random": run.random_state, "/seconds": torch.tensor(seconds)}
    path = _file(run, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), FileLock(path.parent / "dense.lock"):  # else another row makes them itself
        write_atomically(path, tensor_files.content_of(state, {"dense": path.name}))


def take(run: Run, folder: Path) -> float:
    """Do the dense epochs of a fresh run by taking the network that another row has kept.

    Returns the seconds that its training took; 0 where there is none, or a damaged one, which is removed.
    """
    if not run.dense_left:
        return 0.0
    path = _file(run, folder)
    try:
        state, _ = tensor_files.checked(path)
    except (FileNotFoundError, tensor_files.Damaged):  # then its own training makes, and keeps, another
        path.unlink(missing_ok=True)
        return 0.0
    run.random_state, took = state.pop("/random"), state.pop("/seconds")
    fill(run.model, state)
    run.dense_steps += run.dense_left
    run.pretrain()  # closes the gate
    return took.item()


def remove(shelf: Path) -> None:
    """Remove what `keep` wrote, and the temporary files of a process that was killed in it."""
    if shelf.is_dir():
        with FileLock(shelf / "dense.lock"):
            for path in [*shelf.glob("dense-*"), *shelf.glob(".dense-*")]:
                path.unlink(missing_ok=True)


def _file(run: Run, folder: Path) -> Path:
    """The file for the network after the dense epochs of this run; runs with the same dense epochs share it."""
    knobs = {name: v for name, v in run.knobs.items() if KNOBS[name].dense}
    code = Path(inspect.getfile(type(run.model))).read_text()  # of another version of the code: another network
    made_by = [code, __version__, torch.__version__, torch.get_num_threads()]
    name = json.dumps([knobs, run.data.digest, made_by], sort_keys=True)
    shelf = next(parent for parent in folder.parents if parent.name.endswith(SHELF))
    return shelf / f"dense-{sha256(name.encode())[:16]}.safetensors"
