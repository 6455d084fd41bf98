"""The playground in a real JupyterLab and a real Chromium. The tests follow each other on one notebook and kernel."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.notebook.pages import PLOTS, SMALL, START, Place, command, new_page, opened, played, wait_for, went_wrong

STEPS = 3000  # 60,000 in tests/soak


@pytest.fixture(scope="module")
def place(chromium: Any, lab: Any) -> Iterator[Place]:
    place = opened(chromium, lab)
    yield place
    place.page.close()


@pytest.fixture(autouse=True)
def four_plots(request: Any) -> Iterator[None]:
    """A test that fails in another tab leaves the next ones what they wait for."""
    yield
    if "place" in request.fixturenames and (place := request.getfixturevalue("place")).page.query_selector(".gsm-tabs"):
        place.tab("four plots")


def test_by_keyboard_alone(place: Place) -> None:
    page = place.page
    place.shot("idle")
    before = place.drawn()
    page.focus(".gsm-button-play")
    page.keyboard.press("Enter")
    place.until(lambda said: said["playing"] and said["steps"] > 30)
    page.wait_for_selector(".gsm-status:has-text('playing')")
    wait_for(lambda: place.drawn() not in ("", before) and place.last_step() > 20, page)
    first = place.drawn()
    reached = place.kernel()["steps"]
    wait_for(lambda: place.drawn() != first and place.last_step() > reached, page)
    # Tab leads from one to the next: the buttons, then slider and entry of each knob, ...
    stops = []
    for _ in range(16):
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate("(document.activeElement.closest('[class*=gsm-slider-], [class*=gsm-entry-], "
                          "[class*=gsm-button-]')?.className.match(/gsm-(slider|entry|button)-\\w+/) ?? [''])[0]")
        )  # fmt: skip
    assert stops[:5] == [f"gsm-button-{name}" for name in ("pause", "step", "step_50", "reset", "new_seed")]
    knobs = [f"gsm-{kind}-{name}" for name in ("compression", "momentum", "weight_decay", "lr", "smoothing")
             for kind in ("slider", "entry")]  # fmt: skip
    assert stops[5:15] == knobs
    # A key on the slider moves the knob in the kernel.
    page.focus(".gsm-slider-compression .noUi-handle")
    old = place.kernel()["knobs"]["compression"]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    entry = ".gsm-entry-compression input"
    place.until(lambda said: page.input_value(entry) == f"{said['knobs']['compression']:g}" != f"{old:g}")
    assert place.kernel()["playing"]
    wait_for(lambda: len(page.query_selector_all(".gsm-playground .shapelayer path")) >= 4, page)
    place.shot("playing")
    page.focus(".gsm-button-pause")
    page.keyboard.press("Enter")
    place.until(lambda said: not said["playing"])
    page.wait_for_selector(".gsm-status:has-text('paused')")
    place.shows_all()
    reached = place.kernel()["steps"]
    page.focus(".gsm-button-step_50")
    page.keyboard.press("Space")
    place.until(lambda said: said["steps"] == reached + 50)
    wait_for(lambda: place.last_step() == reached + 50, page)


def test_taylor_view_shows_and_updates(place: Place) -> None:
    page = place.page

    def read_out() -> str:
        return page.text_content(".gsm-taylor")

    steps = place.kernel()["steps"]
    place.tab("Taylor view")
    wait_for(lambda: [line[-1:] for line in place.taylor()] == [[steps]] * 6, page)  # the last of the fifty steps
    assert f"Step {steps:,}, change of its batch's loss: predicted " in read_out()
    assert " true " in read_out() and "% off" in read_out() and "without the weight at the threshold" in read_out()
    # What is drawn comes after what the page holds.
    title = re.compile(rf"Step {steps:,}: predicted [+−][\d.e−]+, true")
    wait_for(lambda: any(title.match(text) for text in place.titles()), page)
    lines = "document.querySelectorAll('.gsm-playground .x5y6 path.js-line, .x6y7 path.js-line').length"
    wait_for(lambda: page.evaluate(lines) == 6, page)
    page.click(".gsm-button-play")
    wait_for(lambda: place.taylor()[0][-1] > steps + 50, page)
    page.click(".gsm-button-pause")
    place.until(lambda said: not said["playing"])
    place.shot("taylor")
    place.tab("four plots")
    place.shows_all()


def test_invalid_entry(place: Place) -> None:
    page = place.page
    before = place.kernel()["knobs"]["momentum"]
    place.type("momentum", "1.2")
    note = page.wait_for_selector(".gsm-invalid .gsm-wrong")
    assert "momentum must be a number from 0 to below 1, got '1.2'" in note.text_content()
    colours = page.evaluate(
        "(e => [getComputedStyle(e).borderTopColor, getComputedStyle(e).color])"
        "(document.querySelector('.gsm-invalid input'))"
    )
    assert colours == ["rgb(176, 0, 32)"] * 2
    place.shot("invalid")
    assert place.kernel()["knobs"]["momentum"] == before
    place.type("momentum", "0.95")
    page.wait_for_selector(".gsm-invalid", state="detached")
    place.until(lambda said: said["knobs"]["momentum"] == 0.95)


CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = c => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = c; paint.fillRect(0, 0, 1, 1);
                      return [...paint.getImageData(0, 0, 1, 1).data]; };
  const line = v => v <= 0.03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = rgba(c).map(v => line(v / 255));
                       return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                          if (rgba(c)[3] > 250) return c; } return 'white'; };
  const seen = {};
  const texts = 'b, span[class^=gsm], input, button, select, .widget-html-content, .gsm-error';
  for (const e of document.querySelector('.gsm-playground').querySelectorAll(texts)) {
    if (!e.checkVisibility() || e.closest('.js-plotly-plot')) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const name = e.tagName + '.' + e.className + ' ' + String(e.textContent || e.value || '').slice(0, 30);
    seen[name] = (a + .05) / (b + .05);
  }
  return seen;
}"""


FADED = """() => !document.getAnimations().some(a => a instanceof CSSTransition && a.playState === "running")"""


def readable(page: Any) -> None:
    """The contrast of all text outside the plots, which are a white card: at least 4:1."""
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 30
    assert not {what: round(ratio, 2) for what, ratio in ratios.items() if ratio < 4}


def test_error_is_shown(place: Place) -> None:
    page = place.page
    place.type("lr", "100")
    page.click(".gsm-button-play")
    shown = page.wait_for_selector(".gsm-error")
    assert re.search(r"Training stopped after step [\d,]+\. FloatingPointError: .*fc", shown.text_content())
    said = place.until(lambda said: not said["playing"])
    assert "FloatingPointError" in said["error"]
    wait_for(lambda: place.last_step() == said["steps"], page)
    place.shot("error")


def test_themes_are_readable(place: Place) -> None:
    page = place.page
    place.type("momentum", "7")
    page.wait_for_selector(".gsm-invalid .gsm-wrong")
    readable(page)
    for theme in ("Dark", "Light"):
        command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
        page.wait_for_selector(f"body[data-jp-theme-light={'false' if theme == 'Dark' else 'true'}]", state="attached")
        page.wait_for_function(FADED)
        place.shot(f"theme-{theme.lower()}")
        readable(page)
    page.click(".gsm-button-reset")
    page.wait_for_selector(".gsm-error", state="detached")
    page.wait_for_selector(".gsm-invalid", state="detached")
    place.type("lr", "0.1")
    place.until(lambda said: said["steps"] == 0 and said["knobs"]["lr"] == 0.1)


def test_page_opened_again_shows_what_is(place: Place, chromium: Any) -> None:
    page = place.page
    place.type("lr", "0.08")
    page.click(".gsm-button-step_50")
    place.until(lambda said: said["steps"] == 50)
    wait_for(lambda: place.last_step() == 50, page)
    lines = place.lines()
    assert min(lines) > 1
    command(page, "docmanager:save")
    wait_for(lambda: "widget-view" in (place.said.parent / "board.ipynb").read_text(), page)
    place.page = other = new_page(
        chromium, place.requests, place.tracebacks
    )  # a second page on the same kernel, which stays as it is
    try:
        other.goto(place.address)
        other.wait_for_selector(PLOTS, timeout=1000 * START)
        wait_for(lambda: place.last_step() == 50 and place.drawn(), other)
        assert place.lines() == lines and other.input_value(".gsm-entry-lr input") == "0.08"
        assert "step 50" in other.text_content(".gsm-status")
        place.shot("second-page")
    finally:
        other.close()
        place.page = page
    page.reload()
    page.wait_for_selector(PLOTS, timeout=1000 * START)
    wait_for(lambda: place.last_step() == 50 and place.drawn(), page)
    assert place.lines() == lines
    place.shot("reopened")
    page.click(".gsm-button-step_50")
    wait_for(lambda: place.last_step() == 100, page)
    wait_for(lambda: any("Accuracy" in title for title in place.titles()), page)


def test_closing_the_page_pauses(place: Place) -> None:
    page, before = place.page, place.kernel()["steps"]
    place.press("play")
    place.until(lambda said: said["playing"] and said["steps"] > before + 10)
    page.wait_for_selector(".gsm-status:has-text('playing')")
    page.goto("about:blank")
    closed = time.time()
    place.until(lambda said: said["playing"] and said["at"] > closed)  # it is patience that ends it
    (place.said.parent / "part").write_text("1")
    (place.said.parent / "part").rename(place.said.parent / "patience")
    said = place.until(lambda said: not said["playing"])
    assert said["note"] == "nobody was watching for 1 seconds" and said["error"] == "None"
    assert place.kernel()["steps"] == said["steps"]


def test_a_page_without_the_board_says_what_to_do(place: Place) -> None:
    """Where it is still in the kernel it comes back as wide: reloaded, also while it plays, or opened anew."""
    page, file = place.page, place.address.split("/tree/")[1].split("?")[0]
    (place.said.parent / "patience").write_text("3600")
    width = "document.querySelector('.gsm-playground .js-plotly-plot .main-svg').clientWidth"
    page.goto(place.address)
    page.wait_for_selector(PLOTS, timeout=1000 * START)
    wait_for(place.drawn, page)
    wide, sentence = page.evaluate(width), page.locator(".gsm-lost")
    assert wide > 500 and sentence.count() == 1 and not sentence.is_visible()
    place.press("play")
    page.wait_for_selector(".gsm-status:has-text('playing')")
    page.reload()
    page.wait_for_selector(PLOTS, timeout=1000 * START)
    page.wait_for_selector(".gsm-status:has-text('playing')")
    wait_for(lambda: page.evaluate(width) == wide, page)
    place.press("pause")
    command(page, "application:close")
    page.wait_for_selector(".gsm-playground", state="detached")
    command(page, "docmanager:open", path=file)
    page.wait_for_selector(PLOTS, timeout=1000 * START)
    wait_for(lambda: page.evaluate(width) == wide, page)
    place.shot("tab-reopened")
    assert not sentence.is_visible()
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    page.wait_for_timeout(1000)
    page.reload()
    sentence.wait_for(state="visible", timeout=1000 * START)
    assert "run this cell again" in sentence.text_content() and page.query_selector(PLOTS) is None
    place.shot("kernel-gone")


def test_no_request_left_the_machine(place: Place) -> None:
    local = re.compile(r"(https?|wss?)://127\.0\.0\.1:\d+/|(data|blob|about):")
    assert len(place.requests) > 20
    assert not [url for url in place.requests if not local.match(url)]


def test_plays_on(chromium: Any, lab: Any) -> None:
    place = opened(chromium, lab, "long", SMALL)
    try:
        done = played(place, STEPS)
        assert place.kernel()["error"] == "None" and place.last_step() == done > STEPS and not place.tracebacks
    finally:
        place.page.close()


def test_nothing_went_wrong_behind_the_page(place: Place, lab: Any) -> None:
    assert not place.tracebacks
    assert went_wrong(lab) == []
