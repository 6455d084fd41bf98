"""Every setting of a run, declared once: widgets, command line, the checkpoints' header and the docs come from here.

A knob is *live* (it may move while training goes on) or it *restarts* the run. To add one is to add one field to
`Settings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gsm_lab.checks import number, several, shown
from gsm_lab.recipes import RECIPES, SMOOTHED, recipe_of  # noqa: F401 (gl.knobs.SMOOTHED)

_MOST = 10**9  # of whole numbers that have no other bound: steps are counted in numbers that end, too


@dataclass(frozen=True)
class Knob:
    """One setting.

    `low` and `high` are the ends of its slider. What is valid reaches from `least` to `most` (to below `most` where
    `open_end`), or is one of `choices`. `scale` says how a slider moves: "linear"; "log"; "log0", log with zero at the
    left end; "log1m", log in 1 - value, as fits a momentum; "choice".

    Who takes notice of it: `gate`, it says something about GSM's gate, and other methods refuse it unless they say that
    they use it; `shards`, it can be had where weights are spread over ranks (else it has to be the default there);
    `dense`, the dense epochs depend on it. Who shows it: `control`, the playground has a control for it; `marked`, the
    dashboard marks where it moved. `later`: tables of runs were made before there was such a setting, so that it is not
    named in them where it has its default.
    """

    name: str
    default: Any
    help: str
    live: bool
    label: str = ""
    unit: str = ""
    scale: str = "linear"
    low: float = 0.0
    high: float = 1.0
    least: float = 0.0
    most: float = math.inf
    open_end: bool = False
    choices: tuple[str, ...] = ()
    gate: bool = False
    shards: bool = True
    dense: bool = False
    control: bool = False
    marked: bool = False
    later: bool = False

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return isinstance(self.default, int)

    @property
    def valid(self) -> str:
        """What is valid, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if self.whole else "a number"
        if math.isinf(self.most):
            return f"{kind} >= {self.least:g}"
        most = f"{self.most:,}" if self.whole else f"{self.most:g}"
        return f"{kind} from {self.least:g} to {'below ' if self.open_end else ''}{most}"

    def check(self, value: Any) -> Any:
        """The value in the knob's own type; numbers may come as text. Raises ValueError saying what is valid."""
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
        else:
            number = _number(value)
            beyond = number is not None and (number > self.most or (self.open_end and number == self.most))
            if number is not None and math.isfinite(number) and number >= self.least and not beyond:
                if not self.whole:
                    return number
                if number == int(number):
                    return int(number)
        raise ValueError(f"{self.name} must be {self.valid}, got {shown(value)}")

    def position(self, value: float) -> float:
        """Where `value` stands on the slider, 0 (left) to 1; values beyond its ends stand at the ends."""
        low, high = self._ends()
        x = self._to_scale(value) if self.scale != "log0" or value > 0 else -math.inf
        return min(1.0, max(0.0, (x - low) / (high - low)))

    def at(self, position: float) -> Any:
        """The value at a slider position 0..1, rounded to two or three significant digits, or to a whole number."""
        low, high = self._ends()
        x = low + min(1.0, max(0.0, position)) * (high - low)
        if self.scale == "log0" and position <= 0:
            return 0.0
        if self.scale == "log1m":
            return round(1.0 - _significant(10.0**-x, 2), 6)
        value = 10.0**x if self.scale.startswith("log") else x
        value = value if self.whole else _significant(value, 3 if self.scale == "linear" else 2)
        value = round(value) if self.whole or value >= 20 else value
        return self.check(min(max(value, self.low), self.high))

    def _to_scale(self, value: float) -> float:
        if self.scale == "log1m":
            return -math.log10(max(1.0 - value, 1e-12))
        return math.log10(max(value, 1e-300)) if self.scale.startswith("log") else value

    def _ends(self) -> tuple[float, float]:
        return self._to_scale(self.low), self._to_scale(self.high)


def _number(value: Any) -> float | None:
    # numpy and torch have bools of their own, and arrays of one number
    if isinstance(value, bool) or getattr(value, "ndim", 0) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return float(value)
    except Exception:  # among others OverflowError: an int beyond every float
        return None


def _significant(x: float, digits: int) -> float:
    return float(f"{x:.{digits - 1}e}")


def _of(default: Any, help: str, live: bool, *rest: Any, **more: Any) -> Any:
    """A field of `Settings`, with the knob that declares it."""
    return field(default=default, metadata={"knob": Knob("", default, help, live, *rest, **more)})


# fmt: off
@dataclass(frozen=True)
class Settings:
    """Every setting of a run, as it is in force; each field is declared with its `Knob`, found in `KNOBS` by name.

    `model` and `data` may be names of one's own: those of a model or data set that was given as such.
    """

    model: str = _of(
        "lenet300", "network to train", False, scale="choice", choices=("lenet300", "lenet5", "resnet56"),
        dense=True, control=True,
    )
    data: str = _of(
        "digits", "data set", False, scale="choice", choices=("digits", "mnist", "fashion_mnist"), control=True,
    )
    compression: float = _of(
        60.0, "C = N / Q: one weight in C receives its gradient, and survives the cut", True,
        "compression C", "×", "log", 1, 3000, least=1, control=True, marked=True,
    )
    momentum: float = _of(
        0.9, "beta: at the same learning rate, more makes passive weights decay faster", True,
        "momentum β", "", "log1m", 0, 0.999, most=1, open_end=True, control=True, marked=True,
    )
    weight_decay: float = _of(
        3e-3, "eta: pulls every weight towards zero; passive weights feel nothing else", True,
        "weight decay η", "per step", "log0", 1e-5, 3e-2, most=1, control=True, marked=True,
    )
    lr: float = _of(
        0.1, "alpha: step size, before the schedule lowers it", True,
        "learning rate α", "", "log", 1e-3, 1, most=100, control=True, marked=True,
    )
    hold: float = _of(
        0.6, "share of the run at full learning rate; then a cosine takes it to 1% (1: no schedule)", True,
        "hold", "of the run", most=1, marked=True,
    )
    smoothing: float = _of(
        0.0, "0: the gate looks at this step's gradients; s: at their size over 1 / (1 - s) steps", True,
        "smoothing s", "", "log1m", 0, 0.999, most=1, open_end=True, gate=True, shards=False, control=True, marked=True,
    )
    ramp: float = _of(
        0.0, "share of the run over which C rises, by equal factors, from 4 to its full value", True,
        "ramp", "of the run", most=1, gate=True,
    )
    freeze: float = _of(
        1.0, "share of the run after which only the then Q largest weights are active (1: never)", True,
        "freeze", "of the run", most=1, gate=True, shards=False,
    )
    cut_at: float = _of(
        1.0, "share of the run after which the net is cut to the C then in force, and on as C rises, and "
        "trained with the decay of the dense epochs; until a reset (1: never)", True,
        "cut at", "of the run", most=1, gate=True, shards=False, later=True,
    )
    epochs: int = _of(
        150, "gated epochs the schedule is laid out for", True,
        "epochs", "epochs", "log", 1, 500, least=1, most=_MOST, marked=True,
    )
    evaluate_every: int = _of(
        50, "steps from one look at the test accuracy, live and cut, to the next", True,
        "evaluate every", "steps", "log", 1, 1000, least=1, most=_MOST,
    )
    batch_size: int = _of(
        64, "samples a step", False,
        "batch size", "samples", "log", 8, 512, least=1, most=_MOST, dense=True, control=True,
    )
    pretrain: int = _of(
        15, "dense epochs before the gate closes (momentum 0.9, cosine)", False,
        "pretrain", "epochs", "linear", 0, 50, most=_MOST, dense=True,
    )
    pretrain_lr: float = _of(
        0.05, "learning rate of the dense epochs", False, "dense rate", "", "log", 1e-3, 1, most=100, dense=True,
    )
    pretrain_decay: float = _of(
        5e-4, "weight decay of the dense epochs", False,
        "dense decay", "per step", "log0", 1e-5, 3e-2, most=1, dense=True,
    )
    seed: int = _of(
        0, "initial weights and batch order", False,
        "seed", "", "linear", 0, 99, most=2**31 - 1, dense=True, control=True,
    )
# fmt: on


KNOBS: dict[str, Knob] = {f.name: replace(f.metadata["knob"], name=f.name) for f in fields(Settings)}
LIVE: tuple[str, ...] = tuple(name for name, knob in KNOBS.items() if knob.live)


def knob(name: str) -> Knob:
    """The knob called `name`. Raises ValueError listing all of them."""
    if not isinstance(name, str) or name not in KNOBS:
        raise ValueError(f"there is no knob {shown(name)}; the knobs are {', '.join(KNOBS)}")
    return KNOBS[name]


def each(name: str, values: Iterable[Any], of: str, called: str = "value") -> list[Any]:
    """The values of the argument `name`, at least one, each one for the knob `of`. Raises TypeError, ValueError."""
    values = several(name, values, called)
    try:
        return [knob(of).check(value) for value in values]
    except ValueError as error:
        raise ValueError(f"{error}, in {name}") from None


def checked(settings: dict[str, Any], live_only: bool = False) -> dict[str, Any]:
    """Some settings, each checked. With `live_only` a knob that restarts the run is refused. Raises ValueError."""
    for name in settings:
        if live_only and not knob(name).live:
            raise ValueError(f"{name} restarts the run; use reset({name}=...) instead (live: {', '.join(LIVE)})")
    return {name: knob(name).check(value) for name, value in settings.items()}


def resolve(settings: dict[str, Any], data: str, model: str) -> Settings:
    """All settings: those given, else what works for this data and model (`RECIPES`), else the defaults."""
    given = checked({name: value for name, value in settings.items() if name not in ("data", "model")})
    recipe = RECIPES.get(recipe_of(data, model), {})
    return Settings(**(recipe | given | {"data": data, "model": model}))


def half_life(lr: float, momentum: float, weight_decay: float) -> float:
    """Steps in which a passive weight halves, ln 2 (1 - momentum) / (lr * weight_decay); inf where nothing decays.

    Holds once momentum has settled and while `oscillates` is false.
    """
    lr, momentum, weight_decay = _rates(lr, momentum, weight_decay)
    rate = lr * weight_decay
    return math.log(2) * (1.0 - momentum) / rate if rate > 0 else math.inf


def _rates(lr: float, momentum: float, weight_decay: float) -> tuple[float, float, float]:
    return number("lr", lr, 0), number("momentum", momentum, 0, 1), number("weight_decay", weight_decay, 0)


def oscillates(lr: float, momentum: float, weight_decay: float) -> bool:
    """Whether a passive weight swings through zero: lr * weight_decay > (1 - sqrt(momentum))^2, complex roots of eq. 6.

    It then shrinks by sqrt(momentum) a step, the fastest there is for this momentum.
    """
    lr, momentum, weight_decay = _rates(lr, momentum, weight_decay)
    return lr * weight_decay > (1.0 - math.sqrt(momentum)) ** 2


def table(names: Iterable[str] = KNOBS) -> str:
    """The knobs as a Markdown table."""
    rows = ["| knob | default | valid | moves | what it is |", "|---|---|---|---|---|"]
    for name in several("names", names, "name"):
        k = knob(name)
        default = f"{k.default:g}" if isinstance(k.default, float) else k.default
        rows.append(f"| `{name}` | {default} | {k.valid} | {'live' if k.live else 'restarts'} | {k.help} |")
    return "\n".join(rows)


LOSSLESS = 0.005  # of accuracy, 0..1: a cut that costs no more than this is lossless


def lossless(before: Any, after: Any, tolerance: float = LOSSLESS) -> Any:
    """Whether a cut is lossless: the accuracy `after` it is at least that `before` it minus `tolerance`, all 0..1.

    Takes two numbers, or two arrays of one shape, and answers likewise. Accuracies are stored in float32, so a cost
    that is written as 0.005 counts as 0.005.
    """
    return before - after <= tolerance + 1e-6
