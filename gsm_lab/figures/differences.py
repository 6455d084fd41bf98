"""What makes runs differ, and where they stand at the last step that all of them have reached: numbers and words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gsm_lab.checks import kind, shown
from gsm_lab.knobs import KNOBS, LIVE
from gsm_lab.metric import ACCURACY, Metric
from gsm_lab.wording import layer_name, number

if TYPE_CHECKING:
    from gsm_lab.training.history import History

AVERAGED = 50  # steps over which what differs from batch to batch is averaged
NAME = 16  # characters of a run's name
MOVES = 3  # of a knob that are told one by one
_QUIET = ("evaluate_every",)  # says when to look, and changes nothing in training


class Standing(NamedTuple):
    """A run at a step: NaN for what is not known yet.

    `loss`, `back`: mean over the last steps (`AVERAGED`) of the batches' loss and of the weights re-activated in a
    step. `live`, `cut`: the `metric` on the test set, in percent or its unit, at the evaluation `evaluated`, the latest
    so far. `near`: |w| < 1e-4, and `target`: 1 - 1/C, in percent of all weights. `kept`: by layer, what a cut keeps of
    it in percent.
    """

    loss: float
    live: float
    cut: float
    evaluated: int
    near: float
    target: float
    back: float
    kept: dict[str, float]
    metric: Metric = ACCURACY

    @property
    def cost(self) -> float:
        """What the cut takes away, in points of accuracy or the unit of the metric."""
        return self.metric.cost(self.live, self.cut)


@dataclass(frozen=True)
class Account:
    """What `told` has to know of a run.

    Attributes:
        history: of the run. knobs, options: its settings in force and its method's options, by name. method: its name.
        digest: of all its data, tested: of the test set alone; two of the same are the same data.
        epoch_steps: how many steps an epoch has.
        others: what else may differ, such as "loss", and which it has, in words that tell runs apart.
    """

    history: History
    knobs: Mapping[str, Any]
    options: Mapping[str, Any]
    method: str
    digest: str
    tested: str
    epoch_steps: int
    others: Mapping[str, str] = field(default_factory=dict)


def checked(runs: Any, of: type, valid: str, least: int = 1, most: int = 4) -> dict[str, Any]:
    """`runs`, if it maps names to so many things of one kind. Raises TypeError, ValueError."""
    if not isinstance(runs, Mapping):
        raise TypeError(f'runs must map names to runs, as in {{"a": ..., "b": ...}}, got {type(runs).__name__}')
    if not least <= len(runs) <= most:
        raise ValueError(f"runs must hold {least} to {most} of them, got {len(runs) or 'none'}")
    for name, run in runs.items():
        if not isinstance(name, str):
            raise TypeError(f"runs must have text for names, got {shown(name)}")
        if not name.strip() or len(name) > NAME or not name.isprintable():
            raise ValueError(f"runs must have names of 1 to {NAME} characters, got {shown(name)}")
        kind(f"runs[{name!r}]", run, of, valid)
    return dict(runs)


def same_metric(histories: Mapping[str, History]) -> None:
    """Raises ValueError where runs are measured by different things, which no axis has in common."""
    metrics = {name: history.metric for name, history in histories.items()}
    first = next(iter(metrics.values()))
    if not all(first.same_scale(metric) for metric in metrics.values()):
        of = ", ".join(f"{name} by {metric}" for name, metric in metrics.items())
        raise ValueError(f"runs must be measured by the same metric to be compared, got {of}")


def history_type() -> type[History]:
    """`History`; to import it loads torch, which figures of tables do not need."""
    from gsm_lab.training.history import History

    return History


def common_step(histories: Mapping[str, History]) -> int:
    """The last step that is on record in all of them; where rows were thinned out, not every one is. 0 for none."""
    ends = [rows["step"][-1] if len(rows := h.steps.array()) else 0 for h in histories.values()]
    return int(min(ends))


def standing(history: History, step: int) -> Standing:
    """Where a run stood after so many steps, by the last row and the last evaluation up to there."""
    rows, evaluations = history.steps.array(), history.evaluations.array()
    end = int(np.searchsorted(rows["step"], step, side="right"))
    start = min(int(np.searchsorted(rows["step"], step - AVERAGED, side="right")), max(end - 1, 0))
    seen = int(np.searchsorted(evaluations["step"], step, side="right"))
    nothing, weights = float("nan"), max(1, sum(history.layers.values()))
    loss = near = target = back = live = cut = nothing
    if end:
        loss, back = rows["loss"][start:end].mean(dtype=float), rows["reactivated"][start:end].sum(axis=1).mean()
        near = 100 * rows["under_1e-4"][end - 1].sum() / weights
        target = 100 - 100 / float(history.knob_values("compression", rows["step"][end - 1 : end])[0])
    kept, evaluated, metric = {}, -1, history.metric
    if seen:
        last = evaluations[seen - 1]
        live, cut = (metric.scale * float(last[name]) for name in ("live_accuracy", "cut_accuracy"))
        evaluated = int(last["step"])
        kept = {n: 100 * float(k) / size for (n, size), k in zip(history.layers.items(), last["kept"], strict=True)}
    return Standing(*map(float, (loss, live, cut)), evaluated, *map(float, (near, target, back)), kept, metric)


def told(accounts: Mapping[str, Account]) -> list[str]:
    """How runs differ, a sentence each: what they are, what cannot be compared, and numbers at the common step.

    Raises TypeError, ValueError for what is no mapping of two to four names to accounts, of runs of the same metric.
    """
    accounts = checked(accounts, Account, "an Account", least=2)
    same_metric({name: account.history for name, account in accounts.items()})
    step = common_step({name: a.history for name, a in accounts.items()})
    said = [f"{what}: {', '.join(f'{n} {v}' for n, v in values.items())}."
            for what, values in numbers(accounts, step).items()]  # fmt: skip
    return [*made_of(accounts, step), *not_comparable(accounts), reached(accounts, step), *said]


def made_of(accounts: Mapping[str, Account], step: int) -> list[str]:
    """Which settings differ, as they were up to a step."""
    said = []
    if other := _values(accounts, lambda a: a.method):
        said.append(f"method: {other}")
    for name, knob in KNOBS.items():
        if name not in _QUIET and (other := _values(accounts, lambda a, name=name: _knob(a, name, step))):
            said.append(f"{knob.label or name}: {other}")
    options = dict.fromkeys(name for a in accounts.values() for name in a.options)
    for name in options:
        if other := _values(accounts, lambda a, name=name: number(a.options.get(name, "none"))):
            said.append(f"{name}: {other}")
    for name in dict.fromkeys(name for a in accounts.values() for name in a.others):
        if other := _values(accounts, lambda a, name=name: a.others.get(name, "none")):
            said.append(f"{name}: {other}")
    if not said:
        return ["The settings are the same."]
    return [f"What differs: {'; '.join(said)}."]


def _knob(account: Account, name: str, step: int) -> str:
    """A knob's value, and how it has moved up to a step."""
    moves = [(e["step"], e["new"]) for e in account.history.events if e["knob"] == name]
    if name not in LIVE or not moves:
        return number(account.knobs[name])
    values = [number(new) for at, new in moves if at < max(step, 1)]
    places = [at for at, _ in moves[: len(values)]]
    if len(values) > MOVES + 1:
        return f"{values[-1]} after {len(values) - 1} moves, the last at step {places[-1]:,}"
    later = [f", {value} after step {at:,}" for at, value in zip(places[1:], values[1:], strict=True)]
    return values[0] + "".join(later)


def _values(accounts: Mapping[str, Account], of: Callable[[Account], str]) -> str:
    """The value of each run, where they are not all the same, else nothing."""
    found = {name: of(account) for name, account in accounts.items()}
    return ", ".join(f"{name} {value}" for name, value in found.items()) if len(set(found.values())) > 1 else ""


def not_comparable(accounts: Mapping[str, Account]) -> list[str]:
    """What cannot be compared, or only with a grain of salt."""
    said, scores = [], next(iter(accounts.values())).history.metric.scores
    if len({a.digest for a in accounts.values()}) > 1:
        if len({a.tested for a in accounts.values()}) > 1:
            said.append(f"The test sets differ: {scores}, and what a cut costs, cannot be compared.")
        else:
            said.append(f"They train on different data, and are tested on the same: {scores} can be compared.")
    if "loss" in not_on_one_scale(accounts) and _values(accounts, lambda a: a.others.get("loss", "")):
        said.append("The losses are different functions: their values cannot be compared.")
    sizes = {name: sum(a.history.layers.values()) for name, a in accounts.items()}
    if len({tuple(a.history.layers.items()) for a in accounts.values()}) > 1:
        of = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        said.append(f"The models differ (weights: {of}): shares are of different networks.")
    if other := _values(accounts, lambda a: f"{a.epoch_steps:,}"):
        said.append(f"Steps are compared, not epochs, of which one has so many steps: {other}.")
    return said


def not_on_one_scale(accounts: Mapping[str, Account]) -> set[str]:
    """What titles must not compare: "loss", of other data or another function; "score", of other test sets."""
    found = set()
    if len({(a.digest, a.others.get("loss", "")) for a in accounts.values()}) > 1:
        found.add("loss")
    if len({a.tested for a in accounts.values()}) > 1:
        found.add("score")
    return found


def reached(accounts: Mapping[str, Account], step: int) -> str:
    """Which step is compared, and who has gone on beyond it."""
    ends = {name: rows["step"][-1] if len(rows := a.history.steps.array()) else 0 for name, a in accounts.items()}
    others = [f"{name} has gone on to {end:,}" for name, end in ends.items() if end > step]
    beyond = f" ({', '.join(others)})" if others else ""
    return f"At step {step:,}, the last that all have reached{beyond}:" if step else f"Before the first step{beyond}:"


def numbers(accounts: Mapping[str, Account], step: int) -> dict[str, dict[str, str]]:
    """What is known of the runs at a step: quantity -> name of the run -> its value, with its unit."""
    at = {name: standing(a.history, step) for name, a in accounts.items()}
    found = {what: {name: _said(of(s), form) for name, s in at.items()}
             for what, (of, form) in _quantities(next(iter(at.values())).metric).items()}  # fmt: skip
    found = {what: values for what, values in found.items() if set(values.values()) != {_UNKNOWN}}
    if {s.evaluated for s in at.values()} - {step, -1}:
        found["evaluated at step"] = {n: f"{s.evaluated:,}" if s.kept else _UNKNOWN for n, s in at.items()}
    if all(s.kept for s in at.values()):
        for which, i in (("first", 0), ("last", -1)):
            layers = {name: list(s.kept.items())[i] for name, s in at.items()}
            called = {layer_name(layer) for layer, _ in layers.values()}
            what = f"kept of {called.pop()}" if len(called) == 1 else f"kept of the {which} layer"
            found[what] = {name: f"{share:.2g}%" for name, (_, share) in layers.items()}
    return found


_UNKNOWN = "not known"
_Said = Callable[[float], str]


def _quantities(metric: Metric) -> dict[str, tuple[Callable[[Standing], float], _Said]]:
    """By name: which number it is, and how it is written."""
    return {
        f"test {metric.name}": (lambda s: s.live, lambda v: score(metric, v)),
        "if cut": (lambda s: s.cut, lambda v: score(metric, v)),
        "the cut costs": (lambda s: s.cost, lambda v: amount(metric, v)),
        "near zero": (lambda s: s.near, "{:.1f}%".format),
        "target 1 − 1/C": (lambda s: s.target, "{:.4g}%".format),
        "re-activated per step": (lambda s: s.back, per_step),
        "training loss": (lambda s: s.loss, "{:.3g}".format),
    }


def _said(value: float, form: _Said) -> str:
    return _UNKNOWN if math.isnan(value) else signed(form(value))


def score(metric: Metric, value: float) -> str:
    """A value that has been multiplied by the metric's scale: "97.2%", "54.3 kg"."""
    return metric.shown(value / metric.scale, 1)


def amount(metric: Metric, cost: float) -> str:
    """A difference of such values, with its sign where it is below zero: "1.2 points", "-0.31 kg"."""
    return (f"{cost:.1f}" if metric.percent else f"{cost:.3g}") + f" {metric.points}".rstrip()


def per_step(count: float) -> str:
    """A mean number of weights in a step."""
    return f"{count:,.1f}" if count < 100 else f"{count:,.0f}"


def signed(text: str) -> str:
    """A number as it is printed, a minus for a hyphen, and no sign before a zero."""
    return re.sub(r"^-(?=[0.,]*[1-9])", "−", text).removeprefix("-")
