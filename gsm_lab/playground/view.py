"""What only the browser knows: whether a frame was seen, whether a view was opened; and what only it can do: copy."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import anywidget
import plotly.graph_objects as go
import traitlets

_SCRIPT = """
function render({ model, el }) {
  el.style.display = "none";
  // A frame counts as seen when the page is painted after it; a page nobody looks at is not painted.
  const seen = () => requestAnimationFrame(() => {
    model.send({ seen: model.get("frame") });
  });
  const act = (message) => {
    if (message.copy !== undefined && navigator.clipboard) navigator.clipboard.writeText(message.copy).catch(() => {});
  };
  model.on("change:frame", seen);
  model.on("msg:custom", act);
  model.send({ opened: true });
  seen();
  return () => { model.off("change:frame", seen); model.off("msg:custom", act); };
}
export default { render };
"""

STYLE = """<style>
.gsm-live, .gsm-restarts { font-size: 11px; padding: 0 5px; border-radius: 7px; border: 1px solid currentColor; }
.gsm-live { color: #00694b; } .gsm-restarts { color: #6b5a00; border-style: dashed; }
.jp-mod-dark .gsm-live, [data-jp-theme-light="false"] .gsm-live { color: #6fe0bd; }
[data-jp-theme-light="false"] .gsm-restarts { color: #e8d27a; }
.gsm-wrong { color: #B00020; font-weight: 600; } [data-jp-theme-light="false"] .gsm-wrong { color: #ff8a97; }
.gsm-invalid input, .gsm-invalid select { border: 2px solid #B00020 !important; }
.gsm-error { border-left: 5px solid #B00020; background: #FFE3E6; color: #5c0010; padding: 6px 10px; }
.gsm-playground button:focus-visible, .gsm-playground .noUi-handle:focus-visible,
.gsm-playground input:focus-visible { outline: 3px solid #0072B2; outline-offset: 1px; }
.gsm-playground .widget-html-content { line-height: 1.45; }
.gsm-status { font-variant-numeric: tabular-nums; }
</style>"""


class Figure(go.FigureWidget):
    """A figure that gives a page opened again what it shows now; plotly's gives what it began with."""

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """What a page asks for when it is opened."""
        if key is None and hasattr(self, "_layout_obj"):  # else plotly is still making it
            # Past traitlets, which would also send it to the pages that have it.
            self._trait_values |= {
                "_widget_data": deepcopy(self._data),
                "_widget_layout": deepcopy(self._layout_obj._props),
            }
        return super().get_state(key, drop_defaults)


class Viewer(anywidget.AnyWidget):
    """Invisible. Set `frame` after sending a picture; the browser answers `{"seen": frame}` once it is painted.

    A view that is opened says `{"opened": true}`; `send({"copy": text})` puts text on the reader's clipboard.
    """

    _esm = _SCRIPT
    frame = traitlets.Int(0).tag(sync=True)
