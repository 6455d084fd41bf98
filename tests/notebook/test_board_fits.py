"""The board in a real JupyterLab: nothing overlaps, is cut off or covered, on any page, in both themes."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.figures.fits import look
from tests.notebook.pages import Place, command, opened, wait_for, went_wrong

PAGES = ((720, 900), (1000, 900), (1440, 900), (1920, 1000))
PLOT = ".gsm-playground .js-plotly-plot"
HIDDEN = re.compile("a plot of [01] x [01] px is too small")  # those of the other tabs
# What sticks out of the board at its sides, and words of controls that are cut off.
STICKS_OUT = """() => {
  const board = document.querySelector('.gsm-playground'), frame = board.getBoundingClientRect(), faults = [];
  for (const e of board.querySelectorAll('button, input, select, .widget-html-content, .noUi-base, .main-svg')) {
    const b = e.getBoundingClientRect();
    if (!e.checkVisibility() || !b.width) continue;
    const what = `${e.tagName} ${(e.textContent || e.value || '').slice(0, 40)}`;
    if (b.left < frame.left - 2 || b.right > frame.right + 2) faults.push('sticks out: ' + what);
    if (e.matches('button, .widget-html-content') && e.scrollWidth > e.clientWidth + 2) faults.push('cut: ' + what);
  }
  return faults;
}"""


@pytest.fixture(scope="module")
def place(chromium: Any, lab: Any) -> Iterator[Place]:
    place = opened(chromium, lab, "fits", "gl.Playground(gl.Run(hold=1.0, pretrain=0, batch_size=16))")
    page = place.page
    for name, value in (("compression", "20"), ("momentum", "0.95"), ("smoothing", "0.5")):
        step_50(place)
        place.type(name, value)
    step_50(place)
    assert place.kernel()["steps"] == 200
    yield place
    page.close()


def step_50(place: Place) -> None:
    steps = place.kernel()["steps"]  # before, as they may be done a moment later
    place.press("step_50")
    place.until(lambda said: said["steps"] == steps + 50)


def shown(place: Place, tab: str, width: int) -> None:
    """Choose a tab, and wait until its plots are as wide as the board."""
    place.tab(tab)
    measure = (
        "(b => [b.clientWidth, b.querySelector('.main-svg').clientWidth])(document.querySelector('.gsm-playground'))"
    )
    wait_for(lambda: abs(place.page.evaluate(f"(([a, b]) => a - b)({measure})")) <= 4, place.page)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_every_tab_fits_every_page(place: Place, theme: str) -> None:
    page, faults = place.page, {}
    command(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
    page.wait_for_selector(f"body[data-jp-theme-light={'true' if theme == 'Light' else 'false'}]", state="attached")
    for width, height in PAGES:
        page.set_viewport_size({"width": width, "height": height})
        for tab in ("four plots", "Taylor view", "the network"):
            shown(place, tab, width)
            for _ in range(20):  # what the kernel lays out comes in several messages
                found = [*look(page, PLOT), *page.evaluate(STICKS_OUT)]
                if not (found := [fault for fault in found if not HIDDEN.fullmatch(fault)]):
                    break
                page.wait_for_timeout(200)
            place.shot(f"fits-{theme}-{width}-{tab.split()[-1]}")
            if found:
                faults[width, tab] = found
    assert not place.tracebacks
    assert not faults, "\n".join(f"{where}: {what}" for where, what in faults.items())


def test_all_four_plots_are_seen_while_a_knob_is_dragged(place: Place) -> None:
    page = place.page
    page.set_viewport_size({"width": 1440, "height": 900})
    command(page, "application:toggle-left-area")  # with the file browser, as JupyterLab opens
    shown(place, "four plots", 1440)
    page.evaluate("document.querySelector('.gsm-playground').scrollIntoView({block: 'start'})")
    page.focus(".gsm-slider-compression .noUi-handle")
    page.keyboard.press("ArrowRight")
    low, high, floor = page.evaluate(
        "(p => [document.querySelector('.gsm-slider-compression').getBoundingClientRect().top,"
        " p.getBoundingClientRect().bottom, p.closest('.jp-WindowedPanel-outer').getBoundingClientRect().bottom])"
        f"(document.querySelector('{PLOT}'))"
    )
    assert low > 0 and high <= floor, "the knobs and the last plot are on the screen together"
    place.shot("fits-1440-dragging")
    assert not place.tracebacks
    command(page, "application:toggle-left-area")


def test_nothing_went_wrong(place: Place, lab: Any) -> None:
    assert went_wrong(lab) == []
