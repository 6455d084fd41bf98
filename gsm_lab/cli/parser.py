"""The arguments of the command line, and how it says what is wrong with them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gsm_lab import knobs
from gsm_lab._version import __version__
from gsm_lab.checks import whole
from gsm_lab.paper.entries import TABLES
from gsm_lab.wording import number

PARALLEL = ("ddp", "fsdp")  # of `gsm_lab.distributed.placement`


def parser(commands: Mapping[str, Callable[..., int]]) -> argparse.ArgumentParser:
    """The parser of the command line. `commands`: what each command does, by name; its docstring is its help."""
    made = _Parser(prog="gsm-lab", description="Prune a network while it trains, with Global Sparse Momentum SGD.")
    made.add_argument("--version", action="version", version=f"gsm-lab {__version__}")
    added = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, usage: str = "") -> argparse.ArgumentParser:
        does = commands[name]
        about = (does.__doc__ or "").partition("\n")[0]
        one = added.add_parser(name, help=about, description=about, allow_abbrev=False)
        one.usage = f"gsm-lab {name} {usage}" if usage else None
        one.set_defaults(does=does)
        return one

    one = command("run", "[--out DIR] [--overwrite] [--threads N] [--parallel KIND] [--KNOB VALUE ...]")
    one.epilog = "A knob that is not given takes what works for the data and the model; defaults: lenet300 on digits."
    for knob in knobs.KNOBS.values():
        about = knob.help if knob.choices else f"{knob.help}; {knob.valid}"
        default = f"{number(knob.default)} {knob.unit}".strip()
        one.add_argument(
            f"--{knob.name.replace('_', '-')}",
            type=_checked(knob.check),
            metavar="{" + ",".join(knob.choices) + "}" if knob.choices else "N" if knob.whole else "X",
            help=f"{about} (default {default})".replace("%", "%%"),
        )
    one.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/DATA-MODEL-COMPRESSIONx-seedSEED)")
    one.add_argument("--overwrite", action="store_true", help="replace a run that is in that folder")
    _add_process_options(one)
    one = command("resume")
    one.add_argument("folder", type=Path, metavar="DIR", help="where the run is")
    one.add_argument(
        "--epochs", type=_checked(knobs.KNOBS["epochs"].check), metavar="N",
        help="gated epochs in all; the schedule is laid out anew over them",
    )  # fmt: skip
    _add_process_options(one)
    command("report").add_argument("folder", type=Path, metavar="DIR", help="where the run is")
    one = command("reproduce")
    one.add_argument("table", metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    one.add_argument("--data", choices=knobs.KNOBS["data"].choices, default="mnist", help="default %(default)s")
    one.add_argument("--seeds", type=_count("seeds"), metavar="N", default=3, help="runs a row (default %(default)s)")
    one.add_argument("--only", nargs="+", metavar="NAME", help="only rows of these labels, methods or models")
    ratio = _checked(knobs.KNOBS["compression"].check)
    one.add_argument("--compression", type=ratio, nargs="+", metavar="C", help="only rows at these")
    one.add_argument(
        "--epochs",
        type=_checked(knobs.KNOBS["epochs"].check),
        metavar="N",
        help="a reduced version: gated epochs of each run; by default into results/TABLE-N-epochs.csv",
    )
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="the CSV (default: results/TABLE.csv, and as said at --epochs)"
    )
    one.add_argument("--threads", type=_count("threads"), metavar="N", help="threads to compute with")
    one = command("data")
    one.add_argument("name", metavar="NAME", help=f"one of {', '.join(knobs.KNOBS['data'].choices)}")
    one.add_argument("--root", type=Path, metavar="DIR", help="where to look and to put it (default: the user's cache)")
    command("lab", "[arguments of JupyterLab, such as --no-browser --port 8899]")
    command("knobs")
    one = command("doctor")
    one.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="a run's folder, to be checked instead")
    return made


def failed(error: object, status: int, every_rank: bool = False) -> int:
    """Print in a line what went wrong, on rank 0 unless on `every_rank`; returns the exit status."""
    if every_rank or os.environ.get("RANK", "0") == "0":  # the other ranks would say the same
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"gsm-lab: {error}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the page of options before it."""

    def error(self, message: str) -> NoReturn:
        sys.exit(failed(f"{message} (see `{self.prog} --help`)", 2))


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=_count("threads"), metavar="N", help="threads to compute with (default: torch's choice)"
    )
    parser.add_argument(
        "--parallel", choices=PARALLEL,
        help="under torchrun: whether each process holds the whole network or a part (default ddp)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_checked(_seconds), metavar="SECONDS", default=120.0,
        help="under torchrun: after how long a process that does not answer is given up (default %(default)g)",
    )  # fmt: skip


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """The check as a type of argparse's, which shows the message of this one error only."""

    def value(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value


def _count(name: str) -> Callable[[str], int]:
    return _checked(lambda text: whole(name, int(text) if text.isdecimal() else text))


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ValueError(f"timeout must be a number of seconds > 0, got {text!r}")
