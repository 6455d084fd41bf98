"""Pictures of figures: one browser for many of them, another when it is gone, none when nobody draws."""

import base64
import multiprocessing
import threading
import time

import plotly.graph_objects as go
import pytest

from gsm_lab.figures import pictures, show, static
from gsm_lab.figures.fitting import NARROWEST
from gsm_lab.figures.style import finish

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def drawn(width: int = 300) -> tuple[int, int]:
    """Draw one; the width and height that the PNG says it has."""
    png = static(go.Figure(layout={"height": 200}).add_scatter(x=[0, 1], y=[1, 0]), width)
    assert png.startswith(SIGNATURE)
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


@pytest.fixture(scope="module")
def shared(browser_path: str):
    """A drawer for the tests that leave its browser as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_only", None)
        yield pictures._drawer()
        pictures._drawer().close()


@pytest.fixture
def drawer(browser_path: str, monkeypatch: pytest.MonkeyPatch):
    """A drawer for one test, which may do what it likes to its browser."""
    monkeypatch.setattr(pictures, "_only", None)
    yield pictures._drawer()
    pictures._drawer().close()


def test_the_next_picture_is_drawn_by_the_same_browser(shared) -> None:
    assert drawn(300) == (300, 200)
    browser = shared._browser
    assert drawn(400) == (400, 200) and shared._browser is browser


def test_it_is_what_plotly_draws(shared) -> None:
    figure = go.Figure(layout={"height": 240, "title": "x²"}).add_scatter(x=[0, 1], y=[1, 0])
    assert static(figure, 320) == figure.to_image("png", 320, 240)


def test_what_a_notebook_shows_fits_into_its_narrowest_cell(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    show(go.Figure(layout={"height": 240}).add_scatter(x=[0, 1], y=[1, 0]))
    png = base64.b64decode(bundles[0]["image/png"])
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (NARROWEST, 240)
    assert "sendChartToCloud" in finish(go.Figure(), 240).layout.modebar.remove  # a button that would send it away


def test_several_threads_may_draw(shared) -> None:
    found: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda width=width: found.append(drawn(width))) for width in (300, 310, 320)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(300, 200), (310, 200), (320, 200)]


def test_a_browser_that_was_ended_is_replaced(drawer) -> None:
    drawn()
    before = drawer._browser
    before.subprocess.kill()
    assert drawn() == (300, 200) and drawer._browser is not before


def test_an_idle_browser_is_closed(drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IDLE", 0.1)
    drawn()
    deadline = time.monotonic() + 20
    while drawer._browser is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert drawn() == (300, 200)


def test_a_fork_draws_with_a_browser_of_its_own(drawer) -> None:
    drawn()
    forked = multiprocessing.get_context("fork").Process(target=drawn)
    forked.start()
    forked.join(60)
    assert forked.exitcode == 0
    assert drawn() == (300, 200)


def test_no_browser_is_an_error_and_the_next_one_found_draws(drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context, pytest.raises(Exception, match="No browser found"):
        context.setenv("BROWSER_PATH", "/nonexistent/chromium")
        drawn()
    assert drawn() == (300, 200)


def test_what_cannot_be_drawn_is_an_error_and_the_next_one_is_drawn(drawer) -> None:
    with pytest.raises(Exception, match=r".+"):
        drawer.draw({"data": []}, {"format": "nonsense"})
    assert drawn() == (300, 200)
