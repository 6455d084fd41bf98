"""The titles of a comparison: who differs, in words and numbers, at the last step that all runs have on record."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from gsm_lab.figures.differences import Standing, amount, per_step, score, signed
from gsm_lab.metric import Metric
from gsm_lab.wording import times

_SHORT = 16  # characters of a metric's name in the title of a plot


def headline(at: dict[str, Standing], step: int) -> str:
    """Who loses most at the cut, and who least, at the evaluation in common, or at the latest of each up to `step`."""
    costs = {name: round(s.cost, 1) for name, s in at.items() if not math.isnan(s.cost)}
    metric = next(iter(at.values())).metric
    if len(costs) < len(at):
        return "Nothing to compare yet"
    looked = {s.evaluated for s in at.values()}
    when = f"at step {looked.pop():,}" if len(looked) == 1 else f"by step {step:,}"
    if not metric.is_accuracy:
        return f"{_worse(at, metric)}, {when}"
    worst, best = max(costs, key=costs.get), min(costs, key=costs.get)
    verb, other = ("loses" if costs[name] >= 0 else "gains" for name in (worst, best))
    most = f"{abs(costs[worst]):.1f} points at the cut"
    if costs[worst] == costs[best]:
        who = {1: worst, 2: "each"}.get(len(at), "each of them")
        return f"{who} {verb} {most}, {when}"
    said = f"{worst} {verb} {most}, {best} {'' if verb == other else other + ' '}{abs(costs[best]):.1f}"
    return f"{said}{', the others between' if len(at) > 2 else ''}, {when}"


def titles(at: dict[str, Standing], layer: str, apart: Collection[str] = ()) -> tuple[str, ...]:
    """What each of the six plots shows; `layer`, what the last one is called.

    `apart`: of "loss" and "score", those that are not on one scale, of which each run's is told and none is more.
    """
    back, metric = {name: s.back for name, s in at.items()}, next(iter(at.values())).metric
    last = {name: list(s.kept.values())[-1] if s.kept else math.nan for name, s in at.items()}
    near = _each("Near zero", {name: s.near for name, s in at.items()}, "{:.1f}%")
    target = _each("; target", {name: s.target for name, s in at.items()}, "{:.4g}%")
    return (
        _loss({name: s.loss for name, s in at.items()}, "loss" in apart),
        _points("As it is", {name: s.live for name, s in at.items()}, metric, "score" in apart),
        _points("If cut", {name: s.cut for name, s in at.items()}, metric, "score" in apart),
        near + (target if ":" in target else ""),
        _extremes("Re-activated per step", back, {n: per_step(v) for n, v in back.items() if not math.isnan(v)}),
        _each(f"A cut keeps of {layer}", last, "{:.2g}%"),
    )


def _worse(at: dict[str, Standing], metric: Metric) -> str:
    """The headline of runs that are measured by another metric than accuracy."""
    costs = {name: s.cost for name, s in at.items()}
    said = {name: amount(metric, abs(cost)) + (" worse" if cost >= 0 else " better") for name, cost in costs.items()}
    worst, best = max(costs, key=costs.get), min(costs, key=costs.get)
    if len(set(said.values())) == 1:
        whose = {1: f" of {worst}", 2: " of each"}.get(len(at), " of each of them")
        return f"The cut makes {metric.name}{whose} {said[worst]}"
    others = ", of the others between" if len(at) > 2 else ""
    return f"The cut makes {metric.name} of {worst} {said[worst]}, of {best} {said[best]}{others}"


def _loss(losses: dict[str, float], apart: bool = False) -> str:
    high, low = max(losses, key=losses.get), min(losses, key=losses.get)
    if not apart and all(0 < loss < math.inf for loss in losses.values()) and losses[high] >= 1.05 * losses[low]:
        factor = losses[high] / losses[low]
        said = times(factor) if factor <= 1000 else "over 1,000×"
        return f"The loss of {high} is {said} that of {low}: {losses[high]:.2g} against {losses[low]:.2g}"
    return _each("Training loss", losses, "{:.2g}")


def _points(where: str, accuracies: dict[str, float], metric: Metric, apart: bool = False) -> str:
    """Who scores more, in points, `accuracies` being in percent; or the values of another metric."""
    if not metric.is_accuracy:
        title = metric.name if len(metric.name) <= _SHORT else "Score"
        metric = metric if len(metric.unit) <= _SHORT / 2 else replace(metric, unit="")
        known = {name: signed(score(metric, value)) for name, value in accuracies.items() if not math.isnan(value)}
        return _extremes(f"{title} {where.lower()}", accuracies, known)
    if apart or len(accuracies) == 1 or any(map(math.isnan, accuracies.values())):
        return _each(f"Accuracy {where.lower()}", accuracies, "{:.1f}%")
    rounded = {name: round(accuracy, 1) for name, accuracy in accuracies.items()}  # what is read adds up
    high, low = max(rounded, key=rounded.get), min(rounded, key=rounded.get)
    if rounded[high] == rounded[low]:
        return f"{where}, {'both' if len(rounded) == 2 else 'all'} score {rounded[high]:.1f}%"
    than = "" if len(rounded) == 2 else f" than {low}"
    more = f"{rounded[high] - rounded[low]:.1f} points more{than}"
    return f"{where}, {high} scores {more}: {rounded[high]:.1f}% against {rounded[low]:.1f}%"


def _each(what: str, values: dict[str, float], form: str) -> str:
    return _extremes(what, values, {n: signed(form.format(v)) for n, v in values.items() if not math.isnan(v)})


def _extremes(what: str, values: dict[str, float], said: dict[str, str]) -> str:
    """All values of one or two runs, the least and the greatest of more; one where all are alike."""
    if not said:
        return what
    if len(set(said.values())) == 1:
        return f"{what}: {next(iter(said.values()))}"
    if len(said) <= 2:
        return f"{what}: " + ", ".join(f"{name} {value}" for name, value in said.items())
    low, high = (how(said, key=values.get) for how in (min, max))
    return f"{what}: from {said[low]} ({low}) to {said[high]} ({high})"
