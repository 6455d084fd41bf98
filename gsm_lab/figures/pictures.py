"""Figures as PNG, drawn by a browser that stays open for the next one (starting it takes ten times as long)."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
from typing import Any

import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from gsm_lab import checks
from gsm_lab.checks import integer, one_of

IDLE = 60.0  # seconds without a picture after which the browser is closed
_LONGEST = 120.0  # seconds a picture may take


def static(figure: go.Figure, width: int = 860, kind: str = "png") -> bytes:
    """The figure as PNG, or as "svg", `width` pixels wide, for readers without a kernel.

    Needs a Chromium or Chrome, which kaleido drives, and nothing from the network (formulas between dollar signs stay
    as they are). Raises what kaleido does where there is none, TimeoutError where one does not answer for two minutes.
    """
    checks.kind("figure", figure, BaseFigure, "a plotly figure")
    width, kind = integer("width", width, 10, 100_000), one_of("kind", kind, ("png", "svg"))
    size = {"width": width, "height": figure.layout.height or 500, "scale": 1}
    return _drawer().draw(figure.to_dict(), {"format": kind, **size})


class _Drawer:
    """A browser, begun when first needed and closed when idle, and the thread with the event loop that it lives in."""

    def __init__(self) -> None:
        # The package that talks to the browser logs an error when the browser, closing, says something it cannot read.
        for package in ("choreographer", "kaleido"):
            logging.getLogger(package).setLevel(logging.CRITICAL)
        self.process = os.getpid()  # a fork of it has neither the thread nor the browser
        self._loop = asyncio.new_event_loop()
        self._one_at_a_time = asyncio.Lock()
        self._browser: Any = None
        self._closing: asyncio.TimerHandle | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True, name="gsm_lab pictures").start()
        atexit.register(self.close)

    def draw(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        """From any thread."""
        return asyncio.run_coroutine_threadsafe(self._draw(figure, options), self._loop).result(_LONGEST)

    def close(self) -> None:
        """End the browser; the next picture begins another."""
        if self.process == os.getpid():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)

    async def _draw(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        async with self._one_at_a_time:
            if self._closing is not None:
                self._closing.cancel()
            try:
                if self._browser is not None:
                    with contextlib.suppress(Exception, asyncio.CancelledError):  # it may have been ended meanwhile
                        return await self._browser.calc_fig(figure, opts=options)
                    await self._end()
                await self._begin()
                return await self._browser.calc_fig(figure, opts=options)
            finally:
                self._closing = self._loop.call_later(IDLE, lambda: self._loop.create_task(self._close_idle()))

    async def _begin(self) -> None:
        from kaleido import Kaleido  # half a second, so only where pictures are drawn

        browser = Kaleido(n=1, mathjax=False)
        await browser.open()
        self._browser = browser

    async def _close_idle(self) -> None:
        async with self._one_at_a_time:
            await self._end()

    async def _end(self) -> None:
        browser, self._browser = self._browser, None
        if browser is not None:
            with contextlib.suppress(Exception):
                await browser.close()


_only: _Drawer | None = None
_making = threading.Lock()


def _drawer() -> _Drawer:
    global _only
    with _making:
        if _only is None or _only.process != os.getpid():
            _only = _Drawer()
        return _only
