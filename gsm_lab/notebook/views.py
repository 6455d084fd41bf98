"""What a board shows of its run: tabs of plots, how many steps, and the one figure that holds them all.

One figure, which a tab rearranges: what is not shown is not drawn, and a page has one to keep up to date.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from gsm_lab import figures
from gsm_lab.checks import one_of, shown
from gsm_lab.figures import Arrangement
from gsm_lab.figures.history_lines import LAYERS_SHOWN
from gsm_lab.notebook.browser import Figure
from gsm_lab.notebook.step_inspector import Inspector
from gsm_lab.studies.network import look
from gsm_lab.studies.view import View
from gsm_lab.training.run import Run

TABS = {"curves": "four plots", "Taylor": "Taylor view", "network": "the network"}
SHARE = 0.04  # of the time that looking at the network may take while it trains
STEPS = (
    ("all steps", (None, False)),
    ("all, log axis", (None, True)),
    *((f"last {n:,}", (n, False)) for n in (100, 500, 2000, 10_000)),
)
ROW = 236  # pixels of height for a row of plots: two of them and the knobs fit on a screen of 900 pixels
NARROW_PAGE, NARROW_BOARD = 900, 760  # pixels; under these there is one column


class Views:
    """The tabs, the menu of steps, and the figure.

    Args:
        run: the run whose history is shown.
        taylor: what inspects its steps.
        hidden: names of parts not to show; of tabs, `taylor`.
        asked: called when a reader chooses something else, on whatever thread that happens.
    """

    def __init__(self, run: Run, taylor: Inspector, hidden: set[str], asked: Callable[[], None]) -> None:
        self.run, self.taylor, self._asked = run, taylor, asked
        there = [view for view in TABS if view.lower() not in hidden]
        self.tabs = widgets.ToggleButtons(
            options=[(TABS[view], view) for view in there], style={"button_width": "auto"}
        )
        self.tabs.add_class("gsm-tabs")
        self.steps = widgets.Dropdown(options=STEPS, tooltip="how many steps the plots show", layout={"width": "130px"})
        self.steps.add_class("gsm-steps")
        self._width, self._columns, self._told = 1000, 2, False
        self._arranged = self._key
        self.figure = Figure(self._made(self.arrangement, slots=LAYERS_SHOWN))
        self.note = widgets.HTML()
        self._view: View | None = None
        self._history = run.history
        self._added, self._next_at = False, 0.0
        for menu in (self.tabs, self.steps):
            menu.observe(lambda _: self._asked(), "value")

    @property
    def arrangement(self) -> Arrangement:
        """What is to be shown now, and how."""
        last, log = self.steps.value
        return Arrangement((self.tabs.value,), self._columns, self._width, ROW, last, log)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.arrangement, self._told, tuple(self.run.history.layers)

    def choose(self, view: str, last: int | None, log: bool) -> None:
        """Choose a tab and steps. Raises ValueError, before anything changes, for what there is not."""
        one_of("view", view, [view for _, view in self.tabs.options])
        steps = [value for _, value in self.steps.options]
        if (last, log) not in steps:
            valid = ", ".join(f"{n:,}" for n, _ in steps if n)
            raise ValueError(f"last must be None or one of {valid}, and log needs all steps, got {shown((last, log))}")
        self.tabs.value, self.steps.value = view, (last, log)

    def sized(self, width: Any, page: Any) -> None:
        """The page says how wide the board is, and itself, in pixels."""
        if not all(isinstance(v, int | float) and 0 < v < 100_000 for v in (width, page)):
            return
        self._columns = 1 if page < NARROW_PAGE or width < NARROW_BOARD else 2
        self._width, self._told = max(200, round(width)), True
        self._asked()

    def draw(self, playing: bool = False) -> None:
        """Send the page what has changed; of the network, while it is `playing`, as far as its share of time allows."""
        inspected, view = self.taylor.inspected(), None
        started = time.perf_counter()
        if self.tabs.value == "network" and not (playing and started < self._next_at):
            view = self._look()
            if view is not None and not self._added:  # it comes when somebody wants to see it
                figures.add_network(self.figure, view)
                self._added, self._arranged = True, None
        a = (key := self._key)[0]
        if key != self._arranged:
            # Each in a message of its own: in a batch, what is set can not be read before its end.
            with self.figure.batch_update():
                figures.update(self.figure, self.run.history, inspected, a, view)
            with self.figure.batch_update():
                figures.arrange(self.figure, a)
                if self._told:  # once its height has been set, plotly keeps the width that it had then
                    self.figure.layout.width = self._width
            self._arranged = key
        with self.figure.batch_update():
            figures.update(self.figure, self.run.history, inspected, a, view)
        if view is not None:
            now = time.perf_counter()
            self._next_at = now + (now - started) * (1 / SHARE - 1)
        self.taylor.text.layout.display = "" if self.tabs.value == "Taylor" else "none"

    def _look(self) -> View | None:
        """The network now; None, with a note, where it cannot be looked at."""
        like = self._view if self._history is self.run.history else None
        self._history = self.run.history
        try:
            self._view = look(self.run, like=like)
        except (ValueError, FloatingPointError) as error:
            self.note.value = f"<span class='gsm-wrong'>{escape(str(error))}</span>"
            return None
        self.note.value = ""
        return self._view

    def whole(self) -> go.Figure:
        """All tabs below each other, for a picture."""
        views = tuple(view for _, view in self.tabs.options)
        last, log = self.steps.value
        view = self._look() if "network" in views else None
        return self._made(Arrangement(views, last=last, log=log), view=view)

    def _made(self, arrangement: Arrangement, slots: int = 0, view: View | None = None) -> go.Figure:
        inspected = self.taylor.inspected()
        figure = figures.dashboard(self.run.history, slots=slots, taylor=inspected, arrangement=arrangement)
        if view is None:
            return figure
        figures.arrange(figures.add_network(figure, view), arrangement)
        return figures.update(figure, self.run.history, inspected, arrangement, view)
