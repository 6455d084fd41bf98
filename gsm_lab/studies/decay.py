"""How fast a passive weight goes to zero: the exact solution of its recurrence, and the closed form.

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
from collections.abc import Sequence

import numpy as np

from gsm_lab.checks import number, shown
from gsm_lab.knobs import checked, oscillates


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
