"""Sliders, entries, choices and presets: what a person moves there, by `.value` and `.click()`."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets
import pooch
import pytest
import requests

from gsm_lab import Playground, Run, methods
from gsm_lab.knobs import KNOBS
from gsm_lab.notebook.playground import LIVE, RESTARTS
from gsm_lab.notebook.presets import PRESETS
from tests.notebook.playgrounds import enter, inside, press, red, settle, until


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
        beside = [one for one in inside(pg) if isinstance(one, widgets.Box) and pg.controls[name] in one.children]
        said = [one.value for one in beside[0].children if isinstance(one, widgets.HTML)]
        assert any((">live<" if name in LIVE else ">restarts<") in text for text in said)
    assert "per step" in pg.controls["weight_decay"].label.value
    assert all(button.tooltip for button in [*pg.buttons.values(), *pg.preset_buttons])
    assert all(control.entry.tooltip for control in pg.controls.values())


def test_presets(board: Callable[..., Playground]) -> None:
    pg = board()
    assert len(PRESETS) >= 5 and len(pg.preset_buttons) == len(PRESETS)
    assert PRESETS[0].said(pg.run) in pg.explanation.value and "halves every 231 steps" in pg.explanation.value
    pg.step(1)
    for button, preset in zip(pg.preset_buttons, PRESETS, strict=True):
        assert preset.explanation and "\n" not in preset.explanation and set(preset.knobs) == set(LIVE)
        button.click()
        settle(pg)
        assert {name: pg.run.knobs[name] for name in LIVE} == preset.knobs
        assert {name: pg.controls[name].value for name in LIVE} == preset.knobs
        assert f"<b>{preset.name}</b>: {escape(preset.said(pg.run))}" == pg.explanation.value
        pg.step(1)
    pg.set(momentum=0.5, smoothing=0.0)
    moved = "moved since: momentum β 0.5, smoothing s 0. A passive weight now halves every 1,155 steps."
    assert pg.explanation.value == f"<b>{PRESETS[-1].name}</b>: {moved}"
    pg.set(momentum=0.9)
    assert f"<b>{PRESETS[0].name}</b>" in pg.explanation.value, "these are another preset's"
    assert pg.run.steps == 1 + len(PRESETS)  # they are live: nothing restarts


def test_a_rival_has_no_control_for_what_it_takes_no_notice_of(board: Callable[..., Playground]) -> None:
    pg = board(methods.build("magnitude", pretrain=0, hold=1.0))
    assert "smoothing" not in pg.controls
    assert not pg.preset_buttons, "they speak of a gate that it does not have"
    assert "receive their gradient" not in pg.budget.value and "are left by a cut" in pg.budget.value
    pg.set(compression=20)
    pg.step(1)
    assert pg.run.steps == 1 and pg.player.error is None
    board(methods.build("dns", pretrain=0), hide=["smoothing"])


@pytest.mark.parametrize(("name", "text", "value"), [("batch_size", "32", 32), ("seed", "5", 5)])
def test_restart_knobs_restart(pg: Playground, name: str, text: str, value: int) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    enter(pg, name, text)
    assert pg.run.steps == 0 and pg.run.knobs[name] == value and not pg.player.playing and not red(pg, name)


def test_another_model(board: Callable[..., Playground]) -> None:
    pg = board()
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


def test_what_a_preset_promises_is_what_it_will_say(board: Callable[..., Playground]) -> None:
    """Under the mouse, before it is chosen: for the run as it would be, also after a knob or the model has moved."""
    pg = board()
    for change in (lambda: None, lambda: pg.set(momentum=0.5, compression=7), lambda: pg.reset(model="lenet5")):
        change()
        for one, preset in zip(pg.preset_buttons, PRESETS, strict=True):
            assert not set("{}") & set(one.tooltip)
            before = {name: pg.run.knobs[name] for name in LIVE}
            pg.run.set(**preset.knobs)
            assert one.tooltip == preset.said(pg.run)
            pg.run.set(**before)


def test_a_state_that_is_loaded_is_nobodys_preset(board: Callable[..., Playground]) -> None:
    pg = board()
    for load in (pg.load_state, lambda line: (setattr(pg.state_line, "value", line), pg.load_button.click())):
        pg.preset_buttons[3].click()
        settle(pg)
        assert "no decay" in pg.explanation.value
        load('{"gsm_lab": 1, "knobs": {"momentum": 0.77, "weight_decay": 0.001}}')
        settle(pg)
        assert pg.explanation.value.startswith("<b>settings of your own</b>")
