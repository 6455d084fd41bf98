"""How nbval reads the notebooks: `pytest -p tests.nbval_plugin --nbval notebooks`.

A training run differs in the last digits from one CPU to the next, so the numbers inside a saved figure are not
compared. What a notebook claims stands in its printed output (and in `gsm_lab.expect`), and that is compared to the
letter. nbval itself already leaves out PNG pictures and the random identifiers of widget views.
"""

from pathlib import Path

import pytest

NOT_COMPARED = ("application/vnd.plotly.v1+json",)
SANITIZE = Path(__file__).with_name("nbval.cfg")


def pytest_configure(config):
    """Run the kernel of the environment pytest runs in, and blank out what is random in an output."""
    config.option.nbval_current_env = True
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(SANITIZE)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path):
    """Add what is not compared to every notebook nbval takes up."""
    collectors = yield
    for collector in collectors:
        if hasattr(collector, "skip_compare"):
            collector.skip_compare = (*collector.skip_compare, *NOT_COMPARED)
    return collectors
