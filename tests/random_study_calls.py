"""Calls of the studies, of what they begin with, and of tickets: see `random_calls`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab.methods import tickets
from gsm_lab.studies import (
    communication,
    convergence,
    curvature,
    exhaustive,
    network,
    paths,
    reactivation,
    sensitivity,
    taylor,
    trajectories,
)
from tests.random_inputs import Calls, Made, data, model, run, steps_on

QUICK = {"batch_size": 20, "pretrain": 0, "epochs": 2, "compression": 4.0, "evaluate_every": 2}


def settings() -> dict[str, Any]:
    return {"model": model(), "data": data(), **QUICK}


def fresh() -> gl.Run:
    return gl.Run(**settings())


@cache
def problem() -> taylor.Problem:
    return taylor.of_run(steps_on(), samples=8)


@cache
def singles() -> pd.DataFrame:
    return taylor.singles(problem(), per_region=3, compression=4)


@cache
def every_weight() -> pd.DataFrame:
    return taylor.exhaustive(problem(), progress=False)


@cache
def watched() -> tuple[gl.Run, reactivation.Recorder, trajectories.Paths, trajectories.ActiveSets]:
    """A run, and its recorders, after some steps at a high learning rate of decay: some weights stay passive."""
    one = gl.Run(**settings() | {"compression": 24.0, "epochs": 10, "hold": 1.0})
    recorders = reactivation.Recorder(one, 2), trajectories.Paths(one, 40), trajectories.ActiveSets(one, 2)
    one.step(12)
    return one, *recorders


@cache
def densities() -> pd.DataFrame:
    return sensitivity.densities(model(), data(), [0, 1], False, **QUICK)


@cache
def alone() -> pd.DataFrame:
    return sensitivity.alone(model(), data(), [0, 1], [0.5], [0], False, **QUICK)


@cache
def looks() -> list[communication.RankGradients]:
    """As two processes would have taken them down."""
    random = np.random.default_rng(0)
    local = random.normal(size=(2, 72)).astype(np.float32)
    weights, mean = random.normal(size=72).astype(np.float32), local.mean(axis=0)
    active = np.zeros(72, bool)
    active[np.abs(weights * mean).argsort()[-18:]] = True
    layers = {"0.weight": 48, "2.weight": 24}
    return [communication.RankGradients(s, 6, s / 2, weights, local, mean, active, True, 18, layers) for s in (1, 4)]


def _no_processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A study that starts processes, with a timeout that it refuses after all else, before it starts any."""
    return lambda **kw: function(**{"timeout": 0, **kw}, progress=False)


def _without_steps(**kw: Any) -> pd.DataFrame:
    return taylor.steps(kw.pop("run", None) or run(), **kw)


RATE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
OF_A_RUN = {"settings": Made(settings), "progress": False}
SWITCHES = {"matched": True}

STUDY_CALLS: Calls = {
    "Problem": (
        taylor.Problem,
        {
            "model": Made(model), "x": data().train_x[:8], "y": data().train_y[:8], "loss": F.cross_entropy,
            "dtype": torch.float64, "output": None, "include": None, "exclude": None,
        },
    ),
    "taylor.of_run": (
        taylor.of_run, {"run": Made(steps_on), "samples": 8, "dtype": torch.float64, "output": None},
    ),
    "taylor.singles": (taylor.singles, {"problem": Made(problem), "per_region": 2, "compression": 4, "seed": 0}),
    "taylor.sets": (
        taylor.sets,
        {"problem": Made(problem), "compression": 4, "shares": [0.1, 1], "seed": 0, "hessian_diagonal": None},
    ),
    "taylor.agreement": (taylor.agreement, {"table": Made(singles), "by": "region"}),
    "taylor.exhaustive": (taylor.exhaustive, {"problem": Made(problem), "layers": ["2.weight"], "progress": False}),
    "taylor.misranked": (taylor.misranked, {"table": Made(every_weight), "compression": 4}),
    "taylor.rank_map": (taylor.rank_map, {"table": Made(every_weight), "bins": 4}),
    "taylor.missed_by_input": (
        taylor.missed_by_input,
        {"table": Made(every_weight), "layer": "0.weight", "shape": (2, 3), "compression": 4},
    ),
    "taylor.stages": (
        taylor.stages,
        {"make": Made(fresh), "momenta": [0.9], "samples": 8, "per_region": 1, "progress": False},
    ),
    "taylor.steps": (taylor.steps, {"run": Made(run), "n": 1, "second_order": False}),
    "exhaustive.loss_changes": (
        exhaustive.loss_changes, {"problem": Made(problem), "layer": "2.weight", "progress": False},
    ),
    "network.look": (network.look, {"run": Made(steps_on), "units": 3, "like": None}),
    "network.Film": (network.Film, {"run": Made(run), "frames": 4, "units": 3}),
    "curvature.diagonal": (curvature.diagonal, {"problem": Made(problem), "all_layers": False}),
    "trajectories.per_momentum": (
        trajectories.per_momentum, {"settings": Made(settings), "momenta": [0.9], "matched": True},
    ),
    "trajectories.train": (trajectories.train, {"runs": Made(run), "epochs": 0.2, "progress": False}),
    "trajectories.near_zero": (
        trajectories.near_zero, {"runs": Made(lambda: watched()[0]), "paths": Made(lambda: watched()[2])},
    ),
    "trajectories.cut_gap": (trajectories.cut_gap, {"runs": Made(lambda: watched()[0])}),
    "trajectories.lossless_from": (
        trajectories.lossless_from, {"runs": Made(lambda: {0.9: watched()[0].history}), "tolerance": 0.01},
    ),
    "trajectories.density": (trajectories.density, {"runs": Made(lambda: watched()[0]), "layer": "0.weight"}),
    "trajectories.falls": (trajectories.falls, {"paths": Made(lambda: {0.9: watched()[2]})}),
    "trajectories.predicted": (trajectories.predicted, {"run": Made(lambda: watched()[0]), "steps": 3}),
    "trajectories.closed_form_rate": (trajectories.closed_form_rate, RATE),
    "trajectories.decay_rate": (trajectories.decay_rate, RATE),
    "trajectories.settling_steps": (trajectories.settling_steps, RATE),
    "trajectories.critical": (trajectories.critical, {"momentum": 0.9}),
    "trajectories.passive": (trajectories.passive, {"steps": [0, 1, 5], **RATE, "w": 1.0, "z": 0.5}),
    "zero_out_speed(run)": (
        trajectories.zero_out_speed,
        {"run": Made(lambda: gl.Run(**settings() | {"compression": 24.0, "hold": 1.0, **RATE, "momentum": 0.5})),
         "window": 1, "weights": 50, "seed": 0},
    ),
    "zero_out_speed(settings)": (
        lambda settings, **kw: trajectories.zero_out_speed(settings, **kw, window=1),
        {"settings": Made(lambda: settings() | {"compression": 24.0}), "momenta": [0.5], "of_critical": [0.1]},
    ),
    "Paths": (trajectories.Paths, {"run": Made(run), "weights": 10, "seed": 0, "limit": 10_000}),
    "Paths.frame": (lambda layer: watched()[2].frame(layer), {"layer": "0.weight"}),
    "Paths.expected_near_zero": (lambda steps: watched()[2].expected_near_zero(steps), {"steps": np.array([1, 5])}),
    "paths.predicted": (paths.predicted, {"run": Made(lambda: watched()[0]), "steps": 3}),
    "ActiveSets": (trajectories.ActiveSets, {"run": Made(run), "every": 2, "limit": 10_000}),
    "Recorder": (reactivation.Recorder, {"run": Made(run), "patience": 2}),
    "reactivation.per_step": (
        reactivation.per_step, {"recorder": Made(lambda: watched()[1]), "layer": "all", "rows": 4},
    ),
    "reactivation.per_layer": (reactivation.per_layer, {"recorder": Made(lambda: watched()[1])}),
    "reactivation.survival": (
        reactivation.survival, {"recorder": Made(lambda: watched()[1]), "layer": "all"},
    ),
    "reactivation.kept": (reactivation.kept, {"recorder": Made(lambda: watched()[1])}),
    "reactivation.per_momentum": (
        reactivation.per_momentum, {"recorders": Made(lambda: {0.9: watched()[1]})},
    ),
    "reactivation.watch": (
        reactivation.watch, {**OF_A_RUN, "momenta": [0.9], "matched": True, "patience": 2},
    ),
    "reactivation.controls": (reactivation.controls, {**OF_A_RUN, "after": [1], "seeds": [0], "patience": 2}),
    "convergence.Distances": (convergence.Distances, {"run": Made(run), "every": 2}),
    "convergence.distance": (convergence.distance, {"weights": [np.ones(4, np.float32)], "q": 2}),
    "convergence.over_seeds": (convergence.over_seeds, {**OF_A_RUN, "seeds": [0], "looks": 2}),
    "sensitivity.sensitivity": (
        lambda **kw: sensitivity.sensitivity(**kw, **QUICK),
        {"model": Made(model), "data": data(), "seeds": [0], "progress": False},
    ),
    "sensitivity.densities": (
        lambda **kw: sensitivity.densities(**kw, **QUICK),
        {"model": Made(model), "data": data(), "seeds": [0], "progress": False},
    ),
    "sensitivity.alone": (
        lambda **kw: sensitivity.alone(**kw, **QUICK),
        {"model": Made(model), "data": data(), "seeds": [0], "ratios": [0.5], "finetune": [0], "progress": False},
    ),
    "sensitivity.summary": (sensitivity.summary, {"table": Made(densities)}),
    "sensitivity.agreement": (
        sensitivity.agreement,
        {"answer": Made(densities), "truth": Made(alone), "resamples": 3, "seed": 0},
    ),
    "sensitivity.kendall": (sensitivity.kendall, {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 2.0])}),
    "communication.agreement": (communication.agreement, {"looks": Made(looks), "factors": [1, 2]}),
    "communication.quantised": (communication.quantised, {"looks": Made(looks), "bits": [2], "seed": 0}),
    "communication.cost": (
        communication.cost,
        {
            "weights": 1000, "ranks": [2], "compression": 60, "factor": 1.0, "bits": 8, "value_bytes": 4,
            "index_bytes": 4, "count_bytes": None, "count_rounds": None, "link": 1.25, "latency": 50.0,
        },
    ),
    "communication.counts": (communication.counts, {"weights": 1000}),
    "local_gradients": (
        _no_processes(communication.local_gradients), {"settings": Made(settings), "ranks": 2, "steps": [1, 2]},
    ),
    "with_hook": (
        _no_processes(communication.with_hook),
        {"settings": Made(settings), "ranks": 2, "factors": [1], "seeds": [0]},
    ),
    "tickets.find": (tickets.find, {"run": Made(fresh), "by": "gsm", "progress": False}),
    "tickets.steps_to_find": (tickets.steps_to_find, {"run": Made(fresh)}),
    "tickets.shuffled": (
        tickets.shuffled, {"mask": torch.ones(5, dtype=torch.bool), "layers": {"a": 2, "b": 3}, "seed": 0},
    ),
    "tickets.ticket": (
        lambda **kw: tickets.ticket(**kw, **settings()), {"by": "random", "progress": False, "retrain": None},
    ),
    "Ticket.wear": (
        lambda mask: tickets.worn(mask, **settings() | {"compression": 4.0}),
        {"mask": torch.ones(72, dtype=torch.bool)},
    ),
}  # fmt: skip
