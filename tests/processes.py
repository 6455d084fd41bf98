"""Real process groups for tests: functions that run in several processes at once, over gloo on loopback."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Forked from a process that has imported torch, and nothing else has happened in: a process starts in no time.
_CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["gsm_lab.distributed.fsdp", "gsm_lab.optim.fused.step", "gsm_lab.cli", "tests.runs"]
_CONTEXT.set_forkserver_preload(PRELOAD)


class Ended(NamedTuple):
    """What became of one process: `result` of the function (None where it did not return), exit status, output."""

    result: Any
    status: int
    out: str
    err: str


def in_ranks(
    size: int, work: Callable[..., Any], *args: Any, timeout: float = 600.0, fails: bool = False
) -> list[Ended]:
    """Call `work(*args)` in `size` processes with the environment that torchrun gives; what became of them, by rank.

    `work` is a function of a module's top level. A process that has not ended after `timeout` seconds is killed, and
    the test fails; as it does, unless `fails`, where one raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [
            _CONTEXT.Process(target=_in_rank, args=(rank, size, port, folder, timeout, work, args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline, late = time.monotonic() + timeout, []
        for rank, process in enumerate(processes):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                late.append(rank)
        for process in processes:
            process.kill()
            process.join()
        ended = [_ended(Path(folder), rank, process.exitcode) for rank, process in enumerate(processes)]
    report = "\n".join(f"rank {rank}, status {e.status}:\n{e.out}{e.err}" for rank, e in enumerate(ended))
    assert not late, f"ranks {late} had not ended after {timeout} s\n{report}"
    assert fails or all(e.status == 0 for e in ended), report
    return ended


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _in_rank(
    rank: int, size: int, port: int, folder: str, timeout: float, work: Callable[..., Any], args: tuple
) -> None:
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(Path(folder) / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY)
        os.dup2(handle, number)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    import gc

    import torch

    gc.freeze()  # what was imported stays; to go through it costs a second each time that something is collected
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(timeout - 2)  # where it hangs
    try:
        result = work(*args)
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    (Path(folder) / f"{rank}.result").write_bytes(pickle.dumps(result))


def _ended(folder: Path, rank: int, status: int) -> Ended:
    result = None
    with contextlib.suppress(FileNotFoundError):
        result = pickle.loads((folder / f"{rank}.result").read_bytes())
    texts = [(folder / f"{rank}.{name}") for name in ("out", "err")]
    return Ended(result, status, *(path.read_text() if path.exists() else "" for path in texts))
