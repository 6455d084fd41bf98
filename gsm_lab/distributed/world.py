"""The processes that train one run together: how they join, what they tell each other, and how they stop.

What `torchrun` starts finds the others through RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Small things (numbers,
settings, what went wrong) go over gloo, also where gradients go over NCCL: no step waits for a GPU because of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
import traceback
import weakref
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gsm_lab.optim.ranks.group import RankLost
from gsm_lab.training.interrupts import STOPS, held_back

__all__ = ["Elsewhere", "RankLost", "World", "joined", "lost_ranks", "stops_held_back"]

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = 120.0  # seconds
# gloo's threads let go of a tensor after the call has returned. Where it is theirs to free they need Python's lock, and
# never get it from a thread that holds it while it waits for them to end. So tensors are held a little longer, and DDP,
# which would wait so, has to let go of the group before Python does, which waits without the lock.
_HELD: deque[torch.Tensor] = deque(maxlen=16)
_MEMBERS: weakref.WeakSet[Any] = weakref.WeakSet()  # what has a method `leave`
_STOPS: list[int] = []  # signals that wait for a place where all ranks can stop
_OF_THE_GROUP = re.compile("gloo|nccl|socket|connection|timed out|wait timeout|peer", re.IGNORECASE)


class Elsewhere(ValueError):
    """Another rank could not go on; the message is what that rank says."""


@contextlib.contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[World]:
    """Join the processes that `torchrun` started; leave them at the end.

    SIGINT, SIGTERM and SIGHUP are held back in between, for a run over ranks to end at the same step on all of them.

    Args:
        timeout: seconds after which a rank that does not answer counts as lost.

    Raises:
        ValueError: torchrun did not start this process, or `timeout` is out of range.
        RankLost: not all ranks came in time.
    """
    if missing := [name for name in NEEDED if name not in os.environ]:
        raise ValueError(
            f"torchrun did not start this process ({', '.join(missing)} not set): try `torchrun --nproc-per-node 2 "
            "-m gsm_lab.train ...`, or `gsm-lab run` without --parallel for one process"
        )
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds > 0, got {timeout!r}")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise RankLost(
            f"rank {os.environ['RANK']}: the {os.environ['WORLD_SIZE']} ranks did not come together within "
            f"{timeout:g} s ({_first_sentence(error)})"
        ) from None
    with stops_held_back():
        try:
            yield World()
        finally:
            for member in _MEMBERS:
                member.leave()
            gc.collect()
            dist.destroy_process_group()


class World:
    """This process and the others of the default process group.

    Every method is a collective: each rank has to call it, in the same order. Each raises `RankLost` when a rank has
    ended or does not answer.

    Attributes:
        rank: of this process, 0 .. size - 1. size: how many there are. local: this process's rank on its host.

    Raises RuntimeError where there is no process group.
    """

    def __init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("there is no process group: put `with gsm_lab.distributed.joined():` around it")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))

    def add(self, member: Any) -> None:
        """Have `member.leave()` called before the group ends. (No collective.)"""
        _MEMBERS.add(member)

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor on the CPU; the same bits on all of them. Returns the tensor itself."""
        _HELD.append(numbers)
        with lost_ranks():
            dist.all_reduce(numbers)
        return numbers

    def exchange(self, value: Any = None, failure: str | None = None) -> list[Any]:
        """The values of all ranks, by rank, as JSON has them.

        Raises Elsewhere where one of the others hands in a failure instead.
        """
        own = torch.frombuffer(bytearray(json.dumps([value, failure]).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(own)
        table = torch.zeros(self.size, int(self.total(sizes).max()), dtype=torch.uint8)
        table[self.rank, : len(own)] = own
        every = [json.loads(bytes(row).rstrip(b"\0")) for row in self.total(table).numpy()]
        for rank, (_, failed) in enumerate(every):
            if failed is not None and rank != self.rank:
                raise Elsewhere(f"rank {rank}: {failed}")
        return [given for given, _ in every]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails with ValueError or OSError on one rank fails on all; the block ends on all at the same time.

        The others have to be at the end of the block, or at an `exchange` in it.
        """
        try:
            yield
        except Elsewhere:
            raise
        except (ValueError, OSError) as error:
            if not getattr(error, "told", False):  # by a block inside this one
                error.told = True
                with contextlib.suppress(Elsewhere):
                    self.exchange(failure=str(error))
            raise
        self.exchange()

    def must_agree(self, settings: dict[str, Any]) -> None:
        """Raises ValueError, on every rank, naming the first setting that is not the same on all."""
        every = self.exchange(settings)
        for rank, theirs in enumerate(every):
            for name in {**every[0], **theirs}:
                a, b = every[0].get(name), theirs.get(name)
                if a != b:
                    raise ValueError(
                        f"{name} must be the same on every rank, got {a!r} on rank 0 and {b!r} on rank {rank}"
                    )


@contextlib.contextmanager
def lost_ranks() -> Iterator[None]:
    """What gloo and NCCL raise when another rank is gone becomes RankLost."""
    try:
        yield
    except RuntimeError as error:
        lost, cause = isinstance(error, RankLost), error.__cause__ or error
        if lost and error.__cause__ is None:  # from a block inside this one
            raise
        if not (lost or isinstance(error, dist.DistError) or _OF_THE_GROUP.search(str(error))):
            raise
        late = re.search("tim(ed |e)out", str(cause), re.IGNORECASE)
        what = "did not answer in time" if late else "has ended"
        traceback.clear_frames(error.__traceback__)  # they hold on to the group
        raise RankLost(
            f"rank {dist.get_rank()}: another of the {dist.get_world_size()} ranks {what} ({_first_sentence(cause)})"
        ) from None


@contextlib.contextmanager
def stops_held_back() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP go into the list that is yielded, always the same one."""
    with held_back(_STOPS, STOPS):
        yield _STOPS


def _first_sentence(error: BaseException) -> str:
    """Of a message of gloo's or the store's, without the place in their source it begins with."""
    return re.sub(r"^\[[^]]*\]\s*", "", str(error).strip()).splitlines()[0].split(". ")[0][:200]
