"""The runs that a study trains by itself: one a seed or one a momentum, otherwise alike, under one progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from gsm_lab.checks import flag, shown
from gsm_lab.knobs import each
from gsm_lab.models import copied
from gsm_lab.training.loop import advance
from gsm_lab.training.run import Run

MOMENTA = (0.9, 0.98, 0.99)


def fresh(settings: Mapping[str, Any], **more: Any) -> Run:
    """A run of its own: a model that came as a module is not shared with other runs."""
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise TypeError(f"settings must be the arguments of a Run by name, got {shown(settings)}")
    model = settings.get("model", "lenet300")
    own = {"model": copied(model)[0]} if isinstance(model, nn.Module) else {}
    return Run(**{**settings, **own, **more})


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
        lr = run.settings.lr
        if matched:
            lr *= (1 - momentum) / (1 - run.settings.momentum)
        run.reset(momentum=momentum, lr=float(f"{lr:.6g}"))  # 0.02, not 0.020000000000000018
        runs[momentum] = run
    return runs


def bar_over(runs: Iterable[Run], progress: bool) -> tqdm:
    """A progress bar over the steps that all these runs are to do. Raises TypeError."""
    hidden = not flag("progress", progress)
    return tqdm(total=sum(run.dense_left + run.planned for run in runs), unit="step", disable=hidden)


def dense(run: Run, bar: tqdm) -> None:
    """Its dense epochs, in portions, so that the bar moves; a copy of the run then begins with what they led to."""
    advance(run, 0, [lambda run, done: bar.update(done)])


def to_the_end(run: Run, bar: tqdm) -> None:
    """To the end of the plan, in portions, so that the bar moves."""
    advance(run, run.planned, [lambda run, done: bar.update(done)])


def train_each(runs: Mapping[Any, Run], progress: bool, what: str) -> None:
    """Train runs to the ends of their plans, one after the other; the progress bar says which: `what` and its key."""
    with bar_over(runs.values(), progress) as bar:
        for key, run in runs.items():
            bar.set_description(f"{what} {key}")
            to_the_end(run, bar)
