"""A playground that plays on and on in a real browser: nothing goes wrong behind the page."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.notebook.test_jupyterlab import (
    PATIENCE,
    START,
    TELL,
    Place,
    command,
    new_page,
    open_notebook,
    wait_for,
    went_wrong,
    write_notebook,
)

PLOTS = ".gsm-playground .main-svg"
STEPS = 3000  # 60,000 in tests/soak
# A small network on small batches, of which a slow machine does hundreds of steps a second.
SMALL = (
    "gl.Playground(gl.Run(__import__('torch').nn.Sequential(__import__('torch').nn.Flatten(), "
    "__import__('torch').nn.Linear(784, 10)), 'digits', hold=1.0, pretrain=0, batch_size=8))"
)
LONG_TELL = TELL.replace(f"UNWATCHED = {PATIENCE}", "UNWATCHED = 120.0")


def opened(chromium: Any, lab: Any, name: str, board: str = SMALL, code: str = LONG_TELL) -> Place:
    """A notebook in a folder of its own, its cells run."""
    (lab.folder / name).mkdir()
    write_notebook(lab.folder / name / "play.ipynb", code, board)
    address = lab.address(f"{name}/play.ipynb").replace("/lab/", f"/lab/workspaces/{name}/")
    requests, tracebacks = [], []
    place = Place(
        new_page(chromium, requests, tracebacks), address, lab.folder / name / "said.json", requests, tracebacks
    )
    open_notebook(place.page, place.address)
    command(place.page, "application:toggle-left-area")
    command(place.page, "notebook:run-all-cells")
    place.page.wait_for_selector(PLOTS, timeout=1000 * START)
    wait_for(place.said.exists, place.page, START)
    return place


def press(place: Place, button: str) -> None:
    place.page.click(f".gsm-button-{button}")


def played(place: Place, steps: int, seconds: float) -> int:
    """Play until so many steps are done and shown, pause, and do some more one by one; returns how many there are.

    One by one, because the last stretch of a long line then grows: of some lines (the target) only x is another.
    """
    press(place, "play")
    place.until(lambda said: said["steps"] >= steps, seconds)
    press(place, "pause")
    place.until(lambda said: not said["playing"])  # the step in progress is still finished

    all_is_shown(place)
    for _ in range(12):
        shown = place.last_step()
        press(place, "step")
        wait_for(lambda shown=shown: place.last_step() > shown, place.page)
    place.page.wait_for_timeout(500)  # for the page's answer to the last one
    all_is_shown(place)
    return place.kernel()["steps"]


def all_is_shown(place: Place) -> None:
    """Wait until the page has the last step."""
    try:
        wait_for(lambda: place.last_step() == place.kernel()["steps"], place.page)
    except AssertionError:
        pytest.fail(f"the page shows step {place.last_step()} of {place.kernel()}")


@pytest.fixture(scope="module")
def place(chromium: Any, lab: Any) -> Iterator[Place]:
    place = opened(chromium, lab, "long")
    yield place
    place.page.close()


def test_plays_on(place: Place, lab: Any) -> None:
    done = played(place, STEPS, 120)
    assert place.kernel()["error"] == "None" and place.last_step() == done > STEPS
    assert not place.tracebacks and went_wrong(lab) == []
