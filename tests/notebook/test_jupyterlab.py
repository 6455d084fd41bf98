"""The playground in a real JupyterLab and a real Chromium. The tests follow each other on one notebook and kernel."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

SECONDS = 40  # that something may take before a test gives up on it
START = 150  # until a kernel has begun and the page shows what it made: on a busy machine more than a minute
PATIENCE = 6.0  # seconds without a viewer until the player of these tests pauses
TRACEBACK = "Traceback (most recent call last)"
# A file of ours or of what draws our figures; not the server's own: a page that is closed may leave a socket open.
_BLAMED = re.compile(r'File "[^"]*/(gsm_lab/(?!\.venv)|plotly/|anywidget/|ipywidgets/|ipykernel/)[^"]*"')
SHOTS = os.environ.get("GSM_LAB_SHOTS")  # a folder to put pictures in, to be looked at

# The kernel says how it is doing through a file, so that it can be asked also when no page is open.
TELL = """
import json, os, threading, time
def tell(json=json, os=os, time=time):
    while (board := globals().get("pg")) is not None:  # a kernel that ends forgets its names while threads go on
        run, player = board.run, board.player
        said = {"at": time.time(), "steps": run.steps, "knobs": run.knobs, "playing": player.playing,
                "note": player.note, "error": repr(player.error), "base": run.base}
        with open("said.part", "w") as file:
            json.dump(said, file)
        os.replace("said.part", "said.json")
        time.sleep(0.1)
gl.notebook.player.UNWATCHED = PATIENCE
threading.Thread(target=tell, daemon=True).start()
""".replace("PATIENCE", str(PATIENCE))


READY = """() => {
  const context = window.jupyterapp?.shell?.currentWidget?.sessionContext, kernel = context?.session?.kernel;
  return context?.isReady && kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""


def write_notebook(path: Path, code: str, board: str = "gl.Playground()") -> None:
    """A notebook with a playground `pg`, which then runs `code` from a file: a long cell would push the plots away.

    It opens without asking for a kernel. `board` is what makes the playground.
    """
    path.with_suffix(".py").write_text(code)
    cells = [f"import gsm_lab as gl\npg = {board}\npg", f"%run -i {path.stem}.py"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}},
    )
    nbformat.write(notebook, path)


def open_notebook(page: Any, address: str) -> None:
    """Open a notebook, and wait until its kernel is ready for cells.

    The page's sign of an idle kernel is there before there is one: cells run then ask which kernel it shall be.
    """
    page.goto(address)
    page.wait_for_function(READY, timeout=1000 * START)


def command(page: Any, name: str, **args: str) -> None:
    """Have JupyterLab do something, without waiting for it."""
    page.evaluate(f"void window.jupyterapp.commands.execute({json.dumps(name)}, {json.dumps(args)})")


def wait_for(condition: Callable[[], Any], page: Any = None, seconds: float = SECONDS) -> Any:
    """Ask until it is so; the page, if there is one, goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        page.wait_for_timeout(50) if page else time.sleep(0.1)
    return found


@dataclass
class Place:
    """A page with a playground in it, and what its kernel says."""

    page: Any
    address: str
    said: Path
    requests: list[str]
    tracebacks: list[str]

    def kernel(self) -> dict[str, Any]:
        return json.loads(self.said.read_text())

    def until(self, condition: Callable[[dict[str, Any]], Any], seconds: float = SECONDS) -> dict[str, Any]:
        """What the kernel says once it is so."""
        wait_for(lambda: condition(self.kernel()), self.page, seconds)
        return self.kernel()

    def lines(self) -> list[int]:
        """How many points each line of the four plots has, in the page."""
        return self.page.evaluate(
            "[...document.querySelector('.gsm-playground .js-plotly-plot').data]"
            ".filter(t => t.visible !== false && !(t.xaxis in {x5: 1, x6: 1})).map(t => t.x ? t.x.length : 0)"
        )

    def taylor(self) -> list[list[float]]:
        """The drawn lines of the Taylor view, in the page: of each the steps that were looked at."""
        return self.page.evaluate(
            "[...document.querySelector('.gsm-playground .js-plotly-plot').data]"
            ".filter(t => t.xaxis in {x5: 1, x6: 1}).map(t => [...t.x ?? []])"
        )

    def last_step(self) -> float:
        """Where the drawn line of the re-activated ends, in the page, in steps."""
        return self.page.evaluate("document.querySelector('.gsm-playground .js-plotly-plot').data?.[6]?.x.at(-1) ?? 0")

    def drawn(self) -> str:
        """The path that is on the screen for the loss."""
        return self.page.evaluate(
            "document.querySelector('.gsm-playground .scatterlayer .trace path.js-line')?.getAttribute('d') ?? ''"
        )

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{name}.png")

    def type(self, name: str, text: str) -> None:
        """Type into an entry, by keyboard."""
        self.page.focus(f".gsm-entry-{name} input")
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")


def went_wrong(lab: Any) -> list[str]:
    """Lines of tracebacks that have to do with a playground, in what the server of JupyterLab and kernels print."""
    text = lab.log.read_text()
    return [line for line in text.splitlines() if _BLAMED.search(line)] if TRACEBACK in text else []


def new_page(browser: Any, requests: list[str], tracebacks: list[str] | None = None) -> Any:
    """A page; `requests` takes what it asks for, `tracebacks` the errors that kernels report to it.

    What goes wrong where a widget's message is taken is shown nowhere but in JupyterLab's own log.
    """
    page = browser.new_page(viewport={"width": 1500, "height": 1250})
    page.on("request", lambda request: requests.append(request.url))

    def heard(frame: str | bytes) -> None:
        text = frame if isinstance(frame, str) else frame.decode(errors="replace")
        if tracebacks is not None and TRACEBACK in text:
            tracebacks.append(text[-4000:])

    def connected(socket: Any) -> None:
        requests.append(socket.url)
        socket.on("framereceived", heard)

    page.on("websocket", connected)
    return page


@pytest.fixture(scope="module")
def place(chromium: Any, lab: Any) -> Iterator[Place]:
    write_notebook(lab.folder / "board.ipynb", TELL)
    requests, tracebacks = [], []
    page = new_page(chromium, requests, tracebacks)
    place = Place(page, lab.address("board.ipynb"), lab.folder / "said.json", requests, tracebacks)
    open_notebook(place.page, place.address)
    command(place.page, "application:toggle-left-area")
    command(place.page, "notebook:run-all-cells")
    place.page.wait_for_selector(".gsm-playground .main-svg", timeout=1000 * START)
    wait_for(place.said.exists, place.page)
    yield place
    place.page.close()


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
    page.wait_for_timeout(500)
    place.shot("playing")
    page.focus(".gsm-button-pause")
    page.keyboard.press("Enter")
    place.until(lambda said: not said["playing"])
    page.wait_for_selector(".gsm-status:has-text('paused')")
    wait_for(lambda: place.last_step() == place.kernel()["steps"], page)  # the step in progress is still finished
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
    wait_for(lambda: [line[-1] for line in place.taylor()] == [steps] * 6, page)  # the last of the fifty steps
    assert f"Step {steps:,}, change of its batch's loss: predicted " in read_out()
    assert " true " in read_out() and "% off" in read_out() and "without the weight at the threshold" in read_out()
    titles = page.evaluate("[...document.querySelectorAll('.gsm-playground .annotation-text')].map(e => e.textContent)")
    assert any(re.match(rf"Step {steps:,}: predicted [+−][\d.e−]+, true", title) for title in titles)
    drawn = page.evaluate("document.querySelectorAll('.gsm-playground .x5y6 path.js-line, .x6y7 path.js-line').length")
    assert drawn == 6
    page.click(".gsm-button-play")
    wait_for(lambda: place.taylor()[0][-1] > steps + 50, page)
    page.click(".gsm-button-pause")
    place.until(lambda said: not said["playing"])
    place.shot("taylor")


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


def readable(page: Any) -> None:
    """The contrast of all text outside the plots, which are a white card: at least 4:1."""
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 30
    assert not {what: round(ratio, 2) for what, ratio in ratios.items() if ratio < 4}


def test_error_is_shown(place: Place) -> None:
    page = place.page
    place.type("lr", "100")
    page.click(".gsm-button-play")
    shown = page.wait_for_selector(".gsm-error", timeout=1000 * SECONDS)
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
        page.wait_for_timeout(500)  # colours fade
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
        other.wait_for_selector(".gsm-playground .main-svg", timeout=1000 * START)
        wait_for(lambda: place.last_step() == 50 and place.drawn(), other)
        assert place.lines() == lines and other.input_value(".gsm-entry-lr input") == "0.08"
        assert "step 50" in other.text_content(".gsm-status")
        place.shot("second-page")
    finally:
        other.close()
        place.page = page
    page.reload()
    page.wait_for_selector(".gsm-playground .main-svg", timeout=1000 * START)
    wait_for(lambda: place.last_step() == 50 and place.drawn(), page)
    assert place.lines() == lines
    place.shot("reopened")
    page.click(".gsm-button-step_50")
    wait_for(lambda: place.last_step() == 100, page)
    titles = page.evaluate("[...document.querySelectorAll('.gsm-playground .annotation-text')].map(e => e.textContent)")
    assert any("Accuracy" in title for title in titles)


def test_closing_the_page_pauses(place: Place) -> None:
    page = place.page
    page.click(".gsm-button-play")
    place.until(lambda said: said["playing"] and said["steps"] > 110)
    page.wait_for_selector(".gsm-status:has-text('playing')")
    page.goto("about:blank")
    closed = time.monotonic()
    said = place.until(lambda said: not said["playing"], seconds=25)
    assert time.monotonic() - closed > PATIENCE / 2  # not just by accident
    assert "nobody was watching" in said["note"] and said["error"] == "None"
    assert place.kernel()["steps"] == said["steps"]


def test_no_request_left_the_machine(place: Place) -> None:
    local = re.compile(r"(https?|wss?)://127\.0\.0\.1:\d+/|(data|blob|about):")
    assert len(place.requests) > 20
    assert not [url for url in place.requests if not local.match(url)]


def test_nothing_went_wrong_behind_the_page(place: Place, lab: Any) -> None:
    assert not place.tracebacks
    assert went_wrong(lab) == []
