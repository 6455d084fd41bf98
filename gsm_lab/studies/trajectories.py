"""When may you cut? How weights travel to zero, how the sets settle, and what a cut would cost at each moment.

    runs = trajectories.per_momentum({"data": "digits", "compression": 60}, (0.9, 0.98, 0.99), matched=True)
    paths = {momentum: trajectories.Paths(run) for momentum, run in runs.items()}
    trajectories.train(runs)
    trajectories.cut_gap(runs)             # and near_zero, lossless_from, density; paths[0.9].frame(), .falls()

Tables of several runs begin with a column `run`, the key under which a run was given. Everything works with any model
and data a `Run` takes. How a single weight decays: `gsm_lab.studies.decay`; recorders: `paths`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import numpy as np
import pandas as pd

from gsm_lab.checks import flag, kind, number, one_of, shown
from gsm_lab.metric import marked, metric_of
from gsm_lab.studies.aggregation import first_lossless
from gsm_lab.studies.decay import closed_form_rate, critical, decay_rate, passive, settling_steps, zero_out_speed
from gsm_lab.studies.paths import KINDS, ActiveSets, Paths, predicted
from gsm_lab.studies.runs import MOMENTA, per_momentum
from gsm_lab.training.history import History
from gsm_lab.training.loop import Progress, advance
from gsm_lab.training.run import Run

__all__ = [
    "KINDS", "MOMENTA", "ActiveSets", "Paths",
    "closed_form_rate", "critical", "cut_gap", "decay_rate", "density", "falls", "lossless_from", "near_zero",
    "passive", "per_momentum", "predicted", "settling_steps", "train", "zero_out_speed",
]  # fmt: skip

Runs = Run | History | Mapping[Hashable, Run | History]
POINTS = 400  # rows a run; more cannot be seen


def train(runs: Run | Mapping[Hashable, Run], epochs: float | None = None, progress: bool = True) -> None:
    """Train one run or several, one after the other, for `epochs` gated epochs each, by default to the end of the plan.

    Shows one progress bar with rate and time left unless `progress` is False. Recorders have to be attached before.

    Raises:
        ValueError: no runs, or `epochs` is not a finite number >= 0.
        FloatingPointError: from a run that diverges; a note says which.
    """
    progress, pairs = flag("progress", progress), list(_each(runs))
    for _, run in pairs:
        kind("runs", run, Run, "a Run or a mapping of these")
    steps = [max(0, r.planned - r.steps) if epochs is None else r.steps_of(epochs) for _, r in pairs]
    with Progress(sum(steps) + sum(run.dense_left for _, run in pairs), progress) as progress:
        for (label, run), n in zip(pairs, steps, strict=True):
            progress.bar.set_description(str(label))
            try:
                if n or run.dense_left:
                    advance(run, run.steps + n, [progress])
                run.train(epochs=0, progress=False)  # evaluates, unless the last step has
            except FloatingPointError as error:
                error.add_note(f"in run {label!r}")
                raise


def near_zero(runs: Runs, paths: Paths | Mapping[Hashable, Paths] | None = None) -> pd.DataFrame:
    """Shares of weights near zero over the steps, at most `POINTS` rows a run.

    Args:
        runs: one or several.
        paths: their recorders, under the same keys; with them come the shares there would be if all weights were
            passive, from the recurrence that they obey.

    Returns:
        run, step, epoch, under_1e-3, under_1e-4 (shares of all weights, 0..1), target (1 - 1/C: what has to go),
        turnover (share of the active set that was passive one step before, mean since the row before); with `paths`
        also expected_1e-3 and expected_1e-4.

    Raises:
        ValueError: no runs, a run without gated steps, or paths of other runs.
    """
    tables = []
    for label, run in _each(runs):
        history = _history(run)
        if not len(history.steps.array()):
            raise ValueError(f"run {label!r} has taken no gated step yet; call run.step(n) or run.train() first")
        frame, count = history.frame(), sum(history.layers.values())
        last = _rows_shown(len(frame))
        turnover = np.add.reduceat((frame["reactivated"] / frame["active"].clip(1)).to_numpy(), [0, *last[:-1] + 1])
        table = frame.loc[last, ["step", "epoch"]].assign(
            **{name: frame.loc[last, name] / count for name in ("under_1e-3", "under_1e-4")},
            target=1 - 1 / frame.loc[last, "compression"],
            turnover=turnover / np.diff(last, prepend=-1),
        )
        if paths is not None:
            own = paths.get(label) if isinstance(paths, Mapping) else paths
            if not isinstance(own, Paths) or own.run is not run:
                raise ValueError(f"paths must hold the recorder of run {label!r}, got {shown(own)} there")
            expected = own.expected_near_zero(table["step"].to_numpy()).drop(columns="step")
            table = table.reset_index(drop=True).join(expected)
        tables.append(_labelled(label, table))
    return pd.concat(tables, ignore_index=True)


def cut_gap(runs: Runs) -> pd.DataFrame:
    """What a cut would cost at each evaluation, and the training loss by then.

    Returns:
        run, step, live, cut (test accuracies, 0..1), gap (live - cut), loss (mean over the steps since the evaluation
        before; NaN at the first one). Of another metric its values, the gap being how much worse the cut one is, and
        `metric`, which it is.

    Raises:
        ValueError: no runs, or a run without evaluations.
    """
    tables = []
    for label, run in _each(runs):
        evaluations, rows, metric = _evaluated(label, run), _history(run).steps.array(), _history(run).metric
        step = evaluations["step"].to_numpy()
        live, cut = (evaluations[name].to_numpy(np.float64) for name in metric.columns)
        ends = np.searchsorted(rows["step"], step, side="right")
        sums, counts = np.diff(np.append(0.0, np.cumsum(rows["loss"], dtype=np.float64))[ends]), np.diff(ends)
        loss = np.append(np.nan, np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))
        table = pd.DataFrame({"step": step, "live": live, "cut": cut, "gap": metric.cost(live, cut), "loss": loss})
        tables.append(_labelled(label, marked(table, metric)))
    return pd.concat(tables, ignore_index=True)


def lossless_from(runs: Runs, tolerance: float | None = None) -> pd.DataFrame:
    """From which evaluation on a cut costs no more than `tolerance` at every later one too.

    Args:
        runs: one or several.
        tolerance: in the unit of the metric; unless given that of the metric, 0.005 of accuracy, 0..1.

    Returns:
        One row a run: run, step (NaN: it never does, not even at the last evaluation), share (of the steps so far, NaN
        likewise), gap (at the last evaluation), live, cut (accuracies there; of another metric its values, and
        `metric`).

    Raises:
        ValueError: a tolerance that is negative or not finite, no runs, or a run without evaluations.
    """
    tolerance = None if tolerance is None else number("tolerance", tolerance, 0)
    rows = []
    for label, table in cut_gap(runs).groupby("run", sort=False):
        first, end = first_lossless(table, tolerance), table.iloc[-1]
        step = float(table["step"].iloc[first]) if first < len(table) else np.nan
        share = step / end["step"] if end["step"] else 0.0
        row = {"run": label, "step": step, "share": share, **end[["gap", "live", "cut"]]}
        metric = metric_of(table)
        rows.append(row if metric.is_accuracy else row | {"metric": str(metric)})
    return pd.DataFrame(rows)


def density(runs: Runs, layer: str | None = None) -> pd.DataFrame:
    """How much of each layer a cut would keep, at each evaluation.

    Returns:
        run, step, layer, weights (of the layer), kept, density (kept / weights, 0..1).

    Raises:
        ValueError: an unknown layer, no runs, or a run without evaluations.
    """
    tables = []
    for label, run in _each(runs):
        evaluations, layers = _evaluated(label, run), _history(run).layers
        if layer is not None:
            one_of("layer", layer, layers)
        for name in layers if layer is None else [layer]:
            kept = evaluations[f"kept/{name}"].to_numpy()
            table = {"step": evaluations["step"], "layer": name, "weights": layers[name], "kept": kept}
            tables.append(_labelled(label, pd.DataFrame(table).assign(density=kept / layers[name])))
    return pd.concat(tables, ignore_index=True)


def falls(paths: Mapping[Hashable, Paths]) -> pd.DataFrame:
    """`Paths.falls` of several runs under a column `run`: passive weights against recurrence and closed form.

    Raises ValueError for an empty mapping, and as `Paths.falls`.
    """
    kind("paths", paths, Mapping, "a mapping of recorders")
    if not paths:
        raise ValueError("paths must hold at least one recorder, got an empty mapping")
    for one in paths.values():
        kind("paths", one, Paths, "a mapping of recorders, of Paths each")
    return pd.concat([_labelled(label, one.falls()) for label, one in paths.items()], ignore_index=True)


def _each(runs: Runs) -> Iterator[tuple[Hashable, Run | History]]:
    """Labels and runs; a single one goes by its momentum, or as "run"."""
    if isinstance(runs, Mapping):
        if not runs:
            raise ValueError("runs must hold at least one run, got an empty mapping")
        pairs = list(runs.items())
    else:
        pairs = [(runs.settings.momentum if isinstance(runs, Run) else "run", runs)]
    for label, run in pairs:
        if not isinstance(run, Run | History):
            got = f"{type(run).__name__} ({shown(label)})"
            raise TypeError(f"runs must be a Run, a History or a mapping of these, got {got}")
    yield from pairs


def _history(run: Run | History) -> History:
    return run.history if isinstance(run, Run) else run


def _evaluated(label: Hashable, run: Run | History) -> pd.DataFrame:
    table = _history(run).evaluation_frame()
    if not len(table):
        raise ValueError(f"run {label!r} has no evaluations yet; call run.step(n) or run.train() first")
    return table


def _labelled(label: Hashable, table: pd.DataFrame) -> pd.DataFrame:
    table.insert(0, "run", label)
    return table


def _rows_shown(count: int) -> np.ndarray:
    """Positions of at most `POINTS` of `count` rows, at even distances, the last among them."""
    every = max(1, -(-count // POINTS))
    return np.arange(count - 1, -1, -every)[::-1]
