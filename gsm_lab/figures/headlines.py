"""The titles of a run's four plots: what each shows at this moment, in words and numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gsm_lab.wording import one_decimal, short_layer_name

if TYPE_CHECKING:
    from gsm_lab.training.history import History

PANELS = ("loss and accuracy", "weights near zero", "re-activated per step", "density by layer")
RECENT = 50  # steps that the re-activated are the mean of


def title_texts(history: History) -> tuple[str, str, str, str]:
    """The four titles, from the latest step and the latest evaluation; before there is one, what the plots are for."""
    evaluations = history.evaluations.array()
    if not len(evaluations):
        return tuple(f"{name[0].upper()}{name[1:]}" for name in (f"loss and {history.metric.name}", *PANELS[1:]))
    return accuracies(history), *((near_zero(history), back(history)) if len(history.steps.array()) else _NOTHING), \
        densities(history)  # fmt: skip


_NOTHING = ("No gated step yet", "No gated step yet")


def accuracies(history: History) -> str:
    """The accuracy, or what else is measured, as it is and after the cut."""
    last, metric = history.evaluations.array()[-1], history.metric
    live, cut = (metric.shown(float(last[name]), 1) for name in ("live_accuracy", "cut_accuracy"))
    return f"{metric.title} {live}, after the cut {cut}"


def near_zero(history: History) -> str:
    """Two counts of small weights by their thresholds, and how many a cut takes."""
    row, weights = history.steps.array()[-1], max(1, sum(history.layers.values()))
    thousandth, tenth = (one_decimal(row[name].sum() / weights) for name in ("under_1e-3", "under_1e-4"))
    compression = float(history.knob_values("compression", row["step"][None])[0])
    takes = f"a cut takes {one_decimal(1 - 1 / compression)}" if compression > 1 else "a cut takes none"
    return f"{thousandth} under 1e-3, {tenth} under 1e-4; {takes}"


def back(history: History) -> str:
    """How many weights a step come back."""
    rows = history.steps.array()[-RECENT:]
    every, mean = sum(history.layers.values()), rows["reactivated"].sum(axis=1).mean()
    if rows["active"][-1].sum() >= every:
        return "The gate is open: no weight is passive"
    if not mean:
        return "No weight comes back"
    if round(mean) <= 1:
        return "1 weight a step comes back" if mean >= 0.95 else "Less than 1 weight a step comes back"
    return f"{mean:,.0f} weights a step come back"


def densities(history: History) -> str:
    """Which layer keeps most of its weights at a cut, and which least."""
    kept = history.evaluations.array()["kept"][-1]
    shares = {name: k / size for k, (name, size) in zip(kept, history.layers.items(), strict=True)}
    most, least = max(shares, key=shares.get), min(shares, key=shares.get)
    one, other = short_layer_name(most), short_layer_name(least)
    if shares[most] == shares[least]:
        whose = f"{one} keeps" if len(shares) == 1 else "Every layer keeps"
        return f"{whose} {density(shares[most])} of its weights"
    return f"{one} keeps {density(shares[most])} of its weights, {other} {density(shares[least])}"


def density(share: float) -> str:
    """A share of weights in percent, two digits that count: "20%", "0.51%", "99%" where it is not all."""
    if share in (0, 1):
        return "all" if share else "none"
    percents = 100 * share
    if percents >= 10:
        return f"{math.floor(percents) if percents > 99 else round(percents)}%"
    return f"{percents:.2g}%" if percents >= 1e-3 else "less than 0.001%"
