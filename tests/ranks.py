"""Real ranks for tests: processes in a gloo group that run functions and send back what these return or raise."""

import datetime
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ANSWER = 600  # seconds in which every rank has to answer, or the test fails and its ranks are ended
GROUP = 300  # seconds after which a collective gives up
# What is imported once, for all ranks of all worlds, in a process that does nothing else.
PRELOAD = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint.state_dict"]


class World:
    """`size` processes, each a rank; `run` may be called many times."""

    def __init__(self, size: int, folder: Path, seconds: float = GROUP) -> None:
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(PRELOAD)
        self.size, self._ranks = size, []
        for rank in range(size):
            here, there = start.Pipe()
            arguments = (rank, size, str(folder / "store"), seconds, there)
            process = start.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """What the function (of a module, so that it can be sent) returns on each rank; fails where it fails on one."""
        for _, pipe in self._ranks:
            pipe.send((function, args, kwargs))
        answers = [self._answer(rank) for rank in range(self.size)]
        failed = [f"rank {rank}: {said}" for rank, (well, said) in enumerate(answers) if not well]
        assert not failed, "\n".join(failed)
        return [said for _, said in answers]

    def _answer(self, rank: int) -> tuple[bool, Any]:
        pipe = self._ranks[rank][1]
        if not pipe.poll(ANSWER):
            self.end()
            return False, f"no answer within {ANSWER} s"
        try:
            return pipe.recv()
        except EOFError:
            return True, "ended"

    def end(self) -> None:
        """End all processes."""
        for process, _ in self._ranks:
            process.kill()
        for process, _ in self._ranks:
            process.join()


def _serve(rank: int, size: int, store: str, seconds: float, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:  # the test process is gone
            return
        try:
            answer = True, function(*args, **kwargs)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)
