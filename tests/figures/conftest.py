"""A page that draws figures and measures them, one for all modules."""

import pytest

from tests.figures import fits


@pytest.fixture(scope="module")
def drawn(chromium):
    """See `fits`."""
    with fits.page(chromium) as page:
        yield page
