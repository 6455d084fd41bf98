"""The lines that a history is drawn with, of no more points than can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gsm_lab.checks import flag, kind, whole

if TYPE_CHECKING:
    from gsm_lab.training.history import History

POINTS = 400  # a line; more cannot be seen, and makes a live figure slow
LAYERS_SHOWN = 8

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def curves(history: History, points: int = POINTS, last: int | None = None, log: bool = False) -> Curves:
    """The lines of the four plots by name: x in steps, y, both float32 of at most `points` entries.

    With `last`, only of so many steps up to the latest; what was measured before these and not since is there as it
    was, from the first of them to the last. Loss and re-activations are means over stretches of steps, everything else
    is what it was at the end of a stretch. Stretches are of equal length, with `log` on a logarithmic axis. Shares and
    accuracies are in percent, other metrics as they are.
    """
    points, log = whole("points", points), flag("log", log)
    rows, evaluations = checked(history).steps.array(), history.evaluations.array()
    if last is not None and len(rows):
        end = int(rows["step"][-1])
        begin = max(0, end - whole("last", last))
        rows, evaluations = rows[rows["step"] > begin], _within(evaluations, begin, end)
    ends, mean = _stretches(rows["step"], points, log)
    seen, _ = _stretches(evaluations["step"], points, log)
    step, at = rows["step"][ends].astype(np.float32), evaluations["step"][seen].astype(np.float32)
    share = np.float32(100.0 / max(1, sum(history.layers.values())))
    lines: Curves = {  # in the order in which a dashboard holds them
        "loss": (step, mean(rows["loss"])),
        "live accuracy": (at, history.metric.scale * evaluations["live_accuracy"][seen]),
        "cut accuracy": (at, history.metric.scale * evaluations["cut_accuracy"][seen]),
        "under 1e-3": (step, rows["under_1e-3"][ends].sum(axis=1) * share),
        "under 1e-4": (step, rows["under_1e-4"][ends].sum(axis=1) * share),
        "target": (step, 100.0 - 100.0 / history.knob_values("compression", rows["step"][ends])),
        "re-activated": (step, mean(rows["reactivated"].sum(axis=1))),
    }
    for i, (name, size) in shown_layers(history.layers):
        lines[f"layer {name}"] = (at, evaluations["kept"][seen][:, i] * np.float32(100.0 / size))
    return {name: (x, np.asarray(y, np.float32)) for name, (x, y) in lines.items()}


def _within(evaluations: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Those of the steps from `begin` to `end`; where there is none, the latest before as one of each of these two."""
    inside = evaluations[evaluations["step"] >= begin]
    if len(inside) or not len(evaluations):
        return inside
    held = evaluations[[-1, -1]]
    held["step"] = begin, end
    return held


def _stretches(steps: np.ndarray, points: int, log: bool = False) -> tuple[np.ndarray, Any]:
    """Up to `points` stretches of equal length, or with `log` of equal logarithms: the last row of each, and a function
    that averages over them."""
    count = len(steps)
    if log and count > points:
        at = np.log(np.maximum(steps, 1), dtype=float)
        starts = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], points + 1)[:-1]))
    else:
        starts = np.arange(0, count, max(1, -(-count // points)))
    last = np.append(starts[1:], count)[: len(starts)] - 1

    def mean(column: np.ndarray) -> np.ndarray:
        return np.add.reduceat(column.astype(np.float64), starts) / (last - starts + 1)

    return last, mean


def shown_layers(layers: dict[str, int]) -> list[tuple[int, tuple[str, int]]]:
    """All layers, or some evenly spread over the depth of a deep network."""
    every = list(enumerate(layers.items()))
    if len(every) <= LAYERS_SHOWN:
        return every
    return [every[round(i * (len(every) - 1) / (LAYERS_SHOWN - 1))] for i in range(LAYERS_SHOWN)]


def checked(history: History) -> History:
    """`history`, if it is one; else TypeError."""
    from gsm_lab.training.history import History  # loads torch, which figures of tables do not need

    return kind("history", history, History, "a History, as run.history is one")
