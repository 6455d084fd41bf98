"""Figures of re-activation: told apart without colour, true titles, every point explained."""

import itertools
import re

import pandas as pd
import plotly.graph_objects as go
import pytest

from gsm_lab.figures import reactivation as figures


def steps(scale: float = 1.0) -> pd.DataFrame:
    """As `per_step` makes it: 2% at first, 1% in the end, nothing woken before the second row."""
    table = pd.DataFrame({"step": [11, 21, 31], "epoch": [1.1, 2.1, 3.1], "steps": [10, 10, 10], "pool": [1000] * 3})
    counts = {"reactivated": (20, 15, 10), "woken": (0, 4, 2), "near_zero": (0, 0, 1)}
    for name, values in counts.items():
        table[name] = [scale * v for v in values]
    for name, share in (("reactivated", "share"), ("woken", "woken_share"), ("near_zero", "near_zero_share")):
        table[share] = table[name] / table["pool"]
    return table


def stretches(once: float = 0.4) -> pd.DataFrame:
    longer = [1 - once, 0.5 * (1 - once), 0.1]
    return pd.DataFrame({"steps": [1, 2, 70], "ended": [4, 3, 1], "running": [0, 0, 2], "longer": longer})


LAYERS = pd.DataFrame(
    {
        "layer": ["a", "b", "all"], "weights": [100, 1000, 1100], "active": [50, 100, 150], "woken": [40, 10, 50],
        "kept": [20, 2, 22], "kept_woken": [3, 0, 3],
    }
)  # fmt: skip
KEPT = pd.DataFrame(
    {
        "what": ["all weights", "ever active", "re-activated", "woken", "once under 1e-3", "once under 1e-4"],
        "weights": [1100, 150, 140, 50, 900, 500], "kept": [22, 22, 21, 3, 1, 0],
    }
).assign(share=lambda t: t["weights"] / 1100, kept_share=lambda t: t["kept"] / 22)  # fmt: skip


def runs(*lost: float) -> pd.DataFrame:
    variants = ["plain", "frozen", "frozen", "forbidden", "forbidden"]
    accuracies = {"live": [0.9, *(0.9 - x for x in lost)], "cut": [0.8, *(0.8 - 2 * x for x in lost)]}
    one = {"variant": variants, "after": [float("nan"), 1, 4, 1, 4], **accuracies, "tested": 200}
    return pd.concat([pd.DataFrame({"seed": seed, **one}) for seed in (0, 1)], ignore_index=True)


MADE = {
    "shares": lambda: figures.shares(steps()),
    "compared": lambda: figures.compared({0.9: steps(), 0.98: steps(0.5), 0.99: steps(2)}),
    "compared, far apart": lambda: figures.compared({"fc1": steps(), "fc2": steps(30)}, what="layer"),
    "survival": lambda: figures.survival({0.9: stretches(), 0.99: stretches(0.2)}),
    "layers": lambda: figures.layers(LAYERS),
    "kept": lambda: figures.kept(KEPT),
    "controls": lambda: figures.controls(runs(0.01, 0.02, 0.0, -0.005)),
}


@pytest.mark.parametrize("name", MADE)
def test_traces_differ_in_dash_marker_and_colour_and_say_what_they_are(name: str) -> None:
    figure = MADE[name]()
    assert len(figure.data) >= 2
    for a, b in itertools.combinations(figure.data, 2):
        assert a.line.dash != b.line.dash and a.marker.symbol != b.marker.symbol and a.line.color != b.line.color
        assert a.name != b.name
    for trace in figure.data:
        assert "<extra></extra>" in trace.hovertemplate and len(trace.hovertemplate) > 40
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.title.text and ("(log)" in axis.title.text) == (axis.type == "log")
    assert re.search(r"%|points", figure.layout.yaxis.title.text)
    assert figure.layout.showlegend
    assert isinstance(figure, go.Figure) and figure.to_json()


def title(figure: go.Figure) -> str:
    return re.sub("<.*?>", "", figure.layout.title.text.replace("<br>", " "))


def test_titles_follow_the_tables() -> None:
    assert title(figures.shares(steps())) == "At first 2% of the passive weights come back in a step, in the end 1%"
    assert "of the passive weights in fc2 come back" in title(figures.shares(steps(), "fc2"))
    compared = figures.compared({0.9: steps(), 0.98: steps(0.5), 0.99: steps(2)})
    expected = "Passive weights come back most often with momentum 0.99: 3% of them in a step; least with 0.98: 0.75%"
    assert title(compared) == expected
    assert title(figures.compared({"fc1": steps()}, "layer")).endswith("with layer fc1: 1.5% of them in a step")
    expected = "40% of passive stretches end after one step, 10% not within the run"
    assert title(figures.survival({"fc1": stretches()}, "layer")) == expected
    assert title(figures.survival({0.9: stretches(), 1: stretches(0.2)})) == f"{expected} (momentum 0.9)"
    assert title(figures.survival({"all": stretches(), "a": stretches(0.2)}, "layer")) == expected
    assert title(figures.layers(LAYERS)) == "a wakes 40% of its weights, b 1%"
    assert title(figures.kept(KEPT)) == "Of the 22 weights the cut keeps, 3 were woken, and 1 was once under 1e-3"


@pytest.mark.parametrize(
    ("lost", "frozen", "forbidden"),
    [
        ((0.01, 0.02, 0.0, -0.005), "-2.0 to -1.0", "+0.0 to +0.5"),
        ((0.01,) * 4, "-1.0", "-1.0"),
        ((-0.02, -0.01, 0.01, -0.01), "+1.0 to +2.0", "-1.0 to +1.0"),
    ],
)
def test_the_title_of_the_control_runs_has_the_right_sign(lost: tuple, frozen: str, forbidden: str) -> None:
    figure = figures.controls(runs(*lost))
    expected = f"freezing the active set {frozen}, forbidding the woken to come back {forbidden}"
    assert title(figure) == f"Accuracy changes by these points: {expected}"
    assert "one test sample is 0.5 points" in figure.layout.xaxis.title.text.replace("<br>", " ")


def test_what_is_drawn_is_what_the_table_says() -> None:
    shares = figures.shares(steps())
    assert list(shares.data[0].y) == [2, 1.5, 1]
    assert pd.isna(shares.data[1].y[0]) and list(shares.data[1].y[1:]) == pytest.approx([0.4, 0.2])  # no log of zero
    live, cut, forbidden, _ = figures.controls(runs(0.01, 0.02, 0.0, -0.005)).data
    assert list(live.y) == pytest.approx([-1, -2]) and list(cut.y) == pytest.approx([-2, -4])
    assert list(forbidden.y) == pytest.approx([0, 0.5])
    assert list(figures.survival({0.9: stretches()}).data[0].y) == pytest.approx([60, 30, 10])


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="table must have at least one row"):
        figures.shares(steps().iloc[:0])
    with pytest.raises(ValueError, match="tables must have at least one"):
        figures.survival({})
    with pytest.raises(ValueError, match=r"tables\[0\.9\] must have at least one row"):
        figures.compared({0.9: steps().iloc[:0]})
