"""`Compare`, a widget: two to four runs played in step, on the same axes, and how they differ in words."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets
import torch

from gsm_lab.checks import whole
from gsm_lab.figures import comparison, differences
from gsm_lab.notebook.accounts import Accounts, checked
from gsm_lab.notebook.browser import STYLE, Figure, Viewer
from gsm_lab.notebook.by_hand import Asking
from gsm_lab.notebook.closing import close_all, forget_output
from gsm_lab.notebook.controls import button
from gsm_lab.notebook.export import Picture
from gsm_lab.notebook.in_step import InStep
from gsm_lab.notebook.player import Player
from gsm_lab.training.run import Run

NARROW = 900  # pixels of width below which there is one column
_current: weakref.ReferenceType[Compare] | None = None
_taking_over = threading.Lock()
_BUTTONS = {
    "play": ("Play", "play", "success", "train all of them, step by step, until Pause"),
    "pause": ("Pause", "pause", "", "stop after this step"),
    "step": ("Step", "step-forward", "", "pause, then one step of each"),
    "step_50": ("Step 50", "fast-forward", "", "pause, then 50 steps of each"),
}


class Compare(Asking, widgets.VBox):
    """Two to four runs beside each other: played in step, drawn on the same axes, their differences in words.

        gl.Compare({"paper": run_a, "no momentum": run_b})

    Args:
        runs: by name (1 to 16 characters), each another one, of any models, data and methods, all measured by the same
            metric, each with a model of its own. What cannot be compared, because test sets or losses differ, is said.

    Each turn is one step of each run. Before that come dense epochs where they are needed, and runs that are behind
    catch up with the one that is furthest: see `InStep`. Where one of them raises an error, all stop. Whoever steps a
    run elsewhere has the player pause, as a playground's; the others catch up when it goes on.

    Everything works without a mouse: `play()`, `pause()`, `step(n)`, `told`, `picture()`, `close()`. A new one closes
    the one before, and ends the playing of any playground, as a new playground ends the playing here.

    Raises, before anything changes:
        TypeError: `runs` is no mapping, or holds a name that is no text, or what is no run.
        ValueError: fewer than two runs, more than four, the same one twice, a name that is empty or too long, runs
            that are measured by different metrics, or that train the same parameters.
    """

    player: Player | None = None

    def __init__(self, runs: Mapping[str, Run]) -> None:
        global _current
        self.runs = checked(runs)
        self.in_step, self.accounts = InStep(self.runs), Accounts(self.runs)
        self._columns, self._width = 2, None
        self.buttons = {name: button(*how, partial(self._pressed, name), name) for name, how in _BUTTONS.items()}
        self.status, self.failure, self.differences, self.numbers = (widgets.HTML() for _ in range(4))
        self.status.add_class("gsm-status")
        self.figure = Figure(comparison.comparison(self.accounts.histories(), **self.accounts.drawn()))
        self.figure.layout.autosize = True
        self.viewer = Viewer()
        layout = widgets.Layout(flex_flow="row wrap", align_items="center")
        row = widgets.HBox([*self.buttons.values(), self.status], layout=layout)
        parts = [widgets.HTML(STYLE), row, self.failure, self.differences, self.figure, self.numbers, self.viewer]
        super().__init__(parts)
        self.add_class("gsm-playground")  # whose looks it has
        self.add_class("gsm-compare")
        self.player = Player(self.in_step, self._draw, threads=max(1, torch.get_num_threads() - 1))
        self.viewer.on_msg(self._heard)
        with self.player.lock:
            self._show_words()
        with _taking_over:
            before = _current() if _current is not None else None
            _current = weakref.ref(self)
        if before is not None:
            before.close()

    # -- without a mouse -------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Train all of them until `pause()`, an error, the end of a schedule, or nobody watching."""
        self.player.play()

    def pause(self) -> None:
        """Stop; returns when the step in progress is done, by all of them."""
        self.player.pause()

    def step(self, n: int = 1, progress: bool = False) -> None:
        """Pause and do `n` steps of each, after what has to come before; returns when they are done and drawn.

        With a progress bar if `progress`. Raises ValueError for an `n` that is no whole number, and what training
        raises, with the run's name.
        """
        n = whole("n", n, 0, "a whole number of steps")
        try:
            self.player.step(n, progress)
        finally:
            self._draw()

    @property
    def told(self) -> str:
        """How the runs differ, a line each: settings, what cannot be compared, numbers at the last common step."""
        with self.player.lock:
            return "\n".join([*comparison.told(self.accounts.all()), *self.accounts.in_common()])

    def picture(self) -> Picture:
        """The plots as they are now, for readers without a kernel: a PNG, or else the live figure."""
        with self.player.exclusive():
            figure = comparison.comparison(self.accounts.histories(), **self.accounts.drawn())
        return Picture(figure, f"{self!r} after step {self.in_step.steps:,}", width=NARROW + 40)

    def close(self) -> None:
        """End the training thread and remove the widget with its parts; nothing then keeps the widget or its runs."""
        if self.player is not None:
            self.player.close()
            close_all([self])
        forget_output(self)

    def __repr__(self) -> str:
        of = (f"{name}: {run.knobs['model']} on {run.knobs['data']}" for name, run in self.runs.items())
        return f"Compare({', '.join(of)})"

    # -- with a mouse: callbacks leave a message for the player's thread ---------------------------------------------

    def _pressed(self, name: str) -> None:
        steps = {"play": None, "step": 1, "step_50": 50}
        if name in steps:
            self._ask(lambda: self.player.play(steps[name]))
        else:
            self._ask(lambda: self.player.post(lambda: None), pause=True)

    def _heard(self, _: Any, content: dict[str, Any], buffers: Any = None) -> None:
        if content.get("width"):
            self._columns, self._width = 1 if content["width"] < NARROW else 2, content["width"]
            if self.player.closed:  # nobody else draws any more
                self._draw()
            self.player.refresh()
        self._watched(content)

    # -- showing ---------------------------------------------------------------------------------------------------

    def _draw(self) -> int:
        """Send the page what has changed, and the number of this frame, which is returned."""
        with self.player.lock:
            self._show_words()
            with self.figure.batch_update():
                comparison.update(
                    self.figure, self.accounts.histories(), columns=self._columns, **self.accounts.drawn()
                )
                if self._width and self.figure.layout.width != self._width:  # plotly keeps an old one with a height
                    self.figure.layout.width = self._width
            self.viewer.frame += 1
            return self.viewer.frame

    def _show_words(self) -> None:
        accounts, player = self.accounts.all(), self.player
        step = differences.common_step(self.accounts.histories())
        words = [*differences.made_of(accounts, step), *differences.not_comparable(accounts)]
        words += self.accounts.in_common(at_leisure=player.playing)
        self.differences.value = "<br>".join(map(escape, words))
        self.numbers.value = _table(differences.reached(accounts, step), differences.numbers(accounts, step))
        parts = [self.in_step.waits_for or f"step {self.in_step.steps:,} of each"]
        if player.playing and player.rate and not self.in_step.waits_for:
            parts.append(f"{player.rate:,.0f} steps/s of each")
        word = "playing" if player.playing else "paused" + (f" ({player.note})" if player.note else "")
        self.status.value = f"<b>{escape(word)}</b> · " + " · ".join(map(escape, parts))
        error, name = player.error, self.in_step.failed
        where = f" of {name} stopped after step {self.runs[name].steps:,}" if name else " stopped"
        self._fail(f"Training{where}. {type(error).__name__}: {error}" if error else "")


def _table(caption: str, numbers: dict[str, dict[str, str]]) -> str:
    """A row a run, a column a quantity."""
    names = list(next(iter(numbers.values()), {}))
    head = "".join(f"<th>{escape(what)}</th>" for what in ("", *numbers))
    rows = (f"<th>{escape(n)}</th>" + "".join(f"<td>{escape(v[n])}</td>" for v in numbers.values()) for n in names)
    body = "".join(f"<tr>{row}</tr>" for row in (head, *rows))
    return f"{escape(caption)}<div style='overflow-x: auto'><table class='gsm-numbers'>{body}</table></div>"
