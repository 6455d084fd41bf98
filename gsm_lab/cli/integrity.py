"""Whether each file in a run's folder is what was written: for the doctor, and to mend the folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gsm_lab.training import tensor_files
from gsm_lab.training.checkpoint import BESIDE, DERIVED, FILE, WEIGHTS, CheckpointError, read
from gsm_lab.training.files import sha256


class State(NamedTuple):
    """A file: "ok", "missing" or "wrong", and a few words about it."""

    state: str
    about: str


def states(folder: Path, plain: dict[str, Any]) -> dict[str, State]:
    """The state of each file that a run's folder may have. `plain`: what `checkpoint.read` says of the run."""
    checkpoint = State("ok", f"a run of {plain['dense_steps']:,} dense and {plain['steps']:,} gated steps")
    beside = {name: _beside(folder, name, plain) for name in BESIDE}
    own = tensor_files.fingerprint(folder / FILE)
    return {FILE: checkpoint} | beside | {name: _derived(folder / name, own) for name in DERIVED}


def vouched(plain: dict[str, Any], name: str, content: bytes) -> bool:
    """Whether this is the content that the checkpoint has written down for a file beside it."""
    return plain.get("beside", {}).get(name) == sha256(content)


def lines(folder: Path) -> Iterator[tuple[str, str]]:
    """As `doctor.needed`: a line for each file of a run's folder that is there or should be."""
    try:
        plain = read(folder)
    except CheckpointError as error:
        yield "wrong", str(error)
        return
    for name, (state, about) in states(folder, plain).items():
        if state == "missing" and name in DERIVED and not plain.get("finished"):
            continue
        mend = "" if state == "ok" else f": `gsm-lab report {folder}` makes it again"
        yield state, f"{folder / name} ({about}){mend}"


def sealed(page: bytes, checkpoint: str) -> bytes:
    """An HTML page with two more lines: which checkpoint it was made from, and the checksum of the lines before."""
    page += f"<!-- of the checkpoint {checkpoint} -->\n".encode()
    return page + f"<!-- SHA-256 of all before this line: {sha256(page)} -->\n".encode()


_SEAL = re.compile(
    rb"(.*<!-- of the checkpoint (?P<of>\w+) -->\n)<!-- SHA-256 of all before this line: (?P<sum>\w+) -->\n", re.DOTALL
)


def _beside(folder: Path, name: str, plain: dict[str, Any]) -> State:
    if not (folder / name).is_file():
        return State("missing", "to be read")
    if name not in plain.get("beside", {}):
        return State("wrong", "from before there were checksums")
    if not vouched(plain, name, (folder / name).read_bytes()):
        return State("wrong", "damaged, changed, or of another save")
    return State("ok", "to be read")


def _derived(path: Path, checkpoint: str) -> State:
    if not path.is_file():
        return State("missing", "of a run that has come to its end")
    try:
        if path.name == WEIGHTS:
            of = tensor_files.checked(path)[1].get("checkpoint", "")
        else:
            seal = _SEAL.fullmatch(path.read_bytes())
            of = seal["of"].decode() if seal and sha256(seal[1]) == seal["sum"].decode() else None
    except tensor_files.Damaged:
        of = None
    if of is None:
        return State("wrong", "damaged, or from before there were checksums")
    if of != checkpoint:
        return State("wrong", "of another state of the run")
    return State("ok", "of this state of the run")
