"""A comparison in a browser: nothing overlaps or is cut off at any width, and in a JupyterLab it plays in step."""

from collections.abc import Iterator
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from gsm_lab.figures.comparison import arrange, comparison
from gsm_lab.metric import Metric
from gsm_lab.training.history import History
from tests.figures.test_dashboard import LAYERS, made
from tests.notebook.pages import Place, command, new_page, opened, wait_for, went_wrong

BOARD = """gl.Compare({"a": gl.Run(pretrain=0, hold=1.0, batch_size=8),
                       "no momentum": gl.Run(pretrain=0, hold=1.0, momentum=0.0, batch_size=8)})"""
TELL = """
import json, os, threading, time
gl.notebook.player.UNWATCHED = 3600.0
def tell(json=json, os=os, time=time):
    while (board := globals().get("pg")) is not None:
        with board.player.lock:
            said = {"steps": [run.steps for run in board.runs.values()], "playing": board.player.playing,
                    "error": repr(board.player.error)}
        with open("said.part", "w") as file:
            json.dump(said, file)
        os.replace("said.part", "said.json")
        del board
        time.sleep(0.1)
threading.Thread(target=tell, daemon=True).start()
"""

# Of all texts in a figure: those that overlap another one, and those that stick out of the figure.
FAULTS = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const frame = plot.querySelector('.main-svg').getBoundingClientRect();
  const texts = [...plot.querySelectorAll('.main-svg text')].filter(t => t.textContent.trim() && t.checkVisibility());
  const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
  const faults = boxes.length > 30 ? [] : [`only ${boxes.length} texts`];
  boxes.forEach(([text, b], i) => {
    if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
      faults.push('cut off: ' + text);
    for (const [other, o] of boxes.slice(i + 1))
      if (Math.min(b.right, o.right) - Math.max(b.left, o.left) > 1 &&
          Math.min(b.bottom, o.bottom) - Math.max(b.top, o.top) > 2) faults.push('overlap: ' + text + ' | ' + other);
  });
  return faults;
}"""


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    page = new_page(chromium, [])
    page.set_content("<body style='margin: 0'><div id='plot'></div></body>")
    page.add_script_tag(content=get_plotlyjs())
    yield page
    page.close()


@pytest.mark.parametrize(
    "names", ["ab", ("a", "no decay", "smaller momentum", "Q far too small!")], ids=["two", "four, long names"]
)
@pytest.mark.parametrize("steps", [0, 30, 490])
def test_nothing_overlaps_at_any_width(page: Any, names: Any, steps: int) -> None:
    histories = {name: made(steps + i).history if steps else History(LAYERS) for i, name in enumerate(names)}
    if steps == 490:
        for history in histories.values():
            history.metric = Metric("mean absolute error", None, False, "kg" if len(names) == 2 else "kilograms a day")
    figure = comparison(histories, note="the test sets differ: accuracies cannot be compared" if steps == 30 else "")
    for width in (600, 720, 899, 900, 1000, 1440, 1900):
        page.set_viewport_size({"width": width, "height": 1000})
        arrange(figure, 1 if width < 900 else 2)
        page.evaluate("figure => Plotly.newPlot('plot', JSON.parse(figure))", figure.to_json())
        assert page.evaluate(FAULTS) == [], width


@pytest.fixture(scope="module")
def place(chromium: Any, lab: Any) -> Iterator[Place]:
    place = opened(chromium, lab, "compare", BOARD, TELL)
    yield place
    place.page.close()


def ends(place: Place) -> list[float]:
    """Where the drawn lines of the losses end, in the page, in steps."""
    return place.page.evaluate(
        "[...document.querySelector('.gsm-compare .js-plotly-plot').data].slice(0, 2).map(t => t.x.at(-1) ?? 0)"
    )


def test_plays_in_step_in_a_jupyterlab(place: Place, lab: Any) -> None:
    page = place.page
    page.set_viewport_size({"width": 1440, "height": 900})
    place.press("play")
    place.until(lambda said: said["steps"][0] > 100)
    page.wait_for_selector(".gsm-status:has-text('playing')")
    wait_for(lambda: min(ends(place)) > 60, page)
    place.press("pause")
    said = place.until(lambda said: not said["playing"])
    assert said["steps"][0] == said["steps"][1] and said["error"] == "None"
    wait_for(lambda: ends(place) == said["steps"], page)
    assert page.evaluate(FAULTS) == []
    assert "momentum β: a 0.9, no momentum 0" in page.text_content(".gsm-compare")
    place.shot("compare-1440")
    columns = (
        "new Set([...document.querySelectorAll('.gsm-compare .infolayer text[class^=x][class$=title]')]"
        ".map(t => Math.round(t.getBoundingClientRect().x / 50))).size"
    )
    assert page.evaluate(columns) == 2
    page.set_viewport_size({"width": 720, "height": 900})
    wait_for(lambda: page.evaluate(columns) == 1, page)
    assert page.evaluate(FAULTS) == []
    place.shot("compare-720")
    command(page, "apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    place.shot("compare-720-dark")
    page.set_viewport_size({"width": 1440, "height": 900})
    wait_for(lambda: page.evaluate(columns) == 2, page)
    place.shot("compare-1440-dark")
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    page.wait_for_selector("body[data-jp-theme-light=true]", state="attached")
    assert not place.tracebacks and went_wrong(lab) == []
