"""Figures against sums done by hand on a hand-made history, and what a reader of greyscale needs."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab import figures
from gsm_lab.figures.dashboard import MARKS_SHOWN, update
from gsm_lab.figures.history_lines import LAYERS_SHOWN, POINTS
from gsm_lab.figures.style import COLOURS, LINE, headed, line
from gsm_lab.knobs import KNOBS
from gsm_lab.metric import ACCURACY, R2, Metric
from gsm_lab.training.history import History

LAYERS = {"a.weight": 60, "b.weight": 40}
LOOK_EVERY = 7


def made(steps: int, layers: dict[str, int] = LAYERS, compression: float = 20.0) -> SimpleNamespace:
    """A history of `steps` steps, and beside it, by step, what went into it."""
    random = np.random.default_rng(steps)
    history, total = History(layers), sum(layers.values())
    for name, knob in KNOBS.items():
        if knob.live:
            history.moved(0, name, None, compression if name == "compression" else knob.default)
    bounds = np.cumsum([0, *layers.values()])
    true = SimpleNamespace(loss=[], small=[], tiny=[], back=[], looks=[], live=[], cut=[], kept=[])
    before = None
    for step in range(1, steps + 1):
        active = random.random(total) < 0.1
        weights = np.float32(10.0) ** random.uniform(-6, 0, total).astype(np.float32)
        parts = [weights[a:b] for a, b in itertools.pairwise(bounds)]
        loss = float(np.float32(random.exponential()))
        history.record(step, step / 10, loss, 0.1, 0.1, active, parts)
        true.loss.append(loss)
        true.small.append(100 * sum(abs(float(w)) < 1e-3 for w in weights) / total if steps < 50 else None)
        true.tiny.append(100 * sum(abs(float(w)) < 1e-4 for w in weights) / total if steps < 50 else None)
        true.back.append(0 if before is None else int(sum(now and not then for now, then in zip(active, before))))  # noqa: B905
        before = active
        if step % LOOK_EVERY == 0:
            kept = [int(k) for k in random.integers(1, min(layers.values()), len(layers))]
            live, cut = random.random(2)
            history.evaluated(step, live, cut, kept)
            true.looks.append(step)
            true.live.append(100 * live)
            true.cut.append(100 * cut)
            true.kept.append([100 * k / size for k, size in zip(kept, layers.values(), strict=True)])
    return SimpleNamespace(history=history, true=true)


def near(got: np.ndarray, expected: list) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6)


# ------------------------------------------------------------------------------------------------ curves


def test_short_histories_are_drawn_as_they_are():
    one = made(30)
    curves, true = figures.curves(one.history), one.true
    for name, expected in (("loss", true.loss), ("re-activated", true.back), ("under 1e-3", true.small),
                           ("under 1e-4", true.tiny), ("target", [95.0] * 30)):  # fmt: skip
        near(curves[name][0], list(range(1, 31)))
        near(curves[name][1], expected)
    kept = list(zip(*true.kept, strict=True))
    for name, expected in (("live accuracy", true.live), ("cut accuracy", true.cut),
                           ("layer a.weight", kept[0]), ("layer b.weight", kept[1])):  # fmt: skip
        near(curves[name][0], [7, 14, 21, 28])
        near(curves[name][1], expected)
    assert len(curves) == 9


@pytest.mark.parametrize("steps", [401, 1000])
def test_long_histories_are_means_over_stretches_or_their_last_value(steps):
    one = made(steps)
    curves = figures.curves(one.history)
    length = -(-steps // POINTS)
    stretches = [range(a, min(a + length, steps)) for a in range(0, steps, length)]
    rows = one.history.steps.array()
    near(curves["loss"][0], [s[-1] + 1 for s in stretches])
    near(curves["loss"][1], [np.mean([one.true.loss[i] for i in s]) for s in stretches])
    near(curves["re-activated"][1], [np.mean([one.true.back[i] for i in s]) for s in stretches])
    near(curves["under 1e-3"][1], [rows["under_1e-3"][s[-1]].sum() for s in stretches])  # of 100 weights


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 20))
def test_no_line_has_more_points_than_asked_for_and_all_end_at_the_end(steps, points):
    history = made(steps).history
    for name, (x, y) in figures.curves(history, points).items():
        at_looks = "accuracy" in name or "layer" in name
        count = steps // LOOK_EVERY if at_looks else steps
        assert x.shape == y.shape and x.dtype == y.dtype == np.float32
        assert min(count, 1) <= len(x) <= min(points, count)
        assert (np.diff(x) > 0).all()
        if count:
            assert x[-1] == (count * LOOK_EVERY if at_looks else steps)


@pytest.mark.parametrize("steps", [400, 401, 799, 800, 801, 2000])
def test_at_most_400_points(steps):
    assert max(len(x) for x, _ in figures.curves(made(steps).history).values()) <= 400


def test_the_target_follows_the_compression():
    history = made(30).history
    history.moved(10, "compression", 20.0, 100.0)
    near(figures.curves(history)["target"][1], [95.0] * 10 + [99.0] * 20)


def test_a_deep_network_shows_some_layers_of_all_depths():
    layers = {f"l{i}.weight": 50 for i in range(30)}
    shown = [name for name in figures.curves(made(8, layers).history) if name.startswith("layer")]
    assert len(shown) == LAYERS_SHOWN
    assert (shown[0], shown[-1]) == ("layer l0.weight", "layer l29.weight")
    numbers = [int(re.search(r"\d+", name)[0]) for name in shown]
    assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1


def test_an_empty_history_draws_nothing_and_says_so():
    figure = figures.dashboard(History(LAYERS))
    assert all(len(trace.x) == len(trace.y) == 0 for trace in figure.data)
    said = [title.text.lower() for title in figure.layout.annotations]
    assert said == [f"<b>{name}</b>" for name in figures.PANELS]


# ------------------------------------------------------------------------------------------------ titles


def test_titles_state_what_the_history_says():
    one = made(28)
    first, second, third, fourth = figures.title_texts(one.history)
    true = one.true
    assert first == f"Accuracy {true.live[-1]:.1f}%, after the cut {true.cut[-1]:.1f}%"
    assert second == f"{true.small[-1]:.1f}% under 1e-3, {true.tiny[-1]:.1f}% under 1e-4; a cut takes 95.0%"
    assert third == f"{np.mean(true.back):,.0f} weights a step come back"
    one.history.steps.array()["reactivated"][-50:] = [1, 0]
    assert figures.title_texts(one.history)[2] == "1 weight a step comes back"
    shares = dict(zip(("a", "b"), true.kept[-1], strict=True))
    most, least = max(shares, key=shares.get), min(shares, key=shares.get)
    assert fourth == f"{most} keeps {shares[most]:.2g}% of its weights, {least} {shares[least]:.2g}%"


# ------------------------------------------------------------------------------------------------ the look


def plots(figure: go.Figure) -> dict[str, list[go.Scatter]]:
    """The traces of each plot: those that share an x axis."""
    found: dict[str, list[go.Scatter]] = {}
    for trace in figure.data:
        found.setdefault(trace.xaxis or "x", []).append(trace)
    return found


def looks(trace: go.Scatter) -> tuple[str, str | None]:
    return trace.line.dash or "solid", trace.marker.symbol if "markers" in trace.mode else None


@pytest.mark.parametrize("layers", [LAYERS, {f"l{i}.weight": 50 for i in range(30)}])
def test_lines_of_a_plot_differ_in_dash_and_in_marker(layers):
    found = plots(figures.dashboard(made(30, layers).history))
    assert sorted(found) == ["x", "x2", "x3", "x4"]
    for traces in found.values():
        for one, other in itertools.combinations(traces, 2):
            (dash, marker), (other_dash, other_marker) = looks(one), looks(other)
            assert dash != other_dash and marker != other_marker, (one.name, other.name)


def test_the_first_eight_lines_differ_in_everything():
    assert len({line(i)["line"]["dash"] for i in range(8)}) == 8
    assert len({line(i)["marker"]["symbol"] for i in range(8)}) == 8
    assert len(set(COLOURS)) == 8


def test_every_axis_says_what_it_measures():
    figure = figures.dashboard(made(30).history)
    for axis in figure.select_xaxes():
        assert axis.title.text == "step"
    words = [axis.title.text for axis in figure.select_yaxes()]
    assert len(words) == 5 and all(re.search(r"%|per step|loss", text) for text in words), words
    logs = [axis.type == "log" for axis in figure.select_yaxes()]
    assert logs == ["(log)" in text for text in words]
    shares = [axis for axis in figure.select_yaxes() if "%" in axis.title.text and axis.type != "log"]
    assert [tuple(axis.range) for axis in shares] == [(0, 101)] * 2, "a scale that does not move under the viewer"


def test_one_legend_a_plot_and_a_name_for_every_line():
    figure = figures.dashboard(made(30).history)
    for traces in plots(figure).values():
        assert len({trace.legend for trace in traces}) == 1
    assert len({trace.legend for trace in figure.data}) == 4
    names = [trace.name for trace in figure.data]
    assert all(names) and len(set(names)) == len(names)
    assert figure.layout.uirevision, "a zoom survives an update"


def test_traces_are_the_curves():
    history = made(30).history
    curves, figure = figures.curves(history), figures.dashboard(history)
    for trace in figure.data:
        x, y = curves.get(trace.name) or curves[f"layer {trace.name}.weight"]
        np.testing.assert_array_equal(trace.x, x)
        np.testing.assert_array_equal(trace.y, y)
    assert len(figure.data) == len(curves)


# ------------------------------------------------------------------------------------------------ marks


def test_a_mark_in_every_plot_where_a_knob_moved():
    history = made(100).history
    history.moved(20, "compression", 20.0, 100.0)
    history.moved(21, "momentum", 0.9, 0.99)  # less than 2% of the run later
    history.moved(60, "weight_decay", 3e-3, 1e-3)
    history.moved(70, "evaluate_every", 50, 10)  # changes nothing in training
    shapes, labels = figures.marks(history)
    assert sorted((s["xref"], s["x0"], s["x1"]) for s in shapes) == [
        (x, at, at) for x in ("x", "x2", "x3", "x4") for at in (20, 60)
    ]
    assert [(label["x"], label["text"]) for label in labels if label["xref"] == "x"] == [
        (20, "C 100, β 0.99"), (60, "η 0.001"),
    ]  # fmt: skip
    figure = figures.dashboard(history)
    assert len(figure.layout.shapes) == 8 and len(figure.layout.annotations) == 4 + 4


def test_a_knob_dragged_back_and_forth_has_one_label_with_its_last_value():
    history = made(100).history
    for step, value in ((50, 30.0), (51, 40.0), (52, 35.0)):
        history.moved(step, "compression", 20.0, value)
    assert [label["text"] for label in figures.marks(history)[1]] == ["C 35"] * 2


def test_many_moves_show_the_last_ones():
    history = made(100).history
    for step in range(0, 100, 4):
        history.moved(step + 1, "lr", 0.1, 0.1 + step)
    shapes, _ = figures.marks(history)
    places = sorted({shape["x0"] for shape in shapes})
    assert len(places) == MARKS_SHOWN and places[-1] == 97


def test_nothing_moved_nothing_marked():
    assert figures.marks(made(30).history) == ([], [])


# ------------------------------------------------------------------------------------------------ the live figure


@pytest.mark.parametrize("spare", [0, 3])
def test_an_updated_figure_is_the_finished_one(spare):
    history = made(60).history
    history.moved(30, "lr", 0.1, 0.2)
    live = figures.dashboard(History(LAYERS), slots=len(LAYERS) + spare)
    update(live, history)
    done = figures.dashboard(history)
    for a, b in zip(live.data, done.data, strict=False):
        assert (a.name, a.xaxis, a.yaxis, looks(a)) == (b.name, b.xaxis, b.yaxis, looks(b))
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)
    assert [a.visible for a in live.data[len(done.data) :]] == [False] * spare
    assert [a.text for a in live.layout.annotations] == [a.text for a in done.layout.annotations]
    assert live.layout.shapes == done.layout.shapes


# ------------------------------------------------------------------------------------------------ a table as lines


@pytest.mark.parametrize("log", [False, True])
def test_a_table_becomes_a_line_a_column(log):
    table = pd.DataFrame({"with decay": [1.0, 0.1, 0.01], "without": [1.0, 0.9, 0.8]}, index=[0, 10, 20])
    figure = figures.lines(table, "Decay takes weights to zero", "step", "|w|", log=log)
    for trace, name in zip(figure.data, table.columns, strict=True):
        assert trace.name == name
        np.testing.assert_array_equal(trace.x, table.index)
        np.testing.assert_array_equal(trace.y, table[name])
    assert len({looks(trace)[0] for trace in figure.data}) == len({looks(trace)[1] for trace in figure.data}) == 2
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("step", "|w|")
    assert figure.layout.title.text == "<b>Decay takes weights to zero</b>"
    assert (figure.layout.yaxis.type == "log") is log


@given(st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=40))
def test_a_title_takes_the_lines_it_needs_and_the_plot_makes_room(words):
    one, figure = headed(go.Figure(), "short"), headed(go.Figure(), " ".join(words))
    lines = figure.layout.title.text.removeprefix("<b>").removesuffix("</b>").split("<br>")
    assert " ".join(lines) == " ".join(words) and max(map(len, lines)) <= LINE
    assert figure.layout.margin.t - one.layout.margin.t == (len(lines) - 1) * 21  # pixels, at 16 a letter
    title = figure.layout.title  # hangs from the top, so that all that is added is below its first line
    assert (title.y, title.yref, title.yanchor) == (1, "container", "top")
    assert title.pad.t + 21 * len(lines) < figure.layout.margin.t - 20, "no room for the titles of subplots"


# ------------------------------------------------------------------------------------------------ parts of a history


def test_a_logarithmic_axis_shows_the_first_steps_one_by_one():
    """Stretches are even where they are seen: none is longer than its share of the decades, or a single step."""
    steps = 5000
    one = made(steps)
    x, loss = figures.curves(one.history, log=True)["loss"]
    assert len(x) <= POINTS and list(x[:20]) == list(range(1, 21)) and x[-1] == steps
    ends = [0, *x.astype(int)]
    near(loss, [np.mean(one.true.loss[a:b]) for a, b in itertools.pairwise(ends)])
    longest = np.log(steps) / POINTS
    assert all(b - a == 1 or np.log(b / (a + 1)) <= longest * 1.001 for a, b in itertools.pairwise(ends))
    drawn = figures.dashboard(one.history, arrangement=figures.Arrangement(log=True)).data[0]
    assert drawn.x[0] == 1 and drawn.y[0] == np.float32(one.true.loss[0])


@given(st.integers(1, 60), st.integers(1, 70))
@settings(max_examples=30)
def test_a_window_shows_what_was_measured_last(steps: int, last: int) -> None:
    """Where no evaluation lies in the last steps, the one before is drawn across them."""
    one = made(steps)
    curves, begin = figures.curves(one.history, last=last), max(0, steps - last)
    assert list(curves["loss"][0]) == list(range(begin + 1, steps + 1))
    inside = [(at, live) for at, live in zip(one.true.looks, one.true.live, strict=True) if at >= begin]
    if not inside and one.true.looks:
        inside = [(begin, one.true.live[-1]), (steps, one.true.live[-1])]
    near(curves["live accuracy"][0], [at for at, _ in inside])
    near(curves["live accuracy"][1], [live for _, live in inside])


def test_a_figure_goes_over_to_another_metric():
    """As after a reset with other data: names, hover texts and axis are those of a figure made anew."""
    histories = [History(LAYERS, metric=metric) for metric in (R2, ACCURACY, Metric("RMSE", unit="kg"), ACCURACY)]
    figure = figures.dashboard(histories[0])
    for history in histories:
        history.evaluated(0, 0.5, 0.25, [6, 4])
        update(figure, history)
        anew = figures.dashboard(history)
        assert [(t.name, t.hovertemplate) for t in figure.data] == [(t.name, t.hovertemplate) for t in anew.data]
        assert figure.layout.yaxis2 == anew.layout.yaxis2 and list(figure.data[1].y) == list(anew.data[1].y)
