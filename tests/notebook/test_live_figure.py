"""A live figure in a real JupyterLab and Chromium: plotly.js is read once, and nothing is lost meanwhile."""

from typing import Any

import nbformat

from tests.notebook.pages import command, new_page, open_notebook, wait_for

READING = 3000  # ms that plotly.js takes to be read in this page; anywidget gives up on a model after 2000
SLOW = """
  window.read = [];
  globalThis[Symbol.for("gsm_lab: plotly.js")] = new (class extends Map {
    set(version, reading) {
      window.read.push(version);
      return super.set(version, Promise.all([reading, new Promise((go) => setTimeout(go, %d))]).then(([it]) => it));
    }
  })();
"""
CELLS = [
    "import numpy as np, plotly, plotly.graph_objects as go\nfrom IPython.display import display\n"
    "from gsm_lab.notebook.browser import Figure",
    "figure = Figure([go.Scatter(x=[0, 1], y=[0, 1]), go.Scatter(x=[0, 1], y=[5, 5])])\ndisplay(figure)",
    "figure.add_scatter(x=[0, 1], y=[7, 8], name='third')\n"
    "figure.data[0].y = np.arange(4.0)\n"
    "figure.layout.title = 'early'\n"
    "with figure.batch_update():\n"
    "    figure.data[0].x = np.arange(4.0)\n"
    "    figure.data[2].y = [9, 10]\n"
    "figure.data = [figure.data[0], figure.data[2]]\n"
    "figure.data[0].line.width = None\n"
    "display(Figure([go.Bar(y=[1, 2, 3])]))",
]
SHOWN = """[...document.querySelectorAll('.js-plotly-plot')].map(plot => [
  plot.querySelector('.gtitle')?.textContent ?? '',
  ...(plot.data ?? []).map(trace => [...(trace.y ?? [])].join(' '))])"""


def test_plotly_is_read_once_and_nothing_is_lost(chromium: Any, lab: Any) -> None:
    """What a figure is told before the page has plotly.js comes out as it was told, in order; and what comes later."""
    file = lab.folder / "live_figure.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)
    page, errors = new_page(chromium, [], tracebacks := []), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(SLOW % READING)
    try:
        open_notebook(page, lab.address(file.name).replace("/lab/", "/lab/workspaces/live_figure/"))
        command(page, "notebook:run-all-cells")
        wait_for(lambda: len(page.evaluate(SHOWN)) == 2, page)
        wait_for(lambda: page.evaluate(SHOWN) == [["early", "0 1 2 3", "9 10"], ["", "1 2 3"]], page)
        assert len(page.evaluate("window.read")) == 1
        page.evaluate(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute("
            "{code: `figure.data[1].y = [3, 4]\\nfigure.layout.title = 'late'\\ndisplay(figure)`}) && null"
        )
        wait_for(lambda: page.evaluate(SHOWN)[0] == ["late", "0 1 2 3", "3 4"], page)
        command(page, "docmanager:save")
        wait_for(lambda: "widget-view" in file.read_text(), page)
        page.reload()
        wait_for(lambda: page.evaluate(SHOWN) == [["late", "0 1 2 3", "3 4"], ["", "1 2 3"]], page)
        assert len(page.evaluate("window.read")) == 1
        assert not tracebacks and not errors
    finally:
        page.close()
