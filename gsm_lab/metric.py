"""`Metric`: what a run is measured by on its test set, how a value of it is written, and when a cut is lossless by it.

    rmse = Metric("RMSE", lambda outputs, targets: F.mse_loss(outputs, targets) ** 0.5, False, unit="kg")
    rmse.shown(54.3), rmse.axis, rmse.cost(54.3, 55.0)         # "54.3 kg", "test RMSE, kg", 0.7: what the cut costs

Accuracy unless one is given, R2 where targets are numbers. A history and a table know theirs: figures ask it for words.
No torch here, as in figures.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gsm_lab.checks import flag, number, shown, text
from gsm_lab.knobs import KNOBS, LOSSLESS, lossless
from gsm_lab.wording import percent

if TYPE_CHECKING:
    import pandas as pd

COLUMN = "metric"  # of a table whose scores are no accuracies
_LONGEST = 40  # characters of a name or a unit, which stand in titles and at axes
_TEXT = re.compile(r"(.+) \((?:([^()]+), )?(higher|lower) is better(?:, within (\S+))?\)")
_TRUTH_FIRST = ("y_true", "true", "target", "targets", "labels", "label", "y")  # how such a first argument is called


@dataclass(frozen=True)
class Metric:
    """What a run is measured by: a function over the whole test set, its name, which way is better, and in what unit.

    Args:
        name: of one line and at most 40 characters, for axes and titles.
        fn: from (outputs, targets), tensors on the CPU, to one finite number. Outputs are what the model gives for all
            rows of the test set, [n, ...], its field or key `logits` where it has one; targets are `data.test_y`, [n]
            for labels, [n, k] for regression. They are copies. None for accuracy, which gsm_lab counts itself.
        higher_is_better: False for an error.
        unit: such as "kg", of at most 40 characters; "" for none.
        percent: values are shares, which are shown in percent, and their differences in points.
        tolerance: what a cut may cost and be lossless, in the unit of the values. Unless given, 0.005 of shares, and
            else half a percent of the value without the cut.

    Raises TypeError or ValueError for an argument that is not as said here.
    """

    name: str
    fn: Callable[[Any, Any], Any] | None = None
    higher_is_better: bool = True
    unit: str = ""
    percent: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for field in ("name", "unit"):
            value = text(field, getattr(self, field))
            if len(value) > _LONGEST or value != value.strip() or not value.isprintable() or "<" in value:
                raise ValueError(
                    f"{field} must be of one line, at most {_LONGEST} characters, without spaces around it and without "
                    f"'<', got {shown(value)}"
                )
        if not self.name or f"cut_{self.name}" in KNOBS:  # a column of the history
            raise ValueError(f"name must be one such as 'RMSE', and not '' or 'at', got {shown(self.name)}")
        if "%" in self.unit or set(self.unit) & set("()"):
            raise ValueError(
                f"unit must have no parentheses and no %, got {shown(self.unit)}; for a share 0..1, to be shown in "
                "percent, give percent=True"
            )
        if self.fn is not None and (isinstance(self.fn, type) or not callable(self.fn)):
            raise TypeError(f"fn must be a function of (outputs, targets), got {shown(self.fn)}")
        _refuse_truth_first(self.fn)
        for field in ("higher_is_better", "percent"):
            object.__setattr__(self, field, flag(field, getattr(self, field)))
        if self.percent and self.unit:
            raise ValueError(f"unit must be '' where percent is True, got {shown(self.unit)}")
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", number("tolerance", self.tolerance, 0))

    # -- what it is ------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """Such as "RMSE (kg, lower is better)"; `Metric.of` reads it."""
        unit = "%, " if self.percent else f"{self.unit}, " if self.unit else ""
        within = "" if self.tolerance is None else f", within {self.tolerance!r}"
        return f"{self.name} ({unit}{'higher' if self.higher_is_better else 'lower'} is better{within})"

    @classmethod
    def of(cls, words: str) -> Metric:
        """The metric, without its function, of which `str(metric)` was written. Raises ValueError for other words."""
        found = _TEXT.fullmatch(words) if isinstance(words, str) else None
        if not found:
            raise ValueError(f"metric must be words such as 'RMSE (kg, lower is better)', got {shown(words)}")
        name, unit, way, within = found.groups()
        share = unit == "%"
        unit = "" if share or unit is None else unit
        return cls(name, None, way == "higher", unit, share, None if within is None else float(within))

    @property
    def described(self) -> Metric:
        """The same without its function, to keep."""
        return replace(self, fn=None)

    def same_scale(self, other: Metric) -> bool:
        """Whether values of both can stand in one column: all but function and tolerance are the same."""
        return replace(self, fn=None, tolerance=None) == replace(other, fn=None, tolerance=None)

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the accuracy that gsm_lab counts."""
        return self == ACCURACY

    @property
    def columns(self) -> tuple[str, str]:
        """What a history calls its values as the model is and after the cut: ("live_accuracy", "cut_accuracy")."""
        return f"live_{self.name}", f"cut_{self.name}"

    # -- numbers ---------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """By what values are multiplied where they are drawn: 100 for shares."""
        return 100.0 if self.percent else 1.0

    def cost(self, before: Any, after: Any) -> Any:
        """How much worse `after` is than `before`, in the unit of the values; negative where it is better."""
        return before - after if self.higher_is_better else after - before

    def allowed(self, before: float) -> float:
        """What a cut may cost and be lossless, given the value without it."""
        if self.tolerance is not None:
            return self.tolerance
        return LOSSLESS if self.percent else LOSSLESS * abs(float(before))

    def lossless(self, before: Any, after: Any, tolerance: float) -> Any:
        """Whether a cut is lossless: it costs no more than `tolerance`. Takes numbers or arrays, answers likewise."""
        if self.percent:
            return lossless(self.cost(before, after), 0.0, tolerance)
        # values are stored in float32, so a cost that is written as 0.5 counts as 0.5
        return self.cost(before, after) <= tolerance + 1e-6 * (abs(before) + tolerance)

    # -- words -----------------------------------------------------------------------------------------------------

    def shown(self, value: float | None, decimals: int = 2) -> str:
        """A value with its unit: "97.20%", "54.3 kg"; None is "". `decimals`: of a percentage."""
        if value is None:
            return ""
        if self.percent:
            return percent(value) if decimals == 2 else f"{100 * value:.{decimals}f}%"
        return f"{value:.4g} {self.unit}".rstrip()

    def on_test(self, value: float) -> str:
        """A value and of what it is: "97.20% test accuracy", "test RMSE 54.3 kg"."""
        return f"{self.shown(value)} test {self.name}" if self.percent else f"test {self.name} {self.shown(value)}"

    @property
    def title(self) -> str:
        """The name as a title begins with it: "Accuracy", "RMSE"."""
        return self.name[0].upper() + self.name[1:] if self.is_accuracy else self.name

    @property
    def scores(self) -> str:
        """What several values are called: "accuracies", "values of RMSE"."""
        return "accuracies" if self.is_accuracy else f"values of {self.name}"

    @property
    def axis(self) -> str:
        """What stands at an axis of values times `scale`: "test accuracy, %", "test RMSE, kg"."""
        return self._with_unit(f"test {self.name}", "%" if self.percent else self.unit)

    @property
    def cost_axis(self) -> str:
        """What stands at an axis of costs of a cut: "live − cut accuracy, points", "cut − live RMSE, kg"."""
        less = "live − cut" if self.higher_is_better else "cut − live"
        return self._with_unit(f"{less} {self.name}", self.points)

    @property
    def change_axis(self) -> str:
        """What stands at an axis of differences: "accuracy, change in points", "RMSE, change in kg"."""
        return f"{self.name}, change in {self.points}" if self.points else f"change of {self.name}"

    @property
    def lost_axis(self) -> str:
        """What stands at an axis of losses: "accuracy lost, points", "RMSE, worse by, kg"."""
        return self._with_unit("accuracy lost" if self.is_accuracy else f"{self.name}, worse by", self.points)

    @property
    def points(self) -> str:
        """The unit of a difference: "points" of shares."""
        return "points" if self.percent else self.unit

    def signed(self, change: float, decimals: int = 2) -> str:
        """A difference of two values without its unit: "-1.20", "+0.31". `decimals`: of points."""
        return f"{round(100 * float(change), decimals) + 0.0:+.{decimals}f}" if self.percent else f"{change + 0.0:+.3g}"

    def amount(self, change: float) -> str:
        """The size of a difference with its unit: "1.20 points", "0.31 kg"."""
        size = f"{100 * abs(change):.2f}" if self.percent else f"{abs(change):.3g}"
        return f"{size} {self.points}".rstrip()

    def difference(self, before: float, after: float) -> str:
        """From one value to another in words: "1.20 points worse", "0.31 kg better", "the same"."""
        cost = float(self.cost(before, after))
        if abs(cost) < 5e-5 if self.percent else cost == 0:
            return "the same"
        return f"{self.amount(cost)} {'worse' if cost > 0 else 'better'}"

    def hover(self, field: str = "y", change: bool = False) -> str:
        """How plotly's hover text writes a drawn number, as of an axis above: "%{y:.2f}%", "%{y:.4g} kg".

        `change`: a difference, with its sign.
        """
        unit = f" {self.points}" if self.points else ""
        if change:
            return f"%{{{field}:+.2f}}{unit}" if self.percent else f"%{{{field}:+.3g}}{unit}"
        return f"%{{{field}:.2f}}%" if self.percent else f"%{{{field}:.4g}}{unit}"

    def hover_amount(self, field: str = "y") -> str:
        """The same for a cost, without a sign where it is above 0: "%{y:.2f} points"."""
        return self.hover(field, change=True).replace(":+", ":")

    @staticmethod
    def _with_unit(what: str, unit: str) -> str:
        return f"{what}, {unit}" if unit else what


def r_squared(outputs: Any, targets: Any) -> Any:
    """1 minus the squared errors over those of the mean of the targets, mean over the k columns; tensors [n, k]."""
    outputs, targets = outputs.double(), targets.double()
    left, all_there = (targets - outputs).square().sum(0), (targets - targets.mean(0)).square().sum(0)
    return (1 - left / all_there).mean()


def as_metric(given: Any) -> Metric | None:
    """A `Metric`, or one made of a function by its name, of which more is better; None is None.

    Raises TypeError or ValueError for something else.
    """
    if given is None:
        return None
    if isinstance(given, Metric):
        if given.fn is None and not given.is_accuracy:
            raise ValueError(f"metric {given.name!r} must have a function of (outputs, targets), it has none")
        return given
    if isinstance(given, type) or not callable(given):
        raise TypeError(f"metric must be a function of (outputs, targets) or a gsm_lab.Metric, got {shown(given)}")
    name = getattr(given, "__name__", None) or type(given).__name__
    return Metric("metric" if "<" in name else name[:_LONGEST], given)


def _refuse_truth_first(fn: Any) -> None:
    """Raises ValueError for a function such as scikit-learn's, which takes the targets first."""
    try:
        first = next(iter(inspect.signature(fn).parameters), "")
    except (TypeError, ValueError):  # None, or written in C
        return
    if first in _TRUTH_FIRST:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise ValueError(
            f"metric must take (outputs, targets) in this order, and the first argument of {name} is {first!r}: "
            f"lambda outputs, targets: {name}(targets, outputs) turns it round"
        )


def metric_of(table: pd.DataFrame) -> Metric:
    """What the scores in a table are, by its column `metric`: accuracies where it has none.

    Raises ValueError where the rows are of several metrics, which cannot be drawn on one axis.
    """
    if COLUMN not in table:
        return ACCURACY
    found = list(
        dict.fromkeys(table[COLUMN].fillna(str(ACCURACY)))
    )  # of rows that had no such column, put below others
    if len(found) != 1:
        raise ValueError(f"table must be of one metric, got {', '.join(map(str, found)) or 'none'}")
    return Metric.of(found[0])


def marked(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The table with a column `metric` that says what its scores are, unless they are accuracies."""
    return table if metric.is_accuracy else table.assign(**{COLUMN: str(metric)})


ACCURACY = Metric("accuracy", percent=True)
R2 = Metric("R2", r_squared, tolerance=LOSSLESS)  # of regression, unless another is given
