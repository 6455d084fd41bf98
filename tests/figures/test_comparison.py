"""Comparisons against sums done by hand on hand-made histories, and what a reader of greyscale needs."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab import figures
from gsm_lab.figures import comparison as module
from gsm_lab.figures.comparison import PANELS, Account, arrange, comparison, told, update
from gsm_lab.figures.comparison_titles import headline, titles
from gsm_lab.figures.differences import AVERAGED, NAME, Standing, common_step, standing
from gsm_lab.figures.history_lines import POINTS
from gsm_lab.knobs import Settings
from gsm_lab.metric import ACCURACY, Metric
from gsm_lab.training.history import History
from tests.figures.test_dashboard import LAYERS, looks, made, plots

NAN = float("nan")
NAMES = ("a", "b", "no decay", "x" * NAME)


def several(count: int, steps: int = 30) -> dict[str, History]:
    return {name: made(steps + 5 * i).history for i, name in enumerate(NAMES[:count])}


def account(history: History, **more: Any) -> Account:
    own = {name: more.pop(name) for name in ("options", "method", "digest", "tested", "epoch_steps") if name in more}
    given = {"options": {}, "method": "gsm", "digest": "d", "tested": "t", "epoch_steps": 23} | own
    return Account(history, vars(Settings(**more)), **given)


# ------------------------------------------------------------------------------------------------ lines


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_plot_has_a_line_a_run_and_a_run_looks_alike_in_all(count: int) -> None:
    histories = several(count, steps=500)
    figure, looked = comparison(histories), {}
    for panel, traces in zip(PANELS, plots(figure).values(), strict=True):
        assert [trace.name for trace in traces] == list(histories) * (2 if panel == "under 1e-4" else 1)
        for trace, (name, history) in zip(traces, histories.items(), strict=False):
            curves = figures.curves(history)
            x, y = curves["layer b.weight" if panel == "last layer" else panel]
            np.testing.assert_array_equal(trace.x, x)
            np.testing.assert_array_equal(trace.y, y)
            assert trace.x.dtype == trace.y.dtype == np.float32 and len(trace.x) <= POINTS
            looked.setdefault(name, set()).add((trace.line.color, *looks(trace)))
        for one, other in itertools.combinations(traces, 2):
            assert all(a != b for a, b in zip(looks(one), looks(other), strict=True)), (panel, one.name, other.name)
        if panel == "under 1e-4":
            for trace, history in zip(traces[count:], histories.values(), strict=True):
                np.testing.assert_array_equal(trace.y, figures.curves(history)["target"][1])
    assert all(len(look) == 1 for look in looked.values()) and len(set.union(*looked.values())) == count
    assert [trace.name for trace in figure.data if trace.showlegend] == list(histories)
    assert len({trace.legendgroup for trace in figure.data}) == count, "a key shows and hides a run in all plots"


def test_every_axis_says_what_it_measures_and_scales_of_shares_stay() -> None:
    figure = comparison(several(2))
    assert [axis.title.text for axis in figure.select_xaxes()] == ["step"] * 6
    words = [axis.title.text for axis in figure.select_yaxes()]
    assert all(re.search(r"%|per step|loss", text) for text in words) and len(words) == 6
    assert [axis.type == "log" for axis in figure.select_yaxes()] == ["(log)" in text for text in words]
    assert [axis.range for axis in figure.select_yaxes() if "%" in axis.title.text and axis.type != "log"] == [
        (0, 101)
    ] * 3
    assert figure.layout.uirevision, "a zoom survives an update"


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("columns", [1, 2])
def test_an_updated_figure_is_the_finished_one(count: int, columns: int) -> None:
    histories, note = several(count), "the test sets differ"
    live = comparison({name: History(LAYERS) for name in histories}, columns)
    update(live, histories, note)
    assert live == comparison(histories, columns, note)


def test_to_arrange_it_changes_the_layout_alone() -> None:
    histories = several(3)
    wide, narrow = comparison(histories), comparison(histories, 1)
    figure = comparison(histories)
    assert arrange(figure, 1) is figure and figure == narrow
    assert arrange(figure, 2) == wide
    left = [axis.domain[0] for axis in narrow.select_xaxes()]
    assert left == [0.0] * 6 and len({axis.domain[0] for axis in wide.select_xaxes()}) == 2
    for one, rows in ((wide, 3), (narrow, 6)):
        spans = sorted({axis.domain for axis in one.select_yaxes()})
        inside = one.layout.height - one.layout.margin.t - one.layout.margin.b
        assert len(spans) == rows and all(inside * (high - low) > 100 for low, high in spans), "pixels of a plot"
        gaps = [inside * (low - high) for (_, high), (low, _) in itertools.pairwise(spans)]
        assert min(gaps) > 80, "pixels for ticks, what they measure, and two lines of a title"
    update(figure, histories, "a note")
    assert {axis.domain[0] for axis in figure.select_xaxes()} == {axis.domain[0] for axis in wide.select_xaxes()}


def test_names_are_no_markup() -> None:
    history = made(30).history
    figure = comparison({"<b>&": history, "a%{x}": history})
    assert figure.data[0].name == "&lt;b&gt;&amp;" and "%{x}:" in figure.data[0].hovertemplate
    assert not any("a%{x}" in trace.hovertemplate for trace in figure.data)
    for text in [note.text for note in figure.layout.annotations]:
        assert "<b>&" not in text.removeprefix("<b>")
    assert "&lt;b&gt;&amp; " in comparison({"<b>&": history, "b": made(50).history}).layout.annotations[4].text


def test_what_cannot_be_compared_is_refused() -> None:
    history = made(8).history
    for wrong, error, said in (
        ([history], TypeError, r"runs must map names to runs, as in \{\"a\": ..., \"b\": ...\}, got list"),
        ({}, ValueError, "runs must hold 1 to 4 of them, got none"),
        ({str(i): history for i in range(5)}, ValueError, "runs must hold 1 to 4 of them, got 5"),
        ({1: history}, TypeError, "runs must have text for names, got 1"),
        ({" ": history}, ValueError, "runs must have names of 1 to 16 characters, got ' '"),
        ({"x" * 17: history}, ValueError, "runs must have names of 1 to 16 characters"),
        ({"a\nb": history}, ValueError, "runs must have names of 1 to 16 characters"),
        ({"a": 3}, TypeError, "runs\\['a'\\] must be a History, as run.history is one, got int"),
    ):
        with pytest.raises(error, match=said):
            comparison(wrong)
    with pytest.raises(ValueError, match="columns must be one of 1, 2, got 3"):
        comparison({"a": history}, 3)
    with pytest.raises(ValueError, match="figure must be a `comparison` of 2 runs"):
        update(comparison({"a": history}), {"a": history, "b": history})
    with pytest.raises(TypeError, match="figure must be a figure that `comparison` made, got int"):
        update(3, {"a": history})
    with pytest.raises(ValueError, match="runs must hold 2 to 4 of them, got 1"):
        told({"a": account(history)})


@given(st.lists(st.floats(1e-6, 1e4), max_size=20))
def test_a_log_axis_has_a_few_ticks_that_can_be_told_apart(values: list[float]) -> None:
    found = module._ticks(np.array([*values, 0.0, NAN], np.float32))
    ticks = found["tickvals"]
    assert 1 <= len(ticks) <= 6 and len(set(found["ticktext"])) == len(ticks)
    if values:
        assert min(values) * 0.94 <= ticks[0] and ticks[-1] <= max(values) * 1.06


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("limit", [40_000_000, 2000])
@pytest.mark.parametrize("at", [1, 6, 7, 49, 60, 120])
def test_where_a_run_stood_by_sums_done_by_hand(limit: int, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.figures.test_dashboard.History", lambda layers: History(layers, limit))
    one = made(120 if at > 49 else 49)
    recorded = list(one.history.steps.array()["step"])
    assert (recorded[-1] - recorded[-2] > 1) == (limit < 10_000), "thinned out, or not"
    true, found = one.true, standing(one.history, at)
    last = max(step for step in recorded if step <= at)
    window = [s for s in recorded if at - AVERAGED < s <= at] or [last]
    assert found.loss == pytest.approx(np.mean([true.loss[s - 1] for s in window]), rel=1e-6)
    assert found.back == pytest.approx(np.mean([true.back[s - 1] for s in window]), rel=1e-6)
    if true.tiny[last - 1] is not None:
        assert found.near == pytest.approx(true.tiny[last - 1], rel=1e-6)
    assert found.target == 95.0
    evaluated = [s for s in one.history.evaluations.array()["step"] if s <= at]
    if not evaluated:
        assert math.isnan(found.live) and math.isnan(found.cost) and found.kept == {} and found.evaluated == -1
        return
    i = true.looks.index(evaluated[-1])
    assert found.evaluated == evaluated[-1]
    assert (found.live, found.cut) == (pytest.approx(true.live[i], rel=1e-6), pytest.approx(true.cut[i], rel=1e-6))
    assert found.cost == pytest.approx(true.live[i] - true.cut[i], rel=1e-4, abs=1e-4)
    assert list(found.kept.values()) == pytest.approx(true.kept[i])


def test_the_step_in_common_is_on_record_in_all() -> None:
    histories = {"a": made(28).history, "b": made(120).history}
    assert common_step(histories) == 28
    assert common_step({**histories, "c": History(LAYERS)}) == 0
    thin = History(LAYERS, 2000)
    for step in range(1, 101):
        thin.record(step, 0, 1.0, 0, 0, np.ones(100, bool), [np.ones(60, np.float32), np.ones(40, np.float32)])
    last = int(thin.steps.array()["step"][-1])
    assert last < 100 and common_step({"a": made(100).history, "b": thin}) == last


# ------------------------------------------------------------------------------------------------ titles


def stood(live: float = 95.0, cut: float = 94.6, **more: Any) -> Standing:
    given = {
        "loss": 0.01,
        "near": 40.0,
        "target": 98.0,
        "back": 3.0,
        "kept": {"fc1": 1.0, "fc3": 40.0},
        "evaluated": 50,
    }
    return Standing(live=live, cut=cut, **given | more)


@pytest.mark.parametrize(("at", "said"), [
    ({"a": stood(95, 94.6), "b": stood(94.0, 72.7)}, "b loses 21.3 points at the cut, a 0.4, at step 50"),
    ({"a": stood(95, 95.5), "b": stood(94.0, 72.7)}, "b loses 21.3 points at the cut, a gains 0.5, at step 50"),
    ({"a": stood(95, 95.5), "b": stood(94.0, 96.0)}, "a gains 0.5 points at the cut, b 2.0, at step 50"),
    ({"a": stood(95, 94), "b": stood(90, 89.0)}, "each loses 1.0 points at the cut, at step 50"),
    ({"a": stood(95, 94), "b": stood(90, 80, evaluated=56)}, "b loses 10.0 points at the cut, a 1.0, by step 60"),
    ({"a": stood(95, 94), "c": stood(90, 20), "b": stood(90, 80)},
     "c loses 70.0 points at the cut, a 1.0, the others between, at step 50"),
    ({"a": stood(), "b": stood(NAN, NAN, evaluated=-1, kept={})}, "Nothing to compare yet"),
    ({"a": stood(95, 94)}, "a loses 1.0 points at the cut, at step 50"),
])  # fmt: skip
def test_the_headline(at: dict[str, Standing], said: str) -> None:
    assert headline(at, 60) == said


def test_titles_say_who_differs_and_by_how_much() -> None:
    two = {"a": stood(loss=0.034), "b": stood(94.1, 73.6, loss=0.012, target=99.9, back=1234.5, kept={"x": 7.0})}
    assert titles(two, "fc3") == (
        "The loss of a is 2.8× that of b: 0.034 against 0.012",
        "As it is, a scores 0.9 points more: 95.0% against 94.1%",
        "If cut, a scores 21.0 points more: 94.6% against 73.6%",
        "Near zero: 40.0%; target: a 98%, b 99.9%",
        "Re-activated per step: a 3.0, b 1,234",
        "A cut keeps of fc3: a 40%, b 7%",
    )
    three = {**two, "c": stood(50.0, 50.0, loss=20.0, near=0.0)}
    assert titles(three, "fc3") == (
        "The loss of c is over 1,000× that of b: 20 against 0.012",
        "As it is, a scores 45.0 points more than c: 95.0% against 50.0%",
        "If cut, a scores 44.6 points more than c: 94.6% against 50.0%",
        "Near zero: from 0.0% (c) to 40.0% (a); target: from 98% (a) to 99.9% (b)",
        "Re-activated per step: from 3.0 (a) to 1,234 (b)",
        "A cut keeps of fc3: from 7% (b) to 40% (a)",
    )
    nothing = Standing(NAN, NAN, NAN, -1, NAN, NAN, NAN, {})
    assert titles({"a": nothing, "b": nothing}, "fc3") == (
        "Training loss", "Accuracy as it is", "Accuracy if cut", "Near zero", "Re-activated per step",
        "A cut keeps of fc3",
    )  # fmt: skip
    assert titles({"a": stood(), "b": stood()}, "fc3")[:3] == (
        "Training loss: 0.01", "As it is, both score 95.0%", "If cut, both score 94.6%",
    )  # fmt: skip


PERCENT = st.one_of(st.just(NAN), st.floats(0, 100))
STANDINGS = st.builds(
    Standing, st.one_of(st.just(NAN), st.floats(0, 1e30)), PERCENT, PERCENT, st.integers(0, 10**6), PERCENT, PERCENT,
    st.one_of(st.just(NAN), st.floats(0, 3e5)), st.sampled_from([{}, {"fc": 0.0}, {"fc": 1.0, "out": 99.9}]),
    st.just(ACCURACY),
)  # fmt: skip
METRICS = (
    Metric("RMSE", None, False, "kg"), Metric("F1", percent=True), Metric("R2"),
    Metric("n" * 20 + " " + "m" * 19, None, False, "u" * 40),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(STANDINGS, min_size=1, max_size=4))
def test_whatever_a_history_holds_titles_are_whole_and_short(found: list[Standing]) -> None:
    at = dict(zip(NAMES, found, strict=False))
    said = [*titles(at, "the last layer"), headline(at, 123_456)]
    for text in said:
        assert not re.search(r"\b(nan|inf)\b|−-|\d{12}", text), text
    for text in said[:-1]:
        assert len(module._wrapped(text, 2, 0).split("<br>")) <= 3, text
    if all(not math.isnan(s.cost) for s in found):
        costs = {name: s.live - s.cut for name, s in at.items()}
        worst = f"{abs(max(costs.values())):.1f} points at the cut"
        assert worst in said[-1] and (len(at) == 1 or f"{abs(min(costs.values())):.1f}" in said[-1])


@settings(max_examples=60)
@given(st.sampled_from(METRICS), st.lists(STANDINGS, min_size=1, max_size=4), st.floats(-1e9, 1e9))
def test_titles_of_runs_that_are_measured_by_something_else(metric: Metric, found: list[Standing], by: float) -> None:
    found = [s._replace(metric=metric, cut=s.cut if metric.percent else s.cut + by) for s in found]
    at = dict(zip(NAMES, found, strict=False))
    said = [*titles(at, "the last layer"), headline(at, 123_456)]
    for text in said:
        assert not re.search(r"\b(nan|inf)\b|−-|\d{12}|accuracy|--", text), text
    for text in said[:-1]:
        assert len(module._wrapped(text, 2, 0).split("<br>")) <= 3, text
    costs = {name: s.live - s.cut if metric.higher_is_better else s.cut - s.live for name, s in at.items()}
    if not any(map(math.isnan, costs.values())):
        worst = max(costs.values())
        assert f"{abs(worst):.1f} points" in said[-1] if metric.percent else f"{abs(worst):.3g}" in said[-1]
        assert ("better" in said[-1]) == (min(costs.values()) < 0) or len(set(costs.values())) > 1


def test_runs_of_regression_on_their_own_axes_and_in_their_own_words() -> None:
    rmse = Metric("RMSE", None, False, "kg")
    histories = {name: History(LAYERS, metric=rmse) for name in "ab"}
    for i, history in enumerate(histories.values()):
        history.evaluated(0, 54.25 + i, 55.5 + 3 * i, [1] * len(LAYERS))
    figure = comparison(histories)
    words = {note.text for note in figure.layout.annotations}
    assert "<b>RMSE as it is: a 54.25 kg, b 55.25 kg</b>" in words
    assert "<b>RMSE if cut: a 55.5 kg, b 58.5 kg</b>" in words
    assert "<b>The cut makes RMSE of b 3.25 kg worse, of a 1.25 kg worse, at step 0</b>" in words
    axes = [axis for axis in figure.select_yaxes() if axis.title.text == "test RMSE, kg"]
    assert len(axes) == 2 and all(axis.range is None for axis in axes), "no percentages"
    live = [trace for trace in figure.data if "RMSE %{y:.4g} kg as it is" in trace.hovertemplate]
    assert [trace.y[0] for trace in live] == [54.25, 55.25]
    lines = told({name: account(history, tested=name, digest=name) for name, history in histories.items()})
    assert "test RMSE: a 54.25 kg, b 55.25 kg." in lines and "the cut costs: a 1.25 kg, b 3.25 kg." in lines
    assert "The test sets differ: values of RMSE, and what a cut costs, cannot be compared." in lines


@pytest.mark.parametrize(
    "other", [ACCURACY, Metric("RMSE", None, False, "g"), Metric("RMSE", None, True, "kg"), METRICS[1]]
)
def test_runs_that_are_measured_by_different_things_are_refused(other: Metric) -> None:
    histories = {"a": History(LAYERS, metric=Metric("RMSE", None, False, "kg")), "b": History(LAYERS, metric=other)}
    said = re.escape("runs must be measured by the same metric to be compared, got a by RMSE (kg, lower is better), b")
    with pytest.raises(ValueError, match=said):
        comparison(histories)
    with pytest.raises(ValueError, match=said):
        told({name: account(history) for name, history in histories.items()})


# ------------------------------------------------------------------------------------------------ words


def test_words_say_what_differs_and_where_they_stand() -> None:
    a, b = made(28), made(49)
    lines = told({"a": account(a.history, weight_decay=3e-3, compression=20.0),
                  "b": account(b.history, seed=3, compression=20.0)})  # fmt: skip
    at = b.true.looks.index(28)
    live, cut = ([x.true.__dict__[what][i] for x, i in ((a, -1), (b, at))] for what in ("live", "cut"))
    kept = [a.true.kept[-1][0], b.true.kept[at][0]]
    back = [np.mean(a.true.back), np.mean(b.true.back[:28])]
    assert lines[:4] == [
        "What differs: seed: a 0, b 3.",
        "At step 28, the last that all have reached (b has gone on to 49):",
        f"test accuracy: a {live[0]:.1f}%, b {live[1]:.1f}%.",
        f"if cut: a {cut[0]:.1f}%, b {cut[1]:.1f}%.",
    ]
    cost = [f"{live[i] - cut[i]:.1f} points".replace("-", "−") for i in range(2)]
    assert f"the cut costs: a {cost[0]}, b {cost[1]}." in lines
    assert f"near zero: a {a.true.tiny[27]:.1f}%, b {b.true.tiny[27]:.1f}%." in lines
    assert "target 1 − 1/C: a 95%, b 95%." in lines
    assert f"re-activated per step: a {back[0]:,.1f}, b {back[1]:,.1f}." in lines
    assert f"kept of a: a {kept[0]:.2g}%, b {kept[1]:.2g}%." in lines
    assert not any("evaluated" in line or "cannot" in line for line in lines)


def test_words_of_knobs_that_moved_on_the_way() -> None:
    a, b, c = made(28).history, made(28).history, made(28).history
    b.moved(10, "momentum", 0.9, 0.99)
    b.moved(28, "lr", 0.1, 0.3)  # not in force in any step that is compared
    c.moved(12, "evaluate_every", 50, 10)  # changes nothing in training
    for step in range(1, 8):
        c.moved(step, "weight_decay", 3e-3, step / 1000)
    said = told({"a": account(a), "b": account(b), "c": account(c)})[0]
    assert said == (
        "What differs: momentum β: a 0.9, b 0.9, 0.99 after step 10, c 0.9; "
        "weight decay η: a 0.003, b 0.003, c 0.007 after 7 moves, the last at step 7."
    )
    assert told({"a": account(a), "b": account(made(28).history)})[0] == "The settings are the same."


def test_words_of_what_cannot_be_compared() -> None:
    one = account(made(28).history)
    other = account(made(28, {"a.weight": 30, "c.weight": 20}).history, model="lenet5", data="mnist", method="dns",
                    options={"margin": 0.1}, digest="e", tested="u", epoch_steps=7)  # fmt: skip
    lines = told({"a": one, "b": other})
    assert lines[:4] == [
        "What differs: method: a gsm, b dns; model: a lenet300, b lenet5; data: a digits, b mnist; "
        "margin: a none, b 0.1.",
        "The test sets differ: accuracies, and what a cut costs, cannot be compared.",
        "The models differ (weights: a 100, b 50): shares are of different networks.",
        "Steps are compared, not epochs, of which one has so many steps: a 23, b 7.",
    ]
    assert any(line.startswith("kept of the last layer: ") for line in lines)
    same_test = told({"a": one, "b": replace(one, digest="e")})
    assert "They train on different data, and are tested on the same: accuracies can be compared." in same_test


def test_words_where_evaluations_are_at_other_steps_and_before_any() -> None:
    lines = told({"a": account(made(34).history), "b": account(made(39).history)})
    assert lines[1].startswith("At step 34,") and "evaluated at step: a 28, b 28." in lines
    empty = told({"a": account(History(LAYERS), compression=20.0), "b": account(made(9).history)})
    assert empty == ["The settings are the same.", "Before the first step (b has gone on to 9):"]
