"""Whether a model, a data set and a loss fit together, asked of a few rows when a run is made, before any training."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gsm_lab import data as datasets
from gsm_lab import models
from gsm_lab.checks import shown
from gsm_lab.metric import R2, Metric
from gsm_lab.training.derivatives import named
from gsm_lab.training.outputs import Output, answer, logits
from gsm_lab.training.parts import Loss

_OUTPUTS = (-3.0, -1.0, 0.0, 1.0, 3.0)  # at which a loss is asked what a single output means
_CLASSES_TRIED, _FEW = 64, 8  # rows, of as many classes, and others
_ADAPTER = "output=lambda model, x: ... says which part of it are the logits"


def check_kinds(model: Any, data: Any, loss: Any, output: Any) -> None:
    """Raises TypeError for an argument of `Run` that is of another kind."""
    if not isinstance(model, str | nn.Module):
        raise TypeError(f"model must be one of {', '.join(models.MODELS)} or an nn.Module, got {shown(model)}")
    if not isinstance(data, str | datasets.Dataset):
        raise TypeError(f"data must be one of {', '.join(datasets.NAMES)} or a Dataset, got {type(data).__name__}")
    if isinstance(data, str) and data not in datasets.NAMES:
        raise ValueError(f"data must be one of {', '.join(datasets.NAMES)} or a Dataset, got {shown(data)}")
    if isinstance(loss, type):
        raise TypeError(f"loss must be a function of (logits, labels), got the class {loss.__name__}: make one of it")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of (logits, labels), got {shown(loss)}")
    if output is not None and (isinstance(output, type) or not callable(output)):
        raise TypeError(f"output must be None or a function of (model, x), got {shown(output)}")


def dtype_of(model: nn.Module) -> torch.dtype:
    """What inputs are fed in: the one type of all real parameters of the model, else float32, as data comes."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def materialise(model: nn.Module, data: str | datasets.Dataset, output: Output | None) -> None:
    """Have the lazy modules of a model, if there are any, take their shapes from two rows.

    Their initial weights are drawn as PyTorch draws them, from its generator as it stands, like those of other layers.
    Raises ValueError where a forward pass fails, or does not reach them all.
    """
    if not any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        return
    data = datasets.load(data) if isinstance(data, str) else data
    with torch.no_grad(), evaluating(model):
        answered(model, _rows(model, data)[0], output, "")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(t):
            raise ValueError(f"model has {name!r}, which is still without a shape after a forward pass of two rows")


def tried(
    model: nn.Module, data: datasets.Dataset, loss: Loss, output: Output | None, batch_size: int, metric: Metric
) -> float | None:
    """Pass a few rows through the model and the loss, in evaluation and in training mode, and leave it as it was.

    Returns:
        How a class is read from the logits, where the metric is accuracy: None, the greatest of [n, classes]; or above
        which number the one output of a row stands for class 1 of 2.

    Raises:
        ValueError, TypeError: what does not fit, by the name of the argument, with the shapes.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"model must have parameters, {type(model).__name__} has none")
    if any(p.is_meta for p in parameters):
        raise ValueError("model must have values, it is on the meta device: model.to_empty(device=...) and fill it")
    if not any(p.requires_grad for p in parameters):
        raise ValueError("model must have a parameter to train: requires_grad is False for all of them")
    x, y = _rows(model, data)
    gpus = [p.device for p in parameters[:1] if p.is_cuda]
    with as_it_was(model), torch.random.fork_rng(devices=gpus), torch.enable_grad():
        model.eval()
        given = answered(model, x, output, "")
        _must_be_a_loss(loss, given, y)
        above = _reading(given, len(x), data, loss) if metric.is_accuracy else None
        if data.regression:
            _must_be_like_targets(given, y, data, metric)
        model.train()
        x, y = x[:batch_size], y[:batch_size]
        _must_be_a_loss(loss, answered(model, x, output, "in training mode, "), y)
    return above


def must_be_a_mean(model: nn.Module, data: datasets.Dataset, loss: Loss, output: Output | None) -> None:
    """Raises ValueError where the loss of a batch is not the mean of its parts' losses, each weighing in by its rows.

    That is what a mean over ranks takes for granted. Found out on rows of all classes, since class weights and ignored
    labels show nowhere else, and on logits moved at random, since those of a new network may be equal.
    """
    y = data.train_y
    values = np.empty(0) if data.regression else y.cpu().numpy()
    firsts = np.unique(values, return_index=True)[1][:_CLASSES_TRIED]
    rows = list(dict.fromkeys([*firsts.tolist(), *range(min(len(y), _FEW))]))
    n, device = len(rows), next(model.parameters()).device
    x, y = data.train_x[rows].to(device, dtype_of(model)), y[rows].to(device)
    with torch.no_grad(), as_it_was(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        given = answer(model, x, output)
        ways = [(loss, lambda part: answer(model, x[part], output))]
        if isinstance(given, Tensor) and given.is_floating_point() and len(given) == n:
            moved = given + torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given)
            ways = [(loss, given.__getitem__), (loss, moved.__getitem__)]
            if torch.finfo(given.dtype).bits < 32:  # whose rounding hides what class weights do
                with contextlib.suppress(ValueError):  # a loss that cannot be copied is tried as it is
                    wide = models.copied(loss)[0].float() if isinstance(loss, nn.Module) else loss
                    ways += [(wide, these.float().__getitem__) for these in (given, moved)]
        halves = slice(0, n // 2), slice(n // 2, n)
        cuts = [halves, (slice(0, n, 2), slice(1, n, 2)), (slice(0, 2), slice(2, n))]
        cuts = [parts for parts in cuts if all(len(y[part]) for part in parts)]
        for (losing, way), parts in itertools.product(ways, cuts):
            try:
                found = [losing(way(part), y[part]) for part in (slice(0, n), *parts)]
            except Exception:  # probabilities, moved, may be none; of a small part there may be nothing to take
                continue
            whole, *losses = map(float, found)
            kind_of = torch.finfo(found[0].dtype)
            rounding = (100 if kind_of.bits >= 32 else 2) * kind_of.eps  # parts differ in the last rounding, or in sums
            mean = sum(len(y[part]) * one for part, one in zip(parts, losses, strict=True)) / n
            if math.isfinite(whole) and not abs(mean - whole) <= rounding * sum(map(abs, losses)):
                raise ValueError(
                    "loss must be the mean over the samples, for the mean over ranks to be that of the batch, and "
                    f"{named(loss)} is a sum, or weighted (class weights, ignored labels), or no sum over samples"
                )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards its modules are in the modes they were in, and its buffers (running statistics) as they were."""
    buffers = [
        (module._buffers, name, b, b._version, b.clone())
        for module in model.modules()
        for name, b in module._buffers.items()
        if b is not None
    ]
    with evaluating(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for place, name, buffer, version, before in buffers:
                    place[name] = buffer
                    if buffer._version != version:
                        buffer.copy_(before)


def _rows(model: nn.Module, data: datasets.Dataset) -> tuple[Tensor, Tensor]:
    """Two rows, or three where two could be taken for the outputs; the largest label, which asks most, is there."""
    y = data.train_y
    top = 0 if data.regression else int(y.argmax())
    rows = [top, *(i for i in range(min(len(y), 3)) if i != top)][: 3 if data.outputs == 2 else 2]
    device = next(model.parameters()).device
    return data.train_x[rows].to(device, dtype_of(model)), y[rows].to(device)


def answered(model: nn.Module, x: Tensor, output: Output | None, mode: str) -> Any:
    """What the model gives. Raises ValueError, saying for what, where it does not take the data."""
    try:
        return answer(model, x, output)
    except Exception as error:
        what = "model does not take the data" if output is None else "output(model, x) fails"
        raise ValueError(f"{what}: {mode}for inputs {list(x.shape)} of {x.dtype}, {said(error)}") from error


def _must_be_a_loss(loss: Loss, given: Any, y: Tensor) -> None:
    try:
        with warnings.catch_warnings() if y.is_floating_point() else contextlib.nullcontext():
            if y.is_floating_point():  # two shapes are no mistake to PyTorch, which repeats what there is less of
                warnings.filterwarnings("error", "Using a target size")
            value = loss(given, y)
    except Exception as error:
        hint = "" if isinstance(given, Tensor) else f"; {_ADAPTER}"
        what = "targets" if y.is_floating_point() else "labels"
        raise ValueError(
            f"loss does not take what the model gives, {described(given)}, and {what} {list(y.shape)} of {y.dtype}: "
            f"{said(error)}{hint}"
        ) from error
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor of one number, as a mean over the batch, got {shown(value)}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"loss must return one real number, as a mean over the batch, got {described(value)} (reduction='none'?)"
        )
    if not value.requires_grad:
        raise ValueError("loss must have a gradient: what it returns does not depend on any parameter to be trained")


def _must_be_like_targets(given: Any, y: Tensor, data: datasets.Dataset, metric: Metric) -> None:
    """Raises ValueError where outputs and targets are of two shapes, and a loss or R2 would repeat what is less."""
    z = logits(given)
    if isinstance(z, Tensor) and z.shape == y.shape:
        return
    repeated = isinstance(z, Tensor) and (z.ndim < 2 or (z.ndim == 2 and z.shape[1] == 1))
    if repeated or metric.same_scale(R2):
        k = data.outputs
        flat = isinstance(z, Tensor) and z.ndim == 1
        hint = "; output=lambda model, x: model(x)[:, None] adds the axis" if flat else ""
        raise ValueError(
            f"model must give [n, {k}] for the {k} {'target' if k == 1 else 'targets'} a sample of {data.name!r}, got "
            f"{described(given)} for n = {len(y)}{hint}"
        )


def _reading(given: Any, n: int, data: datasets.Dataset, loss: Loss) -> float | None:
    z, classes = logits(given), data.classes
    if isinstance(z, Tensor) and z.is_floating_point() and z.ndim and len(z) == n and z.numel():
        width = z.numel() // n
        if width > 1 and width >= classes and z.ndim > 1 and z.shape[1] == width:
            return None
        if width == 1:
            if classes == 1:
                return math.inf  # whatever it says, it is class 0
            if classes == 2 and (above := _halfway(loss, given)) is not None:
                return above
    hint = "" if isinstance(z, Tensor) else f"; {_ADAPTER}"
    one = " (or one output a row, of which the loss tells what it means)" if classes == 2 else ""
    raise ValueError(
        f"model must give logits [n, {classes}] for the {classes} classes of {data.name!r}{one}, got "
        f"{described(given)} for n = {n}{hint}"
    )


@torch.no_grad()
def _halfway(loss: Loss, given: Any) -> float | None:
    """Between the outputs that the loss likes best for class 0 and for class 1: 0 for a logit, 1/2 for a probability.

    None where it cannot be told: the output is not all that the model gives, or the loss does not rise with it.
    """
    if not isinstance(given, Tensor):
        return None
    best = []
    for label, nearest in ((0, max), (1, min)):
        losses = {}
        for value in _OUTPUTS:
            with contextlib.suppress(Exception):  # of a probability, values outside 0..1 may be refused
                labels = torch.full((len(given),), label, device=given.device)
                losses[value] = float(loss(torch.full_like(given, value), labels))
        losses = {value: found for value, found in losses.items() if math.isfinite(found)}
        if not losses:
            return None
        least = min(losses.values())
        best.append(nearest(value for value, found in losses.items() if found == least))
    return sum(best) / 2 if best[0] < best[1] else None


def described(given: Any) -> str:
    """An answer of a model in words: "[2, 10] of torch.float32"."""
    if isinstance(given, Tensor):
        return f"{list(given.shape)} of {given.dtype}"
    if isinstance(given, tuple | list) and len(given) < 5:
        return f"a {type(given).__name__} of {', '.join(map(described, given))}"
    return f"a {type(given).__name__}"


def said(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
