"""How fast passive weights go to zero: measured in training, beside the exact root and the closed form of `decay`."""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsm_lab.checks import integer, is_number, several, shown, whole
from gsm_lab.knobs import oscillates
from gsm_lab.studies.decay import closed_form_rate, critical, decay_rate, roots, settling_steps
from gsm_lab.studies.recording import gather
from gsm_lab.studies.runs import MOMENTA, per_momentum
from gsm_lab.training.run import Run

_SLOWEST = 100_000  # steps of half a swing, beyond which nobody waits for it


def zero_out_speed(
    run: Run | Mapping[str, Any],
    momenta: Iterable[float] = MOMENTA,
    *,
    of_critical: Sequence[float] | None = None,
    window: int = 50,
    weights: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The measured decay of weights that stay passive, beside the exact root and the closed form.

    Trains: after the warm-up it compares the energy (sum of w^2) of each weight over two stretches of `window` steps
    one after the other, which gives the rate without knowing it. (Where weights swing, the stretches are lengthened to
    whole half-periods.) Weights that were active at any time since the warm-up began do not count.

    Args:
        run: a run, which is trained on as it stands (its learning rate must be constant); or the arguments of a `Run`,
            with which one run per momentum is made, at the same lr / (1 - momentum) and a constant learning rate.
        momenta: for settings only.
        of_critical: for settings only: set the decay so that lr * weight_decay is each of these multiples of the
            critical one, instead of the settings' own decay.
        window: steps of each of the two stretches, at least.
        weights: how many are measured, drawn by `seed` from all prunable ones.

    Returns:
        One row a run: momentum, lr, weight_decay, product (lr * weight_decay), of_critical, oscillates, warm_up
        (steps), weights (that stayed passive), measured (median rate per step), low, high (10th and 90th percentile),
        exact, closed_form (rates per step), off_exact, off_closed_form (relative errors of these two).

    Raises:
        ValueError: an argument out of range, no decay, a learning rate that changes, or no weight that stays passive.
    """
    window, weights, seed = whole("window", window), whole("weights", weights), integer("seed", seed, 0)
    if isinstance(run, Run):
        if of_critical is not None:
            raise ValueError(f"of_critical needs settings instead of a run, got {shown(of_critical)} and {run!r}")
        return pd.DataFrame([_measured(run, window, weights, seed)])
    shares = [] if of_critical is None else several("of_critical", of_critical, empty=True)
    if not all(is_number(x) and x > 0 for x in shares):
        raise ValueError(f"of_critical must hold numbers > 0, got {shown(of_critical)}")
    if not isinstance(run, Mapping):
        raise TypeError(f"run must be a Run, or settings: the arguments of one by name, got {shown(run)}")
    rows = []
    for share in shares or (None,):
        for momentum, one in per_momentum(run, momenta, matched=True).items():
            one.set(hold=1.0, evaluate_every=1000)
            if share is not None:
                one.set(weight_decay=share * critical(momentum) / one.settings.lr)
            one.step(one.epoch_steps)  # so that some of the weights have been active, and have to settle
            rows.append(_measured(one, window, weights, seed))
    return pd.DataFrame(rows).sort_values(["momentum", "product"], ignore_index=True)


class _Energy:
    """A recorder: sums of w^2 over two stretches, one after the other, and which weights were active at any time."""

    def __init__(self, chosen: np.ndarray, begin: int, length: int) -> None:
        self.chosen, self.begin, self.length = chosen, begin, length
        self.active = np.zeros(len(chosen), bool)
        self.sums = np.zeros((2, len(chosen)))

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        self.active |= active[self.chosen]
        stretch = (step - self.begin - 1) // self.length
        if stretch in (0, 1):
            self.sums[stretch] += np.square(gather(weights, self.chosen), dtype=np.float64)


def _measured(run: Run, window: int, weights: int, seed: int) -> dict[str, Any]:
    lr, momentum, decay = run.settings.lr, run.settings.momentum, run.settings.weight_decay
    if lr * decay <= 0:
        name = "weight_decay" if lr else "lr"
        raise ValueError(f"{name} must be > 0 for passive weights to decay, got {getattr(run.settings, name)!r}")
    root = roots(lr, momentum, decay)[0]
    length = window
    if abs(root.imag) > 0:  # whole half-periods: over these the swing averages out
        half = math.pi / abs(cmath.phase(root))
        if half > _SLOWEST:
            raise ValueError(
                f"lr * weight_decay is too close to the critical one to be measured, of_critical = "
                f"{lr * decay / critical(momentum):.6g}: a passive weight swings through zero once in {half:,.0f} steps"
            )
        length = round(half * math.ceil(window / half))
    warm = settling_steps(lr, momentum, decay)
    if run.lr != lr or (run.settings.hold < 1 and run.steps + warm + 2 * length > run.settings.hold * run.planned):
        raise ValueError(f"hold must be 1 for the learning rate to stay {lr:g}, got {run.settings.hold:g}; use run.set")
    count = run.opt.weights
    chosen = np.sort(np.random.default_rng(seed).choice(count, min(weights, count), replace=False))
    energy = _Energy(chosen, run.steps + warm, length)
    run.recorders.append(energy)
    try:
        run.step(warm + 2 * length)
    finally:
        run.recorders.remove(energy)
    first, second = energy.sums[:, ~energy.active]
    there = second > 1e-60  # weights that have reached the end of float32 do not decay any more
    if not there.any():
        raise ValueError(
            f"no weight stayed passive over {warm + 2 * length} steps with compression = {run.settings.compression:g} "
            "(and stayed above 1e-30): raise compression, or measure more weights"
        )
    rates = np.log(first[there] / second[there]) / (2 * length)
    measured, exact, closed = np.median(rates), decay_rate(lr, momentum, decay), closed_form_rate(lr, momentum, decay)
    return {
        "momentum": momentum, "lr": lr, "weight_decay": decay, "product": lr * decay,
        "of_critical": lr * decay / critical(momentum), "oscillates": oscillates(lr, momentum, decay),
        "warm_up": warm, "weights": int(there.sum()), "measured": measured,
        "low": np.percentile(rates, 10), "high": np.percentile(rates, 90), "exact": exact, "closed_form": closed,
        "off_exact": exact / measured - 1, "off_closed_form": closed / measured - 1,
    }  # fmt: skip
