"""Runs that a study trains by itself, under one progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from gsm_lab.checks import flag, shown
from gsm_lab.models import copied
from gsm_lab.training.loop import advance
from gsm_lab.training.run import Run


def fresh(settings: Mapping[str, Any], **more: Any) -> Run:
    """A run of its own: a model that came as a module is not shared with other runs."""
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise TypeError(f"settings must be the arguments of a Run by name, got {shown(settings)}")
    model = settings.get("model", "lenet300")
    own = {"model": copied(model)[0]} if isinstance(model, nn.Module) else {}
    return Run(**{**settings, **own, **more})


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
