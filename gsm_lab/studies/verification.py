"""The check of what a study found, by brute force and plain autograd at a few of its weights.

Every table of `gsm_lab.studies.taylor` carries the result as `attrs["check"]`:

    weights                  how many were checked
    difference               the largest |found - plain|, of true and first-order changes, in units of the loss
    tolerance                the most that rounding explains of it
    curvature_difference     the same of d2L/dw2 w^2 / 2 (NaN where nothing could be compared), and
    curvature_tolerance      the most that rounding explains of that

The plain value of a true change is the change of the loss with the weight set to zero in the model; of a first-order
change it is `backward()` through the model as it is written; of a second derivative, in float64, it is a difference of
such gradients, taken at weights where differences of the loss give the gradient itself (they do not where a layer
makes up its own gradient, as a straight-through estimator does).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from gsm_lab.studies.problem import Problem

WEIGHTS = 6  # that are checked, of a table
_STEPS = (1e-7, 1e-8, 1e-9)  # of the differences: a kink lies between two points only where they are far apart
_ALIKE = 1e-2  # relative, of a difference of losses and a gradient that belongs to them
_RELATIVE = {"difference": 1e-6, "curvature_difference": 1e-3}


def some(positions: Iterable[int], count: int = WEIGHTS) -> list[int]:
    """A few of some positions, drawn by one seed: always the same few."""
    positions = np.asarray(list(positions))
    return sorted(np.random.default_rng(0).choice(positions, min(count, len(positions)), replace=False).tolist())


def check(
    problem: Problem,
    indices: Sequence[int],
    first: Tensor,
    true: Tensor | None = None,
    second: Tensor | None = None,
) -> dict[str, float]:
    """The check of a table, which goes into its `attrs["check"]`, see above.

    Args:
        problem: model and batch.
        indices: flat positions of the weights [k].
        first, true, second: what the study found for each [k]: -g w, the true change without it, d2L/dw2 w^2 / 2.

    Raises:
        ArithmeticError: a difference is above its tolerance.
    """
    w = problem.flat()[indices].cpu()
    plain = problem.plain_gradient()[indices].cpu()
    brute = [problem.loss_at(_with(problem, i, 0.0)) - problem.value for i in indices]
    brute = torch.tensor(brute, dtype=torch.float64)
    size = float(torch.stack([brute.abs(), (plain * w).abs().double()]).max()) if len(w) else 0.0
    apart = _apart(first, -plain * w) if true is None else max(_apart(first, -plain * w), _apart(true, brute))
    found = {"weights": len(w), "difference": apart, "tolerance": _allowed("difference", problem, size)}
    bent, allowed = math.nan, math.nan
    if second is not None and problem.dtype is torch.float64 and bool(torch.isfinite(second).all()):
        smooth = [k for k, i in enumerate(indices) if _smooth(problem, i, float(plain[k]))]
        bent = max((_bent(problem, indices[k], float(second[k])) for k in smooth), default=math.nan)
        size = max(size, float(second.abs().max())) if len(w) else size
        allowed = _allowed("curvature_difference", problem, size)
    found |= {"curvature_difference": bent, "curvature_tolerance": allowed}
    for what in ("", "curvature_"):
        if found[f"{what}difference"] > found[f"{what}tolerance"]:
            raise ArithmeticError(
                f"the {'second derivatives' if what else 'loss changes and gradients'} of model "
                f"{type(problem.model).__name__} as this study finds them are not those of plain autograd and brute "
                f"force: off by {found[f'{what}difference']:.3g} at one of {len(w)} weights, and "
                f"{found[f'{what}tolerance']:.3g} is the most that rounding explains; nothing of it can be relied on"
            )
    return found


def worst(checks: Sequence[dict[str, float]]) -> dict[str, float]:
    """Several checks as one: the largest differences, each with its tolerance."""
    found = {"weights": max(c["weights"] for c in checks)}
    for what in ("", "curvature_"):
        one = max(checks, key=lambda c: np.nan_to_num(c[f"{what}difference"], nan=-1.0))
        found |= {f"{what}{name}": one[f"{what}{name}"] for name in ("difference", "tolerance")}
    return found


def _allowed(what: str, problem: Problem, size: float) -> float:
    return 10 * problem.floor + max(_RELATIVE[what], 1e3 * torch.finfo(problem.dtype).eps) * size


def _apart(found: Tensor, plain: Tensor) -> float:
    a, b = found.cpu().double(), plain.double()
    same = (a == b) | (a.isnan() & b.isnan())  # infinite, too
    return float(torch.where(same, 0, (a - b).abs()).nan_to_num(nan=math.inf).max()) if len(b) else 0.0


def _with(problem: Problem, index: int, value: float) -> dict[str, Tensor]:
    """The tensor that holds a weight, with another value of that weight."""
    name, at = problem.place(index)
    weight = problem.weights[name].detach().clone(memory_format=torch.contiguous_format)
    weight.view(-1)[at] = value
    return {name: weight}


def _smooth(problem: Problem, index: int, gradient: float) -> bool:
    """Whether differences of the loss at this weight agree with its gradient."""
    w, step = float(problem.flat()[index]), 1e-6
    up, down = (problem.loss_at(_with(problem, index, w + h)) for h in (step, -step))
    return abs((up - down) / (2 * step) - gradient) <= _ALIKE * abs(gradient) + problem.floor / step


def _bent(problem: Problem, index: int, second: float) -> float:
    """How far `second` is from a difference of gradients, over the distance at which the two agree best."""
    w = float(problem.flat()[index])
    found = []
    for step in _STEPS:
        slopes = [float(problem.plain_gradient(_with(problem, index, w + h))[index]) for h in (step, -step)]
        found.append(abs((slopes[0] - slopes[1]) / (2 * step) * w**2 / 2 - second))
    return min(found)
