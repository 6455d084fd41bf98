"""Every figure at every width that a cell has, in both themes, and as a page that grows and shrinks shows it."""

import pytest

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
