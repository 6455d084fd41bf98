"""The runs that studies train: one a seed or one a momentum, otherwise alike; and some whose weights may not come back.

All of a study's runs are under one progress bar.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from gsm_lab.checks import flag, is_number, several, shown, whole
from gsm_lab.knobs import each
from gsm_lab.metric import marked
from gsm_lab.models import copied
from gsm_lab.studies.recording import Recorder, survivors
from gsm_lab.training.loop import Progress, advance
from gsm_lab.training.run import Run

MOMENTA = (0.9, 0.98, 0.99)


def fresh(settings: Mapping[str, Any], **more: Any) -> Run:
    """A run of its own: a model that came as a module is not shared with other runs."""
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise TypeError(f"settings must be the arguments of a Run by name, got {shown(settings)}")
    model = settings.get("model", "lenet300")
    own = {"model": copied(model)[0]} if isinstance(model, nn.Module) else {}
    return Run(**{**settings, **own, **more})


def per_momentum(
    settings: Mapping[str, Any], momenta: Iterable[float] = MOMENTA, matched: bool = False
) -> dict[float, Run]:
    """One run per momentum, not yet trained, otherwise alike.

    Args:
        settings: arguments of `Run`: model, data, loss, knobs. What is not given is as `Run` has it. A model given as a
            module is copied for each run.
        momenta: each from 0 to below 1.
        matched: choose the learning rates so that lr / (1 - momentum) is that of `settings`; otherwise all have the
            same learning rate.

    Raises:
        ValueError: no momenta, one out of range, or settings that `Run` refuses (a model without prunable weights).
    """
    momenta, matched, runs = each("momenta", momenta, "momentum", "momentum"), flag("matched", matched), {}
    for momentum in momenta:
        run = fresh(settings)
        lr = run.settings.lr
        if matched:
            lr *= (1 - momentum) / (1 - run.settings.momentum)
        run.reset(momentum=momentum, lr=float(f"{lr:.6g}"))  # 0.02, not 0.020000000000000018
        runs[momentum] = run
    return runs


def train_each(runs: Mapping[Any, Run], progress: bool, what: str) -> None:
    """Train runs to the ends of their plans, one after the other; the progress bar says which: `what` and its key."""
    total = sum(run.dense_left + run.planned for run in runs.values())
    with Progress(total, flag("progress", progress)) as progress:
        for key, run in runs.items():
            progress.bar.set_description(f"{what} {key}")
            advance(run, run.planned, [progress])


def watch(
    settings: Mapping[str, Any],
    momenta: Sequence[float] = MOMENTA,
    matched: bool = True,
    patience: int | None = None,
    progress: bool = True,
) -> dict[float, Recorder]:
    """Train one run a momentum, recorded from its first gated step; the tables of `reactivation` take each recorder.

    Args:
        settings: arguments of `Run`, by name. A model given as a module is copied, and stays as it is.
        momenta: at least one.
        matched: scale the learning rate so that lr / (1 - momentum) is what `settings` make it; else lr stays.
        patience: as for `Recorder`.
        progress: show a progress bar.

    Raises ValueError: no momenta, or a setting out of range.
    """
    momenta, matched = each("momenta", momenta, "momentum"), flag("matched", matched)
    base = fresh(settings).settings
    recorders = {}
    for momentum in momenta:
        run = fresh(settings, momentum=momentum)
        if matched:
            run.set(lr=base.lr * (1 - momentum) / (1 - base.momentum))
        recorders[momentum] = Recorder(run, patience)
    train_each({momentum: recorder.run for momentum, recorder in recorders.items()}, progress, "momentum")
    return recorders


def controls(
    settings: Mapping[str, Any],
    after: Sequence[float] = (1, 4),
    seeds: Iterable[int] = range(3),
    patience: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """What accuracy is lost when weights may not come back: runs whose gate forbids it, beside plain ones.

    Args:
        settings: arguments of `Run`, by name. With a module as model, which is copied, only batches follow the seed.
        after: epochs after which it is forbidden, more than 0 and less than the run has.
        seeds: at least one. Runs of one seed share initial weights, dense epochs and batches.
        patience: passive steps in a row after which `forbidden` closes the gate on a weight; as for `Recorder`.
        progress: show a progress bar.

    Returns:
        A row a run: `seed`; `variant`: "plain", "frozen" (only weights active in the step `after` may ever be) or
        "forbidden" (a weight passive for `patience` steps in a row, from then on, is so for good); `after` (NaN for
        plain runs); `live`, `cut` (test accuracy 0..1 at the end); `lost`, the cut accuracy of the seed's plain run
        minus this one's; `tested`, test samples; `active` weights ever, `woken` ones, and `kept_woken`. Of another
        metric its values, `lost` being how much worse, and `metric`, which it is.

    Raises ValueError: no seeds or no `after`, or one out of range.
    """
    seeds, after, progress = each("seeds", seeds, "seed"), several("after", after), flag("progress", progress)
    patience = None if patience is None else whole("patience", patience, valid="a whole number of steps")
    first = fresh(settings)
    for epochs in after:
        if not (is_number(epochs) and 0 < epochs < first.settings.epochs):
            raise ValueError(f"after must hold epochs between 0 and {first.settings.epochs}, got {shown(epochs)}")
    kinds = [("plain", math.nan), *((kind, epochs) for kind in ("frozen", "forbidden") for epochs in after)]
    rows = []
    with Progress(len(seeds) * (first.dense_left + len(kinds) * first.planned), progress) as progress:
        for seed in seeds:
            plain, start = 0.0, fresh(settings, seed=seed)
            progress.bar.set_description(f"dense, seed {seed}")
            advance(start, 0, [progress])
            for variant, epochs in kinds:
                progress.bar.set_description(f"{variant}, seed {seed}")
                run = copy.deepcopy(start, {id(start.data): start.data})  # all but the data, which nobody changes
                recorder = Recorder(run, patience)
                if variant != "plain":
                    closes = max(1, round(epochs * run.epoch_steps))
                    patient = recorder.patience if variant == "forbidden" else None
                    run.recorders.append(_Gatekeeper(run, closes, patient))
                advance(run, run.planned, [progress])
                live, cut = run.evaluate(), run.evaluate(cut=True)
                plain = cut if variant == "plain" else plain
                row = {"seed": seed, "variant": variant, "after": epochs, "live": live, "cut": cut}
                row["lost"] = run.metric.cost(plain, cut)
                active, woken = recorder.last_active > recorder.first, recorder.woken
                row |= {"tested": len(run.data.test_y), "active": int(active.sum()), "woken": int(woken.sum())}
                rows.append(row | {"kept_woken": int((woken & survivors(run)).sum())})
    return marked(pd.DataFrame(rows), first.metric)


class _Gatekeeper:
    """From step `closes` on, lets only those weights be active that were so then, or (with `patience`) lately."""

    def __init__(self, run: Run, closes: int, patience: int | None) -> None:
        self.run, self.closes, self.patience = run, closes, patience
        self.passive = np.zeros(run.opt.weights, np.int32)  # steps in a row

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        if self.patience is None and step == self.closes:
            self.run.opt.candidates = torch.from_numpy(active.copy())
        elif self.patience is not None and step > self.closes:
            self.passive = np.where(active, 0, self.passive + 1)
            self.run.opt.candidates = torch.from_numpy(self.passive < self.patience)
