"""A playground in a real JupyterLab and a real Chromium: its page, and what its kernel says."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

SECONDS = 300  # that something may take before a test gives up on it: a busy machine is no fault
START = 600  # until a kernel has begun and the page shows what it made
TRACEBACK = "Traceback (most recent call last)"
# A file of ours or of what draws our figures; not the server's own: a page that is closed may leave a socket open.
_BLAMED = re.compile(r'File "[^"]*/(gsm_lab/(?!\.venv)|plotly/|anywidget/|ipywidgets/|ipykernel/)[^"]*"')
PLOTS = ".gsm-playground .main-svg"
# A small network on small batches, of which a slow machine does hundreds of steps a second.
SMALL = (
    "gl.Playground(gl.Run(__import__('torch').nn.Sequential(__import__('torch').nn.Flatten(), "
    "__import__('torch').nn.Linear(784, 10)), 'digits', hold=1.0, pretrain=0, batch_size=8))"
)
SHOTS = os.environ.get("GSM_LAB_SHOTS")  # a folder to put pictures in, to be looked at

# The kernel says how it is doing through a file, so that it can be asked also when no page is open. The player pauses
# without a viewer only where the file `patience` says after how many seconds.
TELL = """
import json, os, threading, time
gl.notebook.player.UNWATCHED = 3600.0
def tell(json=json, os=os, time=time, gl=gl):
    while (board := globals().get("pg")) is not None:  # a kernel that ends forgets its names while threads go on
        run, player = board.run, board.player
        if os.path.exists("patience"):
            gl.notebook.player.UNWATCHED = float(open("patience").read())
        with player.lock:  # between two steps: where it does not play, no step is in progress
            said = {"at": time.time(), "steps": run.steps, "knobs": run.knobs, "playing": player.playing,
                    "note": player.note, "error": repr(player.error), "base": run.base}
        with open("said.part", "w") as file:
            json.dump(said, file)
        os.replace("said.part", "said.json")
        del board, run, player
        time.sleep(0.1)
threading.Thread(target=tell, daemon=True).start()
"""


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
        return self.page.evaluate("document.querySelector('.gsm-playground .js-plotly-plot').data?.[6]?.x?.at(-1) ?? 0")

    def drawn(self) -> str:
        """The path that is on the screen for the loss; "" until plotly has drawn the figure, and then takes updates."""
        return self.page.evaluate(
            "(plot => plot?._ev?._events?.plotly_restyle"
            " && plot.querySelector('.scatterlayer .trace path.js-line')?.getAttribute('d') || '')"
            "(document.querySelector('.gsm-playground .js-plotly-plot'))"
        )

    def titles(self) -> list[str]:
        """The texts over and in the plots, as they are drawn."""
        return self.page.evaluate(
            "[...document.querySelectorAll('.gsm-playground .annotation-text')].map(e => e.textContent)"
        )

    def press(self, button: str) -> None:
        self.page.click(f".gsm-button-{button}")

    def tab(self, name: str) -> None:
        """Show a tab. What stands above may grow by a line while the mouse is on its way: so until it is shown."""

        def shown() -> Any:
            self.page.click(f".gsm-tabs button:has-text('{name}')")
            self.page.wait_for_timeout(100)
            return self.page.query_selector(f".gsm-tabs .mod-active:has-text('{name}')")

        wait_for(shown, self.page)

    def shows_all(self) -> None:
        """Wait until the page has the last step."""
        try:
            wait_for(lambda: self.last_step() == self.kernel()["steps"], self.page)
        except AssertionError:
            pytest.fail(f"the page shows step {self.last_step()} of {self.kernel()}")

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

    Among these are messages to a widget that the page cannot take. What goes wrong where a widget's message is taken,
    on either side, is shown nowhere but in JupyterLab's own log and in the browser's console.
    """
    page = browser.new_page(viewport={"width": 1500, "height": 1250})
    page.set_default_timeout(1000 * SECONDS)
    page.on("request", lambda request: requests.append(request.url))

    def heard(frame: str | bytes) -> None:
        text = frame if isinstance(frame, str) else frame.decode(errors="replace")
        if tracebacks is not None and TRACEBACK in text:
            tracebacks.append(text[-4000:])

    def connected(socket: Any) -> None:
        requests.append(socket.url)
        socket.on("framereceived", heard)

    def told(message: Any) -> None:
        if tracebacks is not None and "Error setting state" in message.text:
            tracebacks.append(message.text)

    page.on("websocket", connected)
    page.on("console", told)
    return page


def opened(browser: Any, lab: Any, name: str = "", board: str = "gl.Playground()", code: str = TELL) -> Place:
    """A notebook in a folder of its own (unless there is no `name`), its cells run."""
    folder, workspace = lab.folder / name, "/lab/"
    if name:
        folder.mkdir()
        workspace = f"/lab/workspaces/{name}/"
    write_notebook(folder / "board.ipynb", code, board)
    address = lab.address(f"{name}/board.ipynb".lstrip("/")).replace("/lab/", workspace)
    requests, tracebacks = [], []
    place = Place(new_page(browser, requests, tracebacks), address, folder / "said.json", requests, tracebacks)
    open_notebook(place.page, place.address)
    command(place.page, "application:toggle-left-area")
    command(place.page, "notebook:run-all-cells")
    place.page.wait_for_selector(PLOTS, timeout=1000 * START)
    wait_for(place.said.exists, place.page, START)
    return place


def played(place: Place, steps: int, seconds: float = SECONDS) -> int:
    """Play until so many steps are done and shown, pause, and do some more one by one; returns how many there are.

    One by one, because the last stretch of a long line then grows: of some lines (the target) only x is another. What
    the page answers to the last but one has come when the last is shown.
    """
    place.press("play")
    place.until(lambda said: said["steps"] >= steps, seconds)
    place.press("pause")
    place.until(lambda said: not said["playing"])
    place.shows_all()
    for _ in range(12):
        shown = place.last_step()
        place.press("step")
        wait_for(lambda shown=shown: place.last_step() > shown, place.page)
    place.shows_all()
    return place.kernel()["steps"]
