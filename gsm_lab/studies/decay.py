"""How fast a passive weight goes to zero: the exact solution of its recurrence, the closed form, and what is measured.

A passive weight (B = 0 in eq. 6 of Ding et al., NeurIPS 2019) feels only momentum and decay:

    Z <- beta Z + eta W,   W <- W - alpha Z

Without Z, that is W[k+1] = (1 + beta - alpha eta) W[k] - beta W[k-1], whose solutions are sums of powers of the roots
of x^2 - (1 + beta - alpha eta) x + beta. The larger root is the decay per step once momentum has settled. Where alpha
eta is much smaller than (1 - beta)^2 it is exp(-alpha eta / (1 - beta)), the closed form; where alpha eta exceeds
(1 - sqrt(beta))^2 the roots are complex, of modulus sqrt(beta): the weight swings through zero.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsm_lab.checks import integer, is_number, number, several, shown, whole
from gsm_lab.knobs import checked, oscillates
from gsm_lab.studies.recording import gather
from gsm_lab.studies.runs import MOMENTA, per_momentum
from gsm_lab.training.run import Run

_SLOWEST = 100_000  # steps of half a swing, beyond which nobody waits for it


def closed_form_rate(lr: float, momentum: float, weight_decay: float) -> float:
    """The closed form's rate, lr * weight_decay / (1 - momentum): it falls by exp(-rate) a step.

    Raises ValueError for a setting out of range.
    """
    lr, momentum, weight_decay = _checked(lr, momentum, weight_decay)
    return lr * weight_decay / (1.0 - momentum)


def decay_rate(lr: float, momentum: float, weight_decay: float) -> float:
    """The exact rate, -ln of the larger root's modulus: |w| falls by exp(-rate) a step once momentum has settled.

    Above the critical lr * weight_decay it is the rate of the envelope, -ln(momentum) / 2. Raises ValueError for a
    setting out of range.
    """
    lr, momentum, weight_decay = _checked(lr, momentum, weight_decay)
    return -math.log(abs(roots(lr, momentum, weight_decay)[0]))


def critical(momentum: float) -> float:
    """(1 - sqrt(momentum))^2, the lr * weight_decay of fastest decay; above it passive weights swing through zero."""
    momentum = checked({"momentum": momentum})["momentum"]
    return (1.0 - math.sqrt(momentum)) ** 2


def settling_steps(lr: float, momentum: float, weight_decay: float) -> int:
    """Warm-up: steps until momentum has settled, 4.6 / (1 - momentum) where lr * weight_decay is small.

    By then the faster root has fallen to 1% of the slower one. Near the critical point, where the two meet, it is
    10 / (1 - momentum) at the most; above it 0, as the envelope holds from the first passive step on.
    """
    lr, momentum, weight_decay = _checked(lr, momentum, weight_decay)
    slow, fast = map(abs, roots(lr, momentum, weight_decay))
    if oscillates(lr, momentum, weight_decay):
        return 0
    gap = math.log(slow / fast) if fast > 0 else math.inf
    return math.ceil(min(math.log(100) / gap if gap > 0 else math.inf, 10 / (1 - momentum)))


def passive(
    steps: int | Sequence[int] | np.ndarray,
    lr: float,
    momentum: float,
    weight_decay: float,
    w: float = 1.0,
    z: float = 0.0,
) -> np.ndarray:
    """The exact weight after `steps` passive steps that begin at weight `w` and momentum buffer `z`; float64.

    Args:
        steps: one or more numbers of steps, each >= 0.
        lr, momentum, weight_decay: constant over these steps.
        w, z: where it starts; in a `Run` the buffer is empty when the gate closes.

    Raises:
        ValueError: a setting out of range, or a negative number of steps.
    """
    lr, momentum, weight_decay = _checked(lr, momentum, weight_decay)
    try:
        k = np.asarray(steps)
    except (TypeError, ValueError, RuntimeError, RecursionError):  # in numpy's words, where they are no numbers
        k = np.asarray([None])
    if (k.dtype.kind not in "iu" and k.size) or (k.size and k.min() < 0):
        raise ValueError(f"steps must be whole numbers >= 0, got {shown(steps)}")
    w, z = number("w", w, -math.inf), number("z", z, -math.inf)
    a, b = roots(lr, momentum, weight_decay)

    def powers(n: np.ndarray) -> np.ndarray:
        """(a^n - b^n) / (a - b): the solution that is 0 at n = 0 and 1 at n = 1; n a^(n - 1) where the roots meet."""
        sums = n if a == b else np.ones(n.shape)
        apart = (b - a) / a if a else -1.0
        if apart not in (0, -1):  # in this form nothing is lost where the roots are close to each other
            log = np.log1p(apart)
            sums = np.expm1(n * log) / np.expm1(log)
        return np.where(n > 0, np.power(a, np.maximum(n - 1, 0)) * sums, 0)

    first = w - lr * (momentum * z + weight_decay * w)
    later = first * powers(k) - momentum * w * powers(np.maximum(k - 1, 0))
    return np.where(k == 0, w, later.real)


def roots(lr: float, momentum: float, weight_decay: float) -> tuple[complex, complex]:
    """The roots of x^2 - (1 + momentum - lr * weight_decay) x + momentum, the one of larger modulus first."""
    p = 1.0 + momentum - lr * weight_decay
    # p^2 - 4 beta, factored: near the critical point the difference would lose half of its digits
    distance = (p - 2 * math.sqrt(momentum)) * (p + 2 * math.sqrt(momentum))
    split = cmath.sqrt(distance)
    first = (p + split if p >= 0 else p - split) / 2
    return first, momentum / first if first else 0j


def _checked(lr: float, momentum: float, weight_decay: float) -> tuple[float, float, float]:
    given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    lr, momentum, weight_decay = checked(given).values()
    if lr * weight_decay >= 2 * (1 + momentum):
        raise ValueError(
            f"lr * weight_decay must be below 2 (1 + momentum) = {2 * (1 + momentum):g}, or weights grow without "
            f"bound; got {lr:g} * {weight_decay:g}"
        )
    return lr, momentum, weight_decay


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
