"""Figures of the Taylor study: what is drawn, how it looks, and titles that stay true."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gsm_lab.figures import taylor as drawn
from gsm_lab.studies import taylor
from tests.studies.test_problem import problem


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    p = problem("relu", samples=20)
    return {
        "singles": taylor.singles(p, 12, compression=3),
        "sets": taylor.sets(p, 3),
        "every": taylor.exhaustive(p, progress=False),
    }


def all_figures(tables: dict[str, pd.DataFrame]) -> list[go.Figure]:
    every = tables["every"]
    return [
        drawn.scatter(tables["singles"]),
        drawn.errors(taylor.agreement(tables["singles"])),
        *(drawn.set_errors(tables["sets"], kind) for kind in ("top", "bottom", "random", "smallest |w|", "cut")),
        drawn.rank_map(taylor.rank_map(every)),
        drawn.input_map(taylor.missed_by_input(every, "0.weight", (2, 3), 3)),
    ]


def test_every_trace_differs_in_more_than_colour_and_every_axis_has_a_title(tables: dict[str, pd.DataFrame]) -> None:
    for figure in all_figures(tables):
        lines = [t for t in figure.data if t.type == "scatter" and "markers" in t.mode]
        symbols = [t.marker.symbol for t in lines]
        assert len(set(symbols)) == len(symbols)
        dashes = [t.line.dash for t in lines if "lines" in t.mode]
        assert len(set(dashes)) == len(dashes)
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text and len(figure.layout.title.text) > 25
        assert all(t.hovertemplate or t.hoverinfo == "skip" for t in figure.data)


def test_the_scatter_shows_what_is_above_the_floor(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["singles"].copy()
    table.attrs = {"floor": table["true"].abs().median()}
    figure = drawn.scatter(table)
    x = np.concatenate([t.x for t in figure.data if t.mode == "markers"])
    shown = table[(table["true"].abs() >= table.attrs["floor"]) & (table["|g w|"] > 0)]
    assert sorted(x) == sorted(shown["true"].abs())
    assert f"({len(table) - len(shown)} of {len(table)} below the floor)" in figure.layout.xaxis.title.text.replace(
        "<br>", " "
    )
    error = ((shown["|g w|"] - shown["true"].abs()).abs() / shown["true"].abs()).median()
    assert f"{100 * error:.2g}% off" in figure.layout.title.text


def test_titles_state_the_finding(tables: dict[str, pd.DataFrame]) -> None:
    sets = tables["sets"]
    last = sets[sets["kind"] == "top"].iloc[-1]
    title = drawn.set_errors(sets, "top", "(at the end)").layout.title.text.replace("<br>", " ")
    assert f"{last['size']:,} weights (top)" in title and f"{last['true']:.2g};" in title and "(at the end)" in title
    table = taylor.agreement(tables["singles"])
    worst = table.groupby("estimate")["relative_error"].median().idxmax()
    assert worst in drawn.errors(table).layout.title.text
    assert (
        "exact to 0.1%" in drawn._off(1e-5)
        and "too small" in drawn._off(float("nan"))
        and drawn._off(2.5) == "250% off"
    )


def test_the_rank_map_counts_every_weight() -> None:
    counts = pd.DataFrame([[5, 1, 0], [0, 3, 0], [1, 0, 10]], index=[1, 2, 3], columns=[1, 2, 3])
    figure = drawn.rank_map(counts)
    assert "95% of all 20 weights" in figure.layout.title.text
    assert np.isnan(figure.data[0].z[0][2]) and figure.data[0].z[2][2] == 1


def test_the_picture_of_the_inputs(tables: dict[str, pd.DataFrame]) -> None:
    every = tables["every"]
    picture = taylor.missed_by_input(every, "0.weight", (2, 3), 3)
    missed = taylor.misranked(every, 3).set_index("layer")["missed"]
    assert picture.shape == (2, 3) and picture.to_numpy().sum() == missed["0.weight"]
    with pytest.raises(ValueError, match=r"layer must be one of 0\.weight, .*got 'conv'"):
        taylor.missed_by_input(every, "conv", (2, 3))
    with pytest.raises(ValueError, match=r"shape must have as many pixels as 0\.weight has inputs"):
        taylor.missed_by_input(every, "0.weight", (5, 5))
    with pytest.raises(ValueError, match="kind must be one of cut, top"):
        drawn.set_errors(tables["sets"], "middle")
