"""Runs to compare for `reactivation`: one a momentum, and control runs in which weights may not come back."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsm_lab.checks import flag, is_number, several, shown, whole
from gsm_lab.knobs import each
from gsm_lab.studies.recording import Recorder, survivors
from gsm_lab.studies.runs import MOMENTA, bar_over, dense, fresh, to_the_end, train_each
from gsm_lab.training.run import Run


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
    momenta, matched, _ = each("momenta", momenta, "momentum"), flag("matched", matched), flag("progress", progress)
    base = fresh(settings).settings
    runs = {}
    for momentum in momenta:
        run = runs[momentum] = fresh(settings, momentum=momentum)
        if matched:
            run.set(lr=base.lr * (1 - momentum) / (1 - base.momentum))
    recorders = {momentum: Recorder(run, patience) for momentum, run in runs.items()}
    train_each(runs, progress, "momentum")
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
        minus this one's; `tested`, test samples; `active` weights ever, `woken` ones, and `kept_woken`.

    Raises ValueError: no seeds or no `after`, or one out of range.
    """
    seeds, after, _ = each("seeds", seeds, "seed"), several("after", after), flag("progress", progress)
    patience = None if patience is None else whole("patience", patience, valid="a whole number of steps")
    first = fresh(settings)
    for epochs in after:
        if not (is_number(epochs) and 0 < epochs < first.settings.epochs):
            raise ValueError(f"after must hold epochs between 0 and {first.settings.epochs}, got {shown(epochs)}")
    kinds = [("plain", math.nan), *((kind, epochs) for kind in ("frozen", "forbidden") for epochs in after)]
    rows = []
    with bar_over([first] * len(seeds), progress) as bar:
        bar.total += first.planned * (len(kinds) - 1) * len(seeds)
        for seed in seeds:
            plain, start = 0.0, fresh(settings, seed=seed)
            bar.set_description(f"dense, seed {seed}")
            dense(start, bar)
            for variant, epochs in kinds:
                bar.set_description(f"{variant}, seed {seed}")
                run = copy.deepcopy(start, {id(start.data): start.data})  # all but the data, which nobody changes
                recorder = Recorder(run, patience)
                if variant != "plain":
                    closes = max(1, round(epochs * run.epoch_steps))
                    run.recorders.append(
                        _Gatekeeper(run, closes, recorder.patience if variant == "forbidden" else None)
                    )
                to_the_end(run, bar)
                live, cut = run.evaluate(), run.evaluate(cut=True)
                plain = cut if variant == "plain" else plain
                row = {"seed": seed, "variant": variant, "after": epochs, "live": live, "cut": cut, "lost": plain - cut}
                rows.append(row | {"tested": len(run.data.test_y)} | _counts(recorder))
    return pd.DataFrame(rows)


class _Gatekeeper:
    """From step `closes` on, lets only those weights be active that were so then, or (with `patience`) lately."""

    def __init__(self, run: Run, closes: int, patience: int | None) -> None:
        self.run, self.closes, self.patience = run, closes, patience
        self.passive = np.zeros(run.opt.weights, np.int32)  # steps in a row

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        if self.patience is None:
            if step == self.closes:
                self.run.opt.candidates = torch.from_numpy(active.copy())
            return
        if step <= self.closes:
            return
        self.passive += 1
        self.passive[active] = 0
        self.run.opt.candidates = torch.from_numpy(self.passive < self.patience)


def _counts(recorder: Recorder) -> dict[str, int]:
    """How many weights were ever active, how many were woken, and how many of these the cut would keep."""
    active, woken = recorder.last_active > recorder.first, recorder.woken
    kept_woken = int((woken & survivors(recorder.run)).sum())
    return {"active": int(active.sum()), "woken": int(woken.sum()), "kept_woken": kept_woken}
