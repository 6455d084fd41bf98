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
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from gsm_lab import checks
from gsm_lab.checks import MOST, flag, integer, is_number, several, shown, whole
from gsm_lab.data import Dataset
from gsm_lab.knobs import each
from gsm_lab.methods.base import Rival
from gsm_lab.models import copied
from gsm_lab.optim.prunable import exactly, keep_masks
from gsm_lab.studies.trainings import bar_over, fresh, to_the_end
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.outputs import answer
from gsm_lab.training.run import Run

RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # shares of a layer's weights that are taken out
_ORDERINGS = 40_320  # at most so many are looked at: all of eight layers


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

    Also `live` and `cut`, the run's accuracy on `data.test_x` at its end. Arguments and errors as in `sensitivity`.
    """
    runs = {seed: _fresh(model, data, settings, seed) for seed in each("seeds", seeds, "seed")}
    rows = []
    with bar_over(runs.values(), progress) as bar:
        for seed, run in runs.items():
            bar.set_description(f"seed {seed}")
            to_the_end(run, bar)
            reached = {"live": run.evaluate(), "cut": run.evaluate(cut=True)}
            for name, mask in keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).items():
                kept = int(mask.sum())
                row = {"seed": seed, "layer": _short(name), "weights": mask.numel(), "kept": kept}
                rows.append(row | {"density": kept / mask.numel()} | reached)
    return pd.DataFrame(rows)


def _fresh(model: str | nn.Module, data: str | Dataset, settings: dict[str, Any], seed: int) -> Run:
    run = fresh({"model": model, "data": data, **settings}, seed=seed)
    for name, count in run.history.layers.items():
        if not count:
            raise ValueError(
                f"model must have weights in every layer, {name!r} has none: leave it out, exclude={name!r}"
            )
    return run


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


def alone(
    model: str | nn.Module = "lenet300",
    data: str | Dataset = "digits",
    seeds: Iterable[int] = range(3),
    ratios: Sequence[float] = RATIOS,
    finetune: Sequence[float] = (0, 1),
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """The truth: what it costs to prune one layer alone.

    The dense network of each seed is trained (`pretrain` epochs). Then of one layer the share `ratio` of its weights,
    those of smallest magnitude, is set to zero, and loss and accuracy are measured on `data.test_x`: use a data set
    from `Dataset.validation`, so that this is data held out from training, and not the test set. Then again after
    fine-tuning all weights but the zeros, on the training part, at a tenth of the dense epochs' learning rate.

    Args:
        model, data, seeds, progress, settings: as for `sensitivity`; of the settings only those of the dense epochs.
        ratios: shares of a layer, each above 0 and below 1; what is taken out is the nearest whole number of weights,
            which may be none of a small layer, or all (a warning then says so).
        finetune: epochs, each >= 0; 0 is none.

    Returns:
        A row a seed, layer, ratio and length of fine-tuning: `seed`, `layer`, `weights`, `ratio`, `finetune` (epochs);
        `loss`, `accuracy`; `more`, the loss minus that of the dense network, fine-tuned for as long; `lost`, that
        network's accuracy minus this one's.

    Raises ValueError: no seeds, ratios or lengths, or one out of range; a setting out of range.
    """
    seeds, ratios, lengths = each("seeds", seeds, "seed"), several("ratios", ratios), several("finetune", finetune)
    for ratio in ratios:
        if not (is_number(ratio) and 0 < ratio < 1):
            raise ValueError(f"ratios must hold shares above 0 and below 1, got {shown(ratio)}")
    for epochs in lengths:
        if not (is_number(epochs) and 0 <= epochs <= MOST):
            raise ValueError(f"finetune must hold numbers of epochs >= 0, got {shown(epochs)}")
    hidden = not flag("progress", progress)
    dense = {seed: _fresh(model, data, settings, seed) for seed in seeds}
    first = next(iter(dense.values()))
    cases = [(None, 0.0), *itertools.product(first.history.layers, ratios)]
    rows = []
    with tqdm(total=len(seeds) * len(cases) * len(lengths), unit="network", disable=hidden) as bar:
        for seed, run in dense.items():
            bar.set_description(f"seed {seed}")
            run.pretrain()
            for epochs in lengths:
                found = {}
                for layer, ratio in cases:
                    found[layer, ratio] = _measured(run, layer, ratio, epochs)
                    bar.update()
                whole_loss, whole = found.pop((None, 0.0))
                for (layer, ratio), (loss, accuracy) in found.items():
                    rows.append(
                        {
                            "seed": seed, "layer": _short(layer), "weights": run.history.layers[layer], "ratio": ratio,
                            "finetune": epochs, "loss": loss, "accuracy": accuracy, "more": loss - whole_loss,
                            "lost": whole - accuracy,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


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
    a, b = _sequence("a", a), _sequence("b", b)
    if len(a) != len(b):
        raise ValueError(f"a and b must be of one length, got {len(a)} and {len(b)}")
    above = np.triu_indices(len(a), 1)
    signs = np.sign(np.subtract.outer(a, a)[above]) * np.sign(np.subtract.outer(b, b)[above])
    return float(signs.mean())


def _sequence(name: str, values: Any) -> np.ndarray:
    if not (isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf" and len(values) > 1):
        raise TypeError(f"{name} must be an array [n] of two numbers or more, got {shown(values)}")
    return values


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


class _Alone(Rival):
    """Trained with what is left of one layer."""

    method = "pruning one layer alone"


def _measured(run: Run, layer: str | None, ratio: float, epochs: float) -> tuple[float, float]:
    """Loss and accuracy on the held-out data of a copy of the dense network, one layer of it pruned, fine-tuned."""
    model = copied(run.model)[0]
    settings = {**{k: run.knobs[k] for k in ("batch_size", "seed")}, "lr": run.knobs["pretrain_lr"] / 10, "hold": 1.0}
    settings |= {"weight_decay": run.knobs["pretrain_decay"], "momentum": 0.9, "pretrain": 0}
    settings |= exactly(model, run.history.layers)
    tuned = _Alone(model, run.data, loss=run.loss, output=run.output, **settings, compression=1, evaluate_every=10**9)
    tuned.keep(_mask(tuned, layer, ratio))
    tuned.step(round(epochs * tuned.epoch_steps))
    return _loss(tuned), tuned.evaluate()


def _mask(run: Run, layer: str | None, ratio: float) -> Tensor:
    """True but at the smallest |w| of one layer, a share `ratio` of it: bool [N]."""
    masks = []
    for name in run.history.layers:
        p = run.model.get_parameter(name)
        mask = torch.ones(p.numel(), dtype=torch.bool, device=p.device)
        if name == layer:
            order = p.detach().abs().reshape(-1).argsort(stable=True)
            mask[order[: round(ratio * len(order))]] = False
        masks.append(mask)
    return torch.cat(masks)


@torch.no_grad()
def _loss(run: Run) -> float:
    with evaluating(run.model):
        pieces = run.data.test_x.split(2000)
        answers = [answer(run.model, x, run.output) for x in pieces]
        y = run.data.test_y
        if run.loss is F.cross_entropy and not (y == -100).any():
            values = zip(answers, y.split(2000), strict=True)
            return sum(float(run.loss(a, b)) * len(b) for a, b in values) / len(y)
        return float(run.loss(tree_map(lambda *parts: torch.cat(parts), *answers), y))


def _short(name: str) -> str:
    return name.removesuffix(".weight")
