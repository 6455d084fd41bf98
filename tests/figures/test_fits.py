"""Every figure fits the narrowest cell, and what measures that finds each kind of fault."""

import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from gsm_lab.figures.fitting import NARROWEST
from tests.figures import fits
from tests.figures.cases import CASES
from tests.figures.test_titles import said, wrong

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("notebooks").glob("*.ipynb"))
SAVED = True
WIDE = 1488  # of a page of 1,920 pixels, beside the file browser


def plain(**layout: object) -> go.Figure:
    figure = go.Figure().add_scatter(x=[1, 2, 3], y=[1, 2, 3], name="a line")
    figure.update_layout(template="plotly_white", height=360, margin={"t": 80}, showlegend=True, **layout)
    return figure


def note(text: str, **more: object) -> dict[str, object]:
    return {"text": text, "x": 0.3, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False, **more}


FAULTY = {
    "two texts lie on each other": (
        plain(annotations=[note("one thing"), note("and another")]), 'annotation "one thing" overlaps annotation "and',
    ),
    "a long title": (plain(title={"text": "a word " * 20, "y": 0.9}), r'title "a word .* cut off at the right edge'),
    "a title under the mode bar": (
        plain(title={"text": "a word " * 10, "y": 0.99, "yanchor": "top"}), 'the mode bar covers title "a word'
    ),
    "a legend under the mode bar": (
        plain(legend={"x": 1, "y": 1, "xanchor": "right", "yref": "container"}),
        'the mode bar covers legend entry "a line"',
    ),
    "pale letters": (plain(font={"color": "#bbbbbb"}), r'tick label "1" is faint: contrast 1\.9'),
    "letters that let the paper through": (
        plain(annotations=[note("ghost", opacity=0.3)]), 'annotation "ghost" is faint',
    ),
    "ticks that overprint": (
        plain(xaxis={"tickvals": list(np.linspace(1, 3, 99)), "tickangle": 0}), 'tick label .* overlaps tick label',
    ),
    "ticks under the title of their axis": (
        plain(yaxis={"title": "weight", "ticksuffix": " millions", "automargin": False}, margin_l=40),
        'tick label "3 millions" is cut off at the left edge',
    ),
    "a legend over the data": (plain(legend={"x": 0.4, "y": 0.5}), 'legend entry "a line" lies over a plot'),
    "a legend that scrolls": (
        go.Figure([go.Scatter(x=[1, 2], y=[1, i], name=f"line {i}") for i in range(60)]).update_layout(height=300),
        r'legend entry "line \d+" is cut off by the edge of what it is in',
    ),
    "small letters": (plain(font={"size": 8}), 'letters of 8 px'),
    "a point's name at the edge": (
        go.Figure(go.Scatter(x=[1, 2], y=[1, 2], mode="text", text=["a very long name"] * 2), {"xaxis_range": [1, 2]}),
        'point label "a very long name" is cut off by the edge',
    ),
    "no room for the plot": (plain(margin_b=230), r'a plot of \d+ x \d+ px is too small'),
    "over the labels of a colour bar": (
        go.Figure(go.Heatmap(z=[[0, 9], [9, 0]])).add_annotation(note("####" + 8 * "<br>####", x=1.1, xanchor="left")),
        "annotation .* colour bar label|colour bar label .* annotation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_each_kind_of_fault_is_found(drawn: fits.Drawn, name: str) -> None:
    figure, expected = FAULTY[name]
    found = drawn.faults(figure, [NARROWEST])
    assert any(re.search(expected, fault) for fault in found), found


def test_nothing_is_found_where_all_is_well(drawn: fits.Drawn) -> None:
    figure = plain(title={"text": "short", "x": 0.02}, xaxis={"title": "step"})
    slanted = plain(xaxis={"tickvals": list(np.linspace(1, 3, 22)), "tickangle": -60, "tickformat": ".2f"})
    hidden = plain(xaxis={"showticklabels": False}, annotations=[note("gone", visible=False), note("here")])
    for one in (figure, slanted, hidden):
        assert drawn.faults(one, [NARROWEST, 1488]) == []


def test_a_figure_without_a_paper_of_its_own_is_faint_on_a_dark_page_only(drawn: fits.Drawn) -> None:
    bare = plain(paper_bgcolor="rgba(0,0,0,0)", font={"color": "#222222"})
    assert drawn.faults(bare, [NARROWEST]) == []
    assert any("is faint" in fault for fault in drawn.faults(bare, [NARROWEST], dark=True))
    white = plain(paper_bgcolor="white", font={"color": "#222222"})
    assert drawn.faults(white, [NARROWEST], dark=True) == []


@pytest.mark.parametrize("name", list(CASES)[::3])  # all of them, at every width, in tests/soak
def test_every_figure_fits_the_narrowest_cell_and_is_read_without_colour_and_says_it_well(
    drawn: fits.Drawn, name: str
) -> None:
    figure = CASES[name]()
    assert drawn.faults(figure, [NARROWEST, WIDE]) == []
    assert fits.grey(figure) == []
    assert wrong(said(figure)) == []


@pytest.mark.skipif(not SAVED, reason="the notebooks' figures are to be saved anew")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_figures_that_notebooks_show_fit(drawn: fits.Drawn, path: Path) -> None:
    for figure in saved(path):
        assert drawn.faults(figure, [NARROWEST, WIDE]) == []
        assert fits.grey(figure) == []


def saved(path: Path) -> list[dict]:
    """The plotly figures in a notebook's outputs."""
    outputs = (out for cell in json.loads(path.read_text("utf-8"))["cells"] for out in cell.get("outputs", []))
    found = (out.get("data", {}).get("application/vnd.plotly.v1+json") for out in outputs)
    return [figure for figure in found if figure]


# ------------------------------------------------------------------------------------------------ without colour


def lines(*styles: dict) -> go.Figure:
    return go.Figure([go.Scatter(x=[1, 2], y=[1, i], name=f"line {i}", **style) for i, style in enumerate(styles)])


def test_lines_that_differ_only_in_colour_look_alike_in_grey() -> None:
    red, blue = {"line": {"color": "#c00000"}}, {"line": {"color": "#0000ff"}}
    [found] = fits.grey(lines({**red, "mode": "lines"}, {**blue, "mode": "lines"}))
    assert "'line 0' and 'line 1' look alike in grey, in x y" in found
    assert fits.grey(lines({"mode": "lines", **red}, {"mode": "lines", "line": {"dash": "dot"}})) == []
    assert fits.grey(lines({"mode": "markers"}, {"mode": "markers", "marker": {"symbol": "square"}})) == []
    assert len(fits.grey(lines({}, {}, {}))) == 3
    apart = lines({}, {}).update_traces(yaxis="y2", selector=1)  # in another plot
    assert fits.grey(apart) == []


def test_fills_are_told_apart_by_their_lightness() -> None:
    dark, light, near = ({"mode": "markers", "marker": {"color": c}} for c in ("#000000", "#bbbbbb", "#111111"))
    assert fits.grey(lines(dark, light)) == []
    assert len(fits.grey(lines(dark, near))) == 1


@pytest.mark.parametrize(("scale", "good"), [("Greys", True), ("Cividis", True), ("Jet", False), ("RdBu", False)])
def test_a_heat_map_is_in_the_order_of_its_lightness(scale: str, good: bool) -> None:
    assert (fits.grey(go.Figure(go.Heatmap(z=[[1, 2]], colorscale=scale))) == []) is good
