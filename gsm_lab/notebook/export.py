"""A board as a picture or a file: PNG and SVG, drawn by a browser on this machine, or a page by itself."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from gsm_lab import checks, figures
from gsm_lab.figures.arrangement import WIDTH

_EDGE = 16  # pixels around a page; a window narrower than what it was laid out for scrolls
KINDS = {"png": "image/png", "svg": "image/svg+xml", "html": "text/html"}
NO_BROWSER = "no Chromium or Chrome on the kernel's machine draws it: save it as HTML, which any browser shows"


class Picture:
    """A figure for readers without a kernel: a PNG, or where no browser draws one here, the live figure.

    Attributes:
        data: the PNG, or None.
    """

    def __init__(self, figure: go.Figure, of: str, width: int = WIDTH) -> None:
        self.figure, self._of = figure, of
        try:
            self.data: bytes | None = figures.static(figure, width)
        except Exception:  # whatever keeps a browser from drawing, there is the live figure
            self.data = None

    def __repr__(self) -> str:
        return f"Picture({self._of})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        said = {"text/plain": repr(self)}
        if self.data is None:
            return said | {"application/vnd.plotly.v1+json": json.loads(self.figure.to_json())}
        return said | {"image/png": base64.b64encode(self.data).decode()}


def written(figure: go.Figure, kind: str, title: str, about: str) -> bytes:
    """The contents of a file of the kind "png", "svg" or "html".

    Args:
        figure: what it shows.
        kind: of file.
        title, about: what a page says over and under the figure, in plain text.

    Raises ValueError for any other kind, RuntimeError where a picture needs a browser that there is not.
    """
    checks.one_of("kind", kind, KINDS)
    if kind == "html":
        body = figure.to_html(include_plotlyjs=True, full_html=False, config={"responsive": True, "displaylogo": False})
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
            f'<body style="font-family: sans-serif; margin: {_EDGE}px; min-width: {WIDTH}px">\n'
            f"<h1 style='font-size: 20px'>{escape(title)}</h1>\n{body}\n"
            f"<p><code>{escape(about)}</code></p></body></html>\n"
        ).encode()
    try:
        return figures.static(figure, kind=kind)
    except Exception as error:
        raise RuntimeError(f"{NO_BROWSER} ({type(error).__name__})") from error


def kind_of(path: Path) -> str:
    """What kind of file a name asks for. Raises ValueError."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"path must end in .png, .svg or .html, got {checks.shown(str(path))}")
    return kind
