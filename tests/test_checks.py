"""Checks of arguments: what is taken comes out as it went in, and what is refused is refused by name and value."""

import fractions

import numpy as np
import pandas as pd
import pytest

from gsm_lab import checks, knobs
from tests.random_inputs import JUNK


@pytest.mark.parametrize("value", [True, False, 1, 0, np.True_, np.False_, np.int64(1), np.array(True)])
def test_a_flag_is_a_bool_or_0_or_1(value: object) -> None:
    assert checks.flag("progress", value) is bool(value)


@pytest.mark.parametrize("value", [2, -1, 1.0, "yes", None, [], np.array([True])])
def test_what_is_only_true_in_a_way_is_no_flag(value: object) -> None:
    with pytest.raises(TypeError, match="progress must be True or False, got "):
        checks.flag("progress", value)


def test_whole_numbers_within_bounds() -> None:
    assert checks.whole("rows", np.int64(3)) == 3 and type(checks.whole("rows", np.int32(3))) is int
    assert checks.whole("rows", 0, 0) == 0
    for value in (0, -1, 2.0, True, "3", None, 10**5000):
        with pytest.raises(ValueError, match=r"rows must be a whole number (>= 1|<= 2,147,483,647), got "):
            checks.whole("rows", value)


def test_lists_of_anything_but_text() -> None:
    assert checks.several("seeds", range(2)) == [0, 1] == checks.several("seeds", np.arange(2))
    assert checks.several("seeds", (s for s in "ab")) == ["a", "b"]
    assert checks.several("seeds", (), empty=True) == []
    with pytest.raises(ValueError, match="seeds must hold at least one value, got none"):
        checks.several("seeds", [])
    for value in ("12", b"12", 3, None, np.array(1)):
        with pytest.raises(TypeError, match="seeds must be a list, got "):
            checks.several("seeds", value)


def test_numbers_are_real_finite_and_no_bools() -> None:
    assert all(map(checks.is_number, (0, -1.5, np.float32(2), fractions.Fraction(1, 3))))
    assert not any(map(checks.is_number, (True, np.nan, np.inf, 10**400, "1", None, 1j, np.array([1.0]))))


def test_tables_by_their_columns() -> None:
    table = pd.DataFrame({"a": [1], "b": [2]})
    assert checks.table("table", table, ("a", "b")) is table
    with pytest.raises(ValueError, match="table must have the columns a, c, d; it has no c, d"):
        checks.table("table", table, ("a", "c", "d"))
    with pytest.raises(ValueError, match="table must have at least one row"):
        checks.table("table", table[:0], ("a",))
    assert len(checks.table("table", table[:0], ("a",), empty=True)) == 0
    with pytest.raises(TypeError, match=r"table must be a table, a pandas\.DataFrame, got Series"):
        checks.table("table", table["a"])


def test_values_of_a_knob_are_refused_with_the_arguments_name() -> None:
    assert knobs.each("seeds", ["1", 2.0, np.int64(3)], "seed") == [1, 2, 3]
    with pytest.raises(ValueError, match=r"momentum must be .* below 1, got 1\.0, in momenta"):
        knobs.each("momenta", (0.9, 1.0), "momentum")


@pytest.mark.parametrize("check", [checks.flag, checks.whole, checks.positive, checks.text, checks.several])
def test_no_check_fails_at_junk_itself(check: object) -> None:
    for value in JUNK:
        try:
            check("it", value)
        except (TypeError, ValueError) as error:
            assert str(error).startswith("it must ") and len(str(error)) < 200
