"""Which layer of a model is called first, what its inputs are, and at which place of an image each of them is."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.studies.view import FEATURES, INPUTS, PIXELS, POSITIONS
from gsm_lab.training.fitting import as_it_was
from gsm_lab.training.outputs import answer_with
from gsm_lab.training.run import Run

STRIP = 64  # inputs in a row; more are folded into a square
_LARGEST = 128 * 128  # places of a unit's image; where there are more inputs, neighbours share one
_SAMPLES = 32  # that tell whether a layer sees the data
_ALIKE = 0.9  # mean correlation of what arrives at a layer with the data that it is said to see


class Form(NamedTuple):
    """How the weights of a layer are laid out: which tensor it is, what its inputs are, and at which place each is.

    `index`: int64 [h, w, m], the inputs at each place among those of a unit, channel by channel, -1 for none.
    """

    tensor: int
    kind: str
    channels: int
    count: int
    index: np.ndarray


def form_of(run: Run) -> Form:
    """The first layer of a run, and how it is laid out; the model is given a few samples, and stays as it is."""
    tensor, module, sees = _first_called(run)
    p = run.tensors[tensor]
    if isinstance(module, nn.modules.conv._ConvNd):
        shape = tuple(p.shape[1:] if p.ndim == 3 else p.shape[-2:])  # of one kernel; of one dimension: all its channels
        return Form(tensor, POSITIONS, 1, math.prod(shape), _places(1, shape))
    shape, fan = run.data.shape, p[0].numel()
    if not (sees and isinstance(module, nn.Linear) and fan == math.prod(shape)):
        return Form(tensor, INPUTS, 1, fan, _places(1, _folded(fan), fan))
    if len(shape) < 2 or min(shape[-2:]) == 1:
        return Form(tensor, FEATURES, 1, fan, _places(1, _folded(fan), fan))
    channels = math.prod(shape[:-2])
    return Form(tensor, PIXELS, channels, fan // channels, _places(channels, shape[-2:]))


def _folded(count: int) -> tuple[int, int]:
    """A row, or as many rows as make a square of it."""
    if count <= STRIP:
        return 1, count
    width = math.ceil(math.sqrt(count))
    return -(-count // width), width


def _places(channels: int, shape: tuple[int, int], count: int | None = None) -> np.ndarray:
    """The `index` of a form: at each place its input in each channel, where there are so many that neighbours share."""
    count = math.prod(shape) if count is None else count
    index = np.full((channels, math.prod(shape)), -1)
    index[:, :count] = np.arange(channels * count).reshape(channels, count)
    together = math.ceil(math.sqrt(math.prod(shape) / _LARGEST))
    h, w = (-(-size // together) for size in shape)
    room = np.full((channels, h * together, w * together), -1)
    room[:, : shape[0], : shape[1]] = index.reshape(channels, *shape)
    return room.reshape(channels, h, together, w, together).transpose(1, 3, 0, 2, 4).reshape(h, w, -1)


@torch.no_grad()
def _first_called(run: Run) -> tuple[int, nn.Module | None, bool]:
    """The first of the layers that compete to be called: number of its tensor, module, and whether it sees the data.

    Found out by giving the model a few samples. A module that is called around others (and has a tensor of its own, a
    token for example) is not meant. Where no module is called it is the first layer by name, of which nothing is known.
    """
    x, called = run.data.train_x[:_SAMPLES], dict[str, tuple[int, nn.Module, Tensor | None]]()

    def note(path: str, tensor: int, module: nn.Module, given: tuple) -> None:
        arrived = given[0] if given and isinstance(given[0], Tensor) else None
        called.setdefault(path, (tensor, module, arrived))

    hooks = []
    try:
        for i, name in enumerate(run.history.layers):
            path = name.rpartition(".")[0]
            hook = partial(note, path, i)
            hooks.append(run.model.get_submodule(path).register_forward_pre_hook(hook))
        drawn = torch.random.fork_rng(devices=[], enabled=run.draws)
        with as_it_was(run.model), drawn, run.placement.replacing(run.model, {}) as given:
            answer_with(run.model, given, x, run.output)
    finally:
        for hook in hooks:
            hook.remove()
    around = {path for path in called if any(o != path and o.startswith(f"{path}." if path else "") for o in called)}
    for path, (tensor, module, arrived) in called.items():
        if path not in around:
            return tensor, module, arrived is not None and _same(x, arrived)
    return 0, None, False


def _same(x: Tensor, arrived: Tensor) -> bool:
    """Whether what arrives is the data, each input in its place, but for shifting, scaling and the like."""
    if arrived.numel() != x.numel() or len(arrived) != len(x):
        return False
    a, b = (t.reshape(len(x), -1).double().cpu().numpy() for t in (x, arrived))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = size > 0
    alike = np.abs((a * b).sum(axis=0))[varies] / size[varies]
    return not alike.size or bool(alike.mean() > _ALIKE)
