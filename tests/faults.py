"""Faults by the hundred: kills, signals, full disks, two writers and flipped bits, each in a process of its own.

    python -m tests.faults --kills 200 --signals 100 --flips 300

prints a table: how many, how many lost, how many accepted. It imports and computes once, and forks from there, so that
a process starts in no time. A moment is a number of steps and file operations, or a share of the time that it takes.
"""

import argparse
import contextlib
import errno
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import gsm_lab as gl
from gsm_lab import cli, data
from gsm_lab.cli import integrity, run_folder, summary
from gsm_lab.paper import csv_store, dense_epochs, reproduce
from gsm_lab.paper.entries import TABLES, Entry
from gsm_lab.training import loop, tensor_files
from gsm_lab.training.checkpoint import FILE, KEPT, WEIGHTS, CheckpointError, load_weights
from gsm_lab.training.step import Training

RUN = ["run", "--epochs", "2", "--pretrain", "1", "--batch-size", "128", "--threads", "1", "--out"]
STEPS = 22  # gated, and 11 dense before them
PIECE = 4  # steps between two saves
TABLE = (
    Entry("GSM", "gsm", "lenet300", 60.0),
    Entry("ticket, by magnitude", "tickets", "lenet300", 10.0, None, {}, "magnitude"),
)
REPRODUCE = ["reproduce", "faults", "--data", "digits", "--seeds", "1", "--epochs", "1", "--out"]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock", "gsm.step", "gsm.fsync")
READY, FULL = "ready", errno.ENOSPC


class Ended(NamedTuple):
    """What became of a process: exit status (negative: the signal that ended it), what it said, moments there were."""

    status: int
    out: str
    err: str
    moments: int
    seconds: float


# ---------------------------------------------------------------------------------------------- processes and moments


class Moments:
    """Steps and file operations in `folder`, counted; at some of them a signal comes."""

    def __init__(self, folder: Path, signals: dict[int, int]) -> None:
        self.folder, self.signals, self.count = str(folder), signals, 0
        sys.addaudithook(self.event)

    def event(self, name: str, args: tuple) -> None:
        if name not in EVENTS or (name == "open" and not str(args[0]).startswith(self.folder)):
            return
        self.count += 1
        if self.count in self.signals:
            os.kill(os.getpid(), self.signals[self.count])


def in_child(
    work: Callable[[], object],
    folder: Path,
    signals: dict[int, int] | None = None,
    after: tuple[float, ...] = (),
    number: int = signal.SIGKILL,
) -> Ended:
    """What becomes of `work()` in a process of its own to which signals come at moments, or after some seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory() as logs:
        here, there = os.pipe()
        pid = os.fork()
        if not pid:
            _be_child(work, Path(logs), folder, signals or {}, there)
        os.close(there)
        start = time.monotonic()
        for seconds in after:  # until then, or it has ended
            if not select.select([here], [], [], max(0.0, start + seconds - time.monotonic()))[0]:
                os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        took = time.monotonic() - start
        moments = os.read(here, 64)
        os.close(here)
        said = [Path(logs) / name for name in ("out", "err")]
        texts = [path.read_text() if path.exists() else "" for path in said]  # killed before it could say anything
        return Ended(os.waitstatus_to_exitcode(status), *texts, int(moments or 0), took)


def _be_child(work: Callable[[], object], logs: Path, folder: Path, signals: dict[int, int], tell: int) -> None:
    status = 70
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, handle in (("out", 1), ("err", 2)):
            os.dup2(os.open(logs / name, os.O_CREAT | os.O_WRONLY), handle)
        moments = Moments(folder, signals)
        try:
            status = work() or 0
        except SystemExit as end:
            status = end.code or 0
        os.write(tell, str(moments.count).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 71)


def command(*args: object) -> Callable[[], int]:
    return lambda: cli.main([str(arg) for arg in args])


def prepare() -> None:
    """Import and load what every process needs, save at every look at the clock, and tell of every step and fsync."""
    torch.set_num_threads(1)
    run_folder.SAVE_EVERY, reproduce.SAVE_EVERY, loop.PORTION = 0.0, 0.0, PIECE
    TABLES["faults"] = TABLE
    whole = data.load("digits")
    few = data.Dataset(whole.train_x[:160], whole.train_y[:160], whole.test_x[:50], whole.test_y[:50], "digits")
    reproduce.datasets = types.SimpleNamespace(load=lambda name: few, NAMES=("digits",))  # for that module alone
    page = "<!doctype html>\n<title>what came out</title>\n"  # the real one takes as long as all else
    run_folder.report = lambda run: (
        page + "".join(f"<p>{what} {value}</p>\n" for what, value in summary.results(run).rows())
    )
    step, fsync = Training._forward_backward, os.fsync

    def told(run: Training, batch: int) -> float:
        sys.audit("gsm.step")
        return step(run, batch)

    def told_too(handle: int) -> None:
        sys.audit("gsm.fsync")
        fsync(handle)

    Training._forward_backward, os.fsync = told, told_too


# ------------------------------------------------------------------------------------------------ what is right


def state(run: gl.Run) -> str:
    """Weights, momentum, generator and history as a checksum."""
    opt = run.opt.state_dict()["state"]
    tensors = {f"w/{name}": t for name, t in run.model.state_dict().items()} | {"r": run.random_state}
    tensors |= {f"m/{i}": s["momentum_buffer"] for i, s in opt.items() if s.get("momentum_buffer") is not None}
    text = run.history.frame().to_csv() + run.history.evaluation_frame().to_csv()
    return tensor_files.digest(tensors, text)


class Right:
    """An uninterrupted run and table: what each saved state is, and what comes out."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "whole"
        self.states: dict[tuple[int, int], set[str]] = {}
        save = gl.Run.save

        def noted(run: gl.Run, folder: Path) -> Path:
            self.states.setdefault((run.dense_steps, run.steps), set()).add(state(run))
            if run.steps == STEPS // 2 // PIECE * PIECE:
                save(run, scratch / "half")
            return save(run, folder)

        gl.Run.save = noted
        try:
            assert cli.main([*RUN, str(self.folder)]) == 0
        finally:
            gl.Run.save = save
        self.half = scratch / "half"
        self.weights = weights(self.folder)
        assert cli.main([*REPRODUCE, str(scratch / "whole.csv")]) == 0
        self.csv = scratch / "whole.csv"
        self.rows = rows(self.csv)


def weights(folder: Path) -> str:
    return tensor_files.digest(load_weights(folder), "")


def rows(csv: Path) -> list[list[object]]:
    return csv_store.read(csv)[["label", "weights", "nonzeros", "base", "live", "cut", "settings"]].values.tolist()


def clear(ended: Ended, statuses: tuple[int, ...]) -> str:
    """What is wrong with how a process ended: nothing, or with what status, or that it said a stack trace."""
    if ended.status not in statuses:
        return f"status {ended.status}, not {statuses}: {ended.err[-300:]}"
    if "Traceback" in ended.err or "Error:" in ended.err:
        return f"a stack trace: {ended.err[-500:]}"
    if ended.status in (1, 2):
        said = ended.err.replace("\r", "\n").strip().splitlines()[-1]
        if not said.startswith("gsm-lab: ") or not re.search("room|name|let it|take|move|again|resume|right", said):
            return f"no sentence with a way out: {said!r}"
    return ""


class Tally:
    """Rows of a table: what was done how often, and what came of it."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter] = {}
        self.details: list[str] = []

    def add(self, what: str, problem: str = "", kind: str = "lost") -> None:
        row = self.rows.setdefault(what, Counter())
        row["times"] += 1
        if problem:
            row[kind] += 1
            self.details.append(f"{what}: {problem}")

    def __str__(self) -> str:
        columns = ("times", "lost", "accepted", "unclear")
        lines = ["| fault | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {what} | " + " | ".join(str(row[c]) for c in columns) + " |" for what, row in self.rows.items()]
        return "\n".join([*lines, *self.details[:20]])


def goes_on(right: Right, folder: Path, least: tuple[int, int] | None = None, anywhere: bool = False) -> str:
    """What is lost of a run after a fault: nothing where it resumes to a saved state and ends as the whole one did.

    `least`: dense and gated steps that were saved before it. `anywhere`: it may have been saved between two saves.
    """
    if (folder / FILE).exists():
        try:
            run = gl.Run.resume(folder)
        except CheckpointError as error:
            return f"the checkpoint cannot be read: {error}"
        here = (run.dense_steps, run.steps)
        if state(run) not in right.states.get(here, ()) and not (anywhere and here not in right.states):
            return f"no state that was saved: {run!r}"
        if least is not None and here < least:
            return f"{run!r} is older than what was saved, {least}"
        ended = in_child(command("resume", folder, "--threads", 1), folder)
    elif least is not None:
        return "nothing was kept"
    else:
        ended = in_child(command(*RUN, folder), folder)
    if problem := clear(ended, (0,)):
        return f"it does not go on: {problem}"
    if weights(folder) != right.weights:
        return "it ends with other weights"
    if left := sorted({path.name for path in folder.iterdir()} ^ set(KEPT)):
        return f"left, or missing: {left}"
    if bad := [line for line in integrity.lines(folder) if line[0] != "ok"]:
        return f"not whole: {bad}"
    return ""


# ------------------------------------------------------------------------------------------------ the faults


def job(right: Right, kind: str, folder: Path) -> Callable[[], object]:
    """What is to be killed: a run, one that is resumed, saves by hand, or a table of runs; `folder` is made ready."""
    if kind == "run":
        return command(*RUN, folder)
    if kind == "reproduce":
        folder.mkdir()
        return command(*REPRODUCE, folder / "a.csv")
    shutil.copytree(right.half, folder)
    if kind == "resume":
        return command("resume", folder, "--threads", 1)

    def saves() -> None:
        run = gl.Run.resume(folder)
        while run.steps < STEPS:
            run.step(min(PIECE, STEPS - run.steps))
            run.save(folder)

    return saves


def table_goes_on(right: Right, folder: Path) -> str:
    ended = in_child(command(*REPRODUCE, folder / "a.csv"), folder)
    if problem := clear(ended, (0,)):
        return f"it does not go on: {problem}"
    if rows(folder / "a.csv") != right.rows:
        return "it ends with other rows"
    left = [path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".csv")]
    return f"left: {left}" if left else ""


def kills(right: Right, tally: Tally, turns: Iterable[int], short: bool, dice: random.Random, scratch: Path) -> None:
    """kill -9 in the middle: every second time at a moment, else after a share of the time; in short never that."""
    kinds = ("run", "resume", "save", "reproduce")
    whole = {kind: in_child(job(right, kind, scratch / f"w-{kind}"), scratch / f"w-{kind}") for kind in kinds}
    for kind, ended in whole.items():
        assert not clear(ended, (0,)), (kind, ended)
    for i in turns:
        kind, folder = kinds[i % len(kinds)], scratch / f"k{i}"
        least = (11, STEPS // 2 // PIECE * PIECE) if kind in ("resume", "save") else None
        work = job(right, kind, folder)
        if short or i // len(kinds) % 2:
            in_child(work, folder, {dice.randint(1, whole[kind].moments): signal.SIGKILL})
        else:
            in_child(work, folder, after=(dice.uniform(0, whole[kind].seconds),))
        problem = table_goes_on(right, folder) if kind == "reproduce" else goes_on(right, folder, least)
        tally.add(f"kill -9 of {kind}", problem)
        shutil.rmtree(folder, ignore_errors=True)


def signals(right: Right, tally: Tally, turns: Iterable[int], dice: random.Random, scratch: Path) -> None:
    """SIGINT, SIGTERM and SIGHUP, once and twice: all that was reached is kept."""
    folder = scratch / "w-signals"
    moments = in_child(command(*RUN, folder), folder).moments
    for i in turns:
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[i % 3]
        twice, kind = bool(i // 3 % 2), ("run", "run", "resume", "reproduce")[i // 6 % 4]
        folder = scratch / f"s{i}"
        work = job(right, kind, folder)
        first = dice.randint(1, moments if kind == "run" else moments // 2)
        at = {first: number} | ({first + dice.randint(1, 30): number} if twice else {})
        ended = in_child(work, folder, at)
        name = f"{signal.Signals(number).name} {'twice' if twice else 'once'}"
        tally.add(name, clear(ended, (0, 128 + number)), "unclear")
        if kind == "reproduce":
            problem = table_goes_on(right, folder)
        else:
            told = re.search(r"Stopped after (\d+) dense and (\d+) of", ended.out)
            problem = goes_on(right, folder, (int(told[1]), int(told[2])) if told else None, True)
        if problem:
            tally.rows[name]["lost"] += 1
            tally.details.append(f"{name} of {kind} at {at}: {problem}")
        shutil.rmtree(folder, ignore_errors=True)


def disks(right: Right, tally: Tally, short: bool, scratch: Path) -> None:
    """Disks that are full or read-only, names that cannot be, and two writers; in short a full disk stands for all."""

    def failing(work: Callable[[], object], wrong: Callable[[int], int]) -> Callable[[], object]:
        """`work`, in which the n-th fsync fails with the number that `wrong(n)` gives, if any."""

        def failed() -> object:
            fsync, n = os.fsync, [0]

            def fails(handle: int) -> None:
                n[0] += 1
                if number := wrong(n[0]):
                    raise OSError(number, os.strerror(number))
                fsync(handle)

            os.fsync = fails
            return work()

        return failed

    for number in (errno.ENOSPC,) if short else (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        name, folder = errno.errorcode[number], scratch / f"d{number}"
        ended = in_child(failing(command(*RUN, folder), lambda n, e=number: e if n == 8 else 0), folder)
        tally.add(f"{name} in one save", clear(ended, (0,)) or goes_on(right, folder))
        folder = scratch / f"e{number}"
        ended = in_child(failing(command(*RUN, folder), lambda n, e=number: e if n >= 8 else 0), folder)
        # the first fsync is that of the try before the first step, and a save has three: two of them are done
        told = f"the state after {2 * PIECE} dense steps is in {folder}"
        problem = clear(ended, (1,)) or ("" if told in ended.err else "it does not say what is kept")
        tally.add(f"{name} to the end", problem or goes_on(right, folder, (2 * PIECE, 0)))
        folder = scratch / f"f{number}"
        ended = in_child(failing(command(*RUN, folder), lambda n, e=number: e), folder)
        tally.add(f"{name} from the start", clear(ended, (2,)) or ("something is left" if folder.exists() else ""))

    def small_files() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        return cli.main([*RUN, str(scratch / "limited")])

    ended = in_child(small_files, scratch / "limited")
    tally.add("files of 1 MB at most", clear(ended, (1,)) or goes_on(right, scratch / "limited"))
    (scratch / "a file").write_text("mine")
    for name in ("a file", "a file/b", "n" * 300):
        ended = in_child(command(*RUN, scratch / name), scratch)
        tally.add("a folder that cannot be", clear(ended, (2,)), "unclear")
    own = scratch / "own"
    own.mkdir()
    for name in KEPT[1:]:
        (own / name).write_text("mine")
        ended = in_child(command(*RUN, own), own)
        same = (own / name).read_text() == "mine"
        tally.add("a file of one's own", clear(ended, (2,)) or ("" if same else f"{name} is replaced"))
        (own / name).unlink()
    _two_writers(right, tally, scratch / "two")
    if os.geteuid() == 0:
        _small_disk(right, tally, scratch / "disk")


def _two_writers(right: Right, tally: Tally, folder: Path) -> None:
    from gsm_lab.training.files import held

    shutil.copytree(right.half, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE
    )  # the lock is this process's; so that of a fork is another's
    try:
        with held(folder):
            for line in (["resume", folder], [*RUN, folder, "--overwrite"], ["report", folder]):
                ended = in_child(_as_another_process(command(*line)), folder)
                problem = clear(ended, (2,)) or ("" if "is in use: process" in ended.err else ended.err)
                tally.add("two writers", problem, "accepted")
            same = before == {p.name: p.read_bytes() for p in folder.iterdir() if p.name in before}
            tally.add("two writers", "" if same else "the first one's files changed")
    finally:
        other.communicate(b"")
    tally.add("two writers", goes_on(right, folder))


def _as_another_process(work: Callable[[], object]) -> Callable[[], object]:
    """A fork has inherited what this process holds, and has to forget it to be another one."""

    def forgetful() -> object:
        from gsm_lab.training import files

        files._held.clear()
        return work()

    return forgetful


def _small_disk(right: Right, tally: Tally, mount: Path) -> None:
    """A real small disk, where this may mount one: full at a save, with room made later; and read-only."""
    mount.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)]
    if subprocess.run(line, capture_output=True).returncode:
        return
    try:
        folder, filler = mount / "run", mount / "filler"

        def fills() -> int:
            save, n = gl.Run.save, [0]

            def filling(run: gl.Run, to: Path) -> Path:
                n[0] += 1
                if n[0] == 3:
                    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                        while file.write(bytes(1 << 14)):
                            pass
                return save(run, to)

            gl.Run.save = filling
            return cli.main([*RUN, str(folder)])

        ended = in_child(fills, folder)
        problem = clear(ended, (1,))
        filler.unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=40m", str(mount)], check=True)
        tally.add("a disk that fills up", problem or goes_on(right, folder, (8, 0)))
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        for line in (["resume", folder, "--epochs", 3], [*RUN, mount / "b"], ["report", folder]):
            ended = in_child(command(*line), mount)
            tally.add("a read-only disk", clear(ended, (2,)), "unclear")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def flips(right: Right, tally: Tally, turns: Iterable[int], dice: random.Random, scratch: Path) -> None:
    """A bit of a file is turned over: that is noticed, and mended or refused."""
    folder, csv, dense = scratch / "flipped", scratch / "flipped.csv", scratch / "x-unfinished"
    shutil.copytree(right.folder, folder)
    shutil.copy(right.csv, csv)
    dense.mkdir()
    run = gl.Run(pretrain=1, epochs=1, batch_size=128)
    run.pretrain()
    dense_epochs.keep(run, dense / "a", 1.0)
    (dense_file,) = dense.glob("dense-*.safetensors")
    files = [folder / name for name in KEPT] + [csv, dense_file]
    for i in turns:
        path = files[i % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        # a third of them where headers and last lines are, of which a large file has few
        near = dice.choice((range(len(bad)), range(len(bad)), range(min(400, len(bad)))))
        bad[dice.choice(near)] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        tally.add(f"a bit of {'dense-*' if path == dense_file else path.name}", _noticed(right, path, good), "accepted")
        path.write_bytes(good)


def _noticed(right: Right, path: Path, good: bytes) -> str:
    """Nothing where a flipped bit is noticed, and mended where it can be; else what went wrong."""
    if path.suffix == ".csv" and path.name not in KEPT:
        try:
            same = rows(path) == right.rows and csv_store.read(path).equals(csv_store.read(right.csv))
            return "" if same else "accepted"
        except ValueError as error:
            return "" if str(path) in str(error) else f"it does not say where: {error}"
    if path.name.startswith("dense-"):
        try:
            tensor_files.checked(path)
        except tensor_files.Damaged:
            return ""
        return "accepted"
    if all(state == "ok" for state, _ in integrity.lines(path.parent)):
        return "the doctor finds all as it should be"
    ended = in_child(command("report", path.parent), path.parent)
    if path.name == FILE:
        return clear(ended, (2,))
    if path.name == WEIGHTS:
        return clear(ended, (0,)) or ("" if weights(path.parent) == right.weights else "other weights")
    return clear(ended, (0,)) or ("" if path.read_bytes() == good else "not mended")


def _until(end: float, count: int) -> Iterator[int]:
    for i in range(count):
        if time.monotonic() > end:
            return
        yield i


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("kills", 200), ("signals", 100), ("disks", 1), ("flips", 300), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing more after so many")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    prepare()
    dice, tally, short = random.Random(args.seed), Tally(), args.kills < 25
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with contextlib.redirect_stdout(sys.stderr):
            right = Right(scratch)
        if args.kills:
            kills(right, tally, _until(end, args.kills), short, dice, scratch)
        if args.signals:
            signals(right, tally, _until(end, args.signals), dice, scratch)
        if args.disks:
            disks(right, tally, short, scratch)
        if args.flips:
            flips(right, tally, _until(end, args.flips), dice, scratch)
    print(f"seed {args.seed}\n{tally}")
    return int(bool(tally.details))


if __name__ == "__main__":
    sys.exit(main())
