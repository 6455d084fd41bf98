"""The command line: `gsm-lab run / resume / report / reproduce / data / lab / knobs / doctor`.

Exit status: 0 done; 1 training broke down, or the doctor found something missing; 2 a wrong argument, or data that is
not there; 130 ended by Ctrl-C. What can go wrong is said in a sentence, without a stack trace. `run` and `resume` that
`torchrun` has started train over its processes; rank 0 speaks for all, but a rank that loses another one says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gsm_lab import __version__, knobs
from gsm_lab.tables import TABLES

if TYPE_CHECKING:
    from gsm_lab.run import Run

PARALLEL = ("ddp", "fsdp")  # of `gsm_lab.parallel`
SAVE_EVERY = 60.0  # seconds of training
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_PIECE = 20  # steps between two looks at the clock
_DERIVED = ("weights.safetensors", "report.html")  # of a run that has come to its end


def main(argv: list[str] | None = None) -> int:
    """Run a command (that of `sys.argv` unless `argv` is given); returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "lab":
        parser.error(f"unknown argument {rest[0]!r}")
    try:
        return args.does(args, rest) if args.command == "lab" else args.does(args)
    except FloatingPointError as error:
        return _failed(error, 1)
    except BrokenPipeError:  # `gsm-lab knobs | head`: nobody reads on, and the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:  # among them DataNotFound, DataCorrupted, CheckpointError
        return _failed(error, 2)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)


# -- commands ----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Train, cut, and leave everything in a folder."""
    _set_threads(args.threads)
    given = {name: getattr(args, name) for name in knobs.KNOBS if getattr(args, name) is not None}
    if args.out is not None:  # before data is loaded, or fetched
        _must_be_free(args.out, args.overwrite)
    with _kind_of_run(args) as kind:
        new = kind(**given)
        k = new.knobs
        settled = Path("runs") / f"{k['data']}-{k['model']}-{k['compression']:g}x-seed{k['seed']}"
        folder = args.out if args.out is not None else settled
        _must_be_free(folder, args.overwrite)
        return _train(new, folder)


def resume(args: argparse.Namespace) -> int:
    """Go on with a run to the end of its plan."""
    _set_threads(args.threads)
    with _kind_of_run(args) as kind:
        old = kind.resume(args.folder)
        if args.epochs is not None:
            if args.epochs * old.epoch_steps < old.steps:
                raise ValueError(
                    f"the run in {args.folder} has {old.steps / old.epoch_steps:g} epochs behind it; "
                    f"--epochs is the new total and must be more, got {args.epochs}"
                )
            old.set(epochs=args.epochs)
        if old.base is not None and old.steps >= old.planned:
            if old.rank == 0:
                epochs = old.knobs["epochs"]
                print(f"The run in {args.folder} is at the end of its {epochs} epochs; --epochs N extends it to N.")
            return 0
        return _train(old, args.folder, resumed=True)


def report(args: argparse.Namespace) -> int:
    """Make a run's report.html again."""
    print(_write_report(_load(args.folder), args.folder))
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """Make the runs of one of the paper's tables, over seeds, into a CSV; goes on where it was interrupted."""
    from gsm_lab.figures.rivals import summary
    from gsm_lab.reproduce import reproduce

    _set_threads(args.threads)
    reduced = "" if args.epochs is None else f"-{args.epochs}-epochs"  # whose rows would replace the full ones
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

    notebooks = Path(__file__).parents[1] / "notebooks"
    if not notebooks.is_dir():
        raise ValueError("there are no notebooks beside the package: clone the project and use `make lab` there")
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={notebooks}"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with contextlib.suppress(KeyboardInterrupt):  # Jupyter asks what it means
        return subprocess.call([*command, *rest], env={**os.environ, "PATH": path, "JUPYTER_PREFER_ENV_PATH": "1"})
    return INTERRUPTED


def show_knobs(args: argparse.Namespace) -> int:
    """Print every setting of a run."""
    print(knobs.table())
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Say what of the installation is there and fits.

    Only Python and packages count towards the exit status: a browser and MNIST are not needed everywhere.
    """
    from gsm_lab import doctor

    needed = doctor.needed()
    for state, line in [*needed, *doctor.surroundings()]:
        print(f"{state:<8} {line}")
    return int(any(state != "ok" for state, _ in needed))


# -- a run and its folder ----------------------------------------------------------------------------------------------


def _train(run: Run, folder: Path, resumed: bool = False) -> int:
    """Train to the end of the plan, saving now and then, and leave all there is to leave in `folder`."""
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
        _write_report(run, folder)
    from gsm_lab.report import results

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


def _write_report(run: Run, folder: Path) -> Path:
    from gsm_lab.checkpoint import write_atomically
    from gsm_lab.report import report

    write_atomically(folder / "report.html", report(run).encode())
    return folder / "report.html"


def _load(folder: Path) -> Run:
    from gsm_lab.run import Run

    return Run.resume(folder)


@contextlib.contextmanager
def _kind_of_run(args: argparse.Namespace) -> Iterator[type[Run]]:
    """`Run`, or one of `gsm_lab.parallel` where that is asked for, or torchrun has started this process."""
    if args.parallel is None and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        from gsm_lab.run import Run

        yield Run
        return
    from gsm_lab import parallel, world

    with contextlib.ExitStack() as joined:
        try:  # what is wrong is said before leaving: until then torchrun's SIGTERM, which ends the others, is held back
            joined.enter_context(world.joined(args.timeout))
            yield parallel.kind(args.parallel or PARALLEL[0])
        except world.RankLost as error:
            sys.exit(_failed(error, 1, every_rank=True))
        except FloatingPointError as error:
            sys.exit(_failed(error, 1))
        except (ValueError, OSError) as error:
            sys.exit(_failed(error, 2))


def _must_be_free(folder: Path, overwrite: bool) -> None:
    from gsm_lab.checkpoint import FILE

    if (folder / FILE).exists() and not overwrite:
        raise ValueError(
            f"{folder} already holds a run: `gsm-lab resume {folder}` goes on with it, --overwrite replaces it, "
            "--out names another folder"
        )


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


# -- arguments ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the page of options before it."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_failed(f"{message} (see `{self.prog} --help`)", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gsm-lab", description="Prune a network while it trains, with Global Sparse Momentum SGD.")
    parser.add_argument("--version", action="version", version=f"gsm-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, does: Callable[..., int], usage: str = "") -> argparse.ArgumentParser:
        about = (does.__doc__ or "").partition("\n")[0]
        one = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        one.usage = f"gsm-lab {name} {usage}" if usage else None
        one.set_defaults(does=does)
        return one

    one = command("run", run, "[--out DIR] [--overwrite] [--threads N] [--parallel KIND] [--KNOB VALUE ...]")
    one.epilog = "A knob that is not given takes what works for the data and the model; defaults: lenet300 on digits."
    for knob in knobs.KNOBS.values():
        one.add_argument(
            f"--{knob.name.replace('_', '-')}", type=_checked(knob), metavar=_metavar(knob), help=_help(knob)
        )
    one.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/DATA-MODEL-COMPRESSIONx-seedSEED)")
    one.add_argument("--overwrite", action="store_true", help="replace a run that is in that folder")
    _add_process_options(one)
    one = command("resume", resume)
    one.add_argument("folder", type=Path, metavar="DIR", help="where the run is")
    one.add_argument(
        "--epochs", type=_checked(knobs.KNOBS["epochs"]), metavar="N",
        help="gated epochs in all; the schedule is laid out anew over them",
    )  # fmt: skip
    _add_process_options(one)
    command("report", report).add_argument("folder", type=Path, metavar="DIR", help="where the run is")
    one = command("reproduce", reproduce)
    one.add_argument("table", metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    one.add_argument("--data", choices=knobs.KNOBS["data"].choices, default="mnist", help="default %(default)s")
    one.add_argument("--seeds", type=_whole("seeds"), metavar="N", default=3, help="runs a row (default %(default)s)")
    one.add_argument("--only", nargs="+", metavar="NAME", help="only rows of these labels, methods or models")
    one.add_argument(
        "--compression", type=_checked(knobs.KNOBS["compression"]), nargs="+", metavar="C", help="only rows at these"
    )
    one.add_argument(
        "--epochs",
        type=_checked(knobs.KNOBS["epochs"]),
        metavar="N",
        help="a reduced version: gated epochs of each run; by default into results/TABLE-N-epochs.csv",
    )
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="the CSV (default: results/TABLE.csv, and as said at --epochs)"
    )
    one.add_argument("--threads", type=_whole("threads"), metavar="N", help="threads to compute with")
    one = command("data", data)
    one.add_argument("name", metavar="NAME", help=f"one of {', '.join(knobs.KNOBS['data'].choices)}")
    one.add_argument("--root", type=Path, metavar="DIR", help="where to look and to put it (default: the user's cache)")
    command("lab", lab, "[arguments of JupyterLab, such as --no-browser --port 8899]")
    command("knobs", show_knobs)
    command("doctor", doctor)
    return parser


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=_whole("threads"), metavar="N", help="threads to compute with (default: torch's choice)"
    )
    parser.add_argument(
        "--parallel", choices=PARALLEL,
        help="under torchrun: whether each process holds the whole network or a part (default ddp)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=120.0,
        help="under torchrun: after how long a process that does not answer is given up (default %(default)g)",
    )  # fmt: skip


def _checked(knob: knobs.Knob) -> Callable[[str], Any]:
    def check(text: str) -> Any:
        try:
            return knob.check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def _whole(name: str) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{name} must be a whole number >= 1, got {text!r}")
        return int(text)

    return check


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"timeout must be a number of seconds > 0, got {text!r}")


def _metavar(knob: knobs.Knob) -> str:
    return "{" + ",".join(knob.choices) + "}" if knob.choices else "N" if knob.whole else "X"


def _help(knob: knobs.Knob) -> str:
    default = f"{knob.default:g}" if isinstance(knob.default, float) else knob.default
    unit = f" {knob.unit}" if knob.unit else ""
    about = knob.help if knob.choices else f"{knob.help}; {knob.valid}"
    return f"{about} (default {default}{unit})".replace("%", "%%")


def _failed(error: object, status: int, every_rank: bool = False) -> int:
    if every_rank or os.environ.get("RANK", "0") == "0":  # the others have the same to say
        print(f"gsm-lab: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
