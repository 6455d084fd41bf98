"""Save and resume a run to the bit.

A run's folder holds

    checkpoint.safetensors   the run: weights, momentum, generator, history; as JSON in its header knobs and counters
    knobs.json               the settings, to read
    history.csv              a row a step, to read

One file is the truth, written beside its place, flushed, and moved there in one go, so a folder always holds a whole
run: the old one or the new one. It carries a SHA-256 of its content, and those of the two files beside it, which can be
made again from it. Nothing in it is code.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gsm_lab import checks
from gsm_lab.training import schema, tensor_files
from gsm_lab.training.files import held, remove_leftovers, sha256, write_atomically, writing
from gsm_lab.training.interrupts import uninterrupted
from gsm_lab.training.tensor_files import digest

FILE = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
BESIDE = ("knobs.json", "history.csv")  # to read
DERIVED = (WEIGHTS, "report.html")  # of a run that has come to its end
KEPT = (FILE, *BESIDE, *DERIVED)  # all that a run's folder has
VERSION = 1
_one_at_a_time = threading.RLock()  # of the saves of this process: two into one folder would mix their files


class CheckpointError(ValueError):
    """A folder that holds no whole run, or one of another model or data set; the message says which and what to do."""


def save(
    folder: Path,
    tensors: dict[str, Tensor],
    plain: dict[str, Any],
    beside: Mapping[str, bytes],
    note: dict[str, Any] | None = None,
) -> None:
    """Write the state of a run to `folder` (made if need be), replacing what an earlier save left there.

    An interrupt during a save is raised when that is done.

    Args:
        folder: of this run.
        tensors, plain: the state, as `state.state_of` makes it.
        beside: the contents of the files that are there to be read, by name.
        note: plain values to keep with it, for `note_of`.

    Raises:
        FolderInUse: another process trains into that folder.
        FileExistsError: there is no run in it, but a file of a name that a run writes: somebody's own.
        OSError: it cannot be written. What an earlier save left is whole. (The two above are OSErrors as well.)
    """
    with uninterrupted(), _one_at_a_time, held(folder) as unasked:
        if unasked and not (folder / FILE).exists() and (own := [n for n in BESIDE if (folder / n).exists()]):
            raise FileExistsError(
                f"{folder} holds {' and '.join(own)}, but no run whose they would be, and a save would replace "
                f"{'it' if len(own) == 1 else 'them'}: save to another folder, or move {', '.join(own)} away"
            )
        with writing(folder):
            plain = plain | {"beside": {name: sha256(content) for name, content in beside.items()}}
            header = json.dumps(plain | ({} if note is None else {"note": note}))
            remove_leftovers(folder, KEPT)
            checksum = {"gsm_lab": header, "sha256": digest(tensors, header)}
            write_atomically(folder / FILE, tensor_files.packed(tensors, checksum))
            for name, content in beside.items():
                write_atomically(folder / name, content)


def note_of(folder: Path) -> dict[str, Any]:
    """What was given to `save` as a note. Raises CheckpointError."""
    note = read(folder).get("note")
    return note if isinstance(note, dict) else {}


def read(folder: Path) -> dict[str, Any]:
    """The plain values of the run in a folder: knobs, counters and the like. Raises CheckpointError."""
    return read_all(folder)[1]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a `weights.safetensors` that a finished run left, by name, for `model.load_state_dict`.

    Args:
        path: the file, or the folder of the run.

    Raises CheckpointError for a file that is damaged, or has no checksum, and OSError where there is none.
    """
    path = checks.path("path", path)
    path = path / WEIGHTS if path.is_dir() else path
    try:
        return tensor_files.checked(path)[0]
    except tensor_files.Damaged as error:
        raise CheckpointError(
            f"{path} is damaged, or was not written by gsm_lab ({error}): `gsm-lab report {path.parent}` makes it again"
        ) from None


def as_expected(where: str, look: Callable[..., Any], *values: Any) -> Any:
    """What `look` returns of the values; what it refuses becomes a CheckpointError that says where they are."""
    try:
        return look(*values)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not as this gsm_lab writes them, and cannot be resumed: {error}") from None


def read_all(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of the run in a folder: tensors and plain values. Raises CheckpointError."""
    path = folder / FILE
    if not os.path.isfile(path):  # where Path.is_file raises, as for a name that is too long, it says no
        raise CheckpointError(f"there is no run in {path.parent}: {path.name} is missing")
    try:
        tensors, metadata = tensor_files.read(path)
    except tensor_files.Damaged as error:
        raise CheckpointError(
            f"{path} is damaged (cut short?) and cannot be resumed: {error}; take a copy of it, or begin anew"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    header = metadata.get("gsm_lab", "")
    if metadata.get("sha256") != digest(tensors, header):
        raise CheckpointError(
            f"{path} is damaged or not a run of gsm_lab: its content does not match its checksum; take a copy of it, "
            "or begin anew"
        )
    plain = as_expected(f"the run in {folder}", schema.plain_values, header)
    if plain.get("version") != VERSION:
        raise CheckpointError(f"{path} has format {plain.get('version')!r}; this gsm_lab reads format {VERSION}")
    as_expected(f"the run in {folder}", schema.must_describe_a_run, plain)
    return tensors, plain
