"""What it costs to prune one layer alone: the dense network, one layer of it pruned by magnitude, on held-out data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from gsm_lab.checks import MOST, flag, is_number, several, shown
from gsm_lab.data import Dataset
from gsm_lab.knobs import each
from gsm_lab.methods.base import Rival
from gsm_lab.metric import marked
from gsm_lab.models import copied
from gsm_lab.optim.groups import exactly
from gsm_lab.studies.runs import fresh
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.outputs import answer
from gsm_lab.training.run import Run
from gsm_lab.wording import layer_name

RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # shares of a layer's weights that are taken out


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
        network's accuracy minus this one's. Of another metric its values are in `score`, `lost` is how much worse this
        network's is, and `metric` says which it is.

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
    dense = {seed: with_all_layers(model, data, settings, seed) for seed in seeds}
    first = next(iter(dense.values()))
    cases = [(None, 0.0), *itertools.product(first.history.layers, ratios)]
    score = "accuracy" if first.metric.is_accuracy else "score"
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
                unpruned_loss, unpruned = found.pop((None, 0.0))
                for (layer, ratio), (loss, value) in found.items():
                    row = {"seed": seed, "layer": layer_name(layer), "weights": run.history.layers[layer]}
                    row |= {"ratio": ratio, "finetune": epochs, "loss": loss, score: value}
                    rows.append(row | {"more": loss - unpruned_loss, "lost": first.metric.cost(unpruned, value)})
    return marked(pd.DataFrame(rows), first.metric)


def with_all_layers(model: str | nn.Module, data: str | Dataset, settings: dict[str, Any], seed: int) -> Run:
    """A run of its own whose layers all have weights. Raises ValueError where one has none, and as `Run` does."""
    run = fresh({"model": model, "data": data, **settings}, seed=seed)
    for name, count in run.history.layers.items():
        if not count:
            raise ValueError(
                f"model must have weights in every layer, {name!r} has none: leave it out, exclude={name!r}"
            )
    return run


class _Alone(Rival):
    """A network that is trained with what is left of one of its layers."""

    name = "pruning one layer alone"


def _measured(run: Run, layer: str | None, ratio: float, epochs: float) -> tuple[float, float]:
    """Loss and metric on the held-out data of a copy of the dense network, one layer of it pruned, fine-tuned."""
    model, own = copied(run.model)[0], run.settings
    settings = exactly(model, run.history.layers) | {"batch_size": own.batch_size, "seed": own.seed, "hold": 1.0}
    settings |= {"lr": own.pretrain_lr / 10, "weight_decay": own.pretrain_decay, "momentum": 0.9, "pretrain": 0}
    settings |= {"compression": 1, "evaluate_every": 10**9}
    own = {"loss": run.loss, "metric": run.metric, "output": run.output}
    tuned = Run(model, run.data, method=_Alone(), **own, **settings)
    tuned.method.keep(tuned, _mask(tuned, layer, ratio))
    tuned.step(round(epochs * tuned.epoch_steps))
    return _loss(tuned), tuned.evaluate()


def _mask(run: Run, layer: str | None, ratio: float) -> Tensor:
    """True but at the smallest |w| of one layer, a share `ratio` of it: bool [N]."""
    weights = dict(zip(run.history.layers, run.tensors, strict=True))
    masks = {name: torch.ones_like(w.detach().reshape(-1), dtype=torch.bool) for name, w in weights.items()}
    if layer is not None:
        order = weights[layer].detach().abs().reshape(-1).argsort(stable=True)
        masks[layer][order[: round(ratio * len(order))]] = False
    return torch.cat(list(masks.values()))


@torch.no_grad()
def _loss(run: Run) -> float:
    with evaluating(run.model):
        answers = [answer(run.model, x, run.output) for x in run.data.test_x.split(2000)]
        y = run.data.test_y
        if run.loss is F.cross_entropy and not (y == -100).any():
            values = zip(answers, y.split(2000), strict=True)
            return sum(float(run.loss(a, b)) * len(b) for a, b in values) / len(y)
        return float(run.loss(tree_map(lambda *parts: torch.cat(parts), *answers), y))
