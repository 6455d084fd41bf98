"""`Playground` without a browser: its buttons are pressed as a person would, by `.click()`."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from torch import nn

from gsm_lab import Playground, Run
from gsm_lab.figures import curves
from tests.notebook.playgrounds import Net, enter, mine, press, settle, until


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


def everything(pg: Playground) -> tuple[pd.DataFrame, list]:
    return pg.run.history.frame(), pg.run.history.events


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


def test_error_text_is_no_html(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(*_: object) -> None:
        raise RuntimeError("<img src=x>")

    monkeypatch.setattr(pg.run, "loss", loss)
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


def test_an_opened_view_watches(board: Callable[..., Playground]) -> None:
    pg = board()
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
    monkeypatch.setattr("gsm_lab.figures.static", lambda figure, width: b"\x89PNG" + bytes(len(figure.data)))
    pg.step(2)
    assert pg.picture().data.startswith(b"\x89PNG")


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
