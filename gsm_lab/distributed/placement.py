"""Runs over ranks: several processes train one model, with DDP (each holds all of it) or FSDP2 (each holds a part).

    with gsm_lab.distributed.world.joined():                          # in every process that torchrun started
        kind = gsm_lab.distributed.placement.kind("ddp")               # or "fsdp"
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
from gsm_lab.distributed.world import Elsewhere, RankLost, World, lost_ranks, stops_held_back
from gsm_lab.training.fitting import must_be_a_mean
from gsm_lab.training.interrupts import interrupt
from gsm_lab.training.outputs import answer
from gsm_lab.training.run import Run


class ParallelRun(Run):
    """A `Run` that the processes of the default process group train together: the base of what `kind` gives.

    Settings, attributes and methods are those of `Run`; every rank calls them, in the same order and with the same
    arguments, `evaluate`, `cut`, `save` and `set` among them. History, evaluations and counters are the same on all.
    A model that is given as a module starts with the weights it has on rank 0. Random numbers that a model draws
    (dropout) differ from rank to rank. Repeatable to the bit for one number of ranks.

    What a step exchanges beside gradients and the gate's own: one all-reduce of 32 bytes, and 8 for each number that
    batch norm keeps. It carries the loss, whether a rank was asked to stop, and whether the knobs agree.

    Raises:
        ValueError: also where the ranks' settings or data differ, there are more ranks than rows in a batch, or the
            loss is no mean over samples (a sum, class weights, ignored labels): a mean over ranks is not that. From
            `step` and `train`, before a weight changes: `set` was not called alike on all ranks.
        RankLost: a rank has ended, or did not answer in time. There is no going on but by resuming what was saved.
        KeyboardInterrupt: on all ranks after the same step, when one of them received SIGINT, SIGTERM or SIGHUP.
    """

    breakdowns = (FloatingPointError, RankLost)
    unsaved = (OSError, Elsewhere)
    _forward: Callable[[Tensor], Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.world = World()
        self.world.add(self)
        super().__init__(*args, **kwargs)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.world.rank

    def _start(self, source_model: str | nn.Module, source_data: str | datasets.Dataset, given: dict[str, Any]) -> None:
        with self.world.together():
            data = self._load(source_data)
            name = source_model if isinstance(source_model, str) else type(source_model).__name__
            knobs = settings.resolve(given, data.name, name)
            self.world.must_agree(knobs | {"parallel": type(self).__name__, "data": data.digest})
            if knobs["batch_size"] < self.world.size:
                raise ValueError(
                    f"batch_size must be at least the number of ranks, {self.world.size}, got {knobs['batch_size']}: "
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
        if self.world.local > 0:
            self.world.exchange()
        data = datasets.load(source)
        if self.world.local == 0:
            self.world.exchange()
        return data

    def _tried(self, model: nn.Module, data: datasets.Dataset, batch_size: int) -> float | None:
        above = super()._tried(model, data, batch_size)
        if self.world.size > 1:
            must_be_a_mean(model, data, self.loss, self.output)
        return above

    def _share_initial_weights(self) -> None:
        """Of a model that was given, those of rank 0 (as DDP has it); those of a named one follow from the seed."""
        with lost_ranks():
            for t in (self._initial or {}).values():
                if isinstance(t, Tensor) and not isinstance(t, DTensor):  # not what get_extra_state returned
                    dist.broadcast(t, 0)

    def _placed(self, model: nn.Module) -> nn.Module:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world.size))
        if self._initial is None and torch.cuda.device_count() >= ranks_here:  # a GPU each; else all stay on the CPU
            torch.cuda.set_device(self.world.local)
            model = model.cuda()
        return model

    def _wrap(self) -> None:
        self._forward = self.model

    def _take_in(self, new: dict[nn.Parameter, nn.Parameter]) -> None:
        raise RuntimeError(f"{len(new)} parameters of run.model were exchanged, which ranks cannot do: make a new run")

    def leave(self) -> None:
        """Let go of the process group, which is about to end."""
        self._forward = None

    # -- a step ----------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def _forward_backward(self, batch: int) -> float:
        rows = self.batches.indices(batch)[self.world.rank :: self.world.size]
        x, y = self.data.train_x.index_select(0, rows), self.data.train_y.index_select(0, rows)
        weight = len(rows) * self.world.size / self.batches.batch_size  # 1 where all ranks have as many rows
        self._wake()
        self.opt.zero_grad()
        with self._random_numbers_of_this_rank():
            loss = self.loss(answer(self._forward, x, self.output), y)
            (loss if weight == 1 else loss * weight).backward()
        return self._meet(loss.item() * weight)

    @contextlib.contextmanager
    def _random_numbers_of_this_rank(self) -> Iterator[None]:
        """Every rank draws one number from the common stream, and goes its own way from there until the block ends."""
        if self.world.size == 1:  # as in a `Run`
            yield
            return
        seed = int(torch.randint(2**31, ()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + self.world.rank)
            yield

    def _meet(self, loss: float) -> float:
        """The mean loss; also learns whether a rank was asked to stop, and averages what batch norm keeps."""
        moving = json.dumps([self.knobs[name] for name in settings.LIVE])
        mark = float(zlib.crc32(moving.encode()) % 2**15)  # few enough bits for the sums of squares to be exact
        numbers = torch.tensor([loss, bool(self._asked), mark, mark**2], dtype=torch.float64)
        kept = [s.detach().double().cpu() for s in self._statistics]
        total = self.world.total(torch.cat([numbers, *kept]))
        loss, stop, marks, squares = total[:4].tolist()
        if marks**2 != squares * self.world.size:  # equality holds where all marks are equal, and nowhere else
            self.world.must_agree({name: self.knobs[name] for name in settings.LIVE})
        if stop:  # for the same reason, to all of them
            self._agreed.append(max(self.world.exchange(self._asked[0] if self._asked else 0)))
        with torch.no_grad():
            for mine, mean in zip(self._statistics, total[4:].split([s.numel() for s in kept]), strict=True):
                mine.copy_(mean / self.world.size)
        return loss / self.world.size

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[list[int]]:
        with stops_held_back() as self._asked:
            self._agreed: list[int] = []
            yield self._agreed
        if self._agreed:
            self._asked.clear()
            raise interrupt(self._agreed[0])

    def _repeat(self, one_step: Callable[[], None], n: int, interrupted: list[int]) -> int:
        with lost_ranks():
            return super()._repeat(one_step, n, interrupted)

    # -- looking at it, and keeping it ---------------------------------------------------------------------------------

    def _right(self, x: Tensor, y: Tensor, replaced: dict[str, Tensor]) -> int:
        """Each rank looks at every size-th row."""
        with lost_ranks():
            rows = slice(self.world.rank, None, self.world.size)
            return int(self.world.total(torch.tensor(super()._right(x[rows], y[rows], replaced))))

    def save(self, folder: str | Path) -> Path:
        """Write all of the run to `folder`: rank 0 does, and the others wait for it. See `gsm_lab.training.checkpoint`.

        Raises OSError on rank 0, and `gsm_lab.distributed.world.Elsewhere` on the others, where it cannot be written.
        """
        with lost_ranks(), self.world.together():
            return super().save(folder)

    @classmethod
    def resume(cls, folder: str | Path, *args: Any, **kwargs: Any) -> ParallelRun:
        """As `Run.resume`; what was saved may have been trained by any number of ranks. All must see the folder."""
        with lost_ranks(), World().together():
            run = super().resume(folder, *args, **kwargs)
            run.world.must_agree({"the run resumed from": (run.steps, run.dense_steps, run.knobs)})
            return run

    def alone(self, folder: Path) -> Run:
        """The run in this process alone."""
        return Run.resume(
            folder,
            None if isinstance(self.source_model, str) else self.source_model,
            None if isinstance(self.source_data, str) else self.source_data,
            self.loss,
            self.output,
        )

    def _kept_state(self) -> dict[str, Any]:
        raise TypeError("a run over ranks cannot be copied or pickled: save(folder), and Run.resume(folder) is one")

    @contextlib.contextmanager
    def by_first_rank(self) -> Iterator[bool]:
        """True on rank 0; the others wait for it, and raise `gsm_lab.distributed.world.Elsewhere` where it raises."""
        with lost_ranks(), self.world.together():
            yield self.world.rank == 0

    def first_rank_says(self, flag: bool) -> bool:
        """`flag` as it is on rank 0."""
        return self.world.first(flag)


class DDPRun(ParallelRun):
    """Every rank holds the model and gets the averaged gradient, so it picks the same weights without asking."""

    def _wrap(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name of `broadcast_buffers` is not in torch 2.6
            self._forward = DistributedDataParallel(self.model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self._backward_for_nothing()

    def _backward_for_nothing(self) -> None:
        """Have DDP arrange its buckets, which it does by the first backward pass of a process.

        After that one it adds up in another order. So a run that goes on would differ in the last bit from one that
        was resumed, if that pass were a step of the run.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        x, y = (t[: self.world.size * 2] for t in (self.data.train_x, self.data.train_y))
        with torch.random.fork_rng(devices=[]):
            self._wake()
            self.loss(answer(self._forward, x, self.output), y).backward()
        self.opt.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def kind(name: str) -> type[ParallelRun]:
    """`DDPRun` for "ddp", `gsm_lab.distributed.sharded.FSDPRun` for "fsdp". Raises ValueError for another name."""
    if name == "fsdp":
        from gsm_lab.distributed.sharded import FSDPRun

        return FSDPRun
    if name != "ddp":
        raise ValueError(f"parallel must be one of ddp, fsdp, got {name!r}")
    return DDPRun
