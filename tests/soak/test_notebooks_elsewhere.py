"""Every notebook as it comes on this machine, and with one thread: what `make test` has no time for."""

import pytest

from tests import notebooks

SETTINGS = {"as it comes": {}, "one thread": {"OMP_NUM_THREADS": "1"}}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("path", sorted(notebooks.FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_as_it_was_saved(path, setting):
    if said := notebooks.wrong(path, SETTINGS[setting]):
        pytest.fail(said, pytrace=False)
