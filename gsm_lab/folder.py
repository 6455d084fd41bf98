"""A run's folder: training into it, saving now and then, and what is left there at the end."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsm_lab.run import Run

SAVE_EVERY = 60.0  # seconds of training
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_PIECE = 20  # steps between two looks at the clock
_DERIVED = ("weights.safetensors", "report.html")  # of a run that has come to its end


def must_be_free(folder: Path, overwrite: bool) -> None:
    """Raises ValueError where the folder holds a run and that is not to be replaced."""
    from gsm_lab.checkpoint import FILE

    if (folder / FILE).exists() and not overwrite:
        raise ValueError(
            f"{folder} already holds a run: `gsm-lab resume {folder}` goes on with it, --overwrite replaces it, "
            "--out names another folder"
        )


def train(run: Run, folder: Path, resumed: bool = False) -> int:
    """Train to the end of the plan, saving now and then, and leave all there is to leave in `folder`.

    Returns the exit status: 0, or `INTERRUPTED`. Raises what ends training (`Run.breakdowns`), with what was saved.
    """
    folder.mkdir(parents=True, exist_ok=True)  # if that fails, then before the work
    saved = [run.steps] if resumed else []

    def save() -> None:
        for name in _DERIVED:  # they belong to another state of the run, or to another run
            (folder / name).unlink(missing_ok=True)
        run.save(folder)
        saved.append(run.steps)

    interrupted = False
    try:
        _until_done(run, save)
    except KeyboardInterrupt:  # comes between two steps
        interrupted = True
    except run.breakdowns as error:
        if not saved:
            with contextlib.suppress(OSError):  # not empty, it was there before; or another rank was faster
                folder.rmdir()
            raise
        raise type(error)(f"{error} (the state after {saved[-1]:,} steps is in {folder})") from None
    save()
    if run.rank > 0:
        return INTERRUPTED if interrupted else 0
    run = run.alone(folder)
    if not interrupted:
        _write_weights(run, folder)
        write_report(run, folder)
    from gsm_lab.outcome import results

    rows = results(run).rows()
    width = max(len(what) for what, _ in rows)
    print("\n".join(f"{what:<{width}}  {value:>7}" for what, value in rows))
    if interrupted:
        print(f"Stopped after {run.dense_steps:,} dense and {run.steps:,} of {run.planned:,} gated steps; all is kept.")
        print(f"`gsm-lab resume {folder}` goes on, `gsm-lab report {folder}` shows what there is.")
        return INTERRUPTED
    print(f"In {folder}: weights.safetensors (the cut network), report.html, history.csv, knobs.json, the checkpoint.")
    return 0


def _until_done(run: Run, save: Callable[[], None]) -> None:
    """Train to the end of the plan under one progress bar; every minute `save` is called."""
    from tqdm.auto import tqdm

    total, saved = run.dense_left + max(0, run.planned - run.steps), time.monotonic()
    # In a log file a bar is a line every ten seconds, not ten lines a second.
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=total, unit="step", mininterval=interval, disable=run.rank > 0) as bar:
        while run.base is None or run.steps < run.planned:
            phase = "dense" if run.base is None else f"gate closed, C = {run.knobs['compression']:g}"
            if not bar.disable and bar.desc != f"{phase}: ":
                bar.set_description(phase)
            before = run.dense_steps + run.steps
            if run.base is None:
                run.pretrain(_PIECE)
            else:
                run.step(min(_PIECE, run.planned - run.steps))
            bar.update(run.dense_steps + run.steps - before)
            if run.first_rank_says(time.monotonic() - saved >= SAVE_EVERY):
                save()
                saved = time.monotonic()
    run.train(epochs=0, progress=False)  # looks at the accuracies once more


def _write_weights(run: Run, folder: Path) -> None:
    """The cut network's parameters and buffers; the run keeps its own."""
    from safetensors.torch import save as to_bytes

    from gsm_lab.checkpoint import write_atomically
    from gsm_lab.optim import cut

    network = copy.deepcopy(run.model)
    kept = cut(network, nonzeros=run.nonzeros)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
    about = {"format": "pt", "model": str(run.knobs["model"]), "data": run.data.name, "nonzeros": str(kept)}
    write_atomically(folder / "weights.safetensors", to_bytes(tensors, about))


def write_report(run: Run, folder: Path) -> Path:
    """Write `report.html`, atomically; returns where it is."""
    from gsm_lab.checkpoint import write_atomically
    from gsm_lab.report import report

    write_atomically(folder / "report.html", report(run).encode())
    return folder / "report.html"
