"""`gsm-lab reproduce`: the runs of a table over seeds, into one tidy CSV that says how each of its rows was made.

A row is a run. A row that the CSV has, with the same settings, is not made again; so an interrupted command goes on
where it stopped, also within a run, which is saved every minute beside the CSV. Two commands may fill one CSV at the
same time: each leaves alone the runs that the other is making, and waits for them at its end. The dense epochs, with
which all methods begin alike, are made once for a network and a seed.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from gsm_lab import data as datasets
from gsm_lab import methods
from gsm_lab.checks import flag, one_of, path
from gsm_lab.knobs import KNOBS, each, knob
from gsm_lab.methods import tickets
from gsm_lab.methods.base import OF_THE_GATE
from gsm_lab.paper import csv_store, dense_epochs
from gsm_lab.paper.entries import Entry, entries
from gsm_lab.training.checkpoint import FILE, CheckpointError, note_of
from gsm_lab.training.files import must_be_writable
from gsm_lab.training.loop import Progress, Regularly, advance
from gsm_lab.training.run import Run

SAVE_EVERY = 60.0  # seconds of training


def reproduce(
    table: str,
    out: Path,
    data: str = "mnist",
    seeds: Iterable[int] = range(csv_store.SEEDS),
    only: str | Collection[str] | None = None,
    compressions: Collection[float] | None = None,
    epochs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Make the rows of a table that are not in `out` yet, and write each there as soon as it is made.

    Args:
        table: one of `entries.TABLES`.
        out: the CSV, made if need be; other rows in it stay as they are.
        data: a data set by name. The settings of the tables are those for MNIST; on others the methods' own are taken.
        seeds: a run each. Initial weights, batches and the dense epochs are those of the seed, whatever the method.
        only, compressions: as in `entries.entries`.
        epochs: gated epochs of each run in place of the table's: a reduced version, named as such by its settings. Its
            rows take the place of those of the same runs in full; so give it an `out` of its own.
        progress: show a progress bar with the steps of the run in hand.

    Returns:
        The rows of this table, data set and these seeds, as in the CSV (`COLUMNS`): accuracies in 0..1, `cut` after the
        cut; `published` in percent; `nonzeros` counted in the network; `seconds` of training; `settings`: all
        knobs and options of the run (for a ticket of the search and the ticket) as JSON.

    Raises:
        ValueError: an unknown table, no seeds, nothing in it to do, or an `out` that is no such CSV, or damaged.
        OSError: `out` cannot be written; said before a run is begun.
        FloatingPointError: at the end, runs broke down; it names them. All other rows are in `out`.
        KeyboardInterrupt: at an interrupt, when the run in hand has been saved.
    """
    rows, seeds, out = entries(table, only, compressions), each("seeds", seeds, "seed"), path("out", out)
    one_of("data", data, datasets.NAMES)
    epochs, progress = None if epochs is None else knob("epochs").check(epochs), flag("progress", progress)
    csv_store.must_have_room_in_names(out)
    csv_store.read(out)  # what is wrong with it is said now
    source = datasets.load(data)
    jobs = [(entry, seed) for seed in seeds for entry in rows]
    broken: list[str] = []
    with tqdm(total=len(jobs), unit="run", desc=table, disable=not progress) as bar:

        def there(entry: Entry, seed: int, wait: bool) -> bool:
            """Make the row unless the CSV has it; False if another command is making it and `wait` is not asked for."""
            bar.set_postfix_str(f"{entry.label}, {entry.model}, {entry.compression:g}x, seed {seed}")
            key = csv_store.key_of(table, entry, data, seed)
            runs = _planned(entry, source, seed, data, epochs)
            parts = {name: _settings(run) for name, run in runs.items()} | ({"by": entry.by} if entry.by else {})
            settings = json.dumps(parts, sort_keys=True)
            folder = csv_store.unfinished(out) / csv_store.name_of(key, settings)
            if not csv_store.has(out, key, settings):
                must_be_writable(out.parent)
                with csv_store.claimed(folder, wait) as mine:
                    if not mine:
                        return False
                    if not csv_store.has(out, key, settings):  # it may have been made meanwhile
                        try:
                            row = _made(runs, entry.by, folder, progress)
                        except FloatingPointError as error:
                            which = f"{entry.label} on {entry.model}, {entry.compression:g}x, seed {seed}"
                            broken.append(f"{which}: {error}")
                        else:
                            row |= {"method": entry.method, "published": entry.published, "settings": settings}
                            csv_store.add(out, {**key, **row, **csv_store.provenance(table, data, seed, epochs)})
                            shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():  # of a command that was killed between adding the row and removing this
                with csv_store.claimed(folder, wait=False) as mine:
                    if mine:
                        shutil.rmtree(folder, ignore_errors=True)
            bar.update()
            return True

        for entry, seed in [job for job in jobs if not there(*job, wait=False)]:
            there(entry, seed, wait=True)
    if broken:
        raise FloatingPointError("\n".join(broken))
    dense_epochs.remove(csv_store.unfinished(out))
    made = csv_store.read(out)
    wanted = {tuple(csv_store.key_of(table, entry, data, seed).values()) for entry, seed in jobs}
    return made[[tuple(key) in wanted for key in made[csv_store.KEY].itertuples(index=False)]].reset_index(drop=True)


def given(entry: Entry, data: str, epochs: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that an entry gives its run on a data set, and those for the retraining of a ticket."""
    first, then = dict(entry.settings), dict(entry.retrain)
    if not data.endswith("mnist"):  # an option of the gate stays, and the rates are what works on this data
        first, then = {k: v for k, v in first.items() if k in OF_THE_GATE}, {}
    if epochs is not None:
        first["epochs"] = then["epochs"] = epochs
    return first, then


def _planned(entry: Entry, source: datasets.Dataset, seed: int, data: str, epochs: int | None) -> dict[str, Run]:
    """The run of an entry, not trained yet; for a ticket its search, and the ticket, which has no mask yet."""
    first, then = given(entry, data, epochs)
    fixed = {"model": entry.model, "data": source, "compression": entry.compression, "seed": seed}
    fixed |= {"evaluate_every": 10**9}  # the test set is for the end
    if entry.by is None:
        return {"run": methods.build(entry.method, **fixed, **first)}
    return {
        "search": methods.build("gsm", **fixed, **first),
        "ticket": Run(method=tickets.Ticket(), **fixed, **{"pretrain": 0} | then),
    }


def _settings(run: Run) -> dict[str, Any]:
    """All knobs and options in force, but for those that are columns, and how often it is evaluated."""
    columns = ("model", "data", "compression", "seed", "evaluate_every")
    # Settings that came later than the first rows of the tables are not named where they have their default, as then.
    later = {k.name: k.default for k in (*KNOBS.values(), *run.method.options) if k.later}
    return {k: v for k, v in (run.knobs | run.options).items() if k not in columns and later.get(k) != v}


def _made(runs: dict[str, Run], by: str | None, folder: Path, progress: bool) -> dict[str, Any]:
    """Train the runs of `_planned`; returns the columns of what was measured."""
    start, before, base = time.perf_counter(), 0.0, None
    if by is None:
        run, before = _trained(runs["run"], folder, progress)
        base = run.base
    else:
        search, until = runs["search"], {"gsm": tickets.steps_to_find(runs["search"]), "magnitude": 0}
        if by in until:
            search, before = _trained(search, folder / "search", progress, until[by])
        runs["ticket"].method.wear(runs["ticket"], tickets.find(search, by, progress=False))
        base = search.base
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
        "epochs": run.settings.epochs,
        "seconds": round(before + time.perf_counter() - start, 1),
    }


def _trained(run: Run, folder: Path, progress: bool, until: int | None = None) -> tuple[Run, float]:
    """Train the run, or the one that an interrupt left in `folder`; returns it, and the seconds spent on it before.

    It is trained to the end of its plan, or with `until` for so many gated steps (0: to the end of the dense epochs).
    After such steps it is saved, because what follows may be interrupted.
    """
    run, before = _as_it_was_left(run, folder)
    start = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - start

    def save() -> None:
        run.save(folder, note={"seconds": seconds()})

    def now_and_then() -> None:
        try:
            save()
        except OSError as error:  # another save is to come
            tqdm.write(f"gsm-lab: {error}; training goes on, and it is tried again", file=sys.stderr)

    def gate_closed(run: Run, done: int) -> None:
        if done and run.base is not None and not run.steps and run.settings.pretrain:
            dense_epochs.keep(run, folder, seconds())

    end = run.planned if until is None else until
    with Progress(run.dense_left + max(0, end - run.steps), progress, leave=False) as bar:
        try:
            advance(run, end, [gate_closed, bar, Regularly(SAVE_EVERY, now_and_then)])
        except KeyboardInterrupt:
            save()
            raise
    if until:
        save()
    return run, before


def _as_it_was_left(run: Run, folder: Path) -> tuple[Run, float]:
    """The run that is saved in `folder`, else `run`, after its dense epochs if another row has made them.

    Also returns the seconds that were spent on it.
    """
    if (folder / FILE).exists():
        try:
            seconds = note_of(folder).get("seconds", math.nan)  # an older save has none: not known
            return methods.resume(folder, data=run.data), seconds
        except CheckpointError as error:
            print(f"gsm-lab: {error}: it is made anew", file=sys.stderr)
    return run, dense_epochs.take(run, folder)
