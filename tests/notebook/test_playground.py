"""`Playground` without a browser: its widgets are moved as a person would, by `.value` and `.click()`."""

import gc
import json
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pooch
import pytest
import requests
import torch
from torch import nn

from gsm_lab import Dataset, Playground, Run, methods
from gsm_lab.figures import curves, looks
from gsm_lab.knobs import KNOBS
from gsm_lab.notebook import readouts, step_inspector
from gsm_lab.notebook.controls import KnobControl
from gsm_lab.notebook.playground import LIVE, RESTARTS
from gsm_lab.notebook.presets import PRESETS
from gsm_lab.studies.steps import steps

SECONDS = 30  # that something may take before a test gives up on it


@pytest.fixture
def board() -> Iterator[Callable[..., Playground]]:
    """Makes playgrounds on short runs, and closes them."""
    made: list[Playground] = []

    def new(run: Run | None = None, **kwargs: object) -> Playground:
        made.append(Playground(run or Run(hold=1.0, pretrain=0), **kwargs))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def pg(board: Callable[..., Playground]) -> Playground:
    return board()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


def mine() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (rng.normal(size=(3, 6))[y] + rng.normal(size=(90, 6))).astype(np.float32)
    return Dataset(x[:60], y[:60], x[60:], y[60:], name="corners")


def until(pg: Playground, condition: Callable[[], bool]) -> None:
    """Wait, turn by turn of the player's thread, until it holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        settle(pg)


def settle(pg: Playground) -> None:
    """Wait until all that was asked for has been done."""
    event = threading.Event()
    pg.player.post(event.set)
    assert event.wait(SECONDS)


def press(pg: Playground, name: str) -> None:
    """Press a button and wait until all is done."""
    pg.buttons[name].click()
    settle(pg)
    if name != "play":
        until(pg, lambda: not pg.player.playing)
    pg._draw()


def enter(pg: Playground, name: str, text: str) -> None:
    """Type into an entry, and Enter."""
    pg.controls[name].entry.value = text
    settle(pg)
    pg._draw()


def red(pg: Playground, name: str) -> str:
    """The reason a control is red, or nothing."""
    control = pg.controls[name]
    assert (
        ("gsm-invalid" in control._dom_classes) == bool(control.note.value) == (control.note.layout.display != "none")
    )
    assert bool(control.note.value) == bool(control.entry.style.background) or isinstance(
        control.entry, widgets.Dropdown
    )
    return control.note.value


def everything(pg: Playground) -> tuple[pd.DataFrame, list]:
    return pg.run.history.frame(), pg.run.history.events


# -- knobs -----------------------------------------------------------------------------------------------------------


def test_begins_at_the_run_s_values(board: Callable[..., Playground]) -> None:
    pg = Playground()
    try:
        values = {name: pg.controls[name].value for name in LIVE}
        assert values == {"compression": 60.0, "momentum": 0.9, "weight_decay": 0.003, "lr": 0.1, "smoothing": 0.0}
        assert [pg.controls[name].entry.value for name in LIVE] == ["60", "0.9", "0.003", "0.1", "0"]
        assert pg.run.knobs["hold"] == 1.0 and not pg.run.finished
    finally:
        pg.close()
    pg = board(Run(pretrain=0, compression=13.7, momentum=0.123, seed=7, batch_size=10))
    assert [pg.controls[n].entry.value for n in ("compression", "momentum", "seed", "batch_size")] == [
        "13.7", "0.123", "7", "10",
    ]  # fmt: skip
    assert pg.run.knobs["compression"] == 13.7 and not [e for e in pg.run.history.events if e["old"] is not None]


@pytest.mark.parametrize("name", LIVE)
def test_slider_entry_and_run_in_step(pg: Playground, name: str) -> None:
    control = pg.controls[name]
    for position in (0.0, 0.25, 0.5, 1.0):
        control.slider.value = position
        settle(pg)
        assert pg.run.knobs[name] == control.value == KNOBS[name].at(position)
        assert float(control.entry.value) == pytest.approx(control.value, rel=1e-5)
    exact = {"compression": 123.4, "momentum": 0.95, "weight_decay": 0.0017, "lr": 0.05, "smoothing": 0.97}[name]
    enter(pg, name, str(exact))
    assert pg.run.knobs[name] == control.value == exact
    assert control.slider.value == pytest.approx(KNOBS[name].position(exact), abs=0.0026)
    pg.set(**{name: KNOBS[name].default})
    assert control.value == KNOBS[name].default and control.entry.value == f"{KNOBS[name].default:g}"
    control.value = exact
    settle(pg)
    assert pg.run.knobs[name] == exact


@pytest.mark.parametrize("name", LIVE)
def test_slider_stands_where_the_browser_would_put_it(pg: Playground, name: str) -> None:
    """At a whole notch: from any other place the browser's slider moves by itself, and reports that as a person's."""
    slider = pg.controls[name].slider
    assert slider.value / slider.step == pytest.approx(round(slider.value / slider.step), abs=1e-9)


def test_entry_beyond_the_slider(pg: Playground) -> None:
    enter(pg, "lr", "3")
    assert pg.run.knobs["lr"] == 3 and pg.controls["lr"].slider.value == 1.0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("momentum", "1.2"), ("momentum", "1"), ("compression", "0.5"), ("lr", "a lot"), ("lr", ""), ("lr", "nan"),
     ("weight_decay", "-1"), ("batch_size", "6.5"), ("seed", "-1")],
)  # fmt: skip
def test_invalid_entry_turns_red_and_changes_nothing(pg: Playground, name: str, wrong: str) -> None:
    pg.step(2)
    before, slider = dict(pg.run.knobs), pg.controls[name].slider.value
    enter(pg, name, wrong)
    assert f"{name} must be {KNOBS[name].valid}".replace(">", "&gt;") in red(pg, name)
    assert "role='alert'" in red(pg, name)
    assert pg.run.knobs == before and pg.run.steps == 2 and pg.controls[name].slider.value == slider
    assert pg.controls[name].entry.value == wrong  # to be corrected, not retyped
    enter(pg, name, f"{before[name]:g}")
    assert not red(pg, name)


def test_valid_moves_clear_the_red(pg: Playground) -> None:
    for clear in (
        lambda: setattr(pg.controls["momentum"].slider, "value", 0.5),
        lambda: pg.set(momentum=0.8),
        lambda: pg.preset_buttons[0].click(),
        lambda: pg.reset(),
    ):
        enter(pg, "momentum", "2")
        assert red(pg, "momentum")
        clear()
        settle(pg)
        assert not red(pg, "momentum")
        assert float(pg.controls["momentum"].entry.value) == pg.run.knobs["momentum"]


def test_set_refuses_before_anything_moves(pg: Playground) -> None:
    before = dict(pg.run.knobs)
    with pytest.raises(ValueError, match="momentum"):
        pg.set(lr=0.5, momentum=3)
    with pytest.raises(ValueError, match="restarts"):
        pg.set(lr=0.5, seed=3)
    assert pg.run.knobs == before and pg.controls["lr"].value == 0.1


def test_every_control_says_what_it_is(pg: Playground) -> None:
    for name in (*LIVE, *RESTARTS):
        assert (">live<" if name in LIVE else ">restarts<") in pg.controls[name].label.value
    assert "per step" in pg.controls["weight_decay"].label.value
    assert all(button.tooltip for button in [*pg.buttons.values(), *pg.preset_buttons])
    assert all(control.entry.tooltip for control in pg.controls.values())


def test_presets(pg: Playground) -> None:
    assert len(PRESETS) >= 5 and len(pg.preset_buttons) == len(PRESETS)
    assert PRESETS[0].explanation in pg.explanation.value
    pg.step(1)
    for button, preset in zip(pg.preset_buttons, PRESETS, strict=True):
        assert preset.explanation and "\n" not in preset.explanation and set(preset.knobs) == set(LIVE)
        button.click()
        settle(pg)
        assert {name: pg.run.knobs[name] for name in LIVE} == preset.knobs
        assert {name: pg.controls[name].value for name in LIVE} == preset.knobs
        assert preset.name in pg.explanation.value
        pg.step(1)
    assert pg.run.steps == 1 + len(PRESETS)  # they are live: nothing restarts


# -- buttons ---------------------------------------------------------------------------------------------------------


def test_play_and_pause(pg: Playground) -> None:
    assert "<b>paused</b>" in pg.status.value and "step 0" in pg.status.value
    pg.buttons["play"].click()
    until(pg, lambda: pg.run.steps >= 20)
    pg._draw()
    assert "<b>playing</b>" in pg.status.value and "steps/s" in pg.status.value
    press(pg, "pause")
    reached = pg.run.steps
    settle(pg)
    assert pg.run.steps == reached
    assert "<b>paused</b>" in pg.status.value and f"step {reached}" in pg.status.value
    pg.play()
    until(pg, lambda: pg.run.steps > reached)
    pg.pause()
    assert not pg.player.playing


def test_steps(pg: Playground) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    pg.step(0)
    reached = pg.run.steps
    press(pg, "step")
    assert pg.run.steps == reached + 1
    press(pg, "step_50")
    assert pg.run.steps == reached + 51 and not pg.player.playing
    assert pg.figure.data[0].x[-1] == reached + 51


def test_step_begins_with_the_dense_epochs_and_can_be_paused(board: Callable[..., Playground]) -> None:
    pg = board(Run(hold=1.0, pretrain=60))
    pg.buttons["step_50"].click()
    until(pg, lambda: pg.run.dense_steps > 0)
    pg._draw()
    assert "dense epochs first" in pg.status.value
    pg.buttons["pause"].click()
    settle(pg)
    assert not pg.player.playing and pg.run.steps == 0 and pg.run.dense_left > 0
    press(pg, "step")
    assert pg.run.steps == 1 and pg.run.dense_left == 0


def test_reset_repeats_and_new_seed_differs(pg: Playground) -> None:
    press(pg, "step_50")
    first, events = everything(pg)
    press(pg, "reset")
    assert pg.run.steps == 0 and len(pg.run.history.steps.array()) == 0
    press(pg, "step_50")
    again, events_again = everything(pg)
    pd.testing.assert_frame_equal(first, again)
    assert events == events_again
    press(pg, "new_seed")
    assert pg.run.knobs["seed"] == 1 and pg.controls["seed"].entry.value == "1" and pg.run.steps == 0
    press(pg, "step_50")
    assert not np.array_equal(pg.run.history.frame()["loss"], first["loss"])
    pg.reset(seed=0)
    pg.step(50)
    pd.testing.assert_frame_equal(first, pg.run.history.frame())


def test_reset_keeps_the_knobs_and_pauses(pg: Playground) -> None:
    enter(pg, "lr", "0.07")
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    press(pg, "reset")
    assert pg.run.steps == 0 and pg.run.knobs["lr"] == 0.07 and not pg.player.playing
    assert pg.controls["lr"].value == 0.07


@pytest.mark.parametrize(("name", "text", "value"), [("batch_size", "32", 32), ("seed", "5", 5)])
def test_restart_knobs_restart(pg: Playground, name: str, text: str, value: int) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    enter(pg, name, text)
    assert pg.run.steps == 0 and pg.run.knobs[name] == value and not pg.player.playing and not red(pg, name)


def test_another_model(pg: Playground) -> None:
    pg.controls["model"].select.value = "lenet5"
    settle(pg)
    pg._draw()
    assert pg.run.knobs["model"] == "lenet5" and pg.run.steps == 0
    assert pg.controls["lr"].value == 0.03  # what works there
    names = [trace.name for trace in pg.figure.data[7:] if trace.visible and trace.legend == "legend4"]
    assert names == [layer.removesuffix(".weight") for layer in pg.run.history.layers]
    assert f"of {pg.run.opt.weights:,} weights" in pg.budget.value


def test_a_restart_that_cannot_be_is_told_at_its_control(pg: Playground) -> None:
    press(pg, "step")
    history = pg.run.history
    enter(pg, "batch_size", "100000")
    assert "batch_size" in red(pg, "batch_size")
    assert pg.run.history is history and pg.run.knobs["batch_size"] == 64
    assert pg.controls["batch_size"].value == 64 and pg.controls["batch_size"].entry.value == "64"
    assert pg.player.error is None and not pg.failure.value
    enter(pg, "batch_size", "50")
    assert not red(pg, "batch_size") and pg.run.knobs["batch_size"] == 50


def test_data_that_is_not_there_is_told_at_its_control(
    pg: Playground, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("GSM_LAB_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda *_, **__: offline)
    press(pg, "step")
    pg.controls["data"].select.value = "mnist"
    settle(pg)
    assert "GSM_LAB_DATA" in red(pg, "data")
    assert pg.controls["data"].select.value == "digits" and pg.run.knobs["data"] == "digits" and pg.run.steps == 1
    press(pg, "step")
    assert pg.run.steps == 2 and pg.player.error is None


# -- state -----------------------------------------------------------------------------------------------------------


def test_state_goes_round(board: Callable[..., Playground]) -> None:
    pg = board()
    pg.set(compression=33, momentum=0.95)
    pg.reset(seed=11, batch_size=40)
    pg.copy_button.click()
    line = pg.state_line.value
    assert line == pg.state and "\n" not in line and json.loads(line)["knobs"] == pg.run.knobs
    pg.step(5)
    losses = pg.run.history.frame()["loss"]
    other = board()
    other.step(1)
    other.state_line.value = line
    other.load_button.click()
    settle(other)
    assert other.run.knobs == pg.run.knobs and other.run.steps == 0 and not other.state_note.value
    assert {n: c.value for n, c in other.controls.items()} == {n: pg.run.knobs[n] for n in other.controls}
    other.step(5)
    pd.testing.assert_series_equal(other.run.history.frame()["loss"], losses)
    other.load_state(Playground.state.fget(pg))
    assert other.run.steps == 0


BAD = {
    "": "a state is one line", "nonsense": "a state is one line", "[1, 2]": "a state is one line",
    '"text"': "a state is one line", "3": "a state is one line",
    '{"gsm_lab": 2, "knobs": {}}': "a state is one line",
    '{"gsm_lab": 1, "knobs": [1]}': "a state is one line",
    '{"gsm_lab": 1, "knobs": {"momentum": 1.5}}': "momentum must be",
    '{"gsm_lab": 1, "knobs": {"sparsity": 1.5}}': "there is no knob &#x27;sparsity&#x27;",
    '{"gsm_lab": 1, "knobs": {"batch_size": 99999}}': "batch_size",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_state_lines(pg: Playground, line: str) -> None:
    pg.step(1)
    before = dict(pg.run.knobs)
    pg.state_line.value = line
    pg.load_button.click()
    settle(pg)
    assert BAD[line] in pg.state_note.value and "role='alert'" in pg.state_note.value
    with pytest.raises(ValueError, match=BAD[line].split("&")[0]):
        pg.load_state(line)
    assert pg.run.knobs == before and pg.run.steps == 1 and pg.player.error is None
    pg.state_line.value = pg.state
    pg.load_button.click()
    settle(pg)
    assert not pg.state_note.value and pg.run.steps == 0


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_read_outs(pg: Playground) -> None:
    assert "Q = 4,436 of 266,200 weights (60×)" in pg.budget.value
    assert "halves every 231 steps" in pg.half_life.value and "ln 2 · (1 − β) / (α · η)" in pg.half_life.value
    pg.set(compression=100, momentum=0.5, lr=0.2, weight_decay=0.01)
    assert "Q = 2,662 of 266,200 weights (100×)" in pg.budget.value
    steps = math.log(2) * (1 - 0.5) / (0.2 * 0.01)
    assert f"halves every {steps:.0f} steps" in pg.half_life.value
    pg.set(weight_decay=0)
    assert "stays where it is" in pg.half_life.value and "no decay" in pg.half_life.value
    pg.set(weight_decay=0.03, momentum=0.99)
    assert "swings through zero" in pg.half_life.value


def test_read_outs_follow_the_schedule(board: Callable[..., Playground]) -> None:
    pg = board(Run(pretrain=0, epochs=1, hold=0.0))
    pg.step(12)
    assert f"α in force {pg.run.lr:.2g}" in pg.status.value and pg.run.lr < 0.06
    pg.buttons["play"].click()
    until(pg, lambda: not pg.player.playing)
    pg._draw()
    assert pg.run.finished and "paused (the schedule has come to its end" in pg.status.value


def test_error_is_shown_and_cleared_by_reset(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    press(pg, "step")
    assert not pg.failure.value
    monkeypatch.setattr(pg.run, "loss", lambda x, y: (x * float("nan")).sum())
    pg.buttons["play"].click()
    until(pg, lambda: not pg.player.playing)
    pg._draw()
    assert "gsm-error" in pg.failure.value and "role='alert'" in pg.failure.value
    assert "stopped after step 1. FloatingPointError" in pg.failure.value
    assert "fc1" in pg.failure.value  # the parameter
    monkeypatch.undo()
    press(pg, "reset")
    assert not pg.failure.value and pg.player.error is None
    press(pg, "step")
    assert pg.run.steps == 1 and not pg.failure.value
    monkeypatch.setattr(pg.run, "loss", lambda x, y: (x * float("nan")).sum())
    with pytest.raises(FloatingPointError):
        pg.step()


def test_error_text_is_no_html(pg: Playground) -> None:
    def loss(*_: object) -> None:
        raise RuntimeError("<img src=x>")

    pg.run.loss = loss
    press(pg, "step")
    assert "&lt;img src=x&gt;" in pg.failure.value and "<img" not in pg.failure.value


def test_figure_gets_short_float32_arrays(board: Callable[..., Playground]) -> None:
    run = Run(net := Net(), mine(), hold=1.0, pretrain=0, batch_size=8, compression=4.0, evaluate_every=1)
    pg = board(run, hide=["taylor"])
    assert pg.run.model is net
    pg.step(900)
    assert len(pg.figure.data) >= 9
    lengths = []
    for trace in pg.figure.data:
        if trace.visible is not False:
            assert isinstance(trace.x, np.ndarray) and isinstance(trace.y, np.ndarray)
            assert trace.x.dtype == trace.y.dtype == np.float32 and len(trace.x) == len(trace.y) <= 400
            lengths.append(len(trace.x))
    assert len(lengths) == 9 and min(lengths) > 200
    assert all(trace.x[-1] == 900 for trace in pg.figure.data if trace.visible is not False)
    expected = curves(pg.run.history)
    np.testing.assert_array_equal(pg.figure.data[0].y, expected["loss"][1])
    np.testing.assert_array_equal(pg.figure.data[2].y, expected["cut accuracy"][1])


def test_what_an_opened_page_gets_is_what_is_shown(pg: Playground) -> None:
    pg.step(3)
    pg.set(lr=0.05)
    pg.step(60)
    state = pg.figure.get_state()
    first = state["_widget_data"][0]["x"]
    assert first["dtype"] == "float32" and list(first["shape"]) == [63]
    assert len(state["_widget_layout"]["shapes"]) == 4
    assert "Accuracy" in state["_widget_layout"]["annotations"][0]["text"]


def test_a_rival_has_no_control_for_what_it_takes_no_notice_of(board: Callable[..., Playground]) -> None:
    pg = board(methods.build("magnitude", pretrain=0, hold=1.0))
    assert "smoothing" not in pg.controls and "smoothed gate" not in [b.description for b in pg.preset_buttons]
    assert [b.description for b in pg.preset_buttons] == [p.name for p in PRESETS if not p.knobs["smoothing"]]
    for button in pg.preset_buttons:
        button.click()
        settle(pg)
        pg.step(1)
    assert pg.run.steps == len(PRESETS) - 1 and pg.player.error is None
    board(methods.build("dns", pretrain=0), hide=["smoothing"])


def test_an_opened_view_watches(pg: Playground) -> None:
    assert not pg.player.watched
    frame = pg._draw()
    pg.viewer._handle_custom_msg({"opened": True}, [])
    assert pg.player.watched
    pg.viewer._handle_custom_msg({"seen": frame}, [])
    assert pg.player._seen == frame == pg.viewer.frame


def test_a_mark_wherever_a_knob_moved(pg: Playground) -> None:
    pg.step(4)
    assert len(pg.figure.layout.shapes) == 0
    pg.controls["compression"].slider.value = 0.5
    settle(pg)
    pg.step(40)
    pg.set(momentum=0.95)
    pg.step(4)
    pg.set(smoothing=0.9)
    pg.step(4)
    shapes = pg.figure.layout.shapes
    assert sorted({shape.x0 for shape in shapes}) == [4, 44, 48] and len(shapes) == 12  # in each of four plots
    texts = [a.text for a in pg.figure.layout.annotations[4:]]
    assert f"C {pg.run.knobs['compression']:g}" in texts and {"β 0.95", "s 0.9"} <= set(texts)
    pg.reset()
    assert len(pg.figure.layout.shapes) == 0


def test_picture(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsm_lab.figures.static", lambda figure: b"\x89PNG" + bytes(len(figure.data)))
    pg.step(2)
    assert pg.picture().data.startswith(b"\x89PNG")


# -- the Taylor view -------------------------------------------------------------------------------------------------


def looked(pg: Playground) -> list[int]:
    """The steps that were looked at."""
    return pg.taylor.inspected()["step"].tolist()


def taylor_lines(pg: Playground) -> list[go.Scatter]:
    return [trace for trace in pg.figure.data if trace.legend in looks.LEGENDS]


def test_taylor_view_shows_what_the_study_says(pg: Playground) -> None:
    assert "nothing yet" in pg.taylor.text.value and looked(pg) == []
    assert [len(trace.x) for trace in taylor_lines(pg)] == [0] * 6
    pg.step(1)
    pg.step(7)
    assert looked(pg)[0] == 1 and looked(pg)[-1] == pg.taylor.inspector.last.step == 8
    table = steps(Run(hold=1.0, pretrain=0), 8).iloc[7]
    last = pg.taylor.inspector.last
    assert [last.true, last.first, last.second] == pytest.approx(table[["true", "first", "second"]].tolist(), rel=1e-9)
    assert last.error_first == pytest.approx(table["error of first"], rel=1e-6)
    assert last.metric == pg.run.opt.threshold and last.error_metric < 0.5
    text = pg.taylor.text.value.replace("−", "-")
    assert f"Step 8, change of its batch's loss:</b> predicted {last.first:.3g} (g·Δw)" in text
    assert f"true {last.true:.3g}, {100 * last.error_first:,.0f}% and " in text and " off · <b>without" in text
    lines = taylor_lines(pg)
    assert [trace.x[-1] for trace in lines] == [8] * 6
    assert all(isinstance(t.y, np.ndarray) and t.x.dtype == t.y.dtype == np.float32 for t in lines)
    assert [trace.y[-1] for trace in lines[:3]] == pytest.approx([last.true, last.first, last.second], rel=1e-6)
    titles = [note.text for note in pg.figure.layout.annotations[-2:]]
    assert "Step 8: predicted" in titles[0] and "Taylor is off by" in titles[1]


def test_taylor_view_changes_nothing(board: Callable[..., Playground]) -> None:
    def net() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))

    knobs = {"hold": 1.0, "pretrain": 2, "batch_size": 8, "compression": 4.0}
    pg = board(Run(net(), mine(), **knobs))
    for _ in range(12):
        pg.step(1)
    assert looked(pg) == list(range(1, 13))
    alone = Run(net(), mine(), **knobs)
    alone.step(12)
    for (name, a), b in zip(pg.run.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    pd.testing.assert_frame_equal(pg.run.history.frame(), alone.history.frame())
    assert torch.equal(pg.run.random_state, alone.random_state)


def test_taylor_view_takes_its_share_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.002  # a look has a few of these, so it takes 8 ms
        return now[0]

    monkeypatch.setattr(step_inspector, "time", SimpleNamespace(perf_counter=clock))
    run = Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=8, compression=4.0)
    player = SimpleNamespace(closed=False, playing=True, ending=False, frame_due=True)
    watch = step_inspector.Inspector(run)
    run.step(5)
    assert len(watch.inspected()) == 0  # nobody plays it
    watch.player = lambda: player
    run.step(3000)
    assert 10 < len(watch.inspected()) < 300
    assert watch.seconds <= step_inspector.SHARE * now[0] + 0.01
    seen, now[0] = len(watch.inspected()), now[0] + 10
    player.frame_due = False  # it waits for a frame, but not forever
    watch._next_at = now[0] + 0.01
    run.step(4)
    assert len(watch.inspected()) == seen
    now[0] += 1
    run.step(1)
    assert len(watch.inspected()) == seen + 1
    run.step(1)
    player.ending = True  # the last of those asked for is looked at in any case
    run.step(1)
    assert watch.inspected()["step"].tolist()[-1] == run.steps == watch.last.step and len(watch.inspected()) == seen + 2
    watch.detach()
    run.step(1)
    assert len(watch.inspected()) == seen + 2


def test_taylor_view_while_playing_and_at_the_last_of_fifty(pg: Playground) -> None:
    pg.play()
    until(pg, lambda: len(pg.taylor.inspected()) > 2)
    press(pg, "pause")
    press(pg, "step_50")
    assert pg.taylor.inspector.last.step == pg.run.steps


def test_taylor_view_through_dense_epochs_and_reset(board: Callable[..., Playground]) -> None:
    pg = board(Run(Net(), mine(), hold=1.0, pretrain=3, batch_size=8, compression=4.0))
    pg.run.pretrain(5)
    pg._draw()
    assert looked(pg) == [] and "once the gate has closed" in pg.taylor.text.value
    pg.step(2)
    assert looked(pg)[-1] == 2
    for reset in (pg.reset, pg.run.reset, lambda: press(pg, "reset"), lambda: pg.set(compression=1.0)):
        reset()
        pg._draw()
    assert looked(pg) == [] and "nothing yet" in pg.taylor.text.value and len(taylor_lines(pg)[0].x) == 0
    pg.step(1)
    assert looked(pg) == [1] and "the gate is open" in pg.taylor.text.value
    assert "Taylor is off by" in pg.figure.layout.annotations[-1].text


def test_taylor_view_of_what_is_not_finite(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.step(1)
    pg.set(lr=100)
    with pytest.raises(FloatingPointError):
        for _ in range(60):
            pg.step(1)
    assert pg.taylor.inspector.last.step >= 2 and not abs(pg.taylor.inspector.last.true) < 1e3
    pg._draw()
    assert all(not np.isinf(trace.y).any() for trace in taylor_lines(pg))
    pg.reset(lr=0.1)
    monkeypatch.setattr(pg.run, "loss", lambda x, y: (x * float("nan")).sum())
    with pytest.raises(FloatingPointError):
        pg.step(1)
    pg._draw()
    assert "could not be looked at" in pg.taylor.text.value and "nan" in pg.taylor.text.value
    monkeypatch.undo()
    pg.step(1)
    assert pg.taylor.inspector.last.step == 1 and not pg.taylor.inspector.failure


def test_taylor_view_that_fails_stops_no_training(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("<b>no second derivative</b>")

    monkeypatch.setattr(step_inspector.Before, "predicted", fails)
    pg.step(3)
    assert pg.run.steps == 3 and pg.player.error is None and looked(pg) == []
    assert "&lt;b&gt;no second derivative" in pg.taylor.text.value


@pytest.mark.parametrize(
    "metric, without, said",
    [
        (math.nan, math.nan, "the gate is open"),
        (0.0, math.nan, "the threshold is 0"),
        (0.0, 1e-3, "predicted 0 (|g·w|), true 0.001"),  # of a smoothed gate, where this batch has nothing to say
        (0.5, -0.25, "predicted 0.5 (|g·w|), true 0.25"),
    ],
)
def test_what_is_said_of_the_weight_at_the_threshold(metric: float, without: float, said: str) -> None:
    look = step_inspector.Inspection(3, 0.1, 0.1, 0.1, metric, without, 0.0, 0.0, math.nan)
    assert said in readouts.step_text(look)


def test_taylor_view_hidden(board: Callable[..., Playground]) -> None:
    pg = board(hide="taylor")
    pg.step(2)
    assert pg.taylor.inspector is None and pg.taylor.inspected() is None and not pg.run.opt._optimizer_step_pre_hooks
    assert taylor_lines(pg) == [] and pg.figure.layout.height == 640 and len(pg.figure.layout.annotations) == 4
    full = board()
    assert full.figure.layout.height > 640 and len(taylor_lines(full)) == 6
    dashes = {trace.line.dash for trace in taylor_lines(full)[:3]}
    symbols = {trace.marker.symbol for trace in taylor_lines(full)[:3]}
    assert len(dashes) == len(symbols) == 3
    assert not board(full.run).player.closed and full.player.closed
    full.close()
    assert len(full.run.opt._optimizer_step_pre_hooks) == 1  # the newer playground's


# -- for teachers ----------------------------------------------------------------------------------------------------


def inside(widget: widgets.Widget) -> list[widgets.Widget]:
    """A widget and all in it."""
    return [widget, *(one for child in getattr(widget, "children", ()) for one in inside(child))]


def part(pg: Playground, name: str) -> widgets.Widget:
    if name in pg.controls:
        return pg.controls[name]
    if name in pg.buttons:
        return pg.buttons[name]
    parts = {"buttons": pg.buttons["play"], "readouts": pg.half_life, "presets": pg.preset_buttons[0]}
    return (parts | {"figure": pg.figure, "taylor": pg.taylor.text, "state": pg.state_line})[name]


HIDEABLE = (
    *LIVE, *RESTARTS, "play", "pause", "step", "step_50", "reset", "new_seed", "buttons", "readouts", "presets",
    "figure", "taylor", "state",
)  # fmt: skip


def test_hide_each(board: Callable[..., Playground]) -> None:
    everywhere = inside(board())
    assert any(isinstance(w, KnobControl) for w in everywhere)
    for name in HIDEABLE:
        pg = board(hide=[name])
        shown = inside(pg)
        assert part(pg, name) not in shown, name
        others = [n for n in HIDEABLE if n != name and not (name == "buttons" and n in pg.buttons)]
        others = [n for n in others if not (n == "buttons" and name == "play")]
        assert all(part(pg, n) in shown for n in others), name
        assert pg.viewer in shown and pg.failure in shown


def test_what_is_hidden_works_from_code(board: Callable[..., Playground]) -> None:
    pg = board(hide=HIDEABLE)
    pg.step(3)
    pg.set(lr=0.2)
    pg.load_state(pg.state)
    assert pg.run.knobs["lr"] == 0.2


def test_hide_one_name_and_unknown(board: Callable[..., Playground]) -> None:
    assert "lr" in board(hide="lr").controls
    with pytest.raises(ValueError, match=r"hide has 'learning rate'; valid: compression, momentum"):
        Playground(hide=["lr", "learning rate"])


# -- of one's own, and the end ---------------------------------------------------------------------------------------


def test_own_model_and_data(board: Callable[..., Playground]) -> None:
    pg = board(Run(Net(), mine(), hold=1.0, pretrain=1, batch_size=8, compression=4.0))
    assert pg.controls["model"].value == "Net" and pg.controls["data"].value == "corners"
    assert pg.controls["model"].select.disabled and "Net on corners" in repr(pg)
    press(pg, "step_50")
    assert "Q = 22 of 90 weights (4×)" in pg.budget.value
    first = pg.run.history.frame()["loss"]
    press(pg, "reset")
    press(pg, "step_50")
    pd.testing.assert_series_equal(pg.run.history.frame()["loss"], first)
    pg.load_state(pg.state)
    assert pg.run.steps == 0 and pg.run.knobs["model"] == "Net"


def test_own_model_only(board: Callable[..., Playground]) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    pg = board(Run(flat, "digits", hold=1.0, pretrain=0))
    press(pg, "step")
    assert pg.run.steps == 1 and not pg.failure.value and pg.controls["data"].value == "digits"


def test_new_playground_closes_the_one_before(board: Callable[..., Playground]) -> None:
    before = board()
    before.play()
    until(before, lambda: before.run.steps > 2)
    after = board()
    reached = before.run.steps
    assert before.player.closed and not before.player._thread.is_alive()
    for click in (
        before.buttons["play"].click,
        before.buttons["step"].click,
        before.preset_buttons[0].click,
        lambda: setattr(before.controls["lr"].slider, "value", 0.1),
    ):
        before.failure.value = ""
        click()
        assert "run the cell again" in before.failure.value
    with pytest.raises(RuntimeError, match="run the cell again"):
        before.play()
    assert before.run.steps == reached
    press(after, "step")
    assert after.run.steps == 1


def test_closing(board: Callable[..., Playground]) -> None:
    pg = board()
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    thread, all_of_it = pg.player._thread, inside(pg)
    pg.close()
    assert not thread.is_alive()
    assert all(widget.comm is None for widget in all_of_it)
    pg.close()
    gc.collect()


def registered() -> set[str]:
    return set(widgets.widget._instances)


def all_gone(references: list[weakref.ref]) -> None:
    """Nothing keeps what was there; on a busy machine a closed player's thread may take a while to its end."""
    deadline = time.monotonic() + SECONDS
    while gc.collect() is not None and [one for one in references if one() is not None]:
        assert time.monotonic() < deadline, [gc.get_referrers(one()) for one in references]
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["gsm", "rival", "hidden", "own"])
def test_closed_it_is_freed_with_its_run(kind: str) -> None:
    before = registered()
    if kind == "rival":
        pg = Playground(methods.build("magnitude", model="lenet300", data="digits", pretrain=0))
    elif kind == "own":
        pg = Playground(Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=10, compression=4.0))
    else:
        pg = Playground(Run(pretrain=0), hide=[*LIVE, *RESTARTS, "presets", "figure"] if kind == "hidden" else [])
    pg.step(1)
    gone = [weakref.ref(one) for one in (pg, pg.run, pg.run.model, pg.run.opt, pg.player)]
    pg.close()
    pg.close()
    assert registered() == before
    del pg
    all_gone(gone)


def test_a_cell_that_is_run_again_and_again_leaves_one_playground() -> None:
    before, run = registered(), Run(pretrain=0)
    counts, runs = [], []
    for i in range(20):
        pg = Playground(run if i % 2 else Run(pretrain=0))
        if not i % 2:
            runs.append(weakref.ref(pg.run))
        counts.append(len(registered()))
    assert len(set(counts)) == 1
    pg.close()
    del pg
    all_gone(runs)
    assert registered() == before
    assert run.step(1) is None and run.steps == 1  # it can go on without them


def test_a_playground_that_is_refused_leaves_the_one_before(pg: Playground) -> None:
    before = registered()
    for wrong, error in (({"run": "lenet300"}, TypeError), ({"hide": ["plots"]}, ValueError)):
        with pytest.raises(error):
            Playground(**wrong)
    assert registered() == before and not pg.player.closed


def test_what_cells_have_shown_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pg = Playground(Run(pretrain=0))
    names = {"_oh": {1: 5, 3: pg}, "_3": pg, "_1": 5, "_": pg, "__": 5, "___": ""}
    shell = SimpleNamespace(user_ns=names, displayhook=SimpleNamespace(_=pg, __=5, ___=""))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    pg.close()
    assert names == {"_oh": {1: 5}, "_1": 5, "_": "", "__": 5, "___": ""}
    assert vars(shell.displayhook) == {"_": "", "__": 5, "___": ""}


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"run": "lenet300"}, TypeError, "run must be a gsm_lab.Run, .* got 'lenet300'"),
        ({"run": nn.Linear(2, 2)}, TypeError, "run must be a gsm_lab.Run, .* got a Linear"),
        ({"run": Run}, TypeError, "run must be a gsm_lab.Run, .* got a type"),
        ({"hide": 3}, TypeError, "hide must be a list of names, got 3; valid: compression,"),
        ({"hide": None}, TypeError, "hide must be a list of names, got None"),
        ({"hide": [3]}, ValueError, "hide has 3; valid: compression,"),
        ({"hide": [["play"]]}, ValueError, r"hide has \['play'\]; valid"),
        ({"hide": b"play"}, ValueError, "hide has 112; valid"),
    ],
)
def test_what_is_no_run_and_no_name_is_refused(wrong: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Playground(**wrong)


@pytest.mark.parametrize("line", [None, 3, b"{}", {"gsm_lab": 1, "knobs": {}}, ["a"]])
def test_what_is_no_line_is_no_state(pg: Playground, line: object) -> None:
    with pytest.raises(TypeError, match=r"a state is one line like .* got "):
        pg.load_state(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "a state is one line"),
        ('{"gsm_lab": 1, "knobs": {"lr": ' + "9" * 5000 + "}}", "a state is one line"),
        ('{"gsm_lab": 1, "knobs": {"lr": NaN}}', "lr must be"),
        ('{"gsm_lab": 1, "knobs": {"seed": [1]}}', "seed must be"),
        ('{"gsm_lab": 1, "knobs": {"model": "Net"}}', "is of model 'Net', which is not here; valid: lenet300"),
        ('{"gsm_lab": 1, "knobs": {"data": ["digits"]}}', "the state is of data .* valid: digits"),
        ('{"gsm_lab": 1, "knobs": {"seed": 5, "model": 3}}', "the state is of model 3"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_had_changes_nothing(pg: Playground, line: str, said: str) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    before = dict(pg.run.knobs)
    with pytest.raises(ValueError, match=said):
        pg.load_state(line)
    assert pg.run.knobs == before and pg.run.steps > 2 and pg.player.playing


@pytest.mark.parametrize(
    "wrong", [{"lr": "x"}, {"momentum": None}, {"lr": 0.5, "no": 1}, {"lr": 0.5, "compression": float("nan")}]
)
def test_junk_moves_nothing_while_it_plays(pg: Playground, wrong: dict) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    before = dict(pg.run.knobs)
    with pytest.raises((ValueError, TypeError)):
        pg.set(**wrong)
    assert pg.run.knobs == before and pg.player.playing and pg.player.error is None


def test_the_read_out_says_how_many_truly_receive_a_gradient(board: Callable[..., Playground]) -> None:
    """Q may be more than there are weights with any |g w|: here all but one layer's rows have decayed to zero."""
    pg = board(Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=10, compression=2.0))
    assert "receive their gradient" in pg.budget.value and "only" not in pg.budget.value
    pg.step(1)
    assert "only" not in pg.budget.value
    with torch.no_grad():
        pg.run.model.one.weight[1:] = 0.0
        pg.run.model.two.weight[:, 1:] = 0.0
    pg.step(1)
    active = int(pg.run.history.steps.array()[-1]["active"].sum())
    assert active <= 9 < pg.run.nonzeros
    assert f"in step 2 <b>only {active}</b> of {pg.run.nonzeros} did: |g·w| of all others is 0" in pg.budget.value
    pg.set(compression=1.0)  # not yet a step with it: what is said is said of the step that was
    assert f"only {active}</b> of 45" in pg.budget.value
    pg.step(1)
    assert "only" not in pg.budget.value and "(1×)</b> receive" in pg.budget.value


SHOWN = """
import gc, weakref
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in ("import gsm_lab as gl; pg = gl.Playground()", "pg", "pg", "1 + 1"):
    shell.run_cell(cell, store_history=True).raise_error()
gone = [weakref.ref(x) for x in (shell.user_ns["pg"], shell.user_ns["pg"].run)]
assert shell.user_ns["_2"] is shell.user_ns["_3"] is shell.user_ns["pg"]
shell.run_cell("pg.close(); del pg", store_history=True).raise_error()
gc.collect()
assert [one() for one in gone] == [None, None], "kept"
assert shell.user_ns["_4"] == shell.user_ns["_oh"][4] == 2, "what else was shown stays"
"""


def test_a_playground_that_a_cell_has_shown_is_gone_when_it_is_closed() -> None:
    """IPython keeps what cells show in several places, by number, by age, and among hidden names."""
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
