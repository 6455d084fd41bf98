"""Every notebook, under every setting, is what it was saved as. Minutes each: only `make test` and `make nbval` ask."""

import pytest

from tests import notebooks

# the later ones take longer, and are begun first: begun last, the other processes would wait for the one that runs it
PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"), reverse=True)


@pytest.mark.notebooks
@pytest.mark.parametrize("setting", notebooks.SETTINGS)
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_it_is_as_it_was_saved(path, setting):
    if said := notebooks.wrong(path, notebooks.SETTINGS[setting]):
        pytest.fail(said, pytrace=False)
