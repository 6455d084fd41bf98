"""Which layer can be starved? GSM's answer, and the truth from pruning one layer at a time.

    held = gl.load("mnist").validation(5000)             # so that the test set stays unread
    answer = sensitivity.densities("lenet300", held)     # GSM on the training part, over seeds
    truth = sensitivity.alone("lenet300", held)          # measured on the 5,000 images that no training saw
    sensitivity.agreement(answer, truth)

GSM fixes no ratio for a layer: all weights compete for the Q places. The share of a layer's weights that stays, its
density, is the layer's sensitivity (the paper, section 4.3). The truth is found without GSM: the dense network, one
layer pruned by magnitude to a grid of ratios, all else as it is, and the loss on held-out data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from gsm_lab import checks
from gsm_lab.checks import integer, shown, whole
from gsm_lab.data import Dataset
from gsm_lab.knobs import each
from gsm_lab.metric import marked
from gsm_lab.optim.groups import keep_masks
from gsm_lab.studies.alone import RATIOS, alone, with_all_layers
from gsm_lab.studies.runs import train_each
from gsm_lab.wording import layer_name

__all__ = ["RATIOS", "agreement", "alone", "densities", "kendall", "sensitivity", "summary"]

_ORDERINGS = 40_320  # at most so many are tried: all of eight layers


def sensitivity(
    model: str | nn.Module = "lenet300",
    data: str | Dataset = "digits",
    seeds: Iterable[int] = range(3),
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Run GSM and tell each layer's sensitivity: what share of its weights it gets to keep.

    Args:
        model, data, settings: as for `Run`. A model given as a module is copied; only batches then follow the seed.
        seeds: at least one; a run each.
        progress: show a progress bar.

    Returns:
        A row a layer, in the order of the model: `layer`; `weights`; `kept`, how many the cut keeps, mean over seeds;
        `density` = kept / weights, and `spread`, its standard deviation over seeds (NaN for one), `low` and `high`, the
        least and greatest; `sensitivity`, the density over that of the whole model (1: like the average layer);
        `rank`, 1 for the most sensitive; `ranked`, the share of the seeds in which it has this rank.

    Raises ValueError: no seeds, a setting out of range, or a model without prunable weights.
    """
    return summary(densities(model, data, seeds, progress, **settings))


def densities(
    model: str | nn.Module = "lenet300",
    data: str | Dataset = "digits",
    seeds: Iterable[int] = range(3),
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """What `sensitivity` is made of: a row a seed and layer with `seed`, `layer`, `weights`, `kept` and `density`.

    Also `live` and `cut`, the run's accuracy on `data.test_x` at its end (of another metric its values, and `metric`,
    which it is). Arguments and errors as in `sensitivity`.
    """
    runs = {seed: with_all_layers(model, data, settings, seed) for seed in each("seeds", seeds, "seed")}
    train_each(runs, progress, "seed")
    rows = []
    for seed, run in runs.items():
        reached = {"live": run.evaluate(), "cut": run.evaluate(cut=True)}
        for name, mask in keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).items():
            kept = int(mask.sum())
            row = {"seed": seed, "layer": layer_name(name), "weights": mask.numel(), "kept": kept}
            rows.append(row | {"density": kept / mask.numel()} | reached)
    return marked(pd.DataFrame(rows), run.metric)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `sensitivity` from that of `densities`."""
    checks.table("table", table, ("seed", "layer", "weights", "kept", "density"))
    by = table.groupby("layer", sort=False)
    result = by.agg(
        weights=("weights", "first"), kept=("kept", "mean"), density=("density", "mean"), spread=("density", "std"),
        low=("density", "min"), high=("density", "max"),
    )  # fmt: skip
    result["sensitivity"] = result["density"] / (result["kept"].sum() / result["weights"].sum())
    result["rank"] = result["density"].rank(ascending=False, method="first").astype(int)
    ranks = table.groupby("seed")["density"].rank(ascending=False, method="first")
    result["ranked"] = (ranks == table["layer"].map(result["rank"])).groupby(table["layer"], sort=False).mean()
    return result.reset_index()


def agreement(answer: pd.DataFrame, truth: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Do GSM's densities order the layers as the truth does? Kendall's tau, and how sure so few layers let one be.

    Args:
        answer: from `densities`. truth: from `alone`, of the same layers.
        resamples: bootstrap draws of seeds, with replacement, of each table by itself. Of one seed there is only one
            draw: `low` and `high` are then `tau`, and say nothing.
        seed: of these draws.

    Returns:
        A row for each length of fine-tuning: `finetune`; `tau`, 1 for the same order and -1 for the reverse, of the
        means over seeds (the truth's is the mean of `more` over the ratios); `low` and `high`, 2.5% and 97.5% of the
        draws are below; `layers`; `chance`, the share of all orderings of the layers that agree as well or better;
        `by_size`, tau of the guess that needs no training, the smaller a layer the more sensitive.

    Raises ValueError: tables of other layers, or of a single one, which has no order.
    """
    checks.table("answer", answer, ("seed", "layer", "weights", "density"))
    checks.table("truth", truth, ("seed", "layer", "finetune", "more"))
    resamples, seed = whole("resamples", resamples), integer("seed", seed, 0)
    layers = list(dict.fromkeys(answer["layer"]))
    if sorted(layers) != sorted(truth["layer"].unique()):
        raise ValueError(f"truth must be of the layers {layers}, got {list(truth['layer'].unique())}")
    if len(layers) < 2:
        raise ValueError(f"there must be at least two layers to be put in order, got {layers}")
    density = answer.pivot(index="seed", columns="layer", values="density")[layers].to_numpy()
    sizes = answer.groupby("layer")["weights"].first()[layers].to_numpy(float)
    rows = []
    for epochs, part in truth.groupby("finetune"):
        cost = part.groupby(["seed", "layer"])["more"].mean().unstack()[layers].to_numpy()
        draws = np.random.default_rng(seed)
        taus = [
            kendall(_redrawn(density, draws).mean(axis=0), _redrawn(cost, draws).mean(axis=0)) for _ in range(resamples)
        ]
        tau = kendall(density.mean(axis=0), cost.mean(axis=0))
        low, high = np.quantile(taus, [0.025, 0.975])
        row = {"finetune": epochs, "tau": tau, "low": low, "high": high, "layers": len(layers)}
        rows.append(row | {"chance": _chance(cost.mean(axis=0), tau), "by_size": kendall(-sizes, cost.mean(axis=0))})
    return pd.DataFrame(rows)


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau of two sequences [n]: concordant minus discordant pairs over all pairs; a tie is neither."""
    for name, values in (("a", a), ("b", b)):
        if not (isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf" and len(values) > 1):
            raise TypeError(f"{name} must be an array [n] of two numbers or more, got {shown(values)}")
    if len(a) != len(b):
        raise ValueError(f"a and b must be of one length, got {len(a)} and {len(b)}")
    above = np.triu_indices(len(a), 1)
    signs = np.sign(np.subtract.outer(a, a)[above]) * np.sign(np.subtract.outer(b, b)[above])
    return float(signs.mean())


def _redrawn(table: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return table[draws.integers(len(table), size=len(table))]


def _chance(cost: np.ndarray, tau: float) -> float:
    n = len(cost)
    if math.factorial(n) <= _ORDERINGS:
        orders = list(itertools.permutations(range(n)))
    else:
        draws = np.random.default_rng(0)
        orders = [draws.permutation(n) for _ in range(_ORDERINGS)]
    return float(np.mean([kendall(np.asarray(order), cost) >= tau - 1e-12 for order in orders]))
