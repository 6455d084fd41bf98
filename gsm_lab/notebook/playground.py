"""`Playground`, a widget: buttons, knobs with their read-outs, presets, one figure of all plots, the state line."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch

from gsm_lab.checks import path
from gsm_lab.knobs import KNOBS
from gsm_lab.notebook import export, readouts
from gsm_lab.notebook.browser import STYLE, Viewer
from gsm_lab.notebook.by_hand import ByHand
from gsm_lab.notebook.closing import close_all, forget_output
from gsm_lab.notebook.controls import ChoiceControl, KnobControl, button, parts
from gsm_lab.notebook.kept import Kept, Shelf
from gsm_lab.notebook.player import Player
from gsm_lab.notebook.presets import PRESETS
from gsm_lab.notebook.readouts import got
from gsm_lab.notebook.step_inspector import Inspector
from gsm_lab.notebook.views import Views
from gsm_lab.training.run import Run

LIVE = tuple(name for name, knob in KNOBS.items() if knob.control and knob.live)
RESTARTS = tuple(name for name, knob in KNOBS.items() if knob.control and not knob.live)
_current: weakref.ReferenceType[Playground] | None = None
_taking_over = threading.Lock()
PARTS = ("buttons", "readouts", "presets", "views", "figure", "taylor", "network", "kept", "state")
_BUTTONS = {
    "play": ("Play", "play", "success", "train until Pause"),
    "pause": ("Pause", "pause", "", "stop after this step"),
    "step": ("Step", "step-forward", "", "pause, then one step"),
    "step_50": ("Step 50", "fast-forward", "", "pause, then 50 steps"),
    "reset": ("Reset", "undo", "", "begin again with the same seed and the knobs as they are"),
    "new_seed": ("New seed", "random", "", "begin again with other initial weights and another order of the batches"),
}


class Playground(ByHand, widgets.VBox):
    """A run to play with: play, pause, step and reset it, and drag its knobs while it trains.

    Args:
        run: the run; by default LeNet-300-100 on the digits at 60x, at a constant learning rate. The controls begin at
            the values of its knobs; knobs that a rival takes no notice of have no control.
        hide: names of controls and parts not to show, for teachers: any of the knobs compression, momentum,
            weight_decay, lr, smoothing, model, data, batch_size, seed; the buttons play, pause, step, step_50, reset,
            new_seed; the parts buttons, readouts, presets, views (tabs, the menu of steps, files), figure, taylor and
            network (tabs), kept (keep the run, come back to it), state. What is hidden still works from code. Without
            taylor, the tab that compares single steps with what Taylor predicts, no step is inspected.

    Where PyTorch has several threads, steps are computed with one less than when the playground was made, because the
    page needs a core too. So they may differ in the last digits from those of a run that trains without a page.

    Everything works without a mouse: `play()`, `pause()`, `step(n)`, `reset()`, `set(momentum=0.99)`, `state`,
    `load_state(line)`, `keep()` and `back()`, `show("Taylor")`, `picture()`, `save("board.html")`. A new playground
    closes the one before.

    Raises:
        TypeError: a `run` that is none, or a `hide` that is not a list of names.
        ValueError: a name in `hide` that is none of these.
    """

    player: Player | None = None

    def __init__(self, run: Run | None = None, hide: Iterable[str] = ()) -> None:
        global _current
        if not isinstance(run, Run | None):
            raise TypeError(f"run must be a gsm_lab.Run, as Run('lenet300', 'digits') makes it, got {got(run)}")
        hidden = _names(hide)
        self.run = Run(hold=1.0) if run is None else run
        # The figure first: a page takes a second to read plotly, in which the other widgets are made.
        self.taylor = Inspector(self.run, shown="taylor" not in hidden)
        self.views = Views(self.run, self.taylor, hidden, self._refresh)
        self.figure = self.views.figure
        knobs = self.run.knobs
        self.controls: dict[str, KnobControl | ChoiceControl] = {
            name: (ChoiceControl if KNOBS[name].choices else KnobControl)(KNOBS[name], knobs[name], self._moved)
            for name in (*LIVE, *RESTARTS)
            if name not in self.run.method.ignores
        }
        self.buttons = {name: button(*how, partial(self._pressed, name), name) for name, how in _BUTTONS.items()}
        self.presets = [p for p in PRESETS if p.fits(self.run)]
        self.preset_buttons = [
            button(p.name, "", "", p.promised(self.run), partial(self._chosen, p)) for p in self.presets
        ]
        self.copy_button = button("Copy state", "copy", "", "", self._copied, "copy")
        self.load_button = button("Load state", "", "", "", self._loaded, "load")
        self.status, self.failure, self.budget, self.half_life, self.state_note, self.file_note = (
            widgets.HTML() for _ in range(6)
        )
        self.status.add_class("gsm-status")
        self.save_buttons = [
            button(
                kind.upper(),
                "",
                "",
                f"the plots, all tabs, as a file {kind.upper()}",
                partial(self._saving, kind),
                kind,
            )
            for kind in export.KINDS
        ]
        self.explanation, self.chosen = widgets.HTML(), None
        self.shelf = Shelf()
        self.keep_button = button("Keep this run", "bookmark", "", "to come back to it", self._keeping, "keep")
        self.kept_menu = widgets.Dropdown(
            options=[], disabled=True, layout={"width": "230px"}, tooltip="runs that are kept"
        )
        self.back_button = button(
            "Come back", "history", "", "to the run as it was when it was kept", self._coming, "back"
        )
        self.state_line = widgets.Text(placeholder="paste a state here, or press Copy state", continuous_update=True)
        self.viewer = Viewer()
        # Hidden parts are kept by name as well: a widget that is not closed would be kept, and with it the run.
        self._parts = parts(self, hidden)
        shown = [part for name, part in self._parts.items() if name not in hidden]
        super().__init__([widgets.HTML(STYLE), *shown, self.viewer])
        self.add_class("gsm-playground")
        self.player = Player(self.run, self._draw, threads=max(1, torch.get_num_threads() - 1))
        self.taylor.player = weakref.ref(self.player)
        self.viewer.on_msg(self._heard)
        self._show_readouts()
        with _taking_over:
            before = _current() if _current is not None else None
            _current = weakref.ref(self)
        if before is not None:
            before.close()

    # -- without a mouse -------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Train until `pause()`, an error, the end of the run's schedule, or nobody watching."""
        self.player.play()

    def pause(self) -> None:
        """Stop; returns when the step in progress is done."""
        self.player.pause()

    def step(self, n: int = 1, progress: bool = False) -> None:
        """Pause and do `n` steps, under a progress bar if `progress`; returns when they are done and drawn."""
        self.player.pause()
        self.taylor.expect(n)
        self.player.step(n, progress)
        self._draw()

    def set(self, **knobs: Any) -> None:
        """Move live knobs, as their controls would. Raises ValueError, before anything moves, for what is not valid."""
        with self.player.exclusive():
            self.run.set(**knobs)
        self._show_knobs()

    def reset(self, **knobs: Any) -> None:
        """Pause and begin again, with the same seed unless another is given; any knob may change."""
        self.player.pause()
        with self.player.exclusive():
            self._restart(knobs)
        self._draw()

    def keep(self, name: str | None = None) -> Kept:
        """Keep the run as it is, weights and all, to come back to it: by default as "kept 1", "kept 2", ...

        `keep().run()` is a run of its own in that state, for `gl.Compare`. The oldest go where there are many: see
        `kept.Shelf`. Raises TypeError, ValueError for a name that is none.
        """
        with self.player.exclusive():
            kept = self.shelf.keep(self.run, name)
        self._show_kept(kept.name)
        return kept

    def back(self, name: str | None = None) -> None:
        """Pause, and put the run back to how it was when it was kept, by default the latest time; it goes on from there
        to the bit as it did then.

        Raises KeyError where nothing is kept, or not by this name.
        """
        if name is None and not len(self.shelf):
            raise KeyError("nothing is kept: keep() first")
        kept = self.shelf[self.shelf.names[-1] if name is None else name]
        self.player.pause()
        with self.player.exclusive():
            self._come_back(kept)
        self._draw()

    @property
    def state(self) -> str:
        """All knobs as one line of JSON, for `load_state` here or elsewhere; not the method and options of a rival."""
        return json.dumps({"gsm_lab": 1, "knobs": self.run.knobs})

    def load_state(self, line: str) -> None:
        """Begin again with the settings of a `state`; a knob that the line does not name stays as it is.

        Raises TypeError or ValueError, before anything changes, if the line is no state, or the state of a model or
        data set that is neither the run's own nor one of gsm_lab's by name.
        """
        knobs = readouts.read_state(line, self.run)
        self.chosen = None
        self.reset(**knobs)

    def show(self, view: str = "curves", last: int | None = None, log: bool = False) -> None:
        """Show a tab, "curves", "Taylor" or "network", of the last so many steps or all, on a logarithmic axis or not.

        Raises ValueError, before anything changes, for what there is no choice for.
        """
        self.views.choose(view, last, log)
        self._draw()

    def picture(self) -> export.Picture:
        """The plots as they are now, all tabs, for readers without a kernel: a PNG.

        Where there is no browser that draws it, the live figure, as `figures.show` shows it.
        """
        return export.Picture(self._whole(), f"{self!r} after step {self.run.steps:,}")

    def save(self, file: str | Path) -> Path:
        """Write the plots as they are now, all tabs, to a file .png, .svg or .html (a page that needs nothing else).

        Raises ValueError for any other name, RuntimeError where a picture needs a browser that there is not, OSError
        where it cannot be written.
        """
        file = path("file", file)
        kind = export.kind_of(file)
        file.write_bytes(self._written(kind))
        return file

    def close(self) -> None:
        """End the training thread and remove the widget with its parts; nothing then keeps the widget or its run."""
        if self.player is not None:
            self.player.close()
            self.taylor.detach()
            close_all([self])
        forget_output(self)

    def __repr__(self) -> str:
        return f"Playground({self.run.knobs['model']} on {self.run.knobs['data']})"

    # -- showing ---------------------------------------------------------------------------------------------------

    def _draw(self) -> int:
        """Send the page what has changed, and the number of this frame, which is returned."""
        with self.player.lock:
            self._show_readouts()
            self.views.draw(self.player is not None and self.player.playing)
            self.viewer.frame += 1
            return self.viewer.frame

    def _show_knobs(self) -> None:
        for name, control in self.controls.items():
            control.show(self.run.knobs[name])
        self._show_readouts()

    def _show_readouts(self) -> None:
        run, player = self.run, self.player
        self.budget.value = readouts.budget_text(run)
        self.half_life.value = readouts.half_life_text(run)
        self.explanation.value = readouts.explained(run, self.chosen)
        for preset, one in zip(self.presets, self.preset_buttons, strict=True):
            one.tooltip = preset.promised(run)
        self.status.value = readouts.status(run, player)
        self.taylor.show()
        error = player.error
        self._fail(f"Training stopped after step {run.steps:,}. {type(error).__name__}: {error}" if error else "")


def _names(hide: Iterable[str]) -> set[str]:
    """The names to hide. Raises TypeError, ValueError."""
    known = (*LIVE, *RESTARTS, *_BUTTONS, *PARTS)
    try:
        names = [hide] if isinstance(hide, str) else list(hide)
    except TypeError:
        raise TypeError(f"hide must be a list of names, got {got(hide)}; valid: {', '.join(known)}") from None
    if unknown := [name for name in names if not isinstance(name, str) or name not in known]:
        raise ValueError(f"hide has {got(unknown[0])}; valid: {', '.join(known)}")
    return set(names)
