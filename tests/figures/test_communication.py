"""Figures of training on several ranks, on hand-made tables: told apart without colour, true titles, right numbers."""

import itertools
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gsm_lab.figures import communication as figures
from gsm_lab.studies.communication import cost

STAGES = ("early", "middle", "late")


def agreement(layers=("a.weight", "all"), factors=(1.0, 2.0), scale=1.0) -> pd.DataFrame:
    """Recalls of one rank rise from 0.5 by 0.1 a stage, to 1 at k = 2; all hold 0.1 less, any 0.1 more."""
    rows = []
    for (i, stage), layer, factor in itertools.product(enumerate(STAGES), layers, factors):
        single = min(1.0, scale * (0.5 + 0.1 * i) * (1 if factor == 1 else 2))
        row = {"step": 10 * i + 1, "epoch": 1.0, "stage": stage, "ranks": 2, "layer": layer, "weights": 100}
        row |= {"wanted": 10, "factor": factor, "single": single, "least": single, "intersection": single - 0.1}
        rows.append(
            row
            | {
                "union": min(1.0, single + 0.1),
                "chosen": single - 0.05,
                "between": single - 0.2,
                "travel": 12,
                "same": True,
            }
        )
    return pd.DataFrame(rows)


def quantised() -> pd.DataFrame:
    rows = [(stage, b) for stage in STAGES for b in (8, 1)]
    table = pd.DataFrame(rows, columns=["stage", "bits"])
    first = table["bits"] == 8
    return table.assign(
        ranks=2, recall=np.where(first, 0.9, 0.4), by_size=np.where(first, 0.5, 0.8), exact_by_size=0.45
    )


def hooked(seeds=2) -> pd.DataFrame:
    rows = [(seed, k) for seed in range(seeds) for k in (np.inf, 1.0, 4.0)]
    table = pd.DataFrame(rows, columns=["seed", "factor"])
    lost = table["factor"].map({np.inf: 0.0, 1.0: 0.02, 4.0: -0.004}) + 0.0 * table["seed"]
    table = table.assign(live=0.97, cut=0.96 - lost + 0.01 * table["seed"], lost=lost, base=0.98, tested=360, ranks=2)
    return table.assign(bytes=1e5, share=table["factor"].map({np.inf: 1, 1.0: 0.03, 4.0: 0.12}))


ALL = {
    "recall": lambda: figures.recall(agreement()),
    "overlap": lambda: figures.overlap(agreement()),
    "quantised": lambda: figures.quantised(quantised()),
    "volume, ranks": lambda: figures.volume(cost(10**9, [2, 16, 128])),
    "volume, weights": lambda: figures.volume(cost([10**5, 10**7], 8), "seconds"),
    "accuracy": lambda: figures.accuracy(hooked()),
}


def title(figure: go.Figure) -> str:
    return re.sub("<.*?>", "", figure.layout.title.text.replace("<br>", " "))


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_a_title_units_hover_and_a_legend(name):
    figure = ALL[name]()
    assert len(title(figure)) > 20
    axes = [axis for key, axis in figure.layout.to_plotly_json().items() if key.startswith(("xaxis", "yaxis"))]
    alone = [axis for axis in axes if not axis.get("matches") and axis.get("showticklabels") is not False]
    assert alone and all(axis.get("title", {}).get("text") for axis in alone)
    for axis in alone:
        assert ("(log)" in axis["title"]["text"]) == (axis.get("type") == "log")
    for trace in figure.data:
        assert "%{" in trace.hovertemplate and trace.hovertemplate.endswith("<extra></extra>")
    assert figure.layout.showlegend and figure.to_json()


@pytest.mark.parametrize("name", ALL)
def test_what_the_legend_tells_apart_differs_in_dash_and_marker_and_colour(name):
    shown = [trace for trace in ALL[name]().data if trace.showlegend is not False]
    assert len(shown) >= 2
    for a, b in itertools.combinations(shown, 2):
        assert a.name != b.name and a.line.dash != b.line.dash
        if "markers" in a.mode and "markers" in b.mode:
            assert a.marker.symbol != b.marker.symbol and a.line.color != b.line.color


def test_a_stage_looks_the_same_in_all_panels():
    for name, panels in (("recall", 4), ("quantised", 2)):
        for stage in STAGES:
            traces = [trace for trace in ALL[name]().data if trace.name == stage]
            assert len(traces) == panels and len({str(t.line) + str(t.marker) for t in traces}) == 1
            assert [t.showlegend for t in traces] == [True] + [False] * (panels - 1)


def test_titles_follow_the_tables():
    recall = "One rank's own top Q holds 60% of the global top Q, its top 2Q 100%; "
    recall += "from what 2 ranks send, the gate chooses 55% and 95% of it"
    assert title(figures.recall(agreement())) == recall
    assert "of the global top Q in a, its" in title(figures.recall(agreement(), "a.weight"))
    nearly = "its top 2Q 99.8%; from"
    assert nearly in title(figures.recall(agreement(scale=0.998).assign(single=0.9985)))
    overlap = "Two ranks share 30% of their top Q early in the run, 50% late; one alone finds 60% of the global top Q"
    assert title(figures.overlap(agreement())) == overlap
    assert "of their top 2Q in a early" in title(figures.overlap(agreement(), 2, "a.weight"))
    expected = "Quantised gradients keep of the exact top Q: 90% at 8 bits, 40% at 1 bit"
    assert title(figures.quantised(quantised())) == expected
    expected = "Sending only the local top kQ changes accuracy after the cut by -2.0 (top Q), +0.4 (top 4Q) points"
    assert title(figures.accuracy(hooked())) == f"{expected}, mean of 2 seeds"
    assert title(figures.accuracy(hooked(1))) == f"{expected}, one seed"
    volume = "At 128 ranks the dense exchange takes 7.94 GB a rank and step, GSM's counts "
    assert title(figures.volume(cost(10**9, [2, 128]))).startswith(volume)
    assert title(figures.volume(cost([10**9, 10**11], 8, index_bytes=8), "seconds")).startswith(
        "At 100 billion weights"
    )


def test_what_is_drawn_is_what_the_tables_say():
    early, _, late = (trace for trace in figures.recall(agreement()).data if trace.xaxis == "x")
    assert list(early.x) == [1, 2] and list(early.y) == [50, 100] and list(late.y) == pytest.approx([70, 100])
    _, single, every, between = figures.overlap(agreement()).data
    assert list(single.y) == pytest.approx([50, 60, 70]) and list(single.x) == [1, 11, 21]
    assert list(between.y) == pytest.approx([30, 40, 50]) and list(every.y) == pytest.approx([40, 50, 60])
    _, _, cut, dense_cut = figures.accuracy(hooked()).data
    assert list(cut.y) == pytest.approx([94.5, 96.9]) and list(cut.error_y.array) == pytest.approx([0.5, 0.5])
    assert list(dense_cut.y) == pytest.approx([96.5, 96.5])
    table = cost(10**9, [2, 16])
    for trace in figures.volume(table).data:
        assert list(trace.y) == table[table["scheme"] == trace.name]["bytes"].tolist()
    assert "GSM under DDP, in addition" not in [trace.name for trace in figures.volume(table).data]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"layer must be one of a\.weight, all, got 'b'"):
        figures.recall(agreement(), "b")
    with pytest.raises(ValueError, match="factor must be one of 1, 2, got 3"):
        figures.overlap(agreement(), 3)
    with pytest.raises(ValueError, match="what must be one of bytes, seconds, got 'bits'"):
        figures.volume(cost(10**6, [2, 4]), "bits")
    with pytest.raises(ValueError, match="several weights or several ranks, got neither"):
        figures.volume(cost(10**6, 2))
    with pytest.raises(ValueError, match="got weights and ranks"):
        figures.volume(cost([10**6, 10**7], [2, 4]))
    with pytest.raises(ValueError, match="runs with the dense exchange and runs with a finite factor"):
        figures.accuracy(hooked().query("factor < 10"))
    for draw in (figures.recall, figures.overlap, figures.quantised, figures.volume, figures.accuracy):
        with pytest.raises(ValueError, match="table must have at least one row"):
            draw(agreement().iloc[:0])
