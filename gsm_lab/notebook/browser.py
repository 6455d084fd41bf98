"""What only the browser knows: whether a frame was seen, whether a view was opened; and what only it can do: copy."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from importlib import import_module, resources
from importlib.util import find_spec
from typing import Any

import _plotly_utils.optional_imports
import anywidget
import ipywidgets
import plotly
import plotly.graph_objects as go
import traitlets
from plotly import optional_imports
from plotly.basedatatypes import BaseFigure, Undefined


class _Later:
    """Stands for a module, which is imported when it is first asked for something."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, what: str) -> Any:
        return getattr(import_module(self._name), what)


@contextlib.contextmanager
def _later(*names: str) -> Iterator[None]:
    """Meanwhile plotly finds these modules without importing them."""
    get_module = getattr(optional_imports, "get_module", None)
    if get_module is None:  # another plotly, which does it otherwise
        yield
        return

    def get(name: str, should_load: bool = True) -> Any:
        return _Later(name) if name in names and should_load and find_spec(name) else get_module(name, should_load)

    places = optional_imports, _plotly_utils.optional_imports  # from one or the other
    for place in places:
        place.get_module = get
    try:
        yield
    finally:
        for place in places:
            place.get_module = get_module


# What plotly imports with its widget to be ready for `show()` and `write_image()`, which nobody calls here: two seconds
# (a grammar of addresses is compiled) and 30 MB.
with _later("kaleido", "nbformat"):
    _FigureWidget = go.FigureWidget

_STATIC = resources.files("gsm_lab.notebook") / "static"
STYLE = f"<style>\n{(_STATIC / 'playground.css').read_text(encoding='utf-8')}</style>"


class PlotlyJS(anywidget.AnyWidget):
    """Invisible. Brings plotly.js to the page, for all figures of a kernel."""

    _esm = (_STATIC / "figure.js").read_text(encoding="utf-8")
    code, version = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


_plotly_js: PlotlyJS | None = None
_telling = threading.Lock()


def plotly_js() -> PlotlyJS:
    """What brings plotly.js. A page begins to read it, which takes a second, as soon as this is called."""
    global _plotly_js
    with _telling:
        if _plotly_js is None or _plotly_js.comm is None:  # somebody has closed all widgets there were
            _plotly_js = PlotlyJS(code=str(_FigureWidget._esm), version=plotly.__version__)
        return _plotly_js


class Figure(_FigureWidget):
    """A figure that can be played with for hours, and gives a page opened again what it shows now.

    It mends five things of plotly's widget (7.1):

    - It brings plotly.js, 5 MB, with every figure, and the page reads it again each time. Here once: `PlotlyJS`.
    - It is opened empty and filled afterwards. A page that asks the kernel for all widgets at the moment between, as
      JupyterLab does when a kernel has started, on a thread of its own, draws nothing for ever. Here it is opened full.
    - A page that is opened again is given what the figure began with.
    - An update that leaves alone a property of one trace which it sets for another says so with a word, which the page
      takes for the value: what is drawn is right, but not what the page keeps, from which it would draw a second view.
      Here every such place is filled with the value that holds.
    - The page then reports the array that it has lost as if it were a default, entry by entry, and plotly's answer to
      that is "The truth value of an array with more than one element is ambiguous". Nothing here asks for a page's
      defaults, so such reports are let go.
    """

    _esm = PlotlyJS._esm
    _plotly_js = traitlets.Instance(PlotlyJS).tag(sync=True, **ipywidgets.widget_serialization)
    _made = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config = {"responsive": True, "displaylogo": False}
        self._made = True
        self.open()

    @traitlets.default("_plotly_js")
    def _shared(self) -> PlotlyJS:
        return plotly_js()

    def open(self) -> None:
        """Tell pages of it, once it is whole."""
        if self._made:
            super().open()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """What a page asks for when it is opened."""
        if key is None and hasattr(self, "_layout_obj"):  # else plotly is still making it
            # Past traitlets, which would also send it to the pages that have it.
            self._trait_values |= {
                "_widget_data": deepcopy(self._data),
                "_widget_layout": deepcopy(self._layout_obj._props),
            }
        return super().get_state(key, drop_defaults)

    def _send_restyle_msg(self, restyle_data: dict, trace_indexes: Any = None, source_view_id: Any = None) -> None:
        super()._send_restyle_msg(self._filled(restyle_data, trace_indexes), trace_indexes, source_view_id)

    def _send_update_msg(
        self, restyle_data: dict, relayout_data: dict, trace_indexes: Any = None, source_view_id: Any = None
    ) -> None:
        filled = self._filled(restyle_data, trace_indexes)
        super()._send_update_msg(filled, relayout_data, trace_indexes, source_view_id)

    def _filled(self, restyle_data: dict[str, Any], trace_indexes: Any) -> dict[str, Any]:
        """The same with a value for each trace; those that the caller sets hold already when a message is sent."""
        traces = [self._data[i] for i in self._normalize_trace_indexes(trace_indexes)]
        filled = dict(restyle_data)
        for path, values in restyle_data.items():
            if isinstance(values, list) and any(value is Undefined for value in values):
                each = (values[i % len(values)] for i in range(len(traces)))
                filled[path] = [_found(t, path) if v is Undefined else v for t, v in zip(traces, each, strict=True)]
        return filled

    @traitlets.observe("_js2py_traceDeltas")
    def _handler_js2py_traceDeltas(self, change: Any) -> None:
        if change["new"] and change["new"]["trace_edit_id"] == self._last_trace_edit_id:
            self._trace_edit_in_process = False
        self._js2py_traceDeltas = None

    @traitlets.observe("_js2py_layoutDelta")
    def _handler_js2py_layoutDelta(self, change: Any) -> None:
        if change["new"] and change["new"]["layout_edit_id"] == self._last_layout_edit_id:
            self._layout_edit_in_process = False
        self._js2py_layoutDelta = None


def _found(trace: dict[str, Any], path: str) -> Any:
    """What a trace has at a path such as "marker.size"; None where it has nothing, which leaves it so."""
    try:
        return reduce(operator.getitem, BaseFigure._str_to_dict_path(path), trace)
    except (KeyError, IndexError, TypeError):
        return None


class Viewer(anywidget.AnyWidget):
    """Invisible. Set `frame` after sending a picture; the browser answers `{"seen": frame}` once it is painted.

    A view that is opened says `{"opened": true}`; `send({"copy": text})` puts text on the reader's clipboard.
    """

    _esm = (_STATIC / "viewer.js").read_text(encoding="utf-8")
    frame = traitlets.Int(0).tag(sync=True)
