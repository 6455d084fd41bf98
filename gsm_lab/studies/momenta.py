"""One run a momentum, otherwise alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gsm_lab.checks import flag
from gsm_lab.knobs import each
from gsm_lab.studies.trainings import fresh
from gsm_lab.training.run import Run

MOMENTA = (0.9, 0.98, 0.99)


def per_momentum(
    settings: Mapping[str, Any], momenta: Iterable[float] = MOMENTA, matched: bool = False
) -> dict[float, Run]:
    """One run per momentum, not yet trained, otherwise alike.

    Args:
        settings: arguments of `Run`: model, data, loss, knobs. What is not given is as `Run` has it. A model given as a
            module is copied for each run.
        momenta: each from 0 to below 1.
        matched: choose the learning rates so that lr / (1 - momentum) is that of `settings`; otherwise all have the
            same learning rate.

    Raises:
        ValueError: no momenta, one out of range, or settings that `Run` refuses (a model without prunable weights).
    """
    momenta, matched, runs = each("momenta", momenta, "momentum", "momentum"), flag("matched", matched), {}
    for momentum in momenta:
        run = fresh(settings)
        lr = run.knobs["lr"]
        if matched:
            lr *= (1 - momentum) / (1 - run.knobs["momentum"])
        run.reset(momentum=momentum, lr=float(f"{lr:.6g}"))  # 0.02, not 0.020000000000000018
        runs[momentum] = run
    return runs
