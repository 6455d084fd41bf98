"""Winning tickets (Frankle and Carbin, ICLR 2019): the wiring that pruning finds, trained from the first weights.

train dense -> find the mask (by magnitude, by GSM, or at random) -> back to the initial weights -> train, mask fixed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gsm_lab.checks import flag, integer, kind, one_of, whole
from gsm_lab.methods.base import OF_THE_GATE, Rival
from gsm_lab.models import copied
from gsm_lab.optim.groups import flat_mask, keep_masks
from gsm_lab.training.parts import Parts
from gsm_lab.training.run import Run

BY = ("gsm", "magnitude", "random")  # who finds the mask


class Ticket(Rival):
    """Training from the initial weights, without dense epochs, with only the weights of a given mask.

    `wear(run, mask)` says which, before the first step; without it all weights are trained. A reset keeps the mask,
    unless the new model has another number of weights.
    """

    name = "tickets"
    worn: Tensor | None = None

    def start(self, run: Parts) -> None:
        """As in `Rival`; after a reset, with the mask."""
        super().start(run)
        if self.worn is not None and self.worn.shape != self.inside.shape:
            self.worn = None
        self.before_step(run)

    def before_step(self, run: Parts) -> None:
        """Before the first step, also where dense epochs were asked for and came between, put on the mask."""
        if run.steps == 0 and self.worn is not None:
            self.keep(run, self.worn)

    def wear(self, run: Parts, mask: Tensor) -> None:
        """Only the weights in `mask`, bool [N], are in the network. Raises ValueError for another shape or dtype."""
        valid = f"a bool tensor of shape {tuple(self.inside.shape)}"
        kind("mask", mask, Tensor, valid)
        if mask.dtype != torch.bool or mask.shape != self.inside.shape:
            raise ValueError(f"mask must be {valid}, got {mask.dtype} of shape {tuple(mask.shape)}")
        self.worn = mask.to(self.inside.device, copy=True)
        self.keep(run, self.worn)

    def restore(self, run: Parts, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """As in `Rival`."""
        super().restore(run, tensors, plain)
        self.worn = self.inside.clone() if self.settled else None


def find(run: Run, by: str = "gsm", progress: bool = True) -> Tensor:
    """The mask of Q weights, bool [N] on the CPU, that a run leads to. The run is trained for it.

    Args:
        run: not trained yet, or not to its end; for "magnitude" without gated steps.
        by: "gsm" trains it to its end, or until the knob `cut_at` has cut it to Q, and takes the Q largest |w|;
            "magnitude" takes those of the dense network, after its dense epochs; "random" draws Q weights.
        progress: show a progress bar.

    Raises ValueError for another `by`, and for "magnitude" where the run has gated steps behind it.
    """
    kind("run", run, Run, "a gsm_lab.Run")
    by, progress = one_of("by", by, BY), flag("progress", progress)
    if by == "magnitude" and run.steps:
        raise ValueError(f"run must have no gated steps behind it, or its network is not dense, got {run.steps:,}")
    if by == "random":
        drawn = torch.Generator().manual_seed(run.settings.seed ^ 0x71C)
        mask = torch.zeros(run.opt.weights, dtype=torch.bool)
        mask[torch.randperm(run.opt.weights, generator=drawn)[: run.nonzeros]] = True
        return mask
    if by == "gsm":
        run.train(max(0, steps_to_find(run) - run.steps) / run.epoch_steps, progress)
    else:
        run.pretrain()
    return flat_mask(keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).values())


def steps_to_find(run: Run) -> int:
    """Gated steps after which it is settled who stays: all, or those until the knob `cut_at` has cut the net to Q."""
    its = kind("run", run, Run, "a gsm_lab.Run").settings
    settled = max(its.cut_at, min(its.freeze, its.ramp))  # until then C rises, and it is cut again
    return min(run.planned, max(1, math.ceil(settled * run.planned)))  # it is cut at the end of a step


def shuffled(mask: Tensor, layers: Mapping[str, int], seed: int = 0) -> Tensor:
    """A mask, bool [N], in which each layer has as many weights as in `mask`, at other places: the wiring is lost.

    Args:
        mask: bool [N], on the CPU. layers: name -> number of weights, as `run.history.layers` has it.
        seed: of the places.

    Raises ValueError where the layers do not add up to N.
    """
    kind("mask", mask, Tensor, "a bool tensor [N]")
    kind("layers", layers, Mapping, "a mapping of names to numbers of weights")
    sizes, seed = [whole("layers", n, 0) for n in layers.values()], integer("seed", seed, 0, 2**63 - 1)
    if mask.ndim != 1:
        raise ValueError(f"mask must be of shape [N], got {tuple(mask.shape)}")
    if sum(sizes) != len(mask):
        raise ValueError(f"layers must have {len(mask):,} weights in all, as mask has, got {sum(sizes):,}")
    drawn = torch.Generator().manual_seed(seed)
    return torch.cat([part[torch.randperm(len(part), generator=drawn)] for part in mask.split(sizes)])


def ticket(by: str = "gsm", progress: bool = True, retrain: dict[str, Any] | None = None, **settings: Any) -> Run:
    """A winning ticket, found and made ready to be trained: a run of a `Ticket` at step 0.

    Args:
        by, progress: as for `find`.
        retrain: settings of the training with the mask fixed, where they differ from those of the search.
        settings: arguments of `Run`, those of the search. A model given as a module is copied.

    Raises ValueError where `retrain` would begin with other weights than the search, and as `find` and `Run` do.
    """
    by, progress, model = one_of("by", by, BY), flag("progress", progress), settings.get("model")
    retrain = {} if retrain is None else kind("retrain", retrain, Mapping, "settings by name")
    own = isinstance(model, nn.Module)
    for name in ("model",) if own else ("model", "seed"):
        if name in retrain:
            raise ValueError(f"retrain must not set {name}: a ticket is trained from the first weights of its search")
    mask = find(Run(**settings | ({"model": copied(model)[0]} if own else {})), by, progress)
    again = {k: v for k, v in settings.items() if k not in OF_THE_GATE}
    again |= {"model": copied(model)[0]} if own else {}
    return worn(mask, **{**again, "pretrain": 0, **retrain})


def worn(mask: Tensor, **settings: Any) -> Run:
    """A run of a `Ticket` with this mask, bool [N], at step 0; arguments are those of `Run`."""
    ticket = Ticket()
    run = Run(method=ticket, **settings)
    ticket.wear(run, mask)
    return run
