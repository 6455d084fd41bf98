"""Does training with the gate come to rest? Loss, accuracies, distance to the cut network and turnover, over seeds.

There is no proof that it does: the gate makes the update discontinuous. What is measured here, at evenly spaced steps:
the loss of the batches, accuracy live and after the cut, how far the network is from its own cut, |W - cut(W)| / |W|,
and how much of the active set is new, from one step to the next and from one look to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from gsm_lab.checks import flag, kind, several, whole
from gsm_lab.knobs import each
from gsm_lab.studies.trainings import bar_over, fresh, to_the_end
from gsm_lab.training.run import Run

COLUMNS = ("loss", "live", "cut", "distance", "turnover", "renewed")


class Watch:
    """Looks at a run every `every` steps from now on; the looks are its `rows`, see `over_seeds`.

    Args:
        run: any run, also of a rival (`gsm_lab.methods`); its `evaluate_every` is set to `every`.
        every: steps from one look to the next.

    Raises ValueError unless `every` is a whole number of at least 1.
    """

    def __init__(self, run: Run, every: int) -> None:
        kind("run", run, Run, "a gsm_lab.Run")
        every = whole("every", every, valid="a whole number of steps")
        run.set(evaluate_every=every)
        self.run, self.every = run, every
        self.rows: list[dict[str, float]] = []
        self._before: np.ndarray | None = None
        run.recorders.append(self)

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """Look, if it is time."""
        if step % self.every:
            return
        renewed = np.nan
        if self._before is not None and active.any():
            renewed = np.count_nonzero(active & ~self._before) / np.count_nonzero(active)
        self._before = active.copy()
        self.rows.append({"step": step, "distance": distance(weights, self.run.nonzeros), "renewed": renewed})

    def frame(self) -> pd.DataFrame:
        """The looks so far, with what the history has at these steps; columns as in `over_seeds` without the seed."""
        history = self.run.history.frame()
        looks = pd.DataFrame(self.rows, columns=["step", "distance", "renewed"])
        part = (history["step"] - 1) // self.every
        means = history.groupby(part)["loss"].mean()
        new = history.groupby(part)[["reactivated", "active"]].sum()
        at = (looks["step"] - 1) // self.every
        accuracies = history.set_index("step")[["live_accuracy", "cut_accuracy"]].reindex(looks["step"])
        return pd.DataFrame(
            {
                "step": looks["step"],
                "epoch": looks["step"] / self.run.epoch_steps,
                "loss": at.map(means),
                "live": accuracies["live_accuracy"].to_numpy(),
                "cut": accuracies["cut_accuracy"].to_numpy(),
                "distance": looks["distance"],
                "turnover": at.map(new["reactivated"] / new["active"].clip(lower=1)),
                "renewed": looks["renewed"],
            }
        )


def distance(weights: list[np.ndarray], q: int) -> float:
    """|W - cut(W)| / |W|, the cut keeping the `q` largest: 0 for a network that is sparse, below 1 for every other."""
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
    """Train a run a seed, and look at each of them at the same steps.

    Args:
        settings: arguments of `Run`, by name. A model given as a module is copied.
        seeds: at least one.
        looks: about so many, evenly over the run, at least 1.
        progress: show a progress bar.

    Returns:
        A row a seed and look: `seed`, `step`, `epoch`; `loss`, mean over the steps since the last look; `live` and
        `cut`, test accuracy 0..1; `distance`, |W - cut(W)| / |W|; `turnover`, the share of the active set that was
        passive one step before, mean over the steps since the last look; `renewed`, the share of the active set that
        was passive at the last look (NaN at the first).

    Raises ValueError: no seeds, or a setting or number out of range.
    """
    looks, _ = whole("looks", looks), flag("progress", progress)
    runs = {seed: fresh(settings, seed=seed) for seed in each("seeds", seeds, "seed")}
    watches = {seed: Watch(run, max(1, run.planned // looks)) for seed, run in runs.items()}
    with bar_over(runs.values(), progress) as bar:
        for seed, run in runs.items():
            bar.set_description(f"seed {seed}")
            to_the_end(run, bar)
    return pd.concat([watch.frame().assign(seed=seed) for seed, watch in watches.items()], ignore_index=True)[
        ["seed", "step", "epoch", *COLUMNS]
    ]
