"""Calls of the figures, the playground, and what is read and written around a run: see `random_calls`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import gsm_lab as gl
from gsm_lab import figures
from gsm_lab.cli import report
from gsm_lab.figures import communication as of_ranks
from gsm_lab.figures import convergence as of_seeds
from gsm_lab.figures import network as of_layer
from gsm_lab.figures import reactivation as of_recorders
from gsm_lab.figures import rivals, style
from gsm_lab.figures import sensitivity as of_layers
from gsm_lab.figures import taylor as of_estimates
from gsm_lab.figures import trajectories as of_runs
from gsm_lab.paper import reproduce
from gsm_lab.studies import communication, convergence, network, reactivation, sensitivity, taylor, trajectories
from gsm_lab.training import checkpoint
from tests import random_study_calls as studied
from tests.random_inputs import Calls, Made, figure, folder, run, steps_on


def history() -> Any:
    return steps_on().history


@cache
def over_seeds() -> pd.DataFrame:
    return convergence.over_seeds(studied.settings(), [0, 1], 2, progress=False)


@cache
def with_hook() -> pd.DataFrame:
    row = {"seed": 0, "live": 0.9, "cut": 0.8, "lost": 0.1, "base": 0.9, "tested": 20, "bytes": 100.0, "share": 0.5}
    return pd.DataFrame([{**row, "factor": k, "ranks": 2} for k in (np.inf, 1.0, 2.0)])


@cache
def rivals_table() -> pd.DataFrame:
    row = {"model": "lenet300", "compression": 60.0, "seed": 0, "base": 0.98, "live": 0.97, "seconds": 3.0}
    methods = (("GSM", 0.97, 98.18), ("DNS", 0.96, np.nan))
    return pd.DataFrame([{**row, "label": label, "cut": cut, "published": paper} for label, cut, paper in methods])


@cache
def speeds() -> pd.DataFrame:
    settings = studied.settings() | {"compression": 24.0}
    return trajectories.zero_out_speed(settings, [0.5], of_critical=[0.1], window=1)


def per_step() -> pd.DataFrame:
    return reactivation.per_step(studied.watched()[1])


def survival() -> pd.DataFrame:
    return reactivation.survival(studied.watched()[1])


@cache
def controls() -> pd.DataFrame:
    return reactivation.controls(studied.settings(), [1], [0], progress=False)


def rank_map() -> pd.DataFrame:
    return taylor.rank_map(studied.every_weight(), 4)


def input_map() -> pd.DataFrame:
    return taylor.missed_by_input(studied.every_weight(), "0.weight", (2, 3), 4)


def closed() -> Path:
    """Where nothing can be written: below a file."""
    path = Path(folder()) / "file"
    path.touch()
    return path / "table.csv"


def _playground(**kw: Any) -> None:
    gl.Playground(**kw).close()


def _played(name: str) -> Any:
    def call(**kw: Any) -> None:
        playground = _one_playground()
        getattr(playground, name)(**kw)

    return call


@cache
def _one_playground() -> gl.Playground:
    return gl.Playground(run(), hide="taylor")


@cache
def views() -> list[network.View]:
    one = run()
    film = network.Film(one, 3)
    one.step(2)
    return film.views


def with_layer() -> Any:
    return of_layer.add(style.finish(figure(), 500), views()[0])


def drawn(**choices: Any) -> Any:
    return figure()


FIGURE_CALLS: Calls = {
    "figures.curves": (figures.curves, {"history": Made(history), "points": 10}),
    "figures.dashboard": (figures.dashboard, {"history": Made(history), "height": 640, "slots": 0, "taylor": None}),
    "figures.update": (
        figures.update,
        {"figure": Made(lambda: figures.dashboard(history(), slots=8)), "history": Made(history), "taylor": None},
    ),
    "figures.marks": (figures.marks, {"history": Made(history)}),
    "figures.title_texts": (figures.title_texts, {"history": Made(history)}),
    "figures.line": (figures.line, {"i": 3}),
    "figures.lines": (
        figures.lines,
        {"table": pd.DataFrame({"a": [1.0, 2.0]}), "title": "It rises", "x": "step", "y": "a", "log": True,
         "height": 420},
    ),
    "of_layer.network": (of_layer.network, {"view": Made(lambda: views()[0]), "height": 440}),
    "of_layer.film": (of_layer.film, {"views": Made(views), "height": 500}),
    "of_layer.titles": (of_layer.titles, {"view": Made(lambda: views()[0])}),
    "of_layer.sentence": (of_layer.sentence, {"view": Made(lambda: views()[0])}),
    "of_layer.changed": (of_layer.changed, {"first": Made(lambda: views()[0]), "last": Made(lambda: views()[-1])}),
    "of_layer.add": (
        of_layer.add,
        {"figure": Made(lambda: style.finish(figure(), 500)), "view": Made(lambda: views()[0]),
         "left": (0.0, 0.4, 0.0, 1.0), "right": (0.5, 1.0, 0.0, 1.0), "titled": True},
    ),
    "of_layer.update": (of_layer.update, {"figure": Made(with_layer), "view": Made(lambda: views()[-1])}),
    "of_layer.show": (of_layer.show, {"figure": Made(with_layer), "visible": False}),
    "of_ranks.recall": (
        of_ranks.recall, {"table": Made(lambda: communication.agreement(studied.looks(), [1, 2])), "layer": "all"},
    ),
    "of_ranks.overlap": (
        of_ranks.overlap,
        {"table": Made(lambda: communication.agreement(studied.looks(), [1, 2])), "factor": 1, "layer": "all"},
    ),
    "of_ranks.quantised": (
        of_ranks.quantised, {"table": Made(lambda: communication.quantised(studied.looks(), [8, 2]))},
    ),
    "of_ranks.volume": (of_ranks.volume, {"table": Made(lambda: communication.cost(ranks=[2, 4])), "what": "bytes"}),
    "of_ranks.accuracy": (of_ranks.accuracy, {"table": Made(with_hook)}),
    **{
        f"of_seeds.{one.__name__}": (one, {"table": Made(over_seeds), "height": 420})
        for one in (of_seeds.accuracies, of_seeds.loss, of_seeds.distance, of_seeds.turnover)
    },
    "of_seeds.bands": (of_seeds.bands, {"table": Made(over_seeds), "column": "loss"}),
    "of_runs.falls": (of_runs.falls, {"table": Made(lambda: trajectories.falls({0.9: studied.watched()[2]}))}),
    "of_runs.speed": (of_runs.speed, {"table": Made(speeds)}),
    "of_recorders.shares": (of_recorders.shares, {"table": Made(per_step), "name": "all", "height": 420}),
    "of_recorders.compared": (
        of_recorders.compared,
        {"tables": Made(lambda: {0.9: per_step()}), "what": "momentum", "height": 420},
    ),
    "of_recorders.survival": (
        of_recorders.survival, {"tables": Made(lambda: {0.9: survival()}), "what": "momentum", "height": 420},
    ),
    "of_recorders.layers": (
        of_recorders.layers, {"table": Made(lambda: reactivation.per_layer(studied.watched()[1])), "height": 420},
    ),
    "of_recorders.kept": (
        of_recorders.kept, {"table": Made(lambda: reactivation.kept(studied.watched()[1])), "height": 420},
    ),
    "of_recorders.controls": (of_recorders.controls, {"table": Made(controls), "height": 460}),
    "rivals.summary": (rivals.summary, {"table": Made(rivals_table)}),
    "rivals.budgets": (rivals.budgets, {"table": Made(rivals_table), "model": "lenet300", "height": 460}),
    "rivals.ranked": (
        rivals.ranked, {"table": Made(rivals_table), "model": "lenet300", "compression": 60, "height": 460},
    ),
    "rivals.pixels": (rivals.pixels, {"counts": np.ones((2, 2)), "height": 440}),
    "rivals.against_published": (rivals.against_published, {"table": Made(rivals_table), "height": 460}),
    "of_layers.densities": (
        of_layers.densities, {"table": Made(lambda: sensitivity.summary(studied.densities())), "height": 420},
    ),
    "of_layers.alone": (of_layers.alone, {"table": Made(studied.alone), "finetune": 0, "height": 420}),
    "of_layers.compared": (
        of_layers.compared,
        {
            "answer": Made(lambda: sensitivity.summary(studied.densities())), "truth": Made(studied.alone),
            "agreement": Made(lambda: sensitivity.agreement(studied.densities(), studied.alone(), 3)), "height": 420,
        },
    ),
    "of_estimates.scatter": (
        of_estimates.scatter, {"table": Made(studied.singles), "estimate": "|g w|", "height": 460},
    ),
    "of_estimates.errors": (
        of_estimates.errors,
        {"agreement": Made(lambda: taylor.agreement(studied.singles())), "across": "region", "note": "here",
         "height": 420},
    ),
    "of_estimates.set_errors": (
        of_estimates.set_errors,
        {"table": Made(lambda: _sets()), "kind": "top", "note": "here", "height": 420},
    ),
    "of_estimates.rank_map": (of_estimates.rank_map, {"counts": Made(rank_map), "height": 480}),
    "of_estimates.input_map": (of_estimates.input_map, {"missed": Made(input_map), "height": 440}),
    "of_runs.near_zero": (of_runs.near_zero, {"table": Made(lambda: trajectories.near_zero(studied.watched()[0]))}),
    "of_runs.cut_gap": (
        of_runs.cut_gap, {"table": Made(lambda: trajectories.cut_gap(studied.watched()[0])), "tolerance": 0.01},
    ),
    "of_runs.density": (of_runs.density, {"table": Made(lambda: trajectories.density(studied.watched()[0]))}),
    "of_runs.paths": (
        of_runs.paths, {"table": Made(lambda: studied.watched()[2].frame()), "layer": "0.weight", "shown": 2},
    ),
    "of_runs.sets": (of_runs.sets, {"table": Made(lambda: studied.watched()[3].frame())}),
    "Playground": (_playground, {"run": Made(run), "hide": ("figure",)}),
    "Playground.step": (_played("step"), {"n": 1}),
    "Playground.load_state": (_played("load_state"), {"line": '{"gsm_lab": 1, "knobs": {"lr": 0.1}}'}),
    "explore": (gl.explore, {"draw": drawn, "momentum": [0.9, 0.98]}),
    "explore.choose": (lambda momentum: gl.explore(drawn, momentum=[1, 2]).choose(momentum=momentum), {"momentum": 2}),
    "reproduce": (
        lambda **kw: reproduce.reproduce(**kw, progress=False),
        {"table": "table1", "out": Made(closed), "data": "digits", "seeds": [0], "only": ["DNS"],
         "compressions": [55.6], "epochs": 1},
    ),
    "report.report": (report.report, {"run": Made(steps_on)}),
    "report.recipe": (report.recipe, {"run": Made(steps_on)}),
    "checkpoint.load_weights": (checkpoint.load_weights, {"path": Made(lambda: _weights())}),
}  # fmt: skip


@cache
def _sets() -> pd.DataFrame:
    return taylor.sets(studied.problem(), 4, [0.1])


@cache
def _weights() -> Path:
    from gsm_lab.training import tensor_files

    path = Path(folder()) / "weights.safetensors"
    path.write_bytes(tensor_files.content_of(steps_on().model.state_dict(), {"of": "a test"}))
    return path
