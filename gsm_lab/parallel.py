"""Runs over ranks: several processes train one model, with DDP (each holds all of it) or FSDP2 (each holds a part).

    with gsm_lab.ranks.joined():                          # in every process that torchrun started
        kind = gsm_lab.parallel.kind("ddp")               # or "fsdp"
        run = kind(data="mnist", compression=60)          # settings and methods of `Run`
        run.train()
        run.save("runs/a")                                # what `Run.resume` reads, in one process or many

A step takes the same rows as in one process: `batch_size` counts those of all ranks, of which rank r takes every
size-th from the r-th on. Where that leaves some ranks a row more, each weighs in by its rows. The averaged gradient is
therefore that of one process up to rounding, for a loss that is a mean over samples; and GSM, which sees the averaged
gradient, picks the same weights on every rank. Batch norm is the exception: it normalises by a rank's own rows, as
always under DDP (its running statistics are averaged over ranks at every step).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gsm_lab import data as datasets
from gsm_lab import knobs as settings
from gsm_lab.ranks import RankLost, Ranks, lost_ranks, stops_held_back
from gsm_lab.run import Run


class ParallelRun(Run):
    """A `Run` that the processes of the default process group train together: the base of what `kind` gives.

    Settings, attributes and methods are those of `Run`; every rank calls them, in the same order and with the same
    arguments, `evaluate`, `cut`, `save` and `set` among them. History, evaluations and counters are the same on all.
    A model that is given as a module starts with the weights it has on rank 0. Random numbers that a model draws
    (dropout) differ from rank to rank. Repeatable to the bit for one number of ranks.

    What a step exchanges beside gradients and the gate's own: one all-reduce of 32 bytes, and 8 for each number that
    batch norm keeps. It carries the loss, whether a rank was asked to stop, and whether the knobs agree.

    Raises:
        ValueError: also where the ranks' settings or data differ, or there are more ranks than rows in a batch. From
            `step` and `train`, before anything changes: `set` was not called alike on all ranks.
        RankLost: a rank has ended, or did not answer in time. There is no going on but by resuming what was saved.
        KeyboardInterrupt: on all ranks after the same step, when one of them received SIGINT or SIGTERM.
    """

    breakdowns = (FloatingPointError, RankLost)
    _forward: Callable[[Tensor], Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ranks = Ranks()
        super().__init__(*args, **kwargs)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.ranks.rank

    def _start(self, source_model: str | nn.Module, source_data: str | datasets.Dataset, given: dict[str, Any]) -> None:
        with self.ranks.together():
            data = self._load(source_data)
            name = source_model if isinstance(source_model, str) else type(source_model).__name__
            knobs = settings.resolve(given, data.name, name)
            self.ranks.must_agree(knobs | {"parallel": type(self).__name__, "data": data.digest})
            if knobs["batch_size"] < self.ranks.size:
                raise ValueError(
                    f"batch_size must be at least the number of ranks, {self.ranks.size}, got {knobs['batch_size']}: "
                    "each rank takes a share of every batch"
                )
            self._share_initial_weights()
            super()._start(source_model, data, given)
            self.source_data = source_data
            self._wrap()
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._statistics = [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]

    def _load(self, source: str | datasets.Dataset) -> datasets.Dataset:
        """The data; on each host one rank goes first, as it may have to be fetched."""
        if not isinstance(source, str):
            return source
        if self.ranks.local > 0:
            self.ranks.exchange()
        data = datasets.load(source)
        if self.ranks.local == 0:
            self.ranks.exchange()
        return data

    def _share_initial_weights(self) -> None:
        """Of a model that was given, those of rank 0 (as DDP has it); those of a named one follow from the seed."""
        with lost_ranks():
            for t in (self._initial or {}).values():
                if not isinstance(t, DTensor):
                    dist.broadcast(t, 0)

    def _placed(self, model: nn.Module) -> nn.Module:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size))
        if self._initial is None and torch.cuda.device_count() >= ranks_here:  # a GPU each; else all stay on the CPU
            torch.cuda.set_device(self.ranks.local)
            model = model.cuda()
        return model

    def _wrap(self) -> None:
        self._forward = self.model

    # -- a step ----------------------------------------------------------------------------------------------------

    def _forward_backward(self, batch: int) -> float:
        rows = self.batches.indices(batch)[self.ranks.rank :: self.ranks.size]
        x, y = self.data.train_x.index_select(0, rows), self.data.train_y.index_select(0, rows)
        weight = len(rows) * self.ranks.size / self.batches.batch_size  # 1 where all ranks have as many rows
        self.model.train()
        self.opt.zero_grad()
        with self._random_numbers_of_this_rank():
            loss = self.loss(self._forward(x), y)
            (loss if weight == 1 else loss * weight).backward()
        return self._meet(loss.item() * weight)

    @contextlib.contextmanager
    def _random_numbers_of_this_rank(self) -> Iterator[None]:
        """Every rank draws one number from the common stream, and goes its own way from there until the block ends."""
        if self.ranks.size == 1:  # as in a `Run`
            yield
            return
        seed = int(torch.randint(2**31, ()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + self.ranks.rank)
            yield

    def _meet(self, loss: float) -> float:
        """The mean loss; also learns whether a rank was asked to stop, and averages what batch norm keeps."""
        moving = json.dumps([self.knobs[name] for name in settings.LIVE])
        mark = float(zlib.crc32(moving.encode()) % 2**15)  # few enough bits for the sums of squares to be exact
        numbers = torch.tensor([loss, bool(self._asked), mark, mark**2], dtype=torch.float64)
        kept = [s.detach().double().cpu() for s in self._statistics]
        total = self.ranks.total(torch.cat([numbers, *kept]))
        loss, stop, marks, squares = total[:4].tolist()
        if marks**2 != squares * self.ranks.size:  # equality holds where all marks are equal, and nowhere else
            self.ranks.must_agree({name: self.knobs[name] for name in settings.LIVE})
        if stop:
            self._agreed.append(signal.SIGINT)
        with torch.no_grad():
            for mine, mean in zip(self._statistics, total[4:].split([s.numel() for s in kept]), strict=True):
                mine.copy_(mean / self.ranks.size)
        return loss / self.ranks.size

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[list[int]]:
        with stops_held_back() as self._asked:
            self._agreed: list[int] = []
            yield self._agreed
        if self._agreed:
            self._asked.clear()
            raise KeyboardInterrupt

    def _repeat(self, one_step: Callable[[], None], n: int, interrupted: list[int]) -> int:
        with lost_ranks():
            return super()._repeat(one_step, n, interrupted)

    # -- looking at it, and keeping it ---------------------------------------------------------------------------------

    def _right(self, x: Tensor, y: Tensor, replaced: dict[str, Tensor]) -> int:
        """Each rank looks at every size-th row."""
        with lost_ranks():
            rows = slice(self.ranks.rank, None, self.ranks.size)
            return int(self.ranks.total(torch.tensor(super()._right(x[rows], y[rows], replaced))))

    def save(self, folder: str | Path) -> Path:
        """Write all of the run to `folder`: rank 0 does, and the others wait for it. See `gsm_lab.checkpoint`.

        Raises OSError on rank 0, and `gsm_lab.ranks.Elsewhere` on the others, where it cannot be written.
        """
        with lost_ranks(), self.ranks.together():
            return super().save(folder)

    @classmethod
    def resume(cls, folder: str | Path, *args: Any, **kwargs: Any) -> ParallelRun:
        """As `Run.resume`; what was saved may have been trained by any number of ranks. All must see the folder."""
        with lost_ranks(), Ranks().together():
            run = super().resume(folder, *args, **kwargs)
            run.ranks.must_agree({"the run resumed from": (run.steps, run.dense_steps, run.knobs)})
            return run

    def alone(self, folder: Path) -> Run:
        """The run in this process alone."""
        return Run.resume(
            folder,
            None if isinstance(self.source_model, str) else self.source_model,
            None if isinstance(self.source_data, str) else self.source_data,
            self.loss,
        )

    def first_rank_says(self, flag: bool) -> bool:
        """`flag` as it is on rank 0."""
        return self.ranks.first(flag)


class DDPRun(ParallelRun):
    """Every rank holds the model and gets the averaged gradient, so it picks the same weights without asking."""

    def _wrap(self) -> None:
        # Buckets that are rearranged after a process's first step would add up in another order after resuming: DDP
        # leaves them as they are where it looks for unused parameters.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified", category=UserWarning)
        self._forward = DistributedDataParallel(
            self.model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
        )


def kind(name: str) -> type[ParallelRun]:
    """`DDPRun` for "ddp", `gsm_lab.sharded.FSDPRun` for "fsdp". Raises ValueError for another name."""
    if name == "fsdp":
        from gsm_lab.sharded import FSDPRun

        return FSDPRun
    if name != "ddp":
        raise ValueError(f"parallel must be one of ddp, fsdp, got {name!r}")
    return DDPRun
