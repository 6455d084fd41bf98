"""A run's folder: training into it, saving now and then, and the files that are left there at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from gsm_lab.cli import integrity
from gsm_lab.cli.report import report
from gsm_lab.cli.summary import results
from gsm_lab.models import copied
from gsm_lab.optim import cut
from gsm_lab.optim.groups import exactly
from gsm_lab.training import checkpoint, tensor_files
from gsm_lab.training.checkpoint import BESIDE, DERIVED, FILE, KEPT, WEIGHTS, read
from gsm_lab.training.files import must_be_writable, remove_leftovers, writing
from gsm_lab.training.interrupts import status
from gsm_lab.training.loop import Progress, Regularly, advance
from gsm_lab.training.run import Run
from gsm_lab.training.state import readable, whole_state

SAVE_EVERY = 60.0  # seconds of training
UNSAVED = 1  # the exit status where the run is trained and cannot be written


def must_be_free(folder: Path, overwrite: bool) -> None:
    """Raises ValueError where the folder holds a run, or a file that a run would replace, unless `overwrite`."""
    if overwrite:
        return
    if os.path.exists(folder / FILE):  # not Path.exists, which raises where a name is too long
        raise ValueError(
            f"{folder} already holds a run: `gsm-lab resume {folder}` goes on with it, --overwrite replaces it, "
            "--out names another folder"
        )
    if there := [name for name in KEPT if os.path.exists(folder / name)]:
        raise ValueError(
            f"{folder} already holds {', '.join(there)}, which a run would replace: --overwrite lets it, --out names "
            "another folder"
        )


def train(run: Run, folder: Path, resumed: bool = False) -> int:
    """Train to the end of the plan, saving now and then, and write all files of the run into `folder`.

    A save that fails on the way is reported, and tried again a minute later. Returns the exit status: 0, that of an
    interrupt, or `UNSAVED` where the state at the end cannot be written. Raises what ends training (`breakdowns` of
    the run's placement), saying what was saved; and OSError, before the first step, where the folder is not writable.
    """
    saves = _Saves(run, folder, resumed)
    with run.placement.by_first_rank() as first:  # before the work, not after it
        if first:
            must_be_writable(folder)
    stopped = 0
    try:
        _until_done(run, saves.now_and_then)
    except KeyboardInterrupt as stop:  # comes between two steps
        stopped = status(stop)
    except run.placement.breakdowns as error:
        if saves.last is None:
            raise
        raise type(error)(f"{error} ({saves.kept()})") from None
    try:
        saves.save()
    except run.placement.unsaved as error:
        if run.placement.rank == 0:
            print(f"gsm-lab: {error}; {saves.kept()}", file=sys.stderr)
        return stopped or UNSAVED
    except KeyboardInterrupt as stop:  # during the save, which has come to its end
        stopped = stopped or status(stop)
    if run.placement.rank > 0:
        return stopped
    run = run.placement.alone(run, folder)
    if not stopped:
        try:
            complete(run, folder, anew=DERIVED)
        except KeyboardInterrupt as stop:
            stopped = status(stop)
        except OSError as error:
            print(f"gsm-lab: {error}; the run is safe, and `gsm-lab resume {folder}` makes the rest", file=sys.stderr)
            return UNSAVED
    try:
        _tell(run, folder, bool(stopped))
    except OSError:
        if not stopped:
            raise
        # The terminal was closed (SIGHUP). All is saved, and what Python writes when it exits must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return stopped


def _tell(run: Run, folder: Path, stopped: bool) -> None:
    rows = results(run).rows()
    width = max(len(what) for what, _ in rows)
    print("\n".join(f"{what:<{width}}  {value:>7}" for what, value in rows))
    if stopped:
        print(f"Stopped after {run.dense_steps:,} dense and {run.steps:,} of {run.planned:,} gated steps; all is kept.")
        print(f"`gsm-lab resume {folder}` goes on, `gsm-lab report {folder}` shows what there is.", flush=True)
    else:
        print(
            f"In {folder}: weights.safetensors (the cut network), report.html, history.csv, knobs.json, the checkpoint."
        )


class _Saves:
    """Saves a run into a folder, and knows after how many dense and gated steps the last save was."""

    def __init__(self, run: Run, folder: Path, resumed: bool) -> None:
        self.run, self.folder = run, folder
        self.last = (run.dense_steps, run.steps) if resumed else None

    def save(self) -> None:
        """Save, and only then remove what belongs to another state of the run, or to another run."""
        self.run.save(self.folder)
        self.last = (self.run.dense_steps, self.run.steps)
        with self.run.placement.by_first_rank() as first, writing(self.folder):
            if first:
                for name in DERIVED:
                    (self.folder / name).unlink(missing_ok=True)

    def now_and_then(self) -> None:
        """Save; where that fails, say so and go on, as there is another save to come."""
        try:
            self.save()
        except self.run.placement.unsaved as error:
            if self.run.placement.rank == 0:
                again = f"training goes on, and in {SAVE_EVERY:.0f} s it is saved again"
                print(f"\ngsm-lab: {error}; {again}; {self.kept()}", file=sys.stderr)

    def kept(self) -> str:
        """Half a sentence about the state that is in the folder."""
        if self.last is None:
            return f"nothing is kept in {self.folder}"
        dense, steps = self.last
        return f"the state after {f'{steps:,}' if steps else f'{dense:,} dense'} steps is in {self.folder}"


def _until_done(run: Run, save: Callable[[], None]) -> None:
    """Train to the end of the plan under one progress bar, and call `save` every minute."""
    # In a log file a bar is a line every ten seconds, not ten lines a second.
    interval = 0.1 if sys.stderr.isatty() else 10
    total = run.dense_left + max(0, run.planned - run.steps)
    with Progress(total, run.placement.rank == 0, phase=True, mininterval=interval) as bar:
        advance(run, run.planned, [bar, Regularly(SAVE_EVERY, save)])
    run.train(epochs=0, progress=False)  # evaluates once more


def complete(run: Run, folder: Path, anew: Collection[str] = ()) -> list[str]:
    """Write the files beside the checkpoint of `run` that are missing, damaged or of another state.

    The weights and the report are missing only where a run is at its end. `anew`: names of files to write in any case.
    Returns the names of the files that were not as they should be. The caller holds the folder's lock.
    """
    plain = read(folder)
    remove_leftovers(folder, KEPT)  # of a process that was killed after its last save
    states = integrity.states(folder, plain)
    mended = [name for name in BESIDE if states[name].state != "ok"]
    if mended:
        # A file that is written again must have the content that the checkpoint has written down. It has another where
        # another version of pandas writes numbers differently: then the run is saved once more.
        contents = readable(run)
        if all(integrity.vouched(plain, name, contents[name]) for name in mended):
            for name in mended:
                _write(folder, name, contents[name])
        else:
            run.save(folder)
            states = integrity.states(folder, read(folder))
    finished = run.base is not None and run.steps >= run.planned
    for name, write in zip(DERIVED, (_write_weights, _write_report), strict=True):
        wrong = states[name].state == "wrong" or (finished and states[name].state == "missing")
        if wrong or name in anew:
            write(run, folder)
        if wrong:
            mended.append(name)
    return mended


def _write(folder: Path, name: str, content: bytes) -> None:
    with writing(folder):
        checkpoint.write_atomically(folder / name, content)


def _write_weights(run: Run, folder: Path) -> None:
    """Write the cut network's parameters and buffers; the run's own stay as they are."""
    network, _ = copied(run.model)
    stay = cut(network, nonzeros=run.nonzeros, **exactly(network, run.history.layers))
    about = {"format": "pt", "model": run.settings.model, "data": run.data.name, "nonzeros": str(stay)}
    about["checkpoint"] = tensor_files.fingerprint(folder / FILE)
    _write(folder, WEIGHTS, tensor_files.content_of(whole_state(network)[0], about))


def _write_report(run: Run, folder: Path) -> None:
    page = integrity.sealed(report(run).encode(), tensor_files.fingerprint(folder / FILE))
    _write(folder, "report.html", page)
