"""The command line: `gsm-lab run / resume / report / reproduce / data / lab / knobs / doctor`.

Exit status: 0 done; 1 training broke down, its results cannot be written, or the doctor found something missing; 2 a
wrong argument, or data that is not there; 130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, with the state that was
reached saved. What can go wrong is said in a sentence, without a stack trace. `run` and `resume` that `torchrun` has
started train over its processes; rank 0 speaks for all, but a rank that loses another one says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gsm_lab import knobs
from gsm_lab.cli.parser import PARALLEL, failed, parser

if TYPE_CHECKING:
    from gsm_lab.distributed.world import World
    from gsm_lab.training.placement import Single


def main(argv: list[str] | None = None) -> int:
    """Run a command (that of `sys.argv` unless `argv` is given); returns the exit status."""
    commands = parser(COMMANDS)
    args, rest = commands.parse_known_args(argv)
    if rest and args.command != "lab":
        commands.error(f"unknown argument {rest[0]!r}")
    from gsm_lab.training.interrupts import status, stops

    try:
        if args.command == "lab":  # Jupyter ends itself
            return args.does(args, rest)
        with stops():
            return args.does(args)
    except FloatingPointError as error:
        return failed(error, 1)
    except BrokenPipeError:  # `gsm-lab knobs | head`: nobody reads on, and the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:  # among them DataNotFound, DataCorrupted, CheckpointError
        return failed(error, 2)
    except KeyboardInterrupt as stop:
        return failed("interrupted", status(stop))


# -- commands ----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Train, cut, and leave everything in a folder."""
    from gsm_lab.cli.run_folder import must_be_free, train
    from gsm_lab.training.run import Run

    _set_threads(args.threads)
    given = {name: getattr(args, name) for name in knobs.KNOBS if getattr(args, name) is not None}
    if args.out is not None:  # an error here comes before data is loaded, or fetched
        must_be_free(args.out, args.overwrite)
    with _placement(args) as (placement, ranks), contextlib.ExitStack() as held:
        if args.out is not None:
            _hold(held, args.out, ranks)
            must_be_free(args.out, args.overwrite)
        new = Run(**given, placement=placement)
        its = new.settings
        folder = args.out
        if folder is None:
            folder = Path("runs") / f"{its.data}-{its.model}-{its.compression:g}x-seed{its.seed}"
            _hold(held, folder, ranks)
            must_be_free(folder, args.overwrite)
        return train(new, folder)


def resume(args: argparse.Namespace) -> int:
    """Go on with a run to the end of its plan."""
    from gsm_lab.cli.run_folder import complete, train
    from gsm_lab.training.run import Run

    _set_threads(args.threads)
    with _placement(args) as (placement, ranks), contextlib.ExitStack() as held:
        _hold(held, args.folder, ranks, if_run=True)
        old = Run.resume(args.folder, placement=placement)
        if args.epochs is not None:
            if args.epochs * old.epoch_steps < old.steps:
                raise ValueError(
                    f"the run in {args.folder} has {old.steps / old.epoch_steps:g} epochs behind it; "
                    f"--epochs is the new total and must be more, got {args.epochs}"
                )
            old.set(epochs=args.epochs)
        if old.base is not None and old.steps >= old.planned:
            with old.placement.by_first_rank() as first:
                if first:
                    epochs = old.settings.epochs
                    print(f"The run in {args.folder} is at the end of its {epochs} epochs; --epochs N extends it to N.")
                    _tell_mended(complete(old.placement.alone(old, args.folder), args.folder))
            return 0
        return train(old, args.folder, resumed=True)


def report(args: argparse.Namespace) -> int:
    """Make a run's report.html again, and whatever else in its folder is missing or damaged."""
    from gsm_lab.cli.run_folder import complete
    from gsm_lab.training.run import Run

    with contextlib.ExitStack() as held:
        _hold(held, args.folder, if_run=True)
        mended = complete(Run.resume(args.folder), args.folder, anew=["report.html"])
    print(args.folder / "report.html")
    _tell_mended([name for name in mended if name != "report.html"])
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """Make the runs of one of the paper's tables, over seeds, into a CSV; goes on where it was interrupted."""
    from gsm_lab.paper.reproduce import reproduce
    from gsm_lab.studies.aggregation import summary

    _set_threads(args.threads)
    reduced = "" if args.epochs is None else f"-{args.epochs}-epochs"  # its rows would replace the full ones
    out = args.out if args.out is not None else Path("results") / f"{args.table}{reduced}.csv"
    made = reproduce(args.table, out, args.data, range(args.seeds), args.only, args.compression, args.epochs)
    rows = summary(made)[["label", "model", "compression", "runs", "live", "cut", "spread", "published"]]
    print(rows.to_string(index=False, float_format="%.2f", na_rep="-"))
    print(f"In {out}: a row a run.")
    return 0


def data(args: argparse.Namespace) -> int:
    """Have a data set on this computer."""
    from gsm_lab.data import fetch

    if args.name == "digits":
        print("digits comes with scikit-learn: there is nothing to fetch.")
    else:
        print(f"{args.name} is in {fetch(args.name, args.root)}, every file checked.")
    return 0


def lab(args: argparse.Namespace, rest: list[str]) -> int:
    """Open JupyterLab on the notebooks, reachable from this computer only."""
    import subprocess

    notebooks = Path(__file__).parents[2] / "notebooks"
    if not notebooks.is_dir():
        raise ValueError("there are no notebooks beside the package: clone the project and use `make lab` there")
    command = [sys.executable, "-m", "gsm_lab.notebook.lab", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={notebooks}", "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with contextlib.suppress(KeyboardInterrupt):  # Jupyter asks what it means
        return subprocess.call([*command, *rest], env={**os.environ, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1"})
    return 128 + signal.SIGINT


def show_knobs(args: argparse.Namespace) -> int:
    """Print every setting of a run."""
    print(knobs.table())
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Say what of the installation is there and fits; of a run's folder, whether each of its files is as written.

    Of the installation only Python and packages count towards the exit status: a browser and MNIST are not needed
    everywhere.
    """
    from gsm_lab.cli import doctor

    if args.folder is None:
        counted, more = list(doctor.needed()), doctor.surroundings()
    else:
        from gsm_lab.cli import integrity

        counted, more = list(integrity.lines(args.folder)), ()
    for state, line in [*counted, *more]:
        print(f"{state:<8} {line}")
    return int(any(state != "ok" for state, _ in counted))


# -- what commands share -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _placement(args: argparse.Namespace) -> Iterator[tuple[Single | None, World | None]]:
    """Where the run happens: in this process; over ranks where that is asked for, or torchrun has started this one."""
    if args.parallel is None and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield None, None
        return
    from gsm_lab import distributed
    from gsm_lab.distributed import world

    with contextlib.ExitStack() as joined:
        try:  # errors are said inside: until it is left, torchrun's SIGTERM, which ends the other ranks, is held back
            ranks = joined.enter_context(world.joined(args.timeout))
            yield distributed.kind(args.parallel or PARALLEL[0])(), ranks
        except world.RankLost as error:
            sys.exit(failed(error, 1, every_rank=True))
        except FloatingPointError as error:
            sys.exit(failed(error, 1))
        except (ValueError, OSError) as error:
            sys.exit(failed(error, 2))


def _hold(stack: contextlib.ExitStack, folder: Path, ranks: World | None = None, if_run: bool = False) -> None:
    """Lock the folder for this command until `stack` is closed; over ranks, the first one locks it for all.

    With `if_run` only where it holds a run; where it does not, reading it says so.
    """
    from gsm_lab.training.checkpoint import FILE
    from gsm_lab.training.files import held

    with ranks.together() if ranks else contextlib.nullcontext():
        if (ranks is None or ranks.rank == 0) and (not if_run or os.path.isfile(folder / FILE)):
            stack.enter_context(held(folder))


def _tell_mended(names: list[str]) -> None:
    if names:
        print(f"Written again, as it was missing, damaged or of another state: {', '.join(names)}.")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


COMMANDS: dict[str, Callable[..., int]] = {
    "run": run, "resume": resume, "report": report, "reproduce": reproduce, "data": data, "lab": lab,
    "knobs": show_knobs, "doctor": doctor,
}  # fmt: skip
