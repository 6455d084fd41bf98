"""What a metric measures: a model's outputs for the whole test set, gathered, and the number that is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from gsm_lab import data as datasets
from gsm_lab.checks import shown
from gsm_lab.metric import ACCURACY, R2, Metric
from gsm_lab.training.fitting import answered, as_it_was, described, dtype_of, said
from gsm_lab.training.outputs import Output, logits
from gsm_lab.training.parts import Loss

AT_ONCE = 2000  # samples; bounds memory


def chosen(data: datasets.Dataset, loss: Loss | None, metric: Metric | None) -> tuple[Loss, Metric]:
    """The loss and the metric of a run on this data, those given or the usual ones.

    Of labels these are cross entropy and accuracy, of numbers the mean squared error and R2. Raises ValueError for an
    accuracy where there are no classes.
    """
    if data.regression and metric is not None and metric.is_accuracy:
        raise ValueError(f"metric must be another than accuracy for {data.name!r}, whose targets are numbers")
    usual, by = (F.mse_loss, R2) if data.regression else (F.cross_entropy, ACCURACY)
    return usual if loss is None else loss, by if metric is None else metric


def kept(answer: Any) -> Any:
    """What a metric is given of an answer, on the CPU: its logits where it has some, else all its tensors."""
    return tree_map(lambda t: t.detach().cpu() if isinstance(t, Tensor) else t, logits(answer))


def joined(parts: Sequence[Any]) -> Any:
    """Answers for some rows each, as one for all of them."""
    return tree_map(lambda *ts: torch.cat(ts) if isinstance(ts[0], Tensor) else ts[0], *parts)


def measured(metric: Metric, outputs: Any, targets: Tensor) -> float:
    """The number that a metric makes of the outputs for the whole test set.

    The metric has copies, and random numbers of its own, always the same ones: it changes nothing.

    Raises ValueError, with its name, where it fails, or returns something else than one finite number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            value = metric.fn(tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, outputs), targets.clone())
        except Exception as error:
            raise ValueError(
                f"metric {metric.name!r} fails on outputs, {described(outputs)}, and targets, {described(targets)}: "
                f"{said(error)}"
            ) from error
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if value.shape != ():
            raise ValueError(f"metric {metric.name!r} must return one number, got shape {tuple(value.shape)}")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"metric {metric.name!r} must return one number, got {shown(value)}")
    if not (math.isfinite(value) and abs(value) <= torch.finfo(torch.float32).max):  # as the history keeps it
        raise ValueError(f"metric {metric.name!r} must return a finite number, got {shown(value)}")
    return float(value)


@torch.no_grad()
def must_measure(model: nn.Module, data: datasets.Dataset, output: Output | None, metric: Metric) -> None:
    """Have a metric measure the model as it is, all of the test set, and leave the model as it was.

    Raises ValueError where it cannot, before a run has begun.
    """
    if metric.fn is R2.fn and (same := (data.test_y == data.test_y[:1]).all(0)).any():
        column = f" in column {int(same.int().argmax())}" if data.outputs > 1 else ""
        raise ValueError(
            f"data {data.name!r} has the same target in all rows of test_y{column}, of which R2 says nothing: give "
            "another metric, metric=..."
        )
    device, dtype = next(model.parameters()).device, dtype_of(model)
    with as_it_was(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        parts = [kept(answered(model, x.to(device, dtype), output, "")) for x in data.test_x.split(AT_ONCE)]
    measured(metric, joined_rows(parts, data), data.test_y.cpu())


def joined_rows(parts: Sequence[Any], data: datasets.Dataset) -> Any:
    """`joined`, for the test set. Raises ValueError where the model does not give a row a sample."""
    try:
        outputs = joined(parts)
    except Exception as error:
        raise ValueError(f"model must give a row a sample, for the metric to have them all: {said(error)}") from error
    if isinstance(outputs, Tensor) and len(outputs) != len(data.test_y):
        raise ValueError(f"model must give a row a sample, got {described(outputs)} for {len(data.test_y):,} samples")
    return outputs
