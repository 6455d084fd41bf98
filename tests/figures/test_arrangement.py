"""Where the plots stand: none over another, all inside, what is not shown nowhere."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab import figures
from gsm_lab.figures import Arrangement, arrange
from gsm_lab.figures.arrangement import PLOTS, Plot
from gsm_lab.notebook.step_inspector import INSPECTION
from tests.figures.test_dashboard import made

HISTORY = made(60).history
PROBES = np.array([(step, -0.1, -0.2, -0.11, 1e-3, 1e-3, 0.5, 0.1, 0.01) for step in range(1, 60, 7)], INSPECTION)
arrangements = st.builds(
    Arrangement,
    views=st.sampled_from([("curves",), ("Taylor",), ("curves", "Taylor")]),
    columns=st.sampled_from([1, 2]),
    width=st.integers(250, 2000),
    row=st.integers(150, 500),
    last=st.sampled_from([None, 5, 30]),
    log=st.booleans(),
)


def figure(arrangement: Arrangement) -> go.Figure:
    return figures.dashboard(HISTORY, slots=8, taylor=PROBES, arrangement=arrangement)


def box(one: go.Figure, plot: Plot) -> tuple[float, float, float, float]:
    """A plot with its title, legend and labels, in pixels from the lower left corner: left, right, bottom, top."""
    layout = one.layout
    margin = layout.margin
    x, y = (layout[f"{axis[0]}axis{axis[1:]}"].domain for axis in (plot.x, plot.y))
    high = layout.height - margin.t - margin.b
    title = next(note for note in layout.annotations if note.name == plot.title)
    lines = title.text.count("<br>") + 1
    return x[0], x[1], y[0] * high - 34 + margin.b, title.y * high + margin.b + 17 * lines


@settings(max_examples=12)
@given(arrangements)
def test_no_plot_is_over_another_or_outside(a: Arrangement) -> None:
    one = figure(a)
    shown = [plot for plot in PLOTS if plot.view in a.views]
    boxes = [box(one, plot) for plot in shown]
    for left, right, low, high in boxes:
        assert 0 <= left < right <= 1 and low >= 0 and high <= one.layout.height
    for (l1, r1, b1, t1), (l2, r2, b2, t2) in itertools.combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or t1 <= b2 or t2 <= b1
    if a.columns == 1:
        assert {(left, right) for left, right, _, _ in boxes} == {(0, 1)}


@settings(max_examples=12)
@given(arrangements)
def test_what_is_not_shown_has_no_place(a: Arrangement) -> None:
    one = figure(a)
    for trace in one.data:
        view = next(plot.view for plot in PLOTS if plot.x == (trace.xaxis or "x"))
        empty = trace.legend == "legend4" and trace.name is None
        assert (trace.visible is not False) == (view in a.views and not empty)
    for plot in PLOTS[:6]:
        hidden = plot.view not in a.views
        for axis in filter(None, (plot.x, plot.y, plot.right)):
            layout = one.layout[f"{axis[0]}axis{axis[1:]}"]
            assert layout.visible is not hidden
            assert not hidden or 1 / 4096 < layout.domain[1] < 0.001  # plotly takes less for the whole width
        title = next(note for note in one.layout.annotations if note.name == plot.title)
        assert title.visible is not hidden and one.layout[plot.legend].visible is not hidden
    assert bool(one.layout.shapes) == any(note.name is None for note in one.layout.annotations)


@settings(max_examples=8)
@given(arrangements, arrangements)
def test_arranged_anew_is_as_made_so(a: Arrangement, b: Arrangement) -> None:
    one, other = figure(a), figure(b)
    arrange(one, b)
    figures.update(one, HISTORY, PROBES, b)
    for part in (*(plot for plot in PLOTS[:6] if plot.view in b.views),):
        assert box(one, part) == box(other, part)
        assert one.layout[part.legend].to_plotly_json() == other.layout[part.legend].to_plotly_json()
    assert [t.visible is not False for t in one.data] == [t.visible is not False for t in other.data]
    assert one.layout.height == other.layout.height and one.layout.shapes == other.layout.shapes
    texts = [[note.text for note in f.layout.annotations if note.visible is not False] for f in (one, other)]
    assert texts[0] == texts[1]


def test_the_last_steps_alone_and_a_log_axis() -> None:
    one = figure(Arrangement(last=20))
    for trace in one.data[:7]:
        assert min(trace.x) >= 40 and max(trace.x) <= 60
    assert one.data[0].x.tolist() == list(range(41, 61))
    np.testing.assert_array_equal(one.data[0].y, figure(Arrangement()).data[0].y[-20:])
    log = figure(Arrangement(views=("curves", "Taylor"), log=True))
    assert [log.layout[f"xaxis{i or ''}"].type for i in (0, 2, 3, 4, 5, 6)] == [*["log"] * 4, None, "log"]


def test_marks_of_a_window_and_of_a_log_axis() -> None:
    history = made(100).history
    history.moved(10, "lr", 0.1, 0.2)
    history.moved(90, "lr", 0.2, 0.3)
    shapes, _ = figures.marks(history, Arrangement(last=50))
    assert {shape["x0"] for shape in shapes} == {90}
    shapes, labels = figures.marks(history, Arrangement(log=True))
    assert {shape["x0"] for shape in shapes} == {10, 90}, "shapes are placed in steps"
    assert sorted({label["x"] for label in labels}) == pytest.approx([1, np.log10(90)]), "annotations by the logarithm"


def test_long_titles_take_more_lines_where_it_is_narrow_and_long_legends_more_room() -> None:
    assert "<br>" not in figure(Arrangement(width=1200)).layout.annotations[1].text
    assert "<br>" in figure(Arrangement(width=700)).layout.annotations[1].text
    a, names = Arrangement(columns=1, width=400), [f"layers.{i}.projection" for i in range(8)]
    assert a.legend_lines(["fc1", "fc2"]) == 1 < a.legend_lines(names)
    assert a.outgrows(names) and not a.outgrows(["fc1", "fc2"])


@pytest.mark.parametrize("wrong", [
    {"views": ("plots",)}, {"columns": 3}, {"columns": True}, {"width": 0}, {"row": -1}, {"log": "yes"}, {"last": 0},
    {"last": 1.5}, {"width": float("nan")},
])  # fmt: skip
def test_what_is_no_arrangement_is_refused(wrong: dict) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(wrong))} (must|is)"):
        Arrangement(**wrong)
    with pytest.raises(TypeError, match="arrangement must be an Arrangement"):
        arrange(go.Figure(), "wide")
    with pytest.raises(TypeError, match="figure must be a figure"):
        arrange(None, Arrangement())
