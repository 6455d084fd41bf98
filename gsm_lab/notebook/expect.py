"""Regression values for notebooks: what a notebook claims, held against what was stored, with a tolerance.

    from gsm_lab import expect

    expect("cut accuracy", 0.972, 0.978, 0.02)  # ok  cut accuracy: 0.978 within 0.02 (measured 0.972)
    expect.at_least("share near zero", share, 0.97)
    expect.digest(figure)  # once: what to store for each trace
    expect.trace(figure, {"loss": {"look": "scatter lines solid - x y", ...}})
    print(expect.describe(playground))  # the controls, as text

A line says what was stored and, at its end in "(measured ...)", what came out: to three digits, or as many as the
tolerance or the bound has; of more than six numbers the least and the greatest. Training differs in the last digits
from one CPU to the next, and of a line nothing but that end does. So `tests/nbval.cfg` blanks it, and nbval compares
the rest to the letter; a number that is not as stored raises AssertionError with both values.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from gsm_lab.checks import number, shown, text
from gsm_lab.notebook.as_text import STATISTICS, appearance, describe, digest, measured, named, statistics, values

__all__ = ["at_least", "at_most", "describe", "digest", "expect", "trace"]

OTHERWISE = "If the change is meant, store the new value; if not, find what changed it."


def expect(name: str, value: Any, stored: Any, tolerance: float) -> None:
    """Compare a number, or an array of them, with the stored one; prints a line that says so.

    Args:
        name: what the number is, for the line and for the error.
        value: the number now; anything `np.asarray` turns into numbers.
        stored: the number when it was right, finite, of the same shape.
        tolerance: the largest absolute difference that is still right, >= 0; 0 asks for equality, of integers also
            where they are too large for float64.

    Raises:
        AssertionError: the difference is greater, something is not a number, or there is nothing to compare; names
            both values.
        ValueError, TypeError: `stored` or `tolerance` is not finite, or no number, or `tolerance` is negative.
    """
    text("name", name)
    wanted, tolerance = _stored(name, stored), number(f"{name}: tolerance", tolerance, 0)
    got = _numbers(name, value)
    if got.shape != wanted.shape:
        raise AssertionError(f"{name}: got shape {got.shape}, stored {wanted.shape}. {OTHERWISE}")
    _must_hold_some(name, got)
    with np.errstate(invalid="ignore"):  # of the first NaN, which argmax takes first, or of the greatest difference
        where = np.unravel_index(int(np.abs(got - wanted).argmax()), got.shape)
    place = f" at {list(map(int, where))}" if where else ""
    _must_be_near(f"{name}: got {got[where]:.8g}{place}", got[where], wanted[where], tolerance)
    if not tolerance and (pair := _unequal_integers(value, stored)):
        raise AssertionError(f"{name}: got {pair[0]}, stored {pair[1]}, which are not equal. {OTHERWISE}")
    what = f"{wanted[()]:.8g}" if wanted.ndim == 0 else f"{wanted.size:,} numbers"
    print(f"ok  {name}: {what} " + (f"within {tolerance:g}{measured(got, tolerance)}" if tolerance else "exactly"))


def at_least(name: str, value: Any, bound: float) -> None:
    """Compare a number, or each of an array, with a lower bound.

    Raises AssertionError when one is less, or NaN, or there is none; ValueError or TypeError for what is no bound.
    """
    _bounded(name, value, bound, "at least", np.greater_equal)


def at_most(name: str, value: Any, bound: float) -> None:
    """Compare a number, or each of an array, with an upper bound.

    Raises AssertionError when one is more, or NaN, or there is none; ValueError or TypeError for what is no bound.
    """
    _bounded(name, value, bound, "at most", np.less_equal)


def trace(figure: Any, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare traces of a plotly figure with their stored `digest`; prints a line for each, and one at the end.

    Args:
        figure: a `Figure` or `FigureWidget`.
        stored: what `digest` returned, all of it or the traces that matter.

    Raises:
        AssertionError: a trace is missing, looks different, has too few or too many points, or other numbers.
        ValueError, TypeError: there is nothing to compare, because `stored` is empty, or no digest.
    """
    found = named(figure)
    if not isinstance(stored, Mapping) or not all(isinstance(entry, Mapping) for entry in stored.values()):
        raise TypeError(f"stored must be what digest(figure) returned, got {shown(stored)}")
    if not stored:
        raise ValueError("stored must hold a trace at least, or nothing is compared: it is empty")
    for name, entry in stored.items():
        if name not in found:
            raise AssertionError(
                f"there is no trace {name!r}; the figure has {', '.join(map(repr, found))}. {OTHERWISE}"
            )
        look, y, (fewest, most) = appearance(found[name]), values(found[name]), entry["points"]
        if look != entry["look"]:
            raise AssertionError(f"trace {name!r}: looks like {look!r}, stored {entry['look']!r}. {OTHERWISE}")
        if not fewest <= y.size <= most:
            raise AssertionError(f"trace {name!r}: got {y.size} points, stored {fewest} to {most}. {OTHERWISE}")
        if "y" in entry:
            tolerance = number(f"{name}: tolerance", entry["tolerance"], 0)
            if not y.size:
                raise AssertionError(
                    f"trace {name!r}: has no point with a number, stored {tuple(entry['y'])}. {OTHERWISE}"
                )
            for statistic, a, b in zip(STATISTICS, statistics(y), entry["y"], strict=True):
                _must_be_near(f"trace {name!r}: {statistic} is {a:.8g}", a, b, tolerance)
        numbers = f", {fewest}..{most} points, y within {entry['tolerance']:g}" if "y" in entry else ", no points"
        came = measured(y[[0, -1]], entry["tolerance"], "first, last") if "y" in entry else ""
        print(f"ok  trace {name}: {look}{numbers}{came}")
    print(f"ok  {len(stored)} of {len(found)} traces")


# -- numbers -----------------------------------------------------------------------------------------------------------


def _numbers(name: str, value: Any, what: str = "value") -> np.ndarray:
    try:
        array = _array(value)
        if array.dtype.kind in "biuf" or (array.dtype.kind == "O" and _of_integers(array)):
            return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"{name}: {what} must be within the range of float64, got {shown(value)}") from error
    except Exception:  # nested lists of unequal length, a tensor on an accelerator that is gone: no array
        pass
    raise TypeError(f"{name}: {what} must be a number or an array of numbers, got {type(value).__name__}")


def _array(value: Any) -> np.ndarray:
    """`value` as a numpy array; it may be a tensor with a gradient, on an accelerator, or of bfloat16."""
    detach = getattr(value, "detach", None)
    if detach is None:
        return np.asarray(value)
    tensor = detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _of_integers(array: np.ndarray) -> bool:
    """Whether an array of objects holds integers only: so numpy keeps those beyond int64."""
    return array.size > 0 and all(isinstance(x, int) for x in array.flat)


def _unequal_integers(value: Any, stored: Any) -> tuple[Any, Any] | None:
    """The first two that differ, of arrays of the same shape that hold integers on both sides."""
    got, wanted = _array(value), _array(stored)
    if not all(a.dtype.kind in "iu" or (a.dtype.kind == "O" and _of_integers(a)) for a in (got, wanted)):
        return None
    pairs = zip(map(int, got.flat), map(int, wanted.flat), strict=True)
    return next(((a, b) for a, b in pairs if a != b), None)


def _must_hold_some(name: str, got: np.ndarray) -> None:
    if not got.size:
        raise AssertionError(f"{name}: there is nothing to compare, got an array of shape {got.shape}. {OTHERWISE}")


def _stored(name: str, stored: Any, what: str = "stored") -> np.ndarray:
    array = _numbers(name, stored, what)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {what} values must be finite, got {shown(stored)}")
    return array


def _must_be_near(said: str, a: float, b: float, tolerance: float) -> None:
    # 0.98 - 0.96 is 0.020000000000000018: what is written as 0.02 apart counts as within 0.02. NaN is within nothing.
    if not abs(a - b) <= tolerance * (1 + 1e-9):
        raise AssertionError(
            f"{said}, stored {b:.8g}; they differ by {abs(a - b):.3g}, "
            f"more than the tolerance {tolerance:g}. {OTHERWISE}"
        )


def _bounded(name: str, value: Any, bound: float, words: str, holds: np.ufunc) -> None:
    text("name", name)
    limit, got = _stored(name, bound, "bound"), _numbers(name, value)
    if limit.ndim:
        raise TypeError(f"{name}: bound must be one number, got an array of shape {limit.shape}")
    _must_hold_some(name, got)
    bound = float(limit)
    wrong = got[~holds(got, bound)]
    if wrong.size:
        more = f" ({wrong.size:,} of {got.size:,} values are wrong)" if got.ndim else ""
        raise AssertionError(f"{name}: got {wrong[0]:.8g}, not {words} {bound:.8g}{more}. {OTHERWISE}")
    print(f"ok  {name}: {words} {bound:.8g}{measured(got, bound)}")


class _Expect(types.ModuleType):
    """The module itself can be called: `expect(...)` beside `expect.trace(...)`, with one import."""

    __call__ = staticmethod(expect)


sys.modules[__name__].__class__ = _Expect
