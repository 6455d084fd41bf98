"""What a step is asked for: the settings of PyTorch's SGD and the gate's own, and whether they can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

# what the gate is asked to do: in every group, so that state_dict() carries it, and the same in all
OWN = {"compression": 1.0, "nonzeros": None, "smoothing": 0.0}
SETTINGS = ("lr", "weight_decay", "momentum", "dampening")  # the numbers of SGD's step
ASKED = (*SETTINGS, "fused", "nesterov", "maximize", "differentiable", "foreach", *OWN)
_NUMBERS = (float, int)  # not tensors, in which a learning rate may come
_PLAIN_NUMBERS = frozenset((*_NUMBERS, np.float64))


def checked(smoothing: float) -> float:
    """`smoothing`, if it is valid. Raises ValueError."""
    smoothing = as_pythons(smoothing)
    if isinstance(smoothing, bool) or not isinstance(smoothing, _NUMBERS) or not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be a number from 0 (the paper's gate) to below 1, got {smoothing!r}")
    return float(smoothing)


def as_pythons(x: Any) -> Any:
    """A number of numpy's as one of Python's, which a `state_dict()` needs that is to be loaded with `weights_only`."""
    if type(x) in _NUMBERS or isinstance(x, bool) or not isinstance(x, Real):
        return x
    return int(x) if isinstance(x, Integral) else float(x)


def refuse_settings(given: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError where a setting of SGD's step, of those given, is not a finite number.

    A NaN compares as false with everything, so SGD itself takes it, and all weights are NaN after a step. What is out
    of range is for SGD to refuse, in its own words.
    """
    for name in SETTINGS:
        if name in given and not _is_finite(x := given[name]):
            if isinstance(x, Tensor) and x.numel() != 1:  # in torch's words
                raise ValueError(f"Tensor {name}{where} must be 1-element, got one of shape {tuple(x.shape)}")
            kind = "a finite number" if not isinstance(x, Tensor) else "a finite number, or a tensor of one"
            raise ValueError(f"{name}{where} must be {kind}, got {x!r}")


def are_plain(settings: tuple[Any, ...]) -> bool:
    """Whether these are finite numbers of Python's kind: in a fraction of the time that `refuse_settings` takes."""
    return _PLAIN_NUMBERS.issuperset(map(type, settings)) and all(map(_within, settings))


def _within(x: Any) -> bool:
    try:
        return math.isfinite(x)
    except OverflowError:  # an int beyond every float
        return False


def _is_finite(x: Any) -> bool:
    if isinstance(x, Tensor):
        if x.numel() != 1 or x.is_complex() or x.dtype is torch.bool:
            return False
        # a look at what lies on a device would wait for it
        return not x.is_cpu or math.isfinite(x.detach().item())
    return isinstance(x, Real) and not isinstance(x, bool) and _within(x)


def is_plain(group: dict[str, Any]) -> bool:
    """Whether fused SGD with momentum is all that this parameter group asks for."""
    return (
        bool(group["fused"] and group["momentum"])
        and not (group["nesterov"] or group["maximize"] or group["differentiable"])
        and all(isinstance(group[name], _NUMBERS) for name in SETTINGS)
    )
