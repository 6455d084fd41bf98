"""Real processes on this machine, one a rank, joined to a gloo group: started, followed and ended.

A rank comes from a fresh Python that imports its worker by name. So it works from a notebook, from a script without a
`__main__` guard and from a test alike, and nothing of the program that starts it is run again. On Linux that Python
imports for all ranks, which then part (`fork`): to import torch, and what DDP needs of it, takes seconds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gsm_lab.checks import integer, is_number, shown

MOST = 64  # ranks; far more than a machine has cores
FORKS = sys.platform == "linux"  # elsewhere not all that torch uses is safe after a fork
_LOST = "lost"  # a file that says which rank ended first, and with which exit code
_START = 180.0  # seconds a process may take to import torch: on a busy machine, a minute is nothing unusual


def on_ranks(
    worker: Callable[..., Any],
    ranks: int,
    arguments: dict[str, Any] | None = None,
    *,
    imports: Sequence[str] = (),
    total: int = 0,
    timeout: float = 120.0,
    progress: bool = True,
) -> list[Any]:
    """Call `worker(report, **arguments)` in `ranks` processes that form a group; returns what each returned, by rank.

    Args:
        worker: a function of an importable module. In there `torch.distributed` is initialised (gloo), and torch has
            one thread. It calls `report(n)` after every so many steps: that moves the progress bar, and says that the
            rank is alive.
        ranks: how many, 1 to 64.
        arguments: for the worker; they, and what it returns, are pickled.
        imports: modules beside that of the worker which the ranks will need, if they are there.
        total: steps the progress bar is laid out for.
        timeout: seconds. When no rank has reported for so long, all are stopped.
        progress: show a progress bar.

    Raises:
        ValueError: an argument out of range or that cannot be pickled, or a worker that cannot be imported.
        RuntimeError: a rank failed or was lost; it says which, why, and after how many steps. All others are stopped.
        TimeoutError: no rank has reported for `timeout` seconds.
        KeyboardInterrupt: at an interrupt. Whatever is raised, no process is left behind.
    """
    ranks = integer("ranks", ranks, 1, MOST)
    if not (is_number(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds > 0, got {shown(timeout)}")
    if getattr(worker, "__module__", "__main__") == "__main__":
        raise ValueError(f"worker must be a function of a module that can be imported, got {shown(worker)} of __main__")
    try:
        work = pickle.dumps((worker, arguments or {}))  # once, and before a process is there
    except Exception as error:
        raise ValueError(
            f"arguments must be such as can be pickled for another process, with settings whose model, loss and output "
            f"are of modules that can be imported: {type(error).__name__}: {error}"
        ) from error
    results: dict[int, Any] = {}
    with _started(ranks) as members, tqdm(total=total, unit="step", disable=not progress) as bar:
        for member in members:
            if member.first:  # the others of its process have it from this one
                # The group waits longer than we do, so that it is always this process that speaks.
                logs, store = [member.log for member in members], str(member.log.with_name("store"))
                _send(member.connection, (ranks, store, 2 * timeout + _START, logs, tuple(imports)))
                member.connection.send_bytes(work)
        while len(results) < ranks:
            waiting = {member.connection: member for member in members if member.rank not in results}
            limit = timeout if all(member.joined for member in members) else max(timeout, _START)
            if not (ready := wait(list(waiting), limit)):
                raise TimeoutError(f"no rank has reported for {limit:g} s, {_after(members)}; all {ranks} were stopped")
            for connection in ready:
                kind, value = _received(waiting[connection], members)
                if kind == "failed":
                    raise RuntimeError(_cause(waiting[connection], value, members))
                if kind == "done":
                    results[waiting[connection].rank] = value
                elif kind == "steps" and waiting[connection].rank == 0:
                    bar.update(value)
    return [results[rank] for rank in range(ranks)]


@dataclass
class _Member:
    """One rank, seen from the program that started it: the process that it is or was part of, and what it says."""

    rank: int
    log: Path
    connection: Connection
    process: subprocess.Popen[bytes]
    first: bool
    steps: int = 0
    joined: bool = False


@contextlib.contextmanager
def _started(ranks: int) -> Iterator[list[_Member]]:
    parts = [range(ranks)] if FORKS else [range(rank, rank + 1) for rank in range(ranks)]
    with tempfile.TemporaryDirectory(prefix="gsm-lab-ranks-") as folder, contextlib.ExitStack() as ends:
        members: list[_Member] = []
        for part in parts:
            logs = [Path(folder, f"rank{rank}.log") for rank in part]
            ours, theirs = zip(*(Pipe() for _ in part), strict=True)
            process = _process(part[0], [connection.fileno() for connection in theirs], logs[0])
            ends.callback(_end, process, ours)
            for connection in theirs:
                connection.close()
            rows = zip(part, logs, ours, strict=True)
            members += [_Member(rank, log, connection, process, rank == part[0]) for rank, log, connection in rows]
        yield members


def _process(rank: int, descriptors: list[int], log: Path) -> subprocess.Popen[bytes]:
    """A Python for the ranks from `rank` on, whose ends of the pipes are these."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")  # lo, or lo0
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", f"from gsm_lab.distributed.launch import serve; serve({rank}, {descriptors})"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # an interrupt is for us alone: we stop the ranks
        )


def _end(process: subprocess.Popen[bytes], connections: tuple[Connection, ...]) -> None:
    for connection in connections:
        connection.close()
    process.terminate()  # and with it the ranks that came from it
    process.wait()


def _received(member: _Member, members: list[_Member]) -> tuple[str, Any]:
    """The next message of a rank. Raises RuntimeError when its process has ended."""
    try:
        kind, value = pickle.loads(member.connection.recv_bytes())
    except (EOFError, ConnectionError):
        rank, code = member.rank, member.process.wait()
        if (first := member.log.with_name(_LOST)).exists():
            rank, code = map(int, first.read_text().split())
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if said := members[rank].log.read_text(errors="replace").strip().splitlines():
            how += f" ({said[-1].strip()})"
        raise RuntimeError(
            f"rank {rank} of {len(members)} was lost {_after(members)}: its process {how}; the others were stopped"
        ) from None
    member.joined = True
    member.steps += value if kind == "steps" else 0
    return kind, value


def _cause(member: _Member, said: str, members: list[_Member]) -> str:
    """Why a rank failed, unless another was lost: then its failure is that it noticed, and the loss is raised."""
    for other in members:
        while (
            other is not member and other.connection.poll() and _received(other, members)[0] not in ("failed", "done")
        ):
            pass
    return f"rank {member.rank} of {len(members)} failed {_after(members)}: {said}; the others were stopped"


def _after(members: list[_Member]) -> str:
    steps = max(member.steps for member in members)
    return f"after {steps:,} steps" if steps else "before the first step"


def _send(connection: Connection, message: Any) -> None:
    """As bytes: `send` would hand over tensors by shared memory, for which the sender has to stay alive."""
    connection.send_bytes(pickle.dumps(message))


# -- in the process of a rank ------------------------------------------------------------------------------------------


def serve(first: int, descriptors: list[int]) -> None:
    """What a process does for its ranks, `first` and those after it: import what they need, and part into them."""
    import torch

    torch.set_num_threads(1)
    connections = [Connection(descriptor) for descriptor in descriptors]
    ranks, store, seconds, logs, imports = pickle.loads(connections[0].recv_bytes())
    try:
        worker, arguments = pickle.loads(connections[0].recv_bytes())
        for name in imports:
            with contextlib.suppress(ImportError, OSError, RuntimeError):  # as where numba is not there
                import_module(name)
    except BaseException as error:
        worker, arguments = error, {}
    rank, connection = _parted(first, connections, logs) if len(connections) > 1 else (first, connections[0])
    group = {"init_method": f"file://{store}", "timeout": timedelta(seconds=seconds), "rank": rank, "world_size": ranks}
    _work(connection, worker, arguments, group)


def _parted(first: int, connections: list[Connection], logs: list[Path]) -> tuple[int, Connection]:
    """In each of the ranks' processes, which rank it is, and its connection.

    The process from which they come waits for the first that ends, writes down which one that is, and ends all others.
    """
    ranks: dict[int, int] = {}  # by process

    def end(*_: Any) -> None:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    gc.freeze()  # what is there stays where it is, and is shared
    for rank in range(first, first + len(connections)):
        connection = connections.pop(0)
        process = os.fork()
        if not process:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for other in connections:
                other.close()
            log = os.open(logs[rank], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            return rank, connection
        ranks[process] = rank
        connection.close()
    process, status = os.wait()
    logs[first].with_name(_LOST).write_text(f"{ranks.pop(process)} {os.waitstatus_to_exitcode(status)}")
    end()


def _work(connection: Connection, worker: Any, arguments: dict[str, Any], group: dict[str, Any]) -> None:
    """What a rank does: join the group, call `worker`, or raise why there is none, report, and end with the pipe."""
    import torch.distributed as dist

    try:
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        if isinstance(worker, BaseException):
            raise worker
        dist.init_process_group("gloo", **group)
        _send(connection, ("joined", None))
        message = ("done", worker(lambda n: _send(connection, ("steps", n)), **arguments))
    except BaseException as error:
        lines = str(error).splitlines() or [""]  # what comes from C++ goes on with a stack trace
        message = ("failed", f"{type(error).__name__}: {lines[0]}")
    _send(connection, message)
    # Its sockets stay open until all are done: who leaves first would look like a lost rank to the others.
    threading.Event().wait()


def _end_with(connection: Connection) -> None:
    """End this process at once when the pipe closes, even in the middle of a collective that nobody will join."""
    with contextlib.suppress(OSError):
        connection.poll(None)
    os._exit(0)
