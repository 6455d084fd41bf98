"""Do ranks agree on the top Q? Local sets against the one of the averaged gradient, from looks at a training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from gsm_lab.checks import integer, kind, several
from gsm_lab.studies.parallel_runs import RankGradients, factors_in
from gsm_lab.studies.sparse_exchange import top

STAGES = ("early", "middle", "late")  # thirds of the run


def agreement(looks: Sequence[RankGradients], factors: Sequence[float] = (1, 2, 4, 8, 16)) -> pd.DataFrame:
    """How much of the global top Q is among the local top kQ: of one rank, of all of them, of any of them.

    Global is the top Q of |w * mean of g| over the ranks, which is the set GSM uses under DDP; local that of |w * g| of
    one rank. Both compete over the whole model; a layer's rows count what falls into it.

    Args:
        looks: from `local_gradients`.
        factors: k, each > 0; kQ is rounded down, and is at most N.

    Returns:
        A row for each step, factor and layer (and "all"): `step`, `epoch`, `stage` (early, middle, late: thirds of the
        run); `ranks`; `layer`, `weights` in it; `wanted`, how many of the global top Q are there; `factor`. Recalls of
        these, 0..1 (NaN where none is wanted): `single`, the mean over ranks of what a rank's own top kQ holds, and
        `least`, that of the worst; `intersection`, what all hold; `union`, what at least one holds; `chosen`, what
        the gate would choose from the mean of what was sent (a rank that does not send adds 0). `between`: overlap
        of two ranks' top kQ, 2 |A and B| / (|A| + |B|), mean over all pairs; `travel`: how many weights at least one
        rank would send. `same`: whether every rank's gate opened for exactly the global set.

    Raises ValueError: no looks, no factors, or one out of range.
    """
    factors = factors_in(factors)
    rows = []
    for look in _some(looks):
        wanted = top(look.weights * look.averaged, look.nonzeros)
        same = look.same and bool((wanted == look.active).all())
        for factor in factors:
            q = min(wanted.size, max(1, int(factor * look.nonzeros)))
            local = np.stack([top(look.weights * gradient, q) for gradient in look.local])
            arrived = np.where(local, look.local, 0).mean(axis=0, dtype=np.float32)
            taken = top(look.weights * arrived, look.nonzeros)
            for layer, part in _layers(look):
                row = {**_place(look), "layer": layer, "weights": part.stop - part.start}
                row |= {"wanted": int(wanted[part].sum()), "factor": factor, **_overlaps(wanted[part], local[:, part])}
                rows.append(row | {"chosen": _share(taken[part], wanted[part]), "same": same})
    return pd.DataFrame(rows)


def quantised(looks: Sequence[RankGradients], bits: Sequence[int] = (8, 6, 4, 2, 1), seed: int = 0) -> pd.DataFrame:
    """What is left of the global top Q when each rank quantises its gradient before it is averaged.

    With b >= 2 bits a value is rounded, at random so that its mean is right (Alistarh et al. 2017, section 3.1), to one
    of 2^(b-1) - 1 levels on either side of zero, scaled to the largest of its layer. With one bit only its sign
    travels, times the layer's mean |g| (Bernstein et al. 2018 send the sign alone; the scale makes layers comparable).

    Args:
        looks: from `local_gradients`.
        bits: a weight, 1 to 16.
        seed: of the rounding.

    Returns:
        A row for each step and number of bits: `step`, `epoch`, `stage`, `ranks`, `bits`; `recall`, the share of the
        exact top Q that is still chosen, 0..1; `by_size`, the share of the set so chosen that the top Q of |w| alone
        would choose as well, and `exact_by_size`, the same for the exact set.

    Raises ValueError: no looks, no bits, or one out of range.
    """
    bits = [integer("bits", b, 1, 16) for b in several("bits", bits)]
    random, rows = np.random.default_rng(integer("seed", seed, 0)), []
    for look in _some(looks):
        wanted, largest = (top(x, look.nonzeros) for x in (look.weights * look.averaged, look.weights))
        for b in bits:
            mean = np.zeros_like(look.averaged)
            for gradient, (_, part) in itertools.product(look.local, list(_layers(look))[:-1]):
                mean[part] += _rounded(gradient[part], b, random) / len(look.local)
            got = top(look.weights * mean, look.nonzeros)
            row = {**_place(look), "bits": b, "recall": _share(got, wanted)}
            rows.append(row | {"by_size": _share(largest, got), "exact_by_size": _share(largest, wanted)})
    return pd.DataFrame(rows)


def _overlaps(wanted: np.ndarray, local: np.ndarray) -> dict[str, float]:
    single = [_share(one, wanted) for one in local]
    sizes = local.sum(axis=1)
    pairs = [
        2 * (local[a] & local[b]).sum() / (sizes[a] + sizes[b]) if sizes[a] + sizes[b] else np.nan
        for a, b in itertools.combinations(range(len(local)), 2)
    ]
    return {
        "single": float(np.mean(single)), "least": float(np.min(single)),
        "intersection": _share(local.all(axis=0), wanted), "union": _share(local.any(axis=0), wanted),
        "between": float(np.mean(pairs)), "travel": int(local.any(axis=0).sum()),
    }  # fmt: skip


def _share(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of `wanted` that is in `found`; NaN where nothing is wanted."""
    return float((found & wanted).sum() / wanted.sum()) if wanted.any() else np.nan


def _rounded(gradient: np.ndarray, bits: int, random: np.random.Generator) -> np.ndarray:
    if bits == 1:
        return np.sign(gradient) * np.abs(gradient).mean()
    levels, largest = 2 ** (bits - 1) - 1, np.abs(gradient).max()
    if not largest:
        return gradient
    return np.floor(gradient / largest * levels + random.random(gradient.size, np.float32)) * (largest / levels)


def _layers(look: RankGradients) -> Iterator[tuple[str, slice]]:
    """Each layer and its part of the flat order; "all" comes last."""
    start = 0
    for layer, size in look.layers.items():
        yield layer, slice(start, start + size)
        start += size
    yield "all", slice(0, start)


def _place(look: RankGradients) -> dict[str, float | str]:
    third = min(len(STAGES) - 1, (look.step - 1) * len(STAGES) // look.planned)
    return {"step": look.step, "epoch": look.epoch, "stage": STAGES[third], "ranks": len(look.local)}


def _some(looks: Sequence[RankGradients]) -> Sequence[RankGradients]:
    kind("looks", looks, list | tuple, "a list of looks, as `local_gradients` returns it")
    for look in looks:
        kind("looks", look, RankGradients, "a list of looks")
    return several("looks", looks, "look that `local_gradients` returned")
