"""Tabs, steps, widths, files, runs that are kept: without a browser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gsm_lab import Dataset, Playground, Run
from gsm_lab.notebook import export
from gsm_lab.studies.network import look
from tests.figures import fits
from tests.notebook.playgrounds import press, settle


def shown(pg: Playground) -> set[str]:
    return {trace.xaxis or "x" for trace in pg.figure.data if trace.visible is not False}


CURVES, TAYLOR, NETWORK = {"x", "x2", "x3", "x4"}, {"x5", "x6"}, {"x7", "x8"}


def test_a_tab_shows_its_plots_alone_and_they_are_up_to_date(pg: Playground) -> None:
    pg.step(30)
    assert shown(pg) == CURVES and pg.taylor.text.layout.display == "none"
    pg.views.tabs.value = "Taylor"
    settle(pg)
    pg._draw()
    assert shown(pg) == TAYLOR and pg.taylor.text.layout.display == ""
    pg.step(2)
    lines = [trace for trace in pg.figure.data if trace.legend in ("legend5", "legend6")]
    assert all(line.x[-1] == 32 for line in lines) and pg.figure.data[0].x[-1] == 30, "what is hidden waits"
    pg.show("network")
    assert shown(pg) == NETWORK
    pg.show()
    assert shown(pg) == CURVES and pg.figure.data[0].x[-1] == 32
    texts = [note.text for note in pg.figure.layout.annotations if note.name and note.visible is not False]
    assert len(texts) == 4 and all(texts)


def test_the_network_is_what_the_study_sees(pg: Playground) -> None:
    pg.step(20)
    pg.show("network")
    pg.step(5)
    image = next(trace for trace in pg.figure.data if trace.name == "network inputs")
    np.testing.assert_array_equal(image.customdata, look(pg.run).inputs)
    other = Run(hold=1.0, pretrain=0)
    torch.set_num_threads(pg.player.threads)
    other.step(25)
    torch.set_num_threads(1)
    played, alone = (run.model.state_dict().values() for run in (pg.run, other))
    assert all(torch.equal(a, b) for a, b in zip(played, alone, strict=True)), "to look changes nothing"
    pg.reset(model="lenet5")
    pg.step(1)
    assert next(t for t in pg.figure.data if t.name == "network inputs").customdata.shape == (5, 5)
    pg.show()
    pg.reset(model="lenet300")


def test_the_last_steps_and_a_log_axis(pg: Playground) -> None:
    pg.step(120)
    pg.views.steps.value = (100, False)
    settle(pg)
    pg._draw()
    assert pg.figure.data[0].x[0] == 21 and len(pg.figure.data[0].x) == 100
    pg.show(log=True)
    assert pg.figure.layout.xaxis.type == "log" and pg.figure.data[0].x[0] == 1
    pg.show()
    assert pg.figure.layout.xaxis.type == "linear"
    for wrong, said in (({"view": "plots"}, "view must be one of curves, Taylor, network, got 'plots'"),
                        ({"last": 7}, "last must be None or one of 100, 500"),
                        ({"last": 100, "log": True}, "log needs all steps")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            pg.show(**wrong)


@pytest.mark.parametrize(("width", "page", "columns"), [
    (1008, 1440, 2), (820, 1000, 2), (568, 1000, 1), (604, 720, 1), (850, 899, 1), (1488, 1920, 2),
])  # fmt: skip
def test_a_narrow_page_has_one_column(pg: Playground, width: int, page: int, columns: int) -> None:
    pg.viewer._handle_custom_msg({"width": width, "page": page}, [])
    settle(pg)
    pg._draw()
    domains = {tuple(pg.figure.layout[f"xaxis{i}"].domain) for i in ("", 2, 3, 4)}
    assert len(domains) == columns and pg.figure.layout.width == width


@pytest.mark.parametrize("said", [{"width": "wide", "page": 3}, {"width": -1, "page": 900}, {"width": 500},
                                  {"width": 1e9, "page": 1e9}, {"width": float("nan"), "page": 1}])  # fmt: skip
def test_a_width_that_is_none_changes_nothing(pg: Playground, said: dict) -> None:
    before = pg.views.arrangement
    pg.viewer._handle_custom_msg(said, [])
    assert pg.views.arrangement == before


def test_hidden_tabs_are_not_there(board: Callable[..., Playground]) -> None:
    pg = board(hide=["taylor", "network"])
    assert [view for _, view in pg.views.tabs.options] == ["curves"]
    pg.step(2)
    assert shown(pg) == CURVES and {t.xaxis or "x" for t in pg.figure.data} == CURVES


# ------------------------------------------------------------------------------------------------ files


def test_a_picture_without_a_browser_is_the_live_figure(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> bytes:
        raise RuntimeError("no Chrome")

    monkeypatch.setattr("gsm_lab.figures.static", none)
    pg.step(2)
    bundle = pg.picture()._repr_mimebundle_()
    assert bundle["text/plain"] == "Picture(Playground(lenet300 on digits) after step 2)"
    live = bundle["application/vnd.plotly.v1+json"]
    assert {t.get("xaxis", "x") for t in live["data"] if t.get("visible", True)} == CURVES | TAYLOR | NETWORK
    with pytest.raises(RuntimeError, match="save it as HTML"):
        pg.save("board.png")
    assert not Path("board.png").exists()
    pg.save_buttons[0].click()
    deadline = 100
    while not pg.file_note.value and deadline:
        settle(pg)
        deadline -= 1
    pg._draw()
    assert "save it as HTML" in pg.file_note.value


def test_a_page_needs_nothing_else(pg: Playground, tmp_path: Path) -> None:
    pg.step(3)
    text = pg.save(tmp_path / "board.HTML").read_text()
    assert "Playground(lenet300 on digits), step 3</h1>" in text and "&quot;compression&quot;: 60.0" in text
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="http', text) and "Plotly.newPlot" in text
    for wrong in ("board.pdf", "board", ""):
        with pytest.raises(ValueError, match=r"(file|path) must"):
            pg.save(wrong)


def test_a_file_goes_to_the_page(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(pg.viewer, "send", lambda *said: sent.append(said))
    monkeypatch.setattr("gsm_lab.figures.static", lambda figure, kind: kind.encode())
    pg.step(4)
    for button in pg.save_buttons[:2]:
        button.click()
    for _ in range(200):
        if len(sent) == 2:
            break
        settle(pg)
    for said, contents in sent:
        kind = contents[0].decode()
        assert said == {"file": f"lenet300-digits-step-4.{kind}", "type": export.KINDS[kind]}
    assert {contents[0] for _, contents in sent} == {b"png", b"svg"}


# ------------------------------------------------------------------------------------------------ what is kept


def test_keep_and_come_back(pg: Playground) -> None:
    pg.step(20)
    press(pg, "step")
    pg.keep_button.click()
    settle(pg)
    assert pg.kept_menu.options[0][0].startswith("kept 1: step 21, 60×, β 0.9") and not pg.kept_menu.disabled
    pg.set(momentum=0.5)
    pg.step(10)
    pg.back_button.click()
    settle(pg)
    pg._draw()
    assert pg.run.steps == 21 and pg.controls["momentum"].value == 0.9 and pg.figure.data[0].x[-1] == 21
    pg.step(10)
    there = pg.run.history.frame()
    kept = pg.keep("later")
    assert kept.steps == 31
    pg.back("kept 1")
    pg.step(10)
    assert pg.run.history.frame().equals(there)
    pg.back()
    assert pg.run.steps == 31
    with pytest.raises(KeyError, match="nothing is kept as 'nowhere'"):
        pg.back("nowhere")


def test_nothing_is_kept_at_first(board: Callable[..., Playground]) -> None:
    pg = board()
    assert pg.kept_menu.disabled
    pg.back_button.click()
    settle(pg)
    with pytest.raises(KeyError, match="keep"):
        pg.back()


# ------------------------------------------------------------------------------------------------ another metric


def test_a_run_on_numbers_is_shown_by_its_own_metric(board: Callable[..., Playground]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6)).astype(np.float32)
    y = (x @ rng.normal(size=6) + 0.1 * rng.normal(size=90)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 1))
    run = Run(model, Dataset(x[:60], y[:60], x[60:], y[60:], name="lines"), pretrain=2, batch_size=8, compression=3.0)
    pg = board(run)
    pg.step(60)
    live = run.history.evaluations.array()["live_accuracy"]
    np.testing.assert_array_equal(pg.figure.data[1].y, live)
    assert pg.figure.data[1].name == "live R2" and pg.figure.layout.yaxis2.title.text == "test R2"
    assert pg.figure.layout.yaxis2.range is None, "it may be below 0"
    first = pg.figure.layout.annotations[0].text
    assert first.startswith(f"<b>R2 {live[-1]:.4g}, after the cut"), first
    assert "R2 if cut" in pg.keep().line
    pg.show("network")
    assert not pg.views.note.value and shown(pg) == NETWORK


@pytest.mark.parametrize("view", ["curves", "Taylor", "network"])
def test_every_tab_can_be_read_without_colour(pg: Playground, view: str) -> None:
    pg.step(60)
    pg.show(view)
    assert shown(pg) == {"curves": CURVES, "Taylor": TAYLOR, "network": NETWORK}[view] and fits.grey(pg.figure) == []


@pytest.mark.parametrize("width", [400, 720, 900, 1440])
def test_a_saved_page_fits_every_window(pg: Playground, tmp_path: Path, chromium: Any, width: int) -> None:
    """A window that is narrower than what it was laid out for scrolls."""
    pg.set(compression=120)
    pg.step(30)
    file = pg.save(tmp_path / "board.html")
    page = chromium.new_page(viewport={"width": width, "height": 900})
    try:
        page.goto(file.as_uri())
        page.wait_for_selector(".js-plotly-plot .main-svg .annotation-text")
        page.wait_for_timeout(300)
        assert fits.look(page, ".js-plotly-plot") == []
    finally:
        page.close()


def test_a_board_goes_over_to_other_data(board: Callable[..., Playground]) -> None:
    """From numbers to classes, by a state: what was called R2 is an accuracy now, on the page as in a picture."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 1, 28, 28, generator=generator)
    y = 3 * x.mean((1, 2, 3)) + torch.rand(80, generator=generator)
    pg = board(
        Run("lenet300", Dataset(x[:60], y[:60], x[60:], y[60:], name="sums"), compression=10, batch_size=10, pretrain=0)
    )
    pg.step(2)
    assert pg.figure.data[1].name == "live R2" and pg.figure.layout.yaxis2.title.text == "test R2"
    pg.load_state('{"gsm_lab": 1, "knobs": {"data": "digits"}}')
    pg.step(2)
    assert [trace.name for trace in pg.figure.data[1:3]] == ["live accuracy", "cut accuracy"]
    assert pg.figure.layout.yaxis2.title.text == "test accuracy, %" and pg.figure.layout.yaxis2.dtick == 20
    assert all("accuracy %{y:.2f}%" in trace.hovertemplate for trace in pg.figure.data[1:3])
