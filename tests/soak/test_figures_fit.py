"""Every figure at every width that a cell has, in both themes, and as a page that grows and shrinks shows it."""

import itertools

import numpy as np
import pytest

from gsm_lab import figures
from gsm_lab.training.history import History
from tests.figures import fits
from tests.figures.cases import CASES


@pytest.fixture(scope="module")
def drawn(chromium):
    with fits.page(chromium) as page:
        yield page


@pytest.mark.parametrize("name", CASES)
def test_every_figure_fits_at_every_width(drawn: fits.Drawn, name: str) -> None:
    figure = CASES[name]()
    assert drawn.faults(figure, fits.ALL_WIDTHS) == []
    assert drawn.faults(figure, [fits.ALL_WIDTHS[0]], dark=True) == []


@pytest.mark.parametrize("name", CASES)
def test_a_figure_that_follows_its_page_fits_too(drawn: fits.Drawn, name: str) -> None:
    drawn.draw(CASES[name](), fits.ALL_WIDTHS[-1])
    for width in (*reversed(fits.ALL_WIDTHS), fits.ALL_WIDTHS[-1]):
        drawn.page.evaluate(
            "async width => { const node = document.getElementById('figure'); node.style.width = width + 'px';"
            " await Plotly.redraw(node); await Plotly.Plots.resize(node) }",  # as JupyterLab's renderer does
            width,
        )
        assert fits.look(drawn.page, "#figure") == [], width


@pytest.mark.parametrize("decades", [0.02, 0.1, 0.3, 0.5, 0.8, 1.0, 1.1, 1.3, 1.7, 2.0, 2.2, 2.6, 3.0, 4.0, 6.0, 9.0])
def test_logarithmic_axes_of_a_board_fit_whatever_they_span(drawn: fits.Drawn, decades: float) -> None:
    for shift, steps, log in itertools.product((0.0, 0.3, 0.69, 0.9), (8, 30, 300), (False, True)):
        history = History({"a.weight": 100_000, "b.weight": 100_000})
        history.moved(0, "compression", None, 60.0)
        for step in (1, steps):
            loss = 10 ** (shift - decades * step / steps)
            history.record(step, step / 10, loss, 0.1, 0.1, np.zeros(200_000, bool), [np.zeros(9, np.float32)] * 2)
        kept = [int(10 ** min(5, shift + 4)), max(1, int(10 ** (min(5, shift + 4) - min(decades, 4))))]
        history.evaluated(0, 0.5, 0.2, kept)
        history.evaluated(steps, 0.9, 0.8, kept)
        figure = figures.dashboard(history, arrangement=figures.Arrangement(("curves",), 2, 860, 236, log=log))
        assert drawn.faults(figure, [860]) == [], (shift, steps, log)
