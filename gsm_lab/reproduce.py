"""`gsm-lab reproduce`: the runs of a table over seeds, into one tidy CSV that says how each of its rows was made.

A row is a run. Rows that are there, with the same settings, are not made again; so an interrupted command goes on where
it stopped, also within a run, which is saved every minute beside the CSV. Two commands may fill one CSV at a time: each
leaves alone what the other has in hand, and waits for it in the end.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gsm_lab import __version__, methods
from gsm_lab import data as datasets
from gsm_lab.checkpoint import FILE, write_atomically
from gsm_lab.methods import tickets
from gsm_lab.run import Run
from gsm_lab.tables import Entry, entries

SAVE_EVERY = 60.0  # seconds of training
SEEDS = 3  # runs a row, unless told otherwise
_PIECE = 20  # steps between two looks at the clock
_KEY = ["table", "label", "model", "data", "compression", "seed"]
COLUMNS = (
    *_KEY, "method", "weights", "nonzeros", "base", "live", "cut", "published", "epochs", "seconds", "settings",
    "command", "gsm_lab", "torch", "python", "machine", "threads", "date",
)  # fmt: skip


def reproduce(
    table: str,
    out: Path,
    data: str = "mnist",
    seeds: Iterable[int] = range(SEEDS),
    only: str | Collection[str] | None = None,
    compressions: Collection[float] | None = None,
    epochs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Make the rows of a table that are not in `out` yet, and write each there as soon as it is made.

    Args:
        table: one of `tables.TABLES`.
        out: the CSV, made if need be; other rows in it stay as they are.
        data: a data set by name. The settings of the tables are those for MNIST; on others the methods' own are taken.
        seeds: a run each. Initial weights, batches and the dense epochs are those of the seed, whatever the method.
        only, compressions: as in `tables.entries`.
        epochs: gated epochs of each run in place of the table's: a reduced version, named as such by its settings. Its
            rows take the place of those of the same runs in full; so give it an `out` of its own.
        progress: show a progress bar with the steps of the run in hand.

    Returns:
        The rows of this table, data set and these seeds, as in the CSV (`COLUMNS`): accuracies in 0..1, `cut` after the
        cut; `published` in percent; `nonzeros` counted in the network; `seconds` of training; `settings`: all
        knobs and options of the run (for a ticket of the search and the ticket) as JSON.

    Raises:
        ValueError: an unknown table, no seeds, nothing in it to do, or an `out` that is no such CSV.
        FloatingPointError: a run broke down; the rows before it are in `out`.
        KeyboardInterrupt: at an interrupt, when the run in hand has been saved.
    """
    rows = entries(table, only, compressions)
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one value, got none")
    source = datasets.load(data)
    jobs = [(entry, seed) for seed in seeds for entry in rows]
    from tqdm.auto import tqdm

    with tqdm(total=len(jobs), unit="run", desc=table, disable=not progress) as bar:

        def there(entry: Entry, seed: int, wait: bool) -> bool:
            """The row is in the CSV, or now made; False if another command has it in hand, unless to `wait` for it."""
            bar.set_postfix_str(f"{entry.label}, {entry.model}, {entry.compression:g}x, seed {seed}")
            key = _key(table, entry, data, seed)
            runs = _planned(entry, source, seed, data, epochs)
            parts = {name: _settings(run) for name, run in runs.items()} | ({"by": entry.by} if entry.by else {})
            settings = json.dumps(parts, sort_keys=True)
            if not _has(out, key, settings):
                folder = _unfinished(out, key, settings)
                with _claimed(folder, wait) as mine:
                    if not mine:
                        return False
                    if not _has(out, key, settings):  # nor was it made meanwhile
                        try:
                            row = _made(runs, entry.by, folder, progress)
                        except FloatingPointError as error:
                            raise FloatingPointError(f"{entry.label} on {entry.model}, seed {seed}: {error}") from error
                        row |= {"method": entry.method, "published": entry.published, "settings": settings}
                        _add(out, {**key, **row, **_provenance(table, data, seed, epochs)})
                        shutil.rmtree(folder, ignore_errors=True)
            bar.update()
            return True

        for entry, seed in [job for job in jobs if not there(*job, wait=False)]:
            there(entry, seed, wait=True)
    made = _read(out)
    wanted = {tuple(_key(table, entry, data, seed).values()) for entry, seed in jobs}
    return made[[tuple(key) in wanted for key in made[_KEY].itertuples(index=False)]].reset_index(drop=True)


def given(entry: Entry, data: str, epochs: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that an entry gives its run on a data set, and those for the retraining of a ticket."""
    first, then = dict(entry.settings), dict(entry.retrain)
    if not data.endswith("mnist"):  # of a named option what makes it up stays, and the rates are what works there
        first, then = {k: v for k, v in first.items() if k in ("smoothing", "ramp", "freeze")}, {}
    if epochs is not None:
        first["epochs"] = then["epochs"] = epochs
    return first, then


def _planned(entry: Entry, source: datasets.Dataset, seed: int, data: str, epochs: int | None) -> dict[str, Run]:
    """The run of an entry, not trained yet; of a ticket the search and the ticket, which has no mask yet."""
    first, then = given(entry, data, epochs)
    fixed = {"model": entry.model, "data": source, "compression": entry.compression, "seed": seed}
    fixed |= {"evaluate_every": 10**9}  # the test set is for the end
    if entry.by is None:
        return {"run": methods.build(entry.method, **fixed, **first)}
    return {
        "search": methods.build("gsm", **fixed, **first),
        "ticket": tickets.Ticket(**fixed, **{"pretrain": 0} | then),
    }


def _settings(run: Run) -> dict[str, Any]:
    """All knobs and options in force, but for those that are columns, and how often it is looked at."""
    columns = ("model", "data", "compression", "seed", "evaluate_every")
    return {k: v for k, v in (run.knobs | run.own).items() if k not in columns}


def _made(runs: dict[str, Run], by: str | None, folder: Path, progress: bool) -> dict[str, Any]:
    """Train what `_planned` planned: what it came to."""
    start, before, base = time.perf_counter(), 0.0, None
    if by is None:
        run, before = _trained(runs["run"], folder, progress)
        base = run.base
    else:
        mask, base, before = _searched(runs["search"], by, folder / "search", progress)
        runs["ticket"].wear(mask)
        run, more = _trained(runs["ticket"], folder / "ticket", progress)
        before += more
    live = run.evaluate()
    methods.finish(run)
    cut = run.evaluate()
    return {
        "weights": run.opt.weights,
        "nonzeros": sum(int(p.count_nonzero()) for p in methods.weights(run)),
        "base": base,
        "live": live,
        "cut": cut,
        "epochs": run.knobs["epochs"],
        "seconds": round(before + time.perf_counter() - start, 1),
    }


def _searched(search: Run, by: str, folder: Path, progress: bool) -> tuple[torch.Tensor, float | None, float]:
    before = 0.0
    if by == "gsm":
        search, before = _trained(search, folder, progress, keep=True)
    return tickets.find(search, by, progress=False), search.base, before


def _trained(run: Run, folder: Path, progress: bool, keep: bool = False) -> tuple[Run, float]:
    """The run, or the one that an interrupt left in `folder`, at its end; and the seconds that one had taken before.

    With `keep` it is saved at its end, too: something else is to follow, which may be interrupted.
    """
    from tqdm.auto import tqdm

    clock = folder / "seconds.json"
    before = 0.0
    if (folder / FILE).exists() and clock.exists():
        before = json.loads(clock.read_text())
        run = type(run).resume(folder, data=run.data)
    start = saved = time.monotonic()

    def save() -> None:
        run.save(folder)
        write_atomically(clock, json.dumps(before + time.monotonic() - start).encode())

    total = run.dense_left + max(0, run.planned - run.steps)
    with tqdm(total=total, unit="step", leave=False, disable=not progress) as bar:
        try:
            while run.base is None or run.steps < run.planned:
                done = run.dense_steps + run.steps
                if run.base is None:
                    run.pretrain(_PIECE)
                else:
                    run.step(min(_PIECE, run.planned - run.steps))
                bar.update(run.dense_steps + run.steps - done)
                if time.monotonic() - saved >= SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            save()
            raise
    if keep:
        save()
    return run, before


# -- the CSV -----------------------------------------------------------------------------------------------------------


def _key(table: str, entry: Entry, data: str, seed: int) -> dict[str, Any]:
    key = (table, entry.label, entry.model, data, float(entry.compression), seed)
    return dict(zip(_KEY, key, strict=True))


def _read(out: Path) -> pd.DataFrame:
    if not out.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    found = pd.read_csv(out, dtype={"compression": float, "gsm_lab": str, "python": str, "torch": str})
    if missing := [name for name in COLUMNS if name not in found]:
        raise ValueError(f"{out} is no CSV of `gsm-lab reproduce`: it has no column {', '.join(missing)}")
    return found


def _of(rows: pd.DataFrame, key: dict[str, Any]) -> pd.Series:
    same = pd.Series(True, index=rows.index)
    for name, value in key.items():
        same &= rows[name] == value
    return same


def _has(out: Path, key: dict[str, Any], settings: str) -> bool:
    rows = _read(out)
    return bool((_of(rows, key) & (rows["settings"] == settings)).any())


def _add(out: Path, row: dict[str, Any]) -> None:
    """Put a row in, in place of one with the same key. Another process may do so at the same time."""
    from filelock import FileLock

    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        rows = _read(out)
        rows = rows[~_of(rows, {name: row[name] for name in _KEY})]
        new = pd.DataFrame([row])[list(COLUMNS)]
        rows = new if rows.empty else pd.concat([rows, new])
        rows = rows.sort_values(_KEY, kind="stable")
        write_atomically(out, rows.to_csv(index=False, float_format="%.6g").encode())


def _unfinished(out: Path, key: dict[str, Any], settings: str) -> Path:
    """Where a run of this row is kept until it is finished: one of other settings is another run."""
    name = hashlib.sha256((json.dumps(key) + settings).encode()).hexdigest()[:16]
    return out.with_name(f".{out.stem}-unfinished") / name


@contextlib.contextmanager
def _claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether what is kept in `folder` is this process's to make; where it is not, `wait` until it is."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _provenance(table: str, data: str, seed: int, epochs: int | None) -> dict[str, Any]:
    more = "" if seed < SEEDS else f" --seeds {seed + 1}"
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
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
