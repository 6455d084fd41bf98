"""Do passive weights come back? Tables of which do, how soon and for how long, and runs in which they may not.

    run = gl.Run(data="digits")
    recorder = Recorder(run)                 # before the first step; then train as ever
    run.train()
    per_step(recorder); per_layer(recorder); survival(recorder); kept(recorder)

*Re-activated*: passive in one step, active in the next. *Woken*: re-activated after at least `patience` passive steps
in a row. *Near zero*: |w| below 1e-3 or 1e-4 after some step at which the weight was passive. *Kept*: among the Q of
largest |w|, which the cut lets live. *Returned*: near zero once, and kept. (The paper calls it "implicit connection
re-activation" and shows the ratio of re-activated to passive weights; `per_step` has that ratio.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gsm_lab.checks import kind, several, shown, whole
from gsm_lab.metric import marked
from gsm_lab.studies.recording import Recorder, survivors
from gsm_lab.studies.runs import controls, watch
from gsm_lab.studies.scan import NEAR_ZERO, length_bins
from gsm_lab.wording import layer_name

__all__ = ["Recorder", "controls", "kept", "per_layer", "per_momentum", "per_step", "survival", "watch"]

_COUNTS = ("pool", "reactivated", "woken", "near_zero")


def per_step(recorder: Recorder, layer: str = "all", rows: int = 60) -> pd.DataFrame:
    """Re-activations over the run, against the pool of weights that could have come back (the paper's ratio).

    Args:
        recorder: has watched two steps at least (the first has nothing before it to compare with).
        layer: one of `recorder.layers`, or "all".
        rows: at most so many rows; several steps share one.

    Returns:
        A row for each span of steps, with `step` and `epoch` at its end, `steps` in it, and, summed over these: `pool`
        (weights passive one step earlier), `reactivated`, of these `woken`, and `near_zero` (once under 1e-3).
        `share` = reactivated / pool: the chance that a passive weight is active in the next step; `woken_share`,
        `near_zero_share` likewise.

    Raises:
        ValueError: nothing was recorded, an unknown layer, or rows < 1.
    """
    which = _layer(recorder, layer)
    rows = whole("rows", rows)
    compared = _steps(recorder, 2) - 1
    sums = recorder.sums[: -(-compared // recorder.every), :, which].sum(axis=2)
    together = -(-len(sums) // rows)
    sums = np.add.reduceat(sums, np.arange(0, len(sums), together))
    ends = np.minimum(np.arange(1, len(sums) + 1) * together * recorder.every, compared)
    step = recorder.first + 1 + ends
    table = pd.DataFrame({"step": step, "epoch": step / recorder.run.epoch_steps, "steps": np.diff(ends, prepend=0)})
    table[list(_COUNTS)] = sums
    shares = table[list(_COUNTS[1:])].div(table["pool"].where(table["pool"] > 0), axis=0)
    table[["share", "woken_share", "near_zero_share"]] = shares
    return table


def per_layer(recorder: Recorder) -> pd.DataFrame:
    """One row a layer, and "all".

    Columns: `layer`; `weights`; `share`, the chance that a passive weight of the layer is active in the next step;
    how many weights were ever `active`, `reactivated`, `woken`, `near_zero` (under 1e-3 while passive); how many are
    `kept`, and of these `kept_woken` and `returned` (near zero once).

    Raises ValueError: fewer than two steps were recorded, or the run has gone on without the recorder.
    """
    _steps(recorder, 2)
    stays, flags = _kept(recorder), _flags(recorder)
    flags |= {"kept": stays, "kept_woken": stays & flags["woken"], "returned": stays & flags["near_zero"]}
    pool, reactivated = recorder.sums[:, :2].sum(axis=0)
    table = pd.DataFrame({"layer": list(recorder.layers), "weights": list(recorder.layers.values())})
    counts = {name: np.add.reduceat(f, recorder.bounds[:-1], dtype=np.int64) for name, f in flags.items()}
    table = table.assign(pool=pool, reactivations=reactivated, **counts)
    table.loc[len(table)] = {"layer": "all", **table.drop(columns="layer").sum()}
    share = table["reactivations"] / table["pool"].where(table["pool"] > 0)
    table.insert(2, "share", share.astype(float))
    return table.drop(columns=["pool", "reactivations"])


def survival(recorder: Recorder, layer: str = "all") -> pd.DataFrame:
    """How long passive stretches last.

    Args:
        recorder: has watched a step at least.
        layer: one of `recorder.layers`, or "all".

    Returns:
        One row for each length `steps` (all whole numbers below 64; above, lengths within 3% of each other share a
        row, which is named after the longest): `ended` and `running` stretches of that length; `longer`, the share of
        stretches that last longer; `longer_ended`, that share among the stretches that have ended.

    Stretches still running at the last step are censored: they have lasted so long, and nobody knows how much longer.
    `longer` is the Kaplan-Meier estimate, which counts them as long as they were recorded. To leave them out, as
    `longer_ended` does, is to forget the very weights that never come back. Raises ValueError as `per_step` does.
    """
    which = _layer(recorder, layer)
    _steps(recorder, 1)
    bounds = recorder.bounds
    stretch = np.concatenate([recorder.stretch[bounds[i] : bounds[i + 1]] for i in which])
    lowest = length_bins()
    highest = np.append(np.ceil(lowest[1:]) - 1, np.inf)
    running = np.bincount(np.searchsorted(lowest, stretch[stretch > 0], side="right") - 1, minlength=len(lowest))
    ended = recorder.ended[which].sum(axis=0)
    seen = ended + running
    last = int(np.flatnonzero(seen)[-1]) + 1 if seen.any() else 0
    at_risk = seen[::-1].cumsum()[::-1]
    with np.errstate(invalid="ignore"):
        longer = np.cumprod(1 - ended[:last] / at_risk[:last])
        longer_ended = 1 - ended[:last].cumsum() / np.float64(ended.sum())
    columns = {"steps": highest[:last], "ended": ended[:last], "running": running[:last]}
    table = pd.DataFrame(columns | {"longer": longer, "longer_ended": longer_ended})
    holds = np.ceil(lowest[:last]) <= highest[:last]  # a bin between two whole numbers holds nothing
    return table[holds].astype({"steps": np.int64}).reset_index(drop=True)


def kept(recorder: Recorder) -> pd.DataFrame:
    """What the weights that survive the cut (the Q largest |w| of the model) went through, beside all weights.

    Returns:
        One row a property, `what`: all weights, ever active, re-activated, woken, under 1e-3 and under 1e-4 (while
        passive). How many `weights` have it, how many of the `kept`; `share` and `kept_share` of these, 0..1.

    Raises ValueError: nothing was recorded, or the run has gone on without the recorder.
    """
    _steps(recorder, 1)
    stays, names = _kept(recorder), ("ever active", "re-activated", "woken", "once under 1e-3")
    flags = {"all weights": np.ones(len(stays), bool), **dict(zip(names, _flags(recorder).values(), strict=True))}
    flags["once under 1e-4"] = recorder.smallest < 1e-4
    table = pd.DataFrame({"what": list(flags), "weights": [int(f.sum()) for f in flags.values()]})
    table["kept"] = [int((f & stays).sum()) for f in flags.values()]
    return table.assign(share=table["weights"] / len(stays), kept_share=table["kept"] / max(1, int(stays.sum())))


def per_momentum(recorders: Mapping[float, Recorder]) -> pd.DataFrame:
    """One row for each run that `watch` returned.

    Columns: `momentum`, `lr`; the row "all" of `per_layer`; `live` and `cut`, test accuracy 0..1 at the end
    (of another metric its values, and `metric`, which it is).

    Raises ValueError: no runs, or one that has no two steps.
    """
    kind("recorders", recorders, Mapping, "a mapping of recorders by momentum, as `watch` returns it")
    for momentum in several("recorders", recorders, "run that `watch` returned"):
        kind("recorders", recorders[momentum], Recorder, "a mapping of recorders")
    rows = []
    for momentum, recorder in recorders.items():
        total = per_layer(recorder).iloc[-1].drop("layer").to_dict()
        live, cut = recorder.run.evaluate(), recorder.run.evaluate(cut=True)
        rows.append({"momentum": momentum, "lr": recorder.run.settings.lr, **total, "live": live, "cut": cut})
    return marked(pd.DataFrame(rows), recorder.run.metric)


def _layer(recorder: Recorder, layer: str) -> list[int]:
    names = list(_recorder(recorder).layers)
    if isinstance(layer, str) and layer == "all":
        return list(range(len(names)))
    if isinstance(layer, str) and layer_name(layer) in names:
        return [names.index(layer_name(layer))]
    raise ValueError(f"layer must be one of all, {', '.join(names)}; got {shown(layer)}")


def _recorder(recorder: Recorder) -> Recorder:
    return kind("recorder", recorder, Recorder, "a Recorder that was attached to a run")


def _steps(recorder: Recorder, least: int) -> int:
    """How many steps were recorded. Raises ValueError when they are too few."""
    steps = _recorder(recorder).last - recorder.first
    if steps < least:
        raise ValueError(
            f"recorder must have watched at least {least} step{'s'[: least - 1]}, it has watched {steps}: "
            "make it before the run trains, then train"
        )
    return steps


def _flags(recorder: Recorder) -> dict[str, np.ndarray]:
    """What weights went through, bool [N] each: ever active, ever re-activated, woken, near zero while passive."""
    active, back = recorder.last_active > recorder.first, recorder.reactivations > 0
    near = recorder.smallest < NEAR_ZERO
    return {"active": active, "reactivated": back, "woken": recorder.woken, "near_zero": near}


def _kept(recorder: Recorder) -> np.ndarray:
    """Which weights the cut would keep now: bool [N]."""
    run = recorder.run
    if run.steps != recorder.last or run.history is not recorder.history:
        raise ValueError(
            f"recorder must have watched the run to where it stands, step {run.steps}; it was there up to step "
            f"{recorder.last}" + ("" if run.history is recorder.history else ", before the run was reset")
        )
    return survivors(run)
