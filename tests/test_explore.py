"""`explore`: menus over a figure."""

import plotly.graph_objects as go
import pytest

from gsm_lab import explore, figures


def draw(momentum: float, layer: str = "a") -> go.Figure:
    if momentum == 0.5:
        raise ValueError("no such <run>")
    figure = go.Figure(layout={"title": {"text": f"{layer} at {momentum}"}})
    for i in range(3 if layer == "c" else 2):
        figure.add_scatter(x=[0, 1], y=[momentum, i], name=f"{layer}{i}", **figures.line(i))
    return figure


def test_another_choice_redraws() -> None:
    shown = explore(draw, momentum=[0.9, 0.98], layer=["a", "b", "c"])
    assert shown.chosen == {"momentum": 0.9, "layer": "a"} and shown.figure.layout.title.text == "a at 0.9"
    uids = [trace.uid for trace in shown.figure.data]
    shown.menus["momentum"].value = 0.98
    assert shown.figure.layout.title.text == "a at 0.98" and shown.figure.data[0].y == (0.98, 0)
    assert [trace.uid for trace in shown.figure.data] == uids  # updated, not replaced
    shown.choose(layer="c")
    assert len(shown.figure.data) == 3 and shown.figure.data[2].name == "c2"
    assert repr(shown) == "explore(momentum=0.98, layer='c')"
    shown.choose(layer="b", momentum=0.9)
    assert len(shown.figure.data) == 2 and shown.figure.layout.title.text == "b at 0.9"


def test_an_error_is_shown_and_the_figure_stays() -> None:
    shown = explore(draw, momentum=[0.9, 0.5])
    shown.choose(momentum=0.5)
    assert "no such &lt;run&gt;" in shown.failure.value and shown.figure.layout.title.text == "a at 0.9"
    shown.choose(momentum=0.9)
    assert shown.failure.value == ""


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "choices must hold at least one name"),
        ({"momentum": []}, "momentum must be a list of at least one value"),
        ({"layer": "abc"}, "layer must be a list of at least one value, got 'abc'"),
        ({"momentum": 0.9}, "momentum must be a list"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explore(draw, **choices)


def test_a_choice_that_there_is_not_is_refused_before_anything_changes() -> None:
    shown = explore(draw, momentum=[0.9, 0.98])
    with pytest.raises(ValueError, match=r"momentum must be one of 0\.9, 0\.98, got 0\.7"):
        shown.choose(momentum=0.7)
    with pytest.raises(ValueError, match="there is no choice 'layer'; the choices are momentum"):
        shown.choose(momentum=0.98, layer="b")
    assert shown.chosen == {"momentum": 0.9}
    with pytest.raises(TypeError, match="draw must be a function"):
        explore("figure", momentum=[0.9])


def test_readers_without_a_kernel_see_a_picture(browser_path: str) -> None:
    shown = explore(draw, momentum=[0.9, 0.98])
    bundle = shown._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR") and bundle["text/plain"] == "explore(momentum=0.9)"
    assert "application/vnd.jupyter.widget-view+json" in bundle
