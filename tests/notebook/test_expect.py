"""Regression values: what passes and what fails, and that only the end of a line depends on what was measured."""

import contextlib
import io
import math
import re
import types
from pathlib import Path

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from nbval.plugin import get_sanitize_patterns

import gsm_lab as gl
from gsm_lab import expect
from gsm_lab.notebook.as_text import measured

finite = st.floats(-1e6, 1e6)
BLANKS = get_sanitize_patterns((Path(__file__).parents[1] / "nbval.cfg").read_text())


def error(check, *args) -> str:
    with pytest.raises(AssertionError) as failed:
        check(*args)
    return str(failed.value)


def blanked(text: str) -> str:
    """What nbval compares of a text."""
    for pattern, replacement in BLANKS:
        text = re.sub(pattern, replacement, text)
    return text


# ------------------------------------------------------------------------------------------------ numbers


def test_the_module_is_the_check():
    assert gl.expect is expect
    expect("it", 1, 1, 0)
    assert expect.expect.__doc__


@pytest.mark.parametrize(
    ("value", "stored", "tolerance", "line"),
    [
        (0.9712, 0.978, 0.02, "ok  it: 0.978 within 0.02 (measured 0.971)"),
        (0.958, 0.978, 0.02, "ok  it: 0.978 within 0.02 (measured 0.958)"),  # their difference is 0.020000000000000018
        (4436, 4436, 0, "ok  it: 4436 exactly"),
        (np.float32(0.5), 0.5, 0, "ok  it: 0.5 exactly"),
        (torch.tensor(0.5), 0.5, 0, "ok  it: 0.5 exactly"),
        ([1, 2.01, 3], (1, 2, 3), 0.1, "ok  it: 3 numbers within 0.1 (measured 1, 2.01, 3)"),
        (torch.ones(2, 2), np.ones((2, 2)), 0, "ok  it: 4 numbers exactly"),
        (True, True, 0, "ok  it: 1 exactly"),
    ],
)
def test_what_is_near_passes(value, stored, tolerance, line, capsys):
    expect("it", value, stored, tolerance)
    assert capsys.readouterr().out == line + "\n"


def test_what_is_far_fails_with_both_numbers_and_a_way_out(capsys):
    said = error(expect, "cut accuracy", 0.9534, 0.978, 0.02)
    assert "cut accuracy: got 0.9534, stored 0.978; they differ by 0.0246, more than the tolerance 0.02" in said
    assert "store the new value" in said and "find what changed" in said
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "tolerance", "shown"),
    [
        (98.2389, 0.01, "98.24"),  # as many decimals as the tolerance has
        (98.2389, 3, "98.2"),  # or three digits
        (173.2868, 9, "173"),
        (1299.94, 500, "1300"),  # always to the unit
        (0.00026123, 2e-5, "0.000261"),
        (5.9604e-08, 1e-6, "5.96e-08"),
        (3.99600e11, 1e9, "4e+11"),
        (-0.9, 1, "-0.9"),
        (0, 1, "0"),
        (-0.0, 1, "0"),
        ([7, 1, 2, 3, 4, 5.25], 9, "7, 1, 2, 3, 4, 5.25"),
        ([7, 1, 2, 3, 4, 5.25, 3], 9, "1 to 7"),
    ],
)
def test_what_was_measured_is_shown_to_three_digits_or_those_of_the_tolerance(value, tolerance, shown, capsys):
    expect("it", value, value, tolerance)
    assert capsys.readouterr().out.endswith(f" within {tolerance:g} (measured {shown})\n")


@given(finite, st.floats(1e-3, 1e3))
def test_what_is_shown_lies_within_the_tolerance_as_far_as_its_digits_go(value, tolerance):
    tolerance = float(f"{tolerance:.2g}")
    said = measured(np.array(value), tolerance)
    shown = float(said.removeprefix(" (measured ").removesuffix(")"))
    assert abs(shown - value) <= 0.5 * max(tolerance / 10, 1e-2 * abs(value)) * (1 + 1e-9)


@given(st.text("a(1.5 )", max_size=12), finite, st.just(0.0) | st.floats(1e-6, 1e3), st.floats(-1e3, 1e3))
def test_nbval_compares_all_but_what_was_measured(name, stored, tolerance, noise):
    lines = []
    within = 0.9 * tolerance  # its very end is lost in rounding
    for value in (stored, stored + max(-within, min(within, noise))):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            expect(f"x{name}", value, stored, tolerance)
            expect.at_least("y", value, min(value, stored) if tolerance else stored)
        lines.append(blanked(out.getvalue()))
    assert lines[0].splitlines()[0] == lines[1].splitlines()[0]
    assert "measured" not in lines[0] and lines[0].startswith(f"ok  x{name}: {stored:.8g} ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_no_number_is_never_near(value):
    assert f"got {value:g}, stored 1" in error(expect, "it", value, 1, 1e9)
    assert f"got {value:g} at [1], stored 1" in error(expect, "it", [1, value, 1], [1, 1, 1], 1e9)


def test_an_array_fails_at_its_worst_place():
    said = error(expect, "it", [[1, 2], [3, 4.5]], [[1, 2.2], [3, 4]], 0.1)
    assert "got 4.5 at [1, 1], stored 4; they differ by 0.5" in said
    assert "got nan at [0]" in error(expect, "it", [math.nan, 9], [1, 1], 0.1)
    assert "got shape (2,), stored (3,)" in error(expect, "it", [1, 2], [1, 2, 3], 9)
    assert "got shape (1,), stored ()" in error(expect, "it", [1], 1, 9)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_a_tolerance_is_a_finite_number(wrong):
    with pytest.raises(ValueError, match="tolerance must be a finite number >= 0"):
        expect("it", 1, 1, wrong)


def test_stored_values_are_numbers():
    with pytest.raises(ValueError, match="stored values must be finite"):
        expect("it", 1, math.nan, 1)
    for value, stored in (("1", 1), (1, "1"), (None, 1), ({}, 1)):
        with pytest.raises(TypeError, match="must be a number"):
            expect("it", value, stored, 1)


@given(finite, finite, st.floats(0, 1e3))
def test_passes_where_the_difference_is_within_the_tolerance(value, stored, tolerance):
    difference = abs(value - stored)
    assume(abs(difference - tolerance) > 1e-6 * tolerance or difference == tolerance)
    if difference <= tolerance:
        expect("it", value, stored, tolerance)
    else:
        assert f"got {value:.8g}, stored {stored:.8g}" in error(expect, "it", value, stored, tolerance)


@given(st.lists(finite, min_size=1), st.data())
def test_an_array_passes_where_every_number_does(stored, data):
    value = [x + data.draw(st.sampled_from([0.0, 0.4, -0.4, 3.0])) for x in stored]
    near = [abs(a - b) <= 1 for a, b in zip(value, stored, strict=True)]
    if all(near):
        expect("it", value, stored, 1)
    else:
        error(expect, "it", value, stored, 1)


@given(finite, finite)
def test_bounds(value, bound):
    for check, holds in ((expect.at_least, value >= bound), (expect.at_most, value <= bound)):
        if holds:
            check("it", value, bound)
        else:
            assert f"got {value:.8g}, not at" in error(check, "it", value, bound)


def test_bounds_of_arrays_and_of_no_numbers(capsys):
    expect.at_least("share", [0.98, 0.99], 0.97)
    expect.at_most("gap", 0.001, 0.006)
    assert capsys.readouterr().out == (
        "ok  share: at least 0.97 (measured 0.98, 0.99)\nok  gap: at most 0.006 (measured 0.001)\n"
    )
    assert "got 0.5, not at least 0.97 (2 of 3 values are wrong)" in error(
        expect.at_least, "share", [0.5, 1, math.nan], 0.97
    )
    for check in (expect.at_least, expect.at_most):
        assert "got nan" in error(check, "it", math.nan, 0)


# ------------------------------------------------------------------------------------------------ figures


def figure(shift: float = 0.0) -> go.Figure:
    x = np.arange(20, dtype=np.float32)
    line = {"dash": "dash", "color": "#000"}
    return go.Figure(
        [
            go.Scatter(x=x, y=x**2 + shift, name="square", line=line, marker={"symbol": "x"}, mode="lines+markers"),
            go.Scatter(x=x, y=np.full(20, 98.33), name="target", mode="lines", yaxis="y2"),
            go.Bar(x=[3, 1, 2], y=["a", "b", "c"], orientation="h", name="bars"),
            go.Heatmap(z=[[1, 2], [3, None]]),
            go.Scatter(x=[], y=[], name="later"),
        ]
    )


def test_digest_is_what_passes(capsys):
    stored = expect.digest(figure())
    assert list(stored) == ["square", "target", "bars", "trace 3", "later"]
    assert stored["square"] == {
        "look": "scatter lines+markers dash x x y",
        "points": (18, 22),
        "y": (0.0, 361.0, 0.0, 361.0, 124.0),
        "tolerance": 20.0,
    }
    assert stored["target"]["y"] == (98.33,) * 5 and stored["target"]["tolerance"] == 0.1
    assert stored["bars"]["y"][:4] == (3.0, 2.0, 1.0, 3.0)
    assert stored["trace 3"]["points"] == (2, 4) and stored["trace 3"]["y"][4] == 2.0
    assert stored["later"] == {"look": "scatter - solid circle x y", "points": (0, 0)}
    expect.trace(figure(), stored)
    lines = capsys.readouterr().out.splitlines()
    looks = "ok  trace square: scatter lines+markers dash x x y, 18..22 points, y within 20"
    assert lines[0] == looks + " (measured first, last: 0, 361)"
    assert lines[-1] == "ok  5 of 5 traces"
    expect.trace(figure(shift=3.0), stored)
    again = capsys.readouterr().out.splitlines()
    assert again[0] == looks + " (measured first, last: 3, 364)"
    assert [blanked(line) for line in again] == [blanked(line) for line in lines], "another CPU"
    assert blanked(lines[0]) == looks


def test_digest_survives_being_pasted():
    stored = expect.digest(figure())
    assert eval(repr(stored)) == stored
    expect.trace(figure(), eval(repr(stored)))


def test_some_of_the_traces_will_do(capsys):
    stored = expect.digest(figure())
    expect.trace(figure(), {"target": stored["target"]})
    assert capsys.readouterr().out.endswith("ok  1 of 5 traces\n")


def test_a_figure_widget_and_a_figure_are_alike():
    expect.trace(go.FigureWidget(figure()), expect.digest(figure()))


def test_traces_of_one_name_are_told_apart():
    twice = go.Figure([go.Scatter(y=[1, 2], name="a"), go.Scatter(y=[3, 5], name="a")])
    assert list(expect.digest(twice)) == ["a", "a (trace 1)"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "other"}, "there is no trace 'square'; the figure has 'other', 'target'"),
        (
            {"line.dash": "dot"},
            "looks like 'scatter lines+markers dot x x y', stored 'scatter lines+markers dash x x y'",
        ),
        ({"marker.symbol": "star"}, "looks like 'scatter lines+markers dash star x y'"),
        ({"mode": "lines"}, "looks like 'scatter lines dash - x y'"),
        ({"xaxis": "x3", "yaxis": "y3"}, "dash x x3 y3'"),
        ({"y": np.arange(40.0)}, "got 40 points, stored 18 to 22"),
        ({"y": np.arange(20.0)}, "last is 19, stored 361; they differ by 342, more than the tolerance 20"),
        ({"y": np.full(20, np.nan)}, "got 0 points, stored 18 to 22"),
        ({"y": np.full(20, np.inf)}, "got 0 points, stored 18 to 22"),
    ],
)
def test_a_changed_trace_fails_and_says_why(change, said):
    stored = expect.digest(figure())
    changed = figure()
    changed.data[0].update({name.replace(".", "_"): value for name, value in change.items()})
    message = error(expect.trace, changed, stored)
    assert said in message and "store the new value" in message


@pytest.mark.parametrize("statistic", range(5))
def test_every_statistic_counts(statistic):
    stored = expect.digest(figure())
    y = list(stored["square"]["y"])
    y[statistic] += 3 * stored["square"]["tolerance"]
    said = error(expect.trace, figure(), {"square": {**stored["square"], "y": tuple(y)}})
    assert f"trace 'square': {expect.STATISTICS[statistic]} is" in said


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=50))
def test_any_trace_passes_its_own_digest(y):
    one = go.Figure(go.Scatter(y=np.array(y, np.float32), name="any"))
    expect.trace(one, expect.digest(one))


# ------------------------------------------------------------------------------------------------ widgets


def panel(**changed) -> ipywidgets.VBox:
    slider = {"description": "compression C", "value": 60.0, "min": 0, "max": 3, **changed}
    return ipywidgets.VBox(
        [
            ipywidgets.HBox(
                [ipywidgets.Button(description="Play"), ipywidgets.Button(description="Step", disabled=True)]
            ),
            ipywidgets.FloatLogSlider(**slider),
            ipywidgets.Dropdown(options=[("LeNet 300", "lenet300"), ("LeNet 5", "lenet5")], description="model"),
            ipywidgets.HTML("<b>123.456 steps/s</b>"),
            ipywidgets.Text("x", layout={"display": "none"}),
            go.FigureWidget(),
        ]
    )


def test_describe_says_what_can_be_done():
    assert [" ".join(line.split()) for line in expect.describe(panel()).splitlines()] == [
        "Button 'Play'",
        "Button 'Step' (disabled)",
        "FloatLogSlider 'compression C' = 60 from 0 to 3",
        "Dropdown 'model' = lenet300 of LeNet 300, LeNet 5",
        "Text '' = x (hidden)",
        "FigureWidget ''",
    ]


@pytest.mark.parametrize("change", [{"description": "C"}, {"value": 61.0}, {"max": 4}, {"disabled": True}])
def test_describe_notices(change):
    assert expect.describe(panel(**change)) != expect.describe(panel())


def test_describe_takes_anything_with_widgets_in_it():
    widgets = [ipywidgets.IntText(3), ipywidgets.HTML("<b>a</b>\n<i>b</i>")]
    assert expect.describe(widgets) == expect.describe({"a": widgets[0], "b": [widgets[0]]})
    assert expect.describe(widgets, without=()).endswith("''  = a b")
    own = types.SimpleNamespace(children=(types.SimpleNamespace(description="mine", layout=None),))
    assert "'mine'" in expect.describe(own)
    assert expect.describe([]) == ""
