"""Runs over ranks: several processes train one model, with DDP (each holds all of it) or FSDP2 (each holds a part).

    with gsm_lab.distributed.joined():                    # in every process that torchrun started
        run = gsm_lab.Run(data="mnist", compression=60, placement=gsm_lab.distributed.DDP())      # or FSDP()
        run.train()
        run.save("runs/a")                                # what `Run.resume` reads, in one process or many

Every rank calls all methods of the run, in the same order and with the same arguments, `evaluate`, `cut`, `save` and
`set` among them. History, evaluations and counters are the same on all. A step takes the same rows as in one process:
`batch_size` counts those of all ranks, of which rank r takes every size-th from the r-th on. Where that leaves some
ranks a row more, each weighs in by its rows. The averaged gradient is therefore that of one process up to rounding,
for a loss that is a mean over samples; and a method, which sees the averaged gradient, picks the same weights on every
rank. Batch norm is the exception: it normalises by a rank's own rows, as always under DDP (its running statistics are
averaged over ranks at every step).
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from gsm_lab import data as datasets
from gsm_lab.distributed.world import Elsewhere, RankLost, World, lost_ranks, stops_held_back
from gsm_lab.knobs import LIVE, Settings
from gsm_lab.metric import Metric
from gsm_lab.optim.picks import Picks
from gsm_lab.training.fitting import must_be_a_mean
from gsm_lab.training.interrupts import interrupt
from gsm_lab.training.outputs import answer
from gsm_lab.training.parts import Loss, Parts
from gsm_lab.training.placement import Single
from gsm_lab.training.run import Run


class Parallel(Single):
    """The processes of the default process group train one run together: the base of `DDP` and `FSDP`.

    A model that is given as a module starts with the weights it has on rank 0. Random numbers that a model draws
    (dropout) differ from rank to rank. Repeatable to the bit for one number of ranks.

    What a step exchanges beside gradients and the gate's own: one all-reduce of 32 bytes, and 8 for each number that
    batch norm keeps. It carries the loss, whether a rank was asked to stop, and whether the settings agree.

    Raises (the run does):
        RuntimeError: there is no process group.
        ValueError: when it is made, where the ranks' settings or data differ, there are more ranks than rows in a
            batch, or the loss is no mean over samples (a sum, class weights, ignored labels): a mean over ranks is not
            that. From `step` and `train`, before a weight changes: `set` was not called alike on all ranks.
        RankLost: a rank has ended, or did not answer in time. There is no going on but by resuming what was saved.
        KeyboardInterrupt: on all ranks after the same step, when one of them received SIGINT, SIGTERM or SIGHUP.
    """

    breakdowns = (FloatingPointError, RankLost)
    unsaved = (OSError, Elsewhere)

    def __init__(self) -> None:
        self.world = World()
        self.world.add(self)
        self.rank, self.size = self.world.rank, self.world.size

    # -- putting a run together --------------------------------------------------------------------------------------

    def load(self, source: str | datasets.Dataset) -> datasets.Dataset:
        """The data; on each host one rank goes first, as it may have to be fetched."""
        if not isinstance(source, str):
            return source
        if self.world.local > 0:
            self.world.exchange()
        data = datasets.load(source)
        if self.world.local == 0:
            self.world.exchange()
        return data

    def must_suit(self, run: Parts, settings: Settings, options: dict[str, Any], data: datasets.Dataset) -> None:
        """Raises ValueError where ranks differ in what they were given, or have nothing to do in a batch."""
        its = {"method": run.method.name, "parallel": type(self).__name__, "data": data.digest}
        its["metric"] = str(run.given_metric)
        self.world.must_agree(asdict(settings) | options | its)
        if settings.batch_size < self.size:
            raise ValueError(
                f"batch_size must be at least the number of ranks, {self.size}, got {settings.batch_size}: "
                "each rank takes a share of every batch"
            )
        self.must_allow(settings)
        with lost_ranks():  # of a model that was given; that of a named one follows from the seed
            for t in (run.initial or {}).values():
                if isinstance(t, Tensor) and not isinstance(t, DTensor):  # not what get_extra_state returned
                    dist.broadcast(t, 0)

    def tried(
        self, run: Parts, model: nn.Module, data: datasets.Dataset, batch_size: int, loss: Loss, metric: Metric
    ) -> float | None:
        """As in one process; the loss must be a mean over samples, too."""
        with self.world.together():  # what is a user's own may fail on one rank alone
            above = super().tried(run, model, data, batch_size, loss, metric)
        if self.size > 1:
            must_be_a_mean(model, data, loss, run.output)
        return above

    def place(self, model: nn.Module, named: bool, picks: dict[str, Picks]) -> nn.Module:
        """On a GPU a rank, where there are as many and the model is one of gsm_lab's; else where it is."""
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        if named and torch.cuda.device_count() >= ranks_here:
            torch.cuda.set_device(self.world.local)
            model = model.cuda()
        return model

    def wrap(self, run: Parts) -> None:
        """As in one process; also notes what batch norm keeps."""
        super().wrap(run)
        norms = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._statistics = [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]

    def leave(self) -> None:
        """Let go of the process group, which is about to end."""

    def exchanged(self, count: int) -> None:
        """Raises RuntimeError."""
        raise RuntimeError(f"{count} parameters of run.model were exchanged, which ranks cannot do: make a new run")

    def must_be_copyable(self) -> None:
        """Raises TypeError."""
        raise TypeError("a run over ranks cannot be copied or pickled: save(folder), and Run.resume(folder) is one")

    # -- a step ------------------------------------------------------------------------------------------------------

    def rows(self, batches: datasets.Batches, step: int) -> tuple[Tensor, Tensor, float]:
        """Every size-th row of a batch."""
        rows = batches.indices(step)[self.rank :: self.size]
        data = batches.dataset
        weight = len(rows) * self.size / batches.batch_size
        return data.train_x.index_select(0, rows), data.train_y.index_select(0, rows), weight

    @contextlib.contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Every rank draws one number from the common stream, and goes its own way from there until the block ends."""
        if self.size == 1:  # as in one process
            yield
            return
        seed = int(torch.randint(2**31, ()))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + self.rank)
            yield

    def mean(self, run: Parts, loss: float) -> float:
        """The mean loss; also learns whether a rank was asked to stop, and averages what batch norm keeps."""
        live = {name: getattr(run.settings, name) for name in LIVE}
        moving = json.dumps([*live.values()])
        mark = float(zlib.crc32(moving.encode()) % 2**15)  # few enough bits for the sums of squares to be exact
        numbers = torch.tensor([loss, bool(self._asked), mark, mark**2], dtype=torch.float64)
        kept = [s.detach().double().cpu() for s in self._statistics]
        total = self.world.total(torch.cat([numbers, *kept]))
        loss, stop, marks, squares = total[:4].tolist()
        if marks**2 != squares * self.size:  # equality holds where all marks are equal, and nowhere else
            self.world.must_agree(live)
        if stop:  # for the same reason, to all of them
            self._agreed.append(max(self.world.exchange(self._asked[0] if self._asked else 0)))
        with torch.no_grad():
            for mine, mean in zip(self._statistics, total[4:].split([s.numel() for s in kept]), strict=True):
                mine.copy_(mean / self.size)
        return loss / self.size

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[list[int]]:
        """Steps end at the same one on all ranks, when one of them is asked to stop."""
        with stops_held_back() as self._asked:
            self._agreed: list[int] = []
            yield self._agreed
        if self._agreed:
            self._asked.clear()
            raise interrupt(self._agreed[0])

    steps = staticmethod(lost_ranks)

    # -- evaluating, and what one process does for all ---------------------------------------------------------------

    def count(self, right: Callable[[Tensor, Tensor], int], x: Tensor, y: Tensor) -> int:
        """Each rank looks at every size-th row."""
        with lost_ranks():
            rows = slice(self.rank, None, self.size)
            return int(self.world.total(torch.tensor(right(x[rows], y[rows]))))

    def outputs(self, answered: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Each rank works out every size-th row, and all get all of them, to the bit."""

        def whole(mine: Any) -> Any:
            if not isinstance(mine, Tensor):
                return mine
            kind = mine.dtype if mine.dtype in (torch.float32, torch.float64, torch.int64) else torch.float32
            every = torch.zeros(len(x), *mine.shape[1:], dtype=kind)
            every[self.rank :: self.size] = mine.to(kind)
            return self.world.total(every).to(mine.dtype)  # of each row all ranks but one have zeros

        with lost_ranks():
            return tree_map(whole, answered(x[self.rank :: self.size]))

    def measured(self, measure: Callable[[], float]) -> float:
        """What rank 0 measures; what fails on one rank fails on all."""
        with lost_ranks():
            with self.world.together():
                value = measure()
            return self.world.exchange(value)[0]

    def together(self) -> contextlib.AbstractContextManager[Any]:
        """What fails with ValueError or OSError on one rank fails on all, as `gsm_lab.distributed.world.Elsewhere`."""
        return self.world.together()

    @contextlib.contextmanager
    def by_first_rank(self) -> Iterator[bool]:
        """True on rank 0; the others wait for it, and raise `gsm_lab.distributed.world.Elsewhere` where it raises."""
        with lost_ranks(), self.world.together():
            yield self.rank == 0

    def first_rank_says(self, flag: bool) -> bool:
        """`flag` as it is on rank 0."""
        return bool(self.world.total(torch.tensor(int(flag and self.rank == 0))))

    def must_agree(self, run: Parts) -> None:
        """Raises ValueError where the ranks have not resumed the same state of a run."""
        self.world.must_agree({"the run resumed from": (run.steps, run.dense_steps, run.knobs)})

    def alone(self, run: Parts, folder: Path) -> Run:
        """The run in this process alone."""
        return Run.resume(
            folder,
            None if isinstance(run.source_model, str) else run.source_model,
            None if isinstance(run.source_data, str) else run.source_data,
            run.given_loss,
            run.output,
            lambda name: type(run.method)(),
            metric=run.given_metric,
        )


class DDP(Parallel):
    """Every rank holds the model and gets the averaged gradient, so it picks the same weights without asking."""

    def wrap(self, run: Parts) -> None:
        """The model in `DistributedDataParallel` is what is called."""
        super().wrap(run)
        self.forward = self.wrapped(run)
        self._backward_for_nothing(run)

    def wrapped(self, run: Parts, **more: Any) -> DistributedDataParallel:
        """The model as DDP has it; `more`: arguments of `DistributedDataParallel`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name of `broadcast_buffers` is not in torch 2.6
            return DistributedDataParallel(run.model, broadcast_buffers=False, gradient_as_bucket_view=True, **more)

    def _backward_for_nothing(self, run: Parts) -> None:
        """Have DDP arrange its buckets, which it does by the first backward pass of a process.

        After that one it adds up in another order. So a run that goes on would differ in the last bit from one that
        was resumed, if that pass were a step of the run.
        """
        buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
        x, y = (t[: self.size * 2] for t in (run.data.train_x, run.data.train_y))
        with torch.random.fork_rng(devices=[]):
            run.wake()
            run.loss(answer(self.forward, x, run.output), y).backward()
        run.opt.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def leave(self) -> None:
        """Let go of the process group, which is about to end."""
        self.forward = None
