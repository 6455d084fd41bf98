"""The playground's live figure: what it tells the page, and what it makes of the page's reports."""

import comm
import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest
from ipywidgets import embed
from plotly.basedatatypes import Undefined

from gsm_lab.notebook.browser import Figure, plotly_js
from gsm_lab.notebook.closing import close_all


def line(n: int, y: float) -> dict[str, np.ndarray]:
    return {"x": np.arange(n, dtype=np.float32), "y": np.full(n, y, np.float32)}


def told(figure: go.FigureWidget) -> list[dict]:
    """Every update that the figure sends from here on."""
    messages = []
    figure.observe(lambda change: change["new"] and messages.append(change["new"]), "_py2js_update")
    return messages


def undefined(what: object) -> bool:
    if isinstance(what, dict):
        return any(map(undefined, what.values()))
    return any(map(undefined, what)) if isinstance(what, list | tuple) else what is Undefined


def page_reports(figure: go.FigureWidget, *deltas: dict) -> None:
    figure.set_state(
        {"_js2py_traceDeltas": {"trace_deltas": list(deltas), "trace_edit_id": figure._last_trace_edit_id}}
    )


def test_an_update_has_a_value_for_every_trace() -> None:
    """The second line's y, and the first one's marker, stay as they are; the page must be told so in values."""
    for kind in (go.FigureWidget, Figure):
        figure = kind([go.Scatter(**line(5, 1.0), marker={"size": 3}), go.Scatter(**line(5, 2.0), name="flat")])
        messages = told(figure)
        with figure.batch_update():
            for trace, y in zip(figure.data, (3.0, 2.0), strict=True):
                trace.x, trace.y = line(5, y)["x"] + 1, line(5, y)["y"]
            figure.data[1].marker.size = 7
            figure.data[1].hovertemplate = "%{y}"
        (message,) = messages
        assert undefined(message) == (kind is go.FigureWidget)  # plotly says "undefined"; if no more, ours may go
    assert message["style_traces"] == [0, 1]
    style = message["style_data"]
    assert [y.tolist() for y in style["y"]] == [[3.0] * 5, [2.0] * 5]
    assert style["marker.size"] == [3, 7] and style["hovertemplate"] == [None, "%{y}"]


def test_a_value_for_all_traces_is_sent_as_it_is() -> None:
    figure = Figure([go.Scatter(**line(5, 1.0)), go.Scatter(**line(5, 2.0))])
    messages = told(figure)
    figure.plotly_update({"marker.size": 4}, {"title.text": "both"})
    assert messages == [
        {
            "style_data": {"marker.size": 4}, "layout_data": {"title.text": "both"}, "style_traces": [0, 1],
            "trace_edit_id": 1, "layout_edit_id": 1, "source_view_id": None,
        }
    ]  # fmt: skip


def test_what_the_page_reports_of_arrays_is_let_go() -> None:
    """As a page does that was told of an undefined y: it reports the entries, as defaults, which plotly chokes on."""
    report = {"y": {str(i): 2.0 for i in range(5)}, "opacity": 1, "marker": {"size": {"0": 1.0, "1": 2.0}}}
    trace = go.Scatter(**line(5, 2.0), marker={"size": np.arange(5.0)})
    plain, figure = go.FigureWidget(trace), Figure(trace)
    with pytest.raises(ValueError, match="truth value of an array"):
        page_reports(plain, {"uid": plain.data[0].uid, **report})
    figure.data[0].name = "new"
    assert figure._trace_edit_in_process
    page_reports(figure, {"uid": figure.data[0].uid, **report})
    assert figure.data[0].y.tolist() == [2.0] * 5 and figure.data[0].marker.size.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not figure._trace_edit_in_process and figure._js2py_traceDeltas is None
    figure.set_state({"_js2py_layoutDelta": {"layout_delta": {"xaxis": {"range": {"0": 1}}}, "layout_edit_id": 0}})
    assert figure.layout.xaxis.range is None


def test_a_legend_that_is_clicked_and_a_zoom_still_arrive() -> None:
    figure = Figure([go.Scatter(**line(5, 1.0)), go.Scatter(**line(5, 2.0))])
    figure.set_state(
        {"_js2py_restyle": {"style_data": {"visible": ["legendonly"]}, "style_traces": [1], "source_view_id": "v"}}
    )
    assert figure.data[1].visible == "legendonly"
    figure.set_state(
        {"_js2py_relayout": {"relayout_data": {"xaxis.range[0]": 1, "xaxis.range[1]": 3}, "source_view_id": "v"}}
    )
    assert figure.layout.xaxis.range == (1, 3)


def test_a_page_opened_again_is_given_what_is() -> None:
    figure = Figure([go.Scatter(**line(5, 1.0)), go.Scatter(**line(5, 2.0))])
    figure.data[1].y = line(5, 4.0)["y"]
    assert figure.get_state()["_widget_data"][1]["y"]["buffer"] == memoryview(line(5, 4.0)["y"])


def test_it_is_opened_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for it in the moment between would be given an empty one, and draw nothing."""
    opened = []
    create = comm.create_comm
    monkeypatch.setattr(comm, "create_comm", lambda **told: [opened.append(told["data"]["state"]), create(**told)][1])
    for kind in (go.FigureWidget, Figure):
        kind([go.Scatter(**line(5, 1.0))], go.Layout(title="it"))
    states = [state for state in opened if "_widget_data" in state]
    assert [len(state["_widget_data"]) for state in states] == [0, 1]  # if plotly does so, too, ours may go
    assert states[1]["_widget_layout"]["title"]["text"] == "it" and states[1]["_config"]["responsive"]


def test_a_page_is_told_of_plotly_once() -> None:
    """Not with each figure; the closing of one leaves it to others, and after the closing of all there is another."""
    first, second = (Figure([go.Scatter(**line(5, 1.0))]) for _ in range(2))
    told = first._plotly_js
    assert second._plotly_js is told is plotly_js() and len(told.code) > 1e6
    assert first.get_state()["_plotly_js"] == f"IPY_MODEL_{told.model_id}"
    assert all(len(str(figure.get_state())) < 100_000 for figure in (first, second))
    assert told.model_id in embed.dependency_state(first)  # a saved state has it, too
    close_all([first])
    assert first.comm is None and told.comm is not None
    ipywidgets.Widget.close_all()
    third = Figure([go.Scatter(**line(5, 1.0))])
    assert third._plotly_js is plotly_js() is not told and third._plotly_js.comm is not None
