"""Estimates of a loss change against the true one: of single weights, and of sets of them; see `taylor`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gsm_lab import checks
from gsm_lab.checks import flag, integer, is_number, number, several, shown, whole
from gsm_lab.optim import budget
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.studies.curvature import diagonal
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.verification import check, some, worst

REGIONS = ("top", "around Q", "middle", "bottom", "random")


def singles(problem: Problem, per_region: int = 100, compression: float = 60, seed: int = 0) -> pd.DataFrame:
    """Single weights, drawn by their rank of T = |g w|: the true loss change without each, and the estimates of it.

    Args:
        problem: model and batch.
        per_region: weights drawn (fewer where a region has fewer) from each of the regions: "top", the first ranks;
            "around Q", within a tenth of Q; "middle" and "bottom", a tenth of all ranks each; "random", all ranks.
        compression: gives Q.
        seed: of the draw.

    Returns:
        One row a weight: region, layer, index (flat, in the layer), rank (0: greatest T), weight, gradient, true, and
        the estimates (for one weight the second order is "first + diagonal"). `attrs["floor"]`: see the module.

    Raises:
        ValueError: `per_region` below 1, or a compression out of range.
        ArithmeticError: the check failed.

    Where the loss has no gradients of single samples, "Fisher" is NaN and a warning says why; where PyTorch has no
    second derivative of something in it, what takes one.
    """
    checks.kind("problem", problem, Problem, "a Problem, as of_run makes one")
    per_region = whole("per_region", per_region, valid="a whole number of weights")
    compression, seed = number("compression", compression, 1), integer("seed", seed, 0)
    n, q = problem.count, budget(problem.count, compression=compression)
    w, g = problem.flat(), problem.gradient()
    order = torch.argsort((g * w).abs(), descending=True, stable=True)
    ranks = {
        "top": (0, per_region),
        "around Q": (int(0.9 * q), max(int(1.1 * q), int(0.9 * q) + 1)),
        "middle": (int(0.45 * n), int(0.55 * n) + 1),
        "bottom": (int(0.9 * n), n),
        "random": (0, n),
    }
    random = np.random.default_rng(seed)
    drawn = []
    for region, (first, last) in ranks.items():
        among = np.arange(first, min(last, n))
        drawn += [(region, rank) for rank in sorted(random.choice(among, min(per_region, len(among)), replace=False))]
    regions, rank = zip(*drawn, strict=True)
    indices = order[list(rank)].tolist()
    layers, index = zip(*map(problem.place, indices), strict=True)
    w, g = w[indices], g[indices]
    half, k = w.square() / 2, len(indices)
    fisher = _or_nothing("Fisher", lambda: problem.squared_gradients[indices], k).to(w)
    bent = _or_nothing("first + diagonal", lambda: problem.hessian_diagonal(indices), k).to(w)
    first, true, second = -g * w, problem.changes_without(indices), half * bent
    where = {"region": regions, "layer": layers, "index": index, "rank": rank, "weight": w, "gradient": g, "true": true}
    found = {"first order": first, "|g w|": first.abs(), "Fisher": half * fisher, "first + diagonal": first + second}
    table = table_of(problem, where | found)
    few = some(range(len(indices)))
    at = [indices[k] for k in few]
    table.attrs["check"] = check(problem, at, first=first[few], true=true[few], second=second[few])
    return table


def _or_nothing(column: str, found: Callable[[], Tensor], size: int) -> Tensor:
    """A column, or NaN [size], and a warning why, where there is no such thing for this model and loss."""
    try:
        return found()
    except ValueError as error:
        warnings.warn(f"the column {column} is empty: {error}", stacklevel=3)
        return torch.full((size,), torch.nan, dtype=torch.float64)


def agreement(table: pd.DataFrame, by: str | Sequence[str] = "region") -> pd.DataFrame:
    """How well the estimates of a table with a column "true" agree with it.

    Args:
        table: from `singles`, `sets` or `stages`.
        by: columns to group by.

    Returns:
        One row for each group and estimate: the `by` columns, estimate, weights (rows of the table), below_floor (rows
        whose truth is too small for a relative error), relative_error (the median over the others; |g w| is held
        against |truth|), rank_correlation (Spearman's, of |estimate| and |truth|).
    """
    checks.table("table", table, ("true",), empty=True)
    if "floor" not in table.attrs:
        raise ValueError('table must be from singles, sets or stages, with its attrs: it has no attrs["floor"]')
    by = [by] if isinstance(by, str) else several("by", by)
    if any(not isinstance(name, str) or name not in table for name in by):
        raise ValueError(f"by must name columns of the table, {', '.join(table)}, got {shown(by)}")
    floor = table.attrs["floor"]
    rows = []
    for key, group in table.groupby(by, sort=False):
        size = group["true"].abs()
        for estimate in (name for name in ESTIMATES if name in table and group[name].notna().any()):
            truth = size if estimate == "|g w|" else group["true"]
            errors = ((group[estimate] - truth).abs() / size)[size >= floor]
            correlation = group[estimate].abs().rank().corr(size.rank())
            rows.append((*key, estimate, len(group), int((size < floor).sum()), errors.median(), correlation))
    return pd.DataFrame(rows, columns=[*by, "estimate", "weights", "below_floor", "relative_error", "rank_correlation"])


def sets(
    problem: Problem,
    compression: float = 60,
    shares: Iterable[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9),
    seed: int = 0,
    hessian_diagonal: bool | None = None,
) -> pd.DataFrame:
    """Sets of weights of growing size: the true loss change without all of them at once, and the estimates of it.

    Args:
        problem: model and batch.
        compression: gives Q, for the set that the cut removes.
        shares: sizes, as shares of all N weights, each above 0 and up to 1.
        seed: of the random sets.
        hessian_diagonal: whether to compute all of diag(H). It is quick for fully-connected layers and takes a product
            with H for each weight of others; unless given it is done where all layers are fully connected.

    Returns:
        One row a set: kind ("top" and "bottom" by T = |g w|, "smallest |w|", "random", "cut"), size, share, true, the
        estimates. "cut" is exactly what `cut` removes.

    Raises:
        ValueError: no shares, or one out of range.
        ArithmeticError: the check failed.

    Where the loss has no gradients of single samples, "Fisher" is NaN and a warning says why; where PyTorch has no
    second derivative of something in it, what takes one.
    """
    checks.kind("problem", problem, Problem, "a Problem, as of_run makes one")
    shares = several("shares", shares)
    if not all(is_number(share) and 0 < share <= 1 for share in shares):
        raise ValueError(f"shares must be some numbers above 0 and up to 1, got {shown(shares)}")
    compression, seed = number("compression", compression, 1), integer("seed", seed, 0, 2**63 - 1)
    hessian_diagonal = None if hessian_diagonal is None else flag("hessian_diagonal", hessian_diagonal)
    n = problem.count
    w, g = problem.flat(), problem.gradient()
    fisher = _or_nothing("Fisher", lambda: problem.squared_gradients, n).to(w)
    at = some(range(n))
    bent = _or_nothing("second order", lambda: problem.hessian_diagonal(at), len(at)).to(w)
    twice = bool(torch.isfinite(bent).all())
    wanted = twice and hessian_diagonal is not False
    curvature = diagonal(problem, all_layers=bool(hessian_diagonal)) if wanted else None
    by_metric = torch.argsort((g * w).abs(), descending=True, stable=True)
    by_size = torch.argsort(w.abs(), descending=True, stable=True)
    at_random = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(w.device)
    chosen = [("cut", by_size[budget(n, compression=compression) :])]
    for share in shares:
        k = max(1, round(share * n))
        chosen += [("top", by_metric[:k]), ("bottom", by_metric[n - k :])]
        chosen += [("smallest |w|", by_size[n - k :]), ("random", at_random[:k])]
    rows = []
    for kind, members in chosen:
        delta = torch.zeros_like(w)
        delta[members] = -w[members]
        first = float(g @ delta)
        row = {"kind": kind, "size": len(members), "share": len(members) / n, "true": problem.change(delta)}
        row |= {"first order": first, "|g w|": float((g * delta).abs().sum())}
        row["Fisher"] = float(fisher @ delta.square()) / 2
        row["first + diagonal"] = np.nan if curvature is None else first + float(curvature @ delta.square()) / 2
        row["second order"] = first + float(delta @ problem.hessian_vector(delta)) / 2 if twice else np.nan
        rows.append(row)
    table = table_of(problem, rows)
    found = [bent] if curvature is None else [bent, curvature[at]]
    half, slopes = w[at].square() / 2, -(g * w)[at]
    table.attrs["check"] = worst([check(problem, at, first=slopes, second=half * part) for part in found])
    for estimate in ESTIMATES:
        truth = table["true"].abs() if estimate == "|g w|" else table["true"]
        error = (table[estimate] - truth).abs() / table["true"].abs()
        table[f"error of {estimate}"] = error.where(table["true"].abs() >= problem.floor)
    return table


def table_of(problem: Problem, columns: dict | list[dict]) -> pd.DataFrame:
    """A table from columns or rows, tensors as numbers, with the problem's floor in `attrs`."""
    if isinstance(columns, dict):
        columns = {k: v.detach().double().cpu().numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}
    table = pd.DataFrame(columns)
    table.attrs["floor"] = problem.floor
    return table
