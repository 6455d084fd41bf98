"""How a run is put together, at step 0, the first time and at every reset: what is chosen for it, and all its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gsm_lab import data as datasets
from gsm_lab import models
from gsm_lab.knobs import KNOBS, LIVE, Settings, resolve
from gsm_lab.optim import GSM, param_groups
from gsm_lab.recipes import REGRESSION, recipe_of
from gsm_lab.training import fitting
from gsm_lab.training.measuring import chosen
from gsm_lab.training.method import Method
from gsm_lab.training.parts import Anatomy
from gsm_lab.training.state import fill
from gsm_lab.training.step import Training


def put_together(
    run: Training,
    source_model: str | nn.Module,
    source_data: str | datasets.Dataset,
    given: dict[str, Any],
    given_options: dict[str, Any],
) -> None:
    """Begin at step 0. What can fail comes first, so that a run that cannot begin again stays as it was."""
    with run.placement.together():
        data = run.placement.load(source_data)
        name = source_model if isinstance(source_model, str) else type(source_model).__name__
        now, options = resolved(run.method, given, given_options, data, name)
        loss, metric = chosen(data, run.given_loss, run.given_metric)
        run.placement.must_suit(run, now, options, data)
        model = source_model
        if isinstance(model, str):
            model = models.build(name, data.shape, data.outputs, data.mean, data.std, now.seed)
        ours = isinstance(source_model, str) and loss is F.cross_entropy and run.output is None
        above = None
        if not (ours and metric.is_accuracy):  # else they are known to fit
            same = run._fits == (source_model, source_data)
            above = run.above if same else run.placement.tried(run, model, data, now.batch_size, loss, metric)
        resting = [m for m in model.modules() if not m.training] if model.training else []
        model = run.placement.place(model, run.initial is None, run.picks)
        weights = models.prunable(model, **run.picks)
        groups = param_groups(model, **run.picks)
        fed = data.to(next(model.parameters()).device, fitting.dtype_of(model))
        batches = datasets.Batches(fed, now.batch_size, now.seed)
        opt = GSM(groups, now.lr, now.momentum, weight_decay=now.weight_decay, fused=_can_fuse(model))
        if run.initial is not None and model is source_model:
            fill(model, run.initial)
        run._fits, run.above, run._resting = (source_model, source_data), above, resting
        run.draws = not ours or run.method.draws
        run.source_model, run.source_data = source_model, source_data
        run.model, run.data, run.batches, run.opt = model, batches.dataset, batches, opt
        run.settings, run.options = now, options
        run.loss, run.metric = loss, metric
        run.history = run.placement.history(weights)
        run.history.metric = metric.described
        run.tensors = list(weights.values())
        run._anatomy = Anatomy(model)
        run.recorders = []
        run.steps = run.dense_steps = 0
        run.threads = None
        run.base = run.magnitude = None
        run._warned = False  # that it ended too early
        run.random_state = torch.Generator().manual_seed(now.seed).get_state()
        for knob in LIVE:
            run.history.moved(0, knob, None, getattr(now, knob))
        run.method.start(run)
        run.apply_settings()
        run.placement.wrap(run)


def _can_fuse(model: nn.Module) -> bool:
    """Whether fused SGD may be used: on a CPU it leaves 16-bit weights as they are (PyTorch issue 191763)."""
    full = (torch.float32, torch.float64)
    return all(p.is_cuda or (p.device.type == "cpu" and p.dtype in full) for p in model.parameters())


def checked(method: Method, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, as they were given, and options of the method, checked.

    Raises ValueError for an option that is not valid, for what is neither (of a method that has options), and for a
    setting that the method takes no notice of.
    """
    mine = {knob.name: knob for knob in method.options}
    if method.ignores or mine:
        for name in given.keys() - KNOBS.keys() - mine.keys():
            raise ValueError(
                f"{method.name} has no setting {name!r}: its options are {', '.join(mine) or 'none'}, "
                f"the knobs {', '.join(KNOBS)}"
            )
    refuse_ignored(method, given)
    options = {name: mine[name].check(value) for name, value in given.items() if name in mine}
    return {name: value for name, value in given.items() if name not in mine}, options


def refuse_ignored(method: Method, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that the method takes no notice of, unless it has its default."""
    for name in method.ignores:
        if name in given and KNOBS[name].check(given[name]) != KNOBS[name].default:
            raise ValueError(
                f"{name} must be {KNOBS[name].default:g} for {method.name}, got {given[name]!r}: it is an option of "
                "GSM's gate"
            )


def resolved(
    method: Method, given: Mapping[str, Any], given_options: Mapping[str, Any], data: datasets.Dataset, model: str
) -> tuple[Settings, dict[str, Any]]:
    """All settings and all options: those given, else what works for this data and model, else the defaults."""
    recipe = dict(REGRESSION) if data.regression else method.recipe(recipe_of(data.name, model))
    options = {option.name: recipe.pop(option.name, option.default) for option in method.options}
    return resolve(recipe | given, data.name, model), options | given_options
