"""Trainings on several ranks with DDP: their local gradients, and what becomes of them when less is exchanged.

The batch of a step is that of a `Run` with the same settings, dealt out to the ranks; so the dense exchange trains the
network that one process would, up to rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gsm_lab.checks import flag, integer, is_number, several, shown
from gsm_lab.distributed.launch import MOST, on_ranks
from gsm_lab.distributed.placement import DDP
from gsm_lab.knobs import each
from gsm_lab.metric import marked
from gsm_lab.studies.runs import fresh
from gsm_lab.studies.sparse_exchange import Exchange, exchange_hook
from gsm_lab.training.fitting import must_be_a_mean
from gsm_lab.training.loop import advance
from gsm_lab.training.parts import Parts
from gsm_lab.training.run import Run

# what DDP imports when it is first made, and what a run compiles
_IMPORTS = ("torch._dynamo", "gsm_lab.optim.fused.step", "gsm_lab.training.history_compiled")
LOOKS = 15  # steps looked at unless told, evenly over the run


@dataclass(frozen=True)
class RankGradients:
    """One step of a training on several ranks: the gradients before and after DDP averaged them.

    `step` of `planned`, `epoch`; `weights` float32 [N] before the step; `local` float32 [ranks, N], each rank's own
    gradient; `averaged` float32 [N]; `active` bool [N], who received it; `same`, whether every rank had this set and
    this threshold, to the bit; `nonzeros`, Q; `layers`, name -> weights in it, in the order of the N.
    """

    step: int
    planned: int
    epoch: float
    weights: np.ndarray
    local: np.ndarray
    averaged: np.ndarray
    active: np.ndarray
    same: bool
    nonzeros: int
    layers: dict[str, int]


def local_gradients(
    settings: Mapping[str, Any],
    ranks: int = 2,
    steps: Sequence[int] | None = None,
    timeout: float = 120.0,
    progress: bool = True,
) -> list[RankGradients]:
    """Train with DDP in `ranks` real processes, and take down every rank's own gradient at some steps.

    Args:
        settings: arguments of `Run`, by name. The batch is dealt out: each rank gets batch_size / ranks samples. A
            model given as a module must be of a class that can be imported.
        ranks: 2 to 64.
        steps: gated steps to look at, 1 to what is planned; 15 spread evenly unless given. A look takes
            (4 ranks + 9) bytes a weight.
        timeout, progress: as for `on_ranks`, whose errors are raised too.

    Raises ValueError: a setting or step out of range, a batch that cannot be dealt out evenly, or a loss that is not
    the mean over the samples.
    """
    first = _checked(settings, ranks, progress)
    planned = first.planned
    steps = np.linspace(1, planned, min(LOOKS, planned)).round() if steps is None else several("steps", steps)
    steps = [int(step) if is_number(step) and step == int(step) else step for step in steps]
    steps = sorted({integer("steps", step, 1, planned) for step in steps})
    arguments = {"settings": dict(settings), "steps": steps}
    total = first.dense_left + steps[-1]
    return on_ranks(_looks, ranks, arguments, imports=_IMPORTS, total=total, timeout=timeout, progress=progress)[0]


def with_hook(
    settings: Mapping[str, Any],
    factors: Sequence[float] = (1, 2, 4, 8),
    ranks: int = 2,
    seeds: Iterable[int] = range(3),
    timeout: float = 120.0,
    progress: bool = True,
) -> pd.DataFrame:
    """What a training reaches when ranks send only their local top kQ of |g * w|, beside one with the dense exchange.

    The gate chooses its Q from the mean of what was sent. Dense epochs before it closes use the dense exchange, and
    biases are always averaged.

    Args:
        settings, ranks, timeout, progress: as for `local_gradients`.
        factors: k, each > 0. Q times k is rounded down, and is at most N.
        seeds: at least one. Runs of one seed share initial weights, dense epochs and batches.

    Returns:
        A row a run: `seed`; `factor` (inf for the dense exchange); `live` and `cut`, test accuracy 0..1 at the end;
        `lost`, the cut accuracy of the seed's dense exchange minus this one's; `base`, the dense model's accuracy when
        the gate closed; `tested`, test samples; `bytes` a rank sends in a step over a ring (indices of 4 bytes), and
        `share` of these in the bytes of the dense exchange; `ranks`. Accuracies are with the batch norm statistics of
        the network, which are averaged over ranks at every step. Of another metric its values, `lost` being how much
        worse, and `metric`, which it is.

    Raises:
        ValueError: a setting out of range, no seeds or no factors, or a loss that is no mean over samples.
        RuntimeError: as `on_ranks`; also if the ranks end with different models, which must never happen.
    """
    factors, seeds = factors_in(factors), each("seeds", seeds, "seed")
    first = _checked(settings, ranks, progress)
    total = len(seeds) * (1 + len(factors)) * (first.dense_left + first.planned)
    arguments = {"settings": dict(settings), "factors": factors, "seeds": seeds}
    found = on_ranks(_exchanges, ranks, arguments, imports=_IMPORTS, total=total, timeout=timeout, progress=progress)
    for rank, rows in enumerate(found):
        if [row["digest"] for row in rows] != [row["digest"] for row in found[0]]:
            raise RuntimeError(f"rank {rank} ended with another model than rank 0")
    table = pd.DataFrame(found[0]).drop(columns="digest")
    dense = table[np.isinf(table["factor"])].set_index("seed")
    table.insert(4, "lost", first.metric.cost(table["seed"].map(dense["cut"]), table["cut"]))
    table = marked(table, first.metric)
    return table.assign(share=table["bytes"] / table["seed"].map(dense["bytes"]), ranks=ranks)


def factors_in(factors: Iterable[float]) -> list[float]:
    """The factors as floats. Raises TypeError or ValueError."""
    factors = several("factors", factors, "finite number > 0")
    if not all(is_number(k) and k > 0 for k in factors):
        raise ValueError(f"factors must hold at least one finite number > 0, got {shown(factors)}")
    return [float(k) for k in factors]


def _checked(settings: Mapping[str, Any], ranks: int, progress: bool) -> Run:
    """A run that is not going to be trained: what is wrong with the settings shows here, before processes start."""
    ranks, _ = integer("ranks", ranks, 2, MOST), flag("progress", progress)
    run = fresh(settings)
    size = run.settings.batch_size
    if size % ranks:
        raise ValueError(f"batch_size must be a multiple of ranks, to be dealt out evenly, got {size} and {ranks}")
    must_be_a_mean(run.model, run.data, run.loss, run.output)
    return run


# -- in the process of a rank ------------------------------------------------------------------------------------------


class _Watched(DDP):
    """DDP that exchanges what an `Exchange` says, all in one bucket: the hook's competition is over all of them."""

    def wrapped(self, run: Parts) -> DistributedDataParallel:
        """As in `DDP`, with the hook."""
        self.exchange = Exchange(run.tensors, self.size)
        size = sum(p.numel() * p.element_size() for p in run.model.parameters())
        model = super().wrapped(run, bucket_cap_mb=size // 2**20 + 1)
        model.register_comm_hook(self.exchange, exchange_hook)
        return model


def _quiet(settings: Mapping[str, Any], **more: Any) -> tuple[Run, Exchange]:
    """A run over the ranks that is not evaluated on the way, and what it exchanges."""
    placement = _Watched()
    run = fresh(settings, placement=placement, **more)
    run.set(evaluate_every=max(1, run.planned))
    return run, placement.exchange


def _looks(report: Callable[[int], None], settings: Mapping[str, Any], steps: list[int]) -> list[RankGradients]:
    """The looks, on rank 0; none on the others."""
    (run, exchange), looks = _quiet(settings), []
    world, told = run.placement.world, [lambda _, done: report(done)]
    advance(run, 0, told)
    for step in steps:
        advance(run, step - 1, told)
        exchange.listen = True
        weights = _flat(run.tensors)
        run.step()
        report(1)
        exchange.listen = False
        parts = [torch.empty_like(exchange.local) for _ in range(world.size)] if world.rank == 0 else None
        dist.gather(exchange.local, parts)
        active = run.opt.active_mask().numpy()
        choices = world.exchange([hashlib.sha256(active.tobytes()).hexdigest(), run.opt.threshold])
        if parts is not None:
            averaged = _flat([p.grad for p in exchange.weights])
            local = torch.stack(parts).numpy()
            same = all(choice == choices[0] for choice in choices)
            at = (step, run.planned, step / run.epoch_steps, weights, local, averaged, active.copy(), same)
            looks.append(RankGradients(*at, run.nonzeros, dict(run.history.layers)))
    return looks


def _exchanges(
    report: Callable[[int], None], settings: Mapping[str, Any], factors: list[float], seeds: list[int]
) -> list[dict[str, Any]]:
    """A row for each seed and factor, the same on every rank."""
    rows, told = [], [lambda _, done: report(done)]
    for seed in seeds:
        for factor in (math.inf, *factors):
            run, exchange = _quiet(settings, seed=seed)
            advance(run, 0, told)
            n, ranks = run.opt.weights, run.placement.size
            exchange.gathered = exchange.reduced = 0
            exchange.sent = None if math.isinf(factor) else min(n, max(1, int(factor * run.nonzeros)))
            advance(run, run.planned, told)
            # over a ring: each part goes to all but one, and what is reduced goes round twice
            sent = exchange.gathered * (ranks - 1) + exchange.reduced * 2 * (ranks - 1) / ranks
            digest = hashlib.sha256(_flat(list(run.model.parameters())).tobytes()).hexdigest()
            row = {"seed": seed, "factor": factor, "live": run.evaluate(), "cut": run.evaluate(cut=True)}
            row |= {"base": run.base, "tested": len(run.data.test_y), "bytes": sent / run.planned, "digest": digest}
            rows.append(row)
    return rows


def _flat(tensors: list[torch.Tensor]) -> np.ndarray:
    """float32 [N], a copy."""
    return torch.cat([p.detach().float().reshape(-1) for p in tensors]).numpy()
