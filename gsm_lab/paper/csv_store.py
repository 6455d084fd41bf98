"""The CSV that `gsm-lab reproduce` fills: one row a run, with the settings and the provenance of each."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from gsm_lab._version import __version__
from gsm_lab.paper.entries import Entry
from gsm_lab.training.files import remove_leftovers, sha256, write_atomically, writing

SEEDS = 3  # runs a row, unless told otherwise
KEY = ["table", "label", "model", "data", "compression", "seed"]
CHECKSUM = "sha256"  # of the other columns of its row; the first CSVs have none
SHELF = "-unfinished"  # how the folder's name ends in which a CSV's runs are kept while they are made
COLUMNS = (
    *KEY, "method", "weights", "nonzeros", "base", "live", "cut", "published", "epochs", "seconds", "settings",
    "command", "gsm_lab", "torch", "python", "machine", "threads", "date", CHECKSUM,
)  # fmt: skip


def key_of(table: str, entry: Entry, data: str, seed: int) -> dict[str, Any]:
    """The columns by which a row is found again."""
    key = (table, entry.label, entry.model, data, float(entry.compression), seed)
    return dict(zip(KEY, key, strict=True))


def read(out: Path) -> pd.DataFrame:
    """The rows of the CSV, none if there is no file. Raises ValueError for another file, and where a row is damaged."""
    if not out.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    _must_be_undamaged(out)
    found = pd.read_csv(out, dtype={"compression": float, "gsm_lab": str, "python": str, "torch": str})
    return found if CHECKSUM in found else found.assign(**{CHECKSUM: None})


def _must_be_undamaged(out: Path) -> None:
    try:
        head, *rows = list(csv.reader(io.StringIO(out.read_bytes().decode(), newline=""), strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{out} is damaged ({error}): move it away, and it is made again") from None
    if missing := [name for name in COLUMNS if name not in head and name != CHECKSUM]:
        raise ValueError(f"{out} is no CSV of `gsm-lab reproduce`: it has no column {', '.join(missing)}")
    if CHECKSUM not in head and (unknown := [name for name in head if name not in COLUMNS]):
        raise ValueError(
            f"{out} has no checksums, but columns that are not known here, {', '.join(unknown)}: rename it"
        )
    for line, row in enumerate(rows, 2):
        fields = dict(zip(head, row, strict=False))
        if len(row) != len(head) or fields.get(CHECKSUM) not in (None, _checksum(fields)):
            which = ", ".join(fields.get(name, "") for name in ("label", "model", "compression", "seed"))
            raise ValueError(
                f"row {line} of {out} ({which}) does not match its checksum, as it was damaged or changed: take it "
                "out, and it is made again"
            )


def _checksum(fields: Mapping[str, str]) -> str:
    return sha256(json.dumps([fields[name] for name in COLUMNS if name != CHECKSUM]).encode())


def _with_checksums(rows: pd.DataFrame) -> bytes:
    """The rows as CSV, each with the checksum of the text of its other columns."""
    lines = csv.reader(io.StringIO(rows.drop(columns=CHECKSUM).to_csv(index=False, float_format="%.6g"), newline=""))
    head = next(lines)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, CHECKSUM])
    writer.writerows([*line, _checksum(dict(zip(head, line, strict=True)))] for line in lines)
    return text.getvalue().encode()


def _of(rows: pd.DataFrame, key: dict[str, Any]) -> pd.Series:
    return (rows[list(key)] == pd.Series(key)).all(axis=1)


def has(out: Path, key: dict[str, Any], settings: str) -> bool:
    """Whether the CSV has the row, made with these settings."""
    return bool(_of(read(out), {**key, "settings": settings}).any())


def add(out: Path, row: dict[str, Any]) -> None:
    """Put a row in, in place of one with the same key. Another process may do so at the same time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out), FileLock(out.with_name(f".{out.name}.lock")):
        remove_leftovers(out.parent, [out.name])
        rows = read(out)
        rows = rows[~_of(rows, {name: row[name] for name in KEY})]
        new = pd.DataFrame([{**row, CHECKSUM: None}])[list(COLUMNS)]
        rows = new if rows.empty else pd.concat([rows, new])
        rows = rows.sort_values(KEY, kind="stable")
        write_atomically(out, _with_checksums(rows))


def unfinished(out: Path) -> Path:
    """The folder of the runs that are not in the CSV yet."""
    return out.with_name(f".{out.stem}{SHELF}")


def must_have_room_in_names(out: Path) -> None:
    """Raises OSError where the name of the CSV, or of what is made beside it on the way, is too long for the disk."""
    part = out.with_name(f".{out.name}.{8 * '_'}")  # as `write_atomically` has it
    for path in (out, unfinished(out), part):
        with writing(out), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()


def name_of(key: dict[str, Any], settings: str) -> str:
    """The name of the folder of a row's unfinished run; with other settings it is another run."""
    return sha256((json.dumps(key) + settings).encode())[:16]


@contextlib.contextmanager
def claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether this process alone has the run in `folder`; with `wait` it waits until it has."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder.with_suffix(".lock")).acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    with held:
        yield True


def provenance(table: str, data: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """The columns that say how, with what and when a row is made, if it is made here and now."""
    more = f" --threads {torch.get_num_threads()}"
    more += "" if seed < SEEDS else f" --seeds {seed + 1}"
    more += "" if epochs is None else f" --epochs {epochs}"
    return {
        "command": f"gsm-lab reproduce {table} --data {data}{more}",
        "gsm_lab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
