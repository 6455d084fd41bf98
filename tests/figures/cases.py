"""Figures in states that go wrong: names as long as a transformer's, one row, zeros on log axes, eight runs, 57 layers.

`CASES` names a function for each; the tables are made by hand, so that no case waits for a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from gsm_lab import figures
from gsm_lab.figures import communication, convergence, reactivation, rivals, sensitivity, taylor, trajectories
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.studies.communication import cost
from tests.figures import test_communication as ranks
from tests.figures import test_reactivation as back
from tests.figures import test_trajectories as runs

LONG = [f"encoder.layers.{i}.self_attention.{part}.weight" for i in range(12) for part in ("in_proj", "out_proj")]
RESNET = ["conv1", *(f"stage{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(9) for c in (1, 2)), "shortcut", "fc"]
FEW = ["fc1", "fc2", "fc3"]
RUNS = [f"momentum 0.{9 + i}, seed {i}, without the smoothing" for i in range(8)]
ROUND = np.linspace(0, 1, 24)


def over_runs(table: Callable[..., pd.DataFrame], labels: list) -> pd.DataFrame:
    return pd.concat([table(run=label) for label in labels])


def by_layer(layers: list[str], least: float = 0.001) -> pd.DataFrame:
    """As `sensitivity.summary` makes it."""
    density = np.geomspace(least, 0.4, len(layers)) if len(layers) > 1 else np.array([least])
    table = pd.DataFrame({"layer": layers, "weights": 10_000, "density": density})
    return table.assign(kept=(1e4 * density).astype(int), low=density * 0.8, high=density * 1.3, seeds=3)


def alone(layers: list[str], lost: float = 1.0, ratios: tuple[float, ...] = (0.5, 0.9, 0.99)) -> pd.DataFrame:
    rows = [(layer, r, f, seed, lost * r * (i + 1) / 99 + seed / 500, (f + 1) * r * (i + 2))
            for i, layer in enumerate(layers) for r in ratios for f in (0, 2) for seed in (0, 1)]  # fmt: skip
    return pd.DataFrame(rows, columns=["layer", "ratio", "finetune", "seed", "lost", "more"])


def taus(layers: int, tau: float = 1 / 3) -> pd.DataFrame:
    return pd.DataFrame({"finetune": [0, 2], "tau": tau, "low": tau - 0.2, "high": tau + 0.2, "layers": layers})


def per_layer(layers: list[str], woken: int = 40) -> pd.DataFrame:
    rows = pd.DataFrame({"layer": [*layers, "all"], "weights": 1_000, "active": 500})
    return rows.assign(woken=np.arange(len(rows)) % (woken + 1), kept=20, kept_woken=np.arange(len(rows)) % 2)


def kept(layers: list[str]) -> pd.DataFrame:
    """As `trajectories.density` makes it."""
    return runs.density(layers=layers).assign(density=lambda t: np.geomspace(0.001, 1, len(t)))


def rival(methods: int = 3, budgets: tuple[float, ...] = (55.6, 60.0, 100.0, 300.0)) -> pd.DataFrame:
    labels = ["GSM", "GSM, smoothed gate", "DNS", "ADMM", "Han et al. 2015", "random", "magnitude at once", "L-OBS"]
    rows = [(label, c, seed, (0.98, 0.97, 0.5)[i % 3] - c / 1e4 + seed / 500 + i / 999)
            for i, label in enumerate(labels[:methods]) for c in budgets for seed in (0, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["label", "compression", "seed", "cut"])
    return table.assign(model="lenet300", base=0.984, live=table["cut"] + 0.001, published=98.18, seconds=3.0)


def seeds(rows: int = 20, scale: float = 1.0, n: int = 3) -> pd.DataFrame:
    parts = []
    for seed in range(n):
        fall = scale * np.exp(-np.arange(rows) / 4) * (1 + seed / 9)
        table = pd.DataFrame({"seed": seed, "step": 5 * np.arange(1, rows + 1), "loss": fall, "distance": fall / 2})
        table = table.assign(epoch=table["step"] / 10, live=0.95 - fall / 10, cut=0.94 - fall / 5)
        parts.append(table.assign(turnover=fall / 3, renewed=fall.clip(0, 1)))
    return pd.concat(parts, ignore_index=True)


def singles(regions: int = 4, least: float = 1e-9, floor: float = 1e-12) -> pd.DataFrame:
    true = np.geomspace(least, 1e6 * least, 12 * regions)
    names = ("top of the ranking", "around the threshold", "bottom of the ranking", "drawn from all weights", "cut")
    table = pd.DataFrame({"region": np.repeat(names[:regions], 12), "layer": LONG[0], "index": 7, "rank": 9})
    for estimate in ESTIMATES:
        table[estimate] = true * 1.1
    table["true"] = true
    table.attrs["floor"] = floor
    return table


def sized(sizes=(1, 10, 1000, 10_000), true: float = 0.3) -> pd.DataFrame:
    table = pd.DataFrame({"kind": "top", "size": sizes, "true": true})
    for i, estimate in enumerate(ESTIMATES):
        table[estimate], table[f"error of {estimate}"] = true / 2, 10.0 ** (-i) * np.arange(len(sizes))
    return table


def agreed(groups: list[str], error: float = 1.0) -> pd.DataFrame:
    rows = [(g, e, error * 10.0**-i, 0.9, 12, 1) for g in groups for i, e in enumerate(ESTIMATES)]
    columns = ["layer", "estimate", "relative_error", "rank_correlation", "weights", "below_floor"]
    return pd.DataFrame(rows, columns=columns)


def counts(n: int = 12, top: int = 10**6) -> pd.DataFrame:
    at = np.geomspace(1, 1e6, n)
    return pd.DataFrame((np.eye(n) * top).astype(int), index=at, columns=at)


def hooked(factors=(1.0, 2.0, 4.0, 16.0)) -> pd.DataFrame:
    rows = [(seed, k) for seed in (0, 1) for k in (np.inf, *factors)]
    table = pd.DataFrame(rows, columns=["seed", "factor"])
    table = table.assign(live=0.97, cut=0.96 - table["seed"] / 100, lost=0.0004, base=0.98)
    return table.assign(tested=360, ranks=8, share=0.03)


def zeros(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.assign(**dict.fromkeys(columns, 0.0))


def _titled(words: int) -> go.Figure:
    title = " ".join(f"word{i}" for i in range(words))
    table = pd.DataFrame({f"column {i} of a table with long names": np.geomspace(1e-9, 1e9, 5) for i in range(8)})
    return figures.lines(table, title, "step since the gate closed", "|w| (log)", log=True)


T, R, S, C, L, V, E = trajectories, reactivation, sensitivity, communication, taylor, rivals, convergence
CASES: dict[str, Callable[[], go.Figure]] = {
    **{f"trajectories {name}": draw for name, draw in runs.ALL.items()},
    **{f"reactivation {name}": draw for name, draw in back.MADE.items()},
    **{f"communication {name}": draw for name, draw in ranks.ALL.items()},
    "lines, eight long names, a long title": lambda: _titled(60),
    "lines, no rows": lambda: figures.lines(pd.DataFrame({"a": []}), "Nothing was recorded", "step", "|w|", log=True),
    "lines, only zeros": lambda: figures.lines(pd.DataFrame({"a": [0.0] * 3}), "Zero", "step", "|w|", log=True),
    "near_zero, eight runs": lambda: T.near_zero(over_runs(runs.near_zero, RUNS)),
    "near_zero, one row": lambda: T.near_zero(runs.near_zero().iloc[:1]),
    "near_zero, a million steps": lambda: T.near_zero(runs.near_zero().assign(step=lambda t: t["step"] * 100_000)),
    "cut_gap, eight runs": lambda: T.cut_gap(over_runs(partial(runs.cut_gap, [0.3, 0.1, 0.0]), RUNS)),
    "cut_gap, one row, no loss": lambda: T.cut_gap(runs.cut_gap([0.0]).assign(loss=np.nan)),
    "cut_gap, huge loss": lambda: T.cut_gap(runs.cut_gap([0.3, 0.2, 0.0]).assign(loss=[1e-9, 1.0, 1e12])),
    "density, a transformer": lambda: T.density(kept(LONG)),
    "density, resnet56": lambda: T.density(kept(RESNET)),
    "density, nothing kept": lambda: T.density(zeros(runs.density(), "density", "kept")),
    "falls, eight runs": lambda: T.falls(pd.concat([runs.falls(run, rate=0.1 + i) for i, run in enumerate(RUNS)])),
    "falls, to nothing": lambda: T.falls(runs.falls(rate=90)),
    "falls, one row": lambda: T.falls(runs.falls().iloc[:1]),
    "speed, one row": lambda: T.speed(runs.speed().iloc[:1]),
    "speed, five decades": lambda: T.speed(runs.speed().assign(of_critical=np.geomspace(1e-4, 10, 6))),
    "paths, all zero": lambda: T.paths(runs.paths(each=1).assign(magnitude=0.0)),
    "paths, long name": lambda: T.paths(runs.paths(layers=(LONG[0],), each=2), LONG[0]),
    "paths, thirty decades": lambda: T.paths(runs.paths(each=2).assign(magnitude=lambda t: 10 ** (-t["step"] * 0.75))),
    "sets, one row": lambda: T.sets(runs.sets().iloc[:1]),
    "sets, huge": lambda: T.sets(runs.sets().assign(asked=lambda t: 1e4 * t["asked"], step=lambda t: 1000 * t["step"])),
    "shares, none": lambda: R.shares(zeros(back.steps(), "share", "woken_share", "near_zero_share", "reactivated")),
    "shares, one row": lambda: R.shares(back.steps(1e-4).iloc[:1], name=LONG[0]),
    "compared, a transformer": lambda: R.compared({n: back.steps(1 + i) for i, n in enumerate(LONG[:8])}, "layer"),
    "compared, none": lambda: R.compared({0.9: zeros(back.steps(), "share", "reactivated")}),
    "survival, eight": lambda: R.survival({name: back.stretches(i / 9) for i, name in enumerate(LONG[:8])}, "layer"),
    "survival, one row": lambda: R.survival({0.9: back.stretches().iloc[:1]}),
    "layers, a transformer": lambda: R.layers(per_layer(LONG)),
    "layers, resnet56": lambda: R.layers(per_layer(RESNET)),
    "layers, none woken": lambda: R.layers(per_layer(FEW, 0)),
    "kept, nothing": lambda: R.kept(zeros(back.KEPT, "kept", "kept_share")),
    "controls, one": lambda: R.controls(back.runs(0.0, 0.0, 0.0, 0.0)),
    "scatter, tiny": lambda: L.scatter(singles(least=1e-30, floor=0)),
    "scatter, all below": lambda: L.scatter(singles(floor=1.0)),
    "scatter, one region": lambda: L.scatter(singles(1)),
    "errors, a transformer": lambda: L.errors(agreed(LONG), "layer", "(at the end of a long run)"),
    "errors, resnet56": lambda: L.errors(agreed(RESNET), "layer"),
    "errors, exact": lambda: L.errors(agreed(FEW, 0.0), "layer"),
    "set_errors": lambda: L.set_errors(sized()),
    "set_errors, one": lambda: L.set_errors(sized((1,), 1e-12)),
    "rank_map": lambda: L.rank_map(counts()),
    "rank_map, one": lambda: L.rank_map(counts(1, 1)),
    "input_map": lambda: L.input_map(pd.DataFrame(np.outer(np.arange(28), np.arange(28)))),
    "input_map, one pixel": lambda: L.input_map(pd.DataFrame([[0]])),
    **{f"densities, {kind}": partial(lambda layers: S.densities(by_layer(layers)), layers)
       for kind, layers in (("three", FEW), ("one", FEW[:1]), ("a transformer", LONG), ("resnet56", RESNET))},
    **{f"alone, {kind}": partial(lambda layers: S.alone(alone(layers), 2), layers)
       for kind, layers in (("three", FEW), ("one", FEW[:1]), ("a transformer", LONG), ("resnet56", RESNET))},
    **{f"sensitivity compared, {kind}": partial(lambda n: S.compared(by_layer(n), alone(n), taus(len(n))), layers)
       for kind, layers in (("three", FEW), ("one", FEW[:1]), ("a transformer", LONG), ("resnet56", RESNET))},
    **{f"budgets, {n} methods": partial(lambda n: V.budgets(rival(n)), n) for n in (1, 3, 8)},
    **{f"ranked, {n} methods": partial(lambda n: V.ranked(rival(n)), n) for n in (1, 3, 8)},
    **{f"against_published, {n}": partial(lambda n: V.against_published(rival(n)), n) for n in (1, 3, 8)},
    "pixels": lambda: V.pixels(np.outer(np.arange(28), np.arange(28))),
    "pixels, one": lambda: V.pixels(np.ones((1, 1))),
    "pixels, wide": lambda: V.pixels(np.ones((3, 90)) * 1e7),
    **{f"convergence {draw.__name__}, {kind}": partial(lambda draw, table: draw(table()), draw, table)
       for draw in (E.accuracies, E.loss, E.distance, E.turnover)
       for kind, table in (("seeds", seeds), ("one row", partial(seeds, 1, n=1)), ("tiny", partial(seeds, 9, 1e-12)))},
    "recall, five k": lambda: C.recall(ranks.agreement(layers=(LONG[0],), factors=(1.0, 1.5, 2.0, 4.0, 16.0)), LONG[0]),
    "overlap, long name": lambda: C.overlap(ranks.agreement(layers=(LONG[0],)), 2.0, LONG[0]),
    "quantised, six": lambda: C.quantised(
        pd.concat([ranks.quantised().iloc[:3].assign(bits=b, stage=ranks.STAGES) for b in (1, 2, 3, 4, 8, 16)])
    ),
    "volume, a billion": lambda: C.volume(cost(10**9, [2, 16, 128, 1024, 10**5]), "seconds"),
    "hooked": lambda: C.accuracy(hooked()),
}  # fmt: skip
assert len(set(itertools.chain(CASES))) == len(CASES)
