"""Real processes on this machine, one a rank, joined to a gloo group: started, followed and ended.

A rank is a fresh Python that imports its worker by name. So it works from a notebook, from a script without a
`__main__` guard and from a test alike, and nothing of the program that starts it is run again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gsm_lab.checks import integer, is_number, shown

MOST = 64  # ranks; far more than a machine has cores
_START = 180.0  # seconds a process may take to import torch: on a busy machine, a minute is nothing unusual


def on_ranks(
    worker: Callable[..., Any],
    ranks: int,
    arguments: dict[str, Any] | None = None,
    *,
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
            # The group waits longer than we do, so that it is always this process that speaks.
            _send(member.connection, (member.rank, ranks, str(member.folder / "store"), 2 * timeout + _START))
            member.connection.send_bytes(work)
        while len(results) < ranks:
            waiting = {member.connection: member for member in members if member.rank not in results}
            limit = timeout if all(member.joined for member in members) else max(timeout, _START)
            ready = wait(list(waiting), limit)
            if not ready:
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


class _Member:
    """One process, seen from the one that started it."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder, self.steps, self.joined = rank, folder, 0, False
        self.log = folder / f"rank{rank}.log"
        self.connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _loopback()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from gsm_lab.distributed.launch import serve; serve({theirs.fileno()})"],
                env=environ,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt is for us alone: we stop the ranks
            )
        theirs.close()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1].strip()})" if lines else ""

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _started(ranks: int) -> Iterator[list[_Member]]:
    with tempfile.TemporaryDirectory(prefix="gsm-lab-ranks-") as folder, contextlib.ExitStack() as ends:
        members = []
        for rank in range(ranks):
            members.append(_Member(rank, Path(folder)))
            ends.callback(members[-1].end)
        yield members


def _received(member: _Member, members: list[_Member]) -> tuple[str, Any]:
    """The next message of a rank. Raises RuntimeError when its process has ended."""
    try:
        kind, value = pickle.loads(member.connection.recv_bytes())
    except (EOFError, ConnectionError):
        code = member.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(
            f"rank {member.rank} of {len(members)} was lost {_after(members)}: its process {how}"
            f"{member.last_words()}; the others were stopped"
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


def _loopback() -> str:
    """The network interface that no other machine can reach: lo, lo0."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


# -- in the process of a rank ------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """What a rank does: join the group, work, report, and end when the process that started it closes the pipe."""
    import torch
    import torch.distributed as dist

    connection = Connection(descriptor)
    torch.set_num_threads(1)
    rank, ranks, store, seconds = pickle.loads(connection.recv_bytes())
    try:
        worker, arguments = pickle.loads(connection.recv_bytes())
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds)
        )
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
