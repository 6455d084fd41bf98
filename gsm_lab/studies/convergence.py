"""Does training with the gate come to rest? Loss, accuracies, distance to the cut network and turnover, over seeds.

There is no proof that it does: the gate makes the update discontinuous. What is measured here, at evenly spaced steps:
the loss of the batches, accuracy live and after the cut, how far the network is from its own cut, |W - cut(W)| / |W|,
and how much of the active set is new, from one step to the next and from one record to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from gsm_lab.checks import flag, kind, several, whole
from gsm_lab.knobs import each
from gsm_lab.metric import marked
from gsm_lab.studies.aggregation import COLUMNS, bands
from gsm_lab.studies.runs import fresh, train_each
from gsm_lab.training.run import Run

__all__ = ["COLUMNS", "Distances", "bands", "distance", "over_seeds"]


class Distances:
    """Every `every` steps from now on: how far a run's network is from its cut, and how much of its active set is new.

    Args:
        run: any run, also of a rival (`gsm_lab.methods`); its `evaluate_every` is set to `every`.
        every: steps from one record to the next.

    Raises ValueError unless `every` is a whole number of at least 1.
    """

    def __init__(self, run: Run, every: int) -> None:
        kind("run", run, Run, "a gsm_lab.Run")
        every = whole("every", every, valid="a whole number of steps")
        run.set(evaluate_every=every)
        self.run, self.every = run, every
        self._rows: list[tuple[int, float, float]] = []
        self._before: np.ndarray | None = None
        run.recorders.append(self)

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """Record a step, if it is its turn; called by the run."""
        if step % self.every:
            return
        renewed = np.nan
        if self._before is not None and active.any():
            renewed = np.count_nonzero(active & ~self._before) / np.count_nonzero(active)
        self._before = active.copy()
        self._rows.append((step, distance(weights, self.run.nonzeros), renewed))

    def frame(self) -> pd.DataFrame:
        """The records so far, and what the history has at these steps; columns as in `over_seeds`, without the seed."""
        history = self.run.history.frame()
        table = pd.DataFrame(self._rows, columns=["step", "distance", "renewed"])
        step, spans = table["step"], (history["step"] - 1) // self.every
        sums = history.groupby(spans)[["reactivated", "active"]].sum()
        live, cut = (history.set_index("step")[name].reindex(step) for name in self.run.history.metric.columns)
        at = (step - 1) // self.every
        table = table.assign(
            epoch=step / self.run.epoch_steps,
            loss=at.map(history.groupby(spans)["loss"].mean()),
            live=live.to_numpy(),
            cut=cut.to_numpy(),
            turnover=at.map(sums["reactivated"] / sums["active"].clip(lower=1)),
        )
        return table[["step", "epoch", *COLUMNS]]


def distance(weights: list[np.ndarray], q: int) -> float:
    """|W - cut(W)| / |W|, the cut keeping the `q` largest: 0 for a network that is sparse, below 1 for every other.

    `weights`: an array a layer. Raises TypeError where they are something else, ValueError for `q` below 1.
    """
    for w in several("weights", weights, "array"):
        kind("weights", w, np.ndarray, "a list of arrays, one a layer")
    q = whole("q", q)
    squares = np.concatenate([np.square(w.reshape(-1), dtype=np.float64) for w in weights])
    total = squares.sum()
    if q >= len(squares) or total == 0:
        return 0.0
    return float(np.sqrt(np.partition(squares, len(squares) - q)[: len(squares) - q].sum() / total))


def over_seeds(
    settings: Mapping[str, Any], seeds: Iterable[int] = range(5), looks: int = 40, progress: bool = True
) -> pd.DataFrame:
    """Train a run a seed, and record each of them at the same steps.

    Args:
        settings: arguments of `Run`, by name. A model given as a module is copied.
        seeds: at least one.
        looks: about so many records, evenly over the run, at least 1.
        progress: show a progress bar.

    Returns:
        A row a seed and record: `seed`, `step`, `epoch`; `loss`, mean over the steps since the last record; `live` and
        `cut`, test accuracy 0..1; `distance`, |W - cut(W)| / |W|; `turnover`, the share of the active set that was
        passive one step before, mean over the steps since the last record; `renewed`, the share of the active set that
        was passive at the last record (NaN at the first). Of another metric than accuracy `live` and `cut` are its
        values, and `metric` says which it is.

    Raises ValueError: no seeds, or a setting or number out of range.
    """
    looks, _ = whole("looks", looks), flag("progress", progress)
    runs = {seed: fresh(settings, seed=seed) for seed in each("seeds", seeds, "seed")}
    recorders = {seed: Distances(run, max(1, run.planned // looks)) for seed, run in runs.items()}
    train_each(runs, progress, "seed")
    tables = [recorder.frame().assign(seed=seed) for seed, recorder in recorders.items()]
    table = pd.concat(tables, ignore_index=True)[["seed", "step", "epoch", *COLUMNS]]
    return marked(table, next(iter(runs.values())).metric)
