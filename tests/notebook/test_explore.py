"""`explore`: menus over a figure."""

import gc
import itertools
import weakref

import ipywidgets
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

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


def rich() -> go.Figure:
    bars = {"array": [1, 1]}
    trace = go.Scatter(x=[1, 2], y=[1, 2], mode="markers+text", text=["p", "q"], name="A", error_y=bars)
    trace.marker.color = "red"
    return go.Figure(trace).update_layout(
        title="A",
        shapes=[{"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1}],
        annotations=[{"text": "note", "x": 1, "y": 1}],
        xaxis_type="log",
        yaxis_range=[0, 1],
        template="plotly_dark",
        uirevision="A",
        showlegend=True,
    )


def grid() -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=("l", "r"), specs=[[{"secondary_y": True}, {}]])
    figure.add_bar(x=[1], y=[2], row=1, col=1)
    return figure.add_scatter(x=[1, 2], y=[2, 3], row=1, col=2).add_scatter(y=[1], row=1, col=1, secondary_y=True)


KINDS = {
    "rich": rich,
    "bare": lambda: go.Figure(go.Scatter(x=[1, 2, 3], y=[3, 2, 1])),
    "values": lambda: go.Figure(go.Scatter(x=[1, 2], y=[0, 9])),
    "none": go.Figure,
    "grid": grid,
    "bars": lambda: go.Figure(go.Bar(x=["a"], y=[1], marker={"color": [1.0], "colorscale": "Cividis"})),
    "two": lambda: go.Figure([go.Scatter(y=[1]), go.Scatter(y=[2], line={"dash": "dot"})], {"template": None}),
}


def plain(figure: go.Figure) -> tuple[list[dict], dict]:
    shown = go.Figure(figure.to_dict()).to_plotly_json()
    return [{k: v for k, v in trace.items() if k != "uid"} for trace in shown["data"]], shown["layout"]


def test_nothing_is_left_of_the_figure_before() -> None:
    """Of any figure before any other."""
    shown = explore(lambda kind: KINDS[kind](), kind=list(KINDS))
    for one, other in itertools.combinations(KINDS, 2):
        for kind in (one, other, one):
            shown.choose(kind=kind)
            assert plain(shown.figure) == plain(KINDS[kind]()) and shown.children[-1] is shown.figure
            assert not shown.failure.value
    shown.close()


def test_a_zoom_stays_where_only_values_are_others_and_goes_with_another_make() -> None:
    shown = explore(lambda kind: KINDS[kind](), kind=list(KINDS))
    shown.choose(kind="bare")
    shown.figure.plotly_relayout({"xaxis.range[0]": 1, "xaxis.range[1]": 2})  # as the page reports it
    shown.choose(kind="values")
    assert shown.figure.layout.xaxis.range == (1, 2)
    shown.choose(kind="two")
    assert shown.figure.layout.xaxis.range is None
    shown.close()


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (None, "draw must return a plotly figure, got None"),
        ({"data": []}, "draw must return a plotly figure, got {&#x27;data&#x27;: []}"),
        (object(), "draw must return a plotly figure, got a object"),
        (go.Figure(frames=[{"data": []}]), "draw must return a figure without frames, got one with 1"),
    ],
)
def test_something_else_than_a_figure_is_said_and_the_figure_stays(drawn: object, said: str) -> None:
    shown = explore(lambda n: drawn if n == 2 else rich(), n=[1, 2, 3])
    figure = shown.figure
    shown.choose(n=2)
    assert said in shown.failure.value and shown.figure is figure and plain(figure) == plain(rich())
    shown.choose(n=3)
    assert not shown.failure.value and shown.figure is figure
    with pytest.raises((TypeError, ValueError), match="draw must return a"):
        explore(lambda n: drawn, n=[1])
    shown.close()


def test_closed_it_is_freed() -> None:
    registry = ipywidgets.widgets.widget._instances
    before = set(registry)
    shown = explore(lambda kind: KINDS[kind](), kind=list(KINDS))
    made = len(registry)
    for kind in KINDS:
        shown.choose(kind=kind)
    assert len(registry) <= made  # figures that are shown no more are not kept
    gone = weakref.ref(shown)
    shown.close()
    shown.close()
    del shown
    gc.collect()
    assert gone() is None and set(registry) == before


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
