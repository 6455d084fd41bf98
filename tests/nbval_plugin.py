"""How nbval reads the notebooks: `pytest -p tests.nbval_plugin --nbval notebooks`.

A training run differs in the last digits from one CPU to the next, so the numbers inside a saved figure are not
compared. What a notebook claims stands in its printed output (and in `gsm_lab.expect`), and that is compared to the
letter. nbval itself already leaves out PNG pictures and the random identifiers of widget views.
"""

import sys
from functools import partial
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # nbval imports jsonschema, and that a grammar: a second, for nothing

import pytest  # noqa: E402

NOT_COMPARED = ("application/vnd.plotly.v1+json",)
# Beside the live figure, `show` and `explore` have a browser draw a picture, in some five seconds a notebook. They do
# without where that fails, and pictures are not compared: to draw them here would show nothing. (`Playground.picture`
# does draw.)
PICTURES = {"show(": "gsm_lab.figures.style", "explore(": "gsm_lab.notebook.explore"}
LONG = 600  # seconds a kernel may take to begin, on a busy machine
SANITIZE = Path(__file__).with_name("nbval.cfg")


def pytest_configure(config):
    """Run the kernel of the environment pytest runs in, and blank out what is random in an output."""
    config.option.nbval_current_env = True
    config.option.nbval_kernel_startup_timeout = LONG
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(SANITIZE)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path):
    """Add what is not compared to every notebook nbval takes up, and have it drawn without pictures."""
    collectors = yield
    for collector in collectors:
        if hasattr(collector, "skip_compare"):
            collector.skip_compare = (*collector.skip_compare, *NOT_COMPARED)
            collector.setup = partial(_set_up, collector, collector.setup)
    return collectors


def _set_up(notebook, setup):
    setup()
    text, kernel = notebook.path.read_text(encoding="utf-8"), notebook.kernel.kc
    for call, module in PICTURES.items():
        if call in text and "gsm_lab" in text:
            code = f"import importlib\nimportlib.import_module('{module}').static = lambda figure: b''\ndel importlib"
            done = kernel.execute_interactive(code, store_history=False, timeout=LONG, output_hook=print)
            assert done["content"]["status"] == "ok", done["content"]
