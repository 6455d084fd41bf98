"""The playground's widget: buttons, knobs with their read-outs, presets, one figure of all plots, the state line."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import ipywidgets as widgets
import torch

from gsm_lab import figures
from gsm_lab.figures.dashboard import LAYERS_SHOWN
from gsm_lab.knobs import KNOBS, checked
from gsm_lab.notebook import readouts
from gsm_lab.notebook.browser import STYLE, Figure, Viewer
from gsm_lab.notebook.closing import close_all, forget_output
from gsm_lab.notebook.controls import ChoiceControl, KnobControl
from gsm_lab.notebook.player import Player
from gsm_lab.notebook.presets import PRESETS, Preset
from gsm_lab.notebook.readouts import got
from gsm_lab.notebook.step_inspector import TaylorView
from gsm_lab.training.run import Run

LIVE = tuple(name for name, knob in KNOBS.items() if knob.control and knob.live)
RESTARTS = tuple(name for name, knob in KNOBS.items() if knob.control and not knob.live)
_current: weakref.ReferenceType[Playground] | None = None
_taking_over = threading.Lock()
PARTS = ("buttons", "readouts", "presets", "figure", "taylor", "state")
_BUTTONS = {
    "play": ("Play", "play", "success", "train until Pause"),
    "pause": ("Pause", "pause", "", "stop after this step"),
    "step": ("Step", "step-forward", "", "pause, then one step"),
    "step_50": ("Step 50", "fast-forward", "", "pause, then 50 steps"),
    "reset": ("Reset", "undo", "", "begin again with the same seed and the knobs as they are"),
    "new_seed": ("New seed", "random", "", "begin again with other initial weights and another order of the batches"),
}


class Playground(widgets.VBox):
    """Play, pause, step and reset a run, and drag its knobs while it trains.

    Args:
        run: what to play with; by default LeNet-300-100 on the digits at 60x, at a constant learning rate. Its knobs
            stand where the run has them; those that a rival takes no notice of are left out.
        hide: names of controls and parts not to show, for teachers: any of the knobs compression, momentum,
            weight_decay, lr, smoothing, model, data, batch_size, seed; the buttons play, pause, step, step_50, reset,
            new_seed; the parts buttons, readouts, presets, figure, taylor, state. What is hidden still works from code.
            Without taylor, the view of single steps under the four plots, no step is looked at closely.

    Its steps are computed with one thread less than PyTorch had when it was made, where it had several: the page needs
    a core too. So they may differ in the last digits from those of a run that trains without a page.

    Everything works without a mouse: `play()`, `pause()`, `step(n)`, `reset()`, `set(momentum=0.99)`, `state`,
    `load_state(line)`, `picture()`. A new playground closes the one before.

    Raises:
        TypeError: a `run` that is none, or a `hide` that is not a list of names.
        ValueError: a name in `hide` that is none of these.
    """

    player: Player | None = None

    def __init__(self, run: Run | None = None, hide: Iterable[str] = ()) -> None:
        global _current
        if not isinstance(run, Run | None):
            raise TypeError(
                f"run must be a gsm_lab.Run, as Run('lenet300', 'digits') makes it, got {readouts.got(run)}"
            )
        known = (*LIVE, *RESTARTS, *_BUTTONS, *PARTS)
        try:
            hide = [hide] if isinstance(hide, str) else list(hide)
        except TypeError:
            raise TypeError(f"hide must be a list of names, got {got(hide)}; valid: {', '.join(known)}") from None
        if unknown := [name for name in hide if not isinstance(name, str) or name not in known]:
            raise ValueError(f"hide has {got(unknown[0])}; valid: {', '.join(known)}")
        self.run = Run(hold=1.0) if run is None else run
        knobs = self.run.knobs
        self.controls: dict[str, KnobControl | ChoiceControl] = {
            name: (ChoiceControl if KNOBS[name].choices else KnobControl)(KNOBS[name], knobs[name], self._moved)
            for name in (*LIVE, *RESTARTS)
            if name not in self.run.method.ignores
        }
        self.presets = [p for p in PRESETS if p.fits(self.run)]
        self.buttons = {name: self._button(name, *look) for name, look in _BUTTONS.items()}
        self.status, self.failure, self.budget, self.half_life, self.state_note = (widgets.HTML() for _ in range(5))
        self.status.add_class("gsm-status")
        self.explanation = widgets.HTML(readouts.explained(PRESETS[0]))
        self.taylor = TaylorView(self.run, shown="taylor" not in hide)
        self.figure = Figure(figures.dashboard(self.run.history, slots=LAYERS_SHOWN, taylor=self.taylor.looks()))
        self.figure._config = {"responsive": True, "displaylogo": False}
        self.state_line = widgets.Text(placeholder="paste a state here, or press Copy state", continuous_update=True)
        self.viewer = Viewer()
        super().__init__(self._laid_out(set(hide)))
        self.add_class("gsm-playground")
        self.player = Player(self.run, self._draw, threads=max(1, torch.get_num_threads() - 1))
        self.taylor.follow(self.player)
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

    def step(self, n: int = 1) -> None:
        """Pause and do `n` steps; returns when they are done and drawn."""
        self.player.pause()
        self.taylor.expect(n)
        self.player.step(n)
        self._draw()

    def set(self, **knobs: Any) -> None:
        """Move live knobs, as their controls would. Raises ValueError, before anything moves, for what is not valid."""
        checked(knobs, live_only=True)
        with self._between_steps():
            self.run.set(**knobs)
        self._show_knobs()

    def reset(self, **knobs: Any) -> None:
        """Pause and begin again, with the same seed unless another is given; any knob may change."""
        self.player.pause()
        with self._between_steps():
            self.run.reset(**knobs)
        self.player.error, self.player.note = None, ""
        self._show_knobs()
        self._draw()

    @property
    def state(self) -> str:
        """All settings as one line of JSON, for `load_state` here or elsewhere."""
        return json.dumps({"gsm_lab": 1, "knobs": self.run.knobs})

    def load_state(self, line: str) -> None:
        """Begin again with the settings of a `state`; what it does not name stays as it is.

        Raises TypeError or ValueError, before anything changes, if it is none, or one of a model or data set that
        is neither here nor has a name of gsm_lab's.
        """
        self.reset(**readouts.read_state(line, self.run))

    def picture(self) -> Any:
        """The plots as they are, as a PNG for readers without a kernel (an `IPython.display.Image`)."""
        from IPython.display import Image

        with self.player.exclusive():
            figure = figures.dashboard(self.run.history, taylor=self.taylor.looks())
        return Image(figures.static(figure))

    def close(self) -> None:
        """End the training thread and remove the widget, with all it is made of; nothing then keeps it or its run."""
        if self.player is not None:
            self.player.close()
            self.taylor.close()
            close_all([self, self.taylor.text])
        forget_output(self)

    def __repr__(self) -> str:
        return f"Playground({self.run.knobs['model']} on {self.run.knobs['data']})"

    # -- with one: callbacks leave a message for the player's thread -------------------------------------------------

    def _button(self, name: str, text: str, icon: str, style: str, tooltip: str) -> widgets.Button:
        button = widgets.Button(description=text, icon=icon, button_style=style, tooltip=tooltip)
        button.layout.width = "auto"
        button.add_class(f"gsm-button-{name}")
        button.on_click(lambda _: self._pressed(name))
        return button

    def _pressed(self, name: str) -> None:
        steps = {"play": None, "step": 1, "step_50": 50}
        actions = {
            "pause": lambda: None,
            "reset": lambda: self._restart({}),
            "new_seed": lambda: self._restart({"seed": self.run.knobs["seed"] + 1}),
        }
        if name in steps:
            self._ask(lambda: self.player.play(steps[name]))
        else:
            self._ask(lambda: self.player.post(actions[name]), pause=True)

    def _ask(self, request: Callable[[], None], pause: bool = False) -> None:
        """Ask the player for something; one that another playground has closed says so instead."""
        if pause:
            self.player.playing = False
        try:
            request()
        except RuntimeError as error:
            self._fail(str(error))

    def _moved(self, name: str, value: Any) -> None:
        if KNOBS[name].live:
            self._ask(lambda: self.player.post(lambda: self.run.set(**{name: value})))
            return
        control = self.controls[name]

        def refused(reason: str) -> None:
            control.show(self.run.knobs[name])
            control.complain(reason)

        self._ask(lambda: self.player.post(lambda: self._restart({name: value}, refused)), pause=True)

    def _restart(self, knobs: dict[str, Any], refused: Callable[[str], None] | None = None) -> None:
        """On the player's thread; a setting that cannot be had (no data, too large a batch) is said where it was made.

        Without such a place the reason is raised.
        """
        try:
            self.run.reset(**knobs)
        except (ValueError, OSError) as error:
            if refused is None:
                raise
            refused(str(error))
            return
        self.player.error, self.player.note = None, ""
        self._show_knobs()

    def _chosen(self, preset: Preset) -> None:
        self.explanation.value = readouts.explained(preset)
        self._ask(lambda: self.player.post(lambda: (self.run.set(**preset.knobs), self._show_knobs())))

    def _copied(self, _: Any) -> None:
        self.state_line.value = self.state
        self.viewer.send({"copy": self.state})

    def _loaded(self, _: Any) -> None:
        def refused(reason: str) -> None:
            _set(self.state_note, f"<span class='gsm-wrong' role='alert'>{escape(reason)}</span>")

        try:
            knobs = readouts.read_state(self.state_line.value, self.run)
        except ValueError as error:
            refused(str(error))
            return
        _set(self.state_note, "")
        self._ask(lambda: self.player.post(lambda: self._restart(knobs, refused)), pause=True)

    def _heard(self, _: Any, content: dict[str, Any], buffers: Any = None) -> None:
        if "seen" in content:
            self.player.acknowledge(content["seen"])
        if content.get("opened"):  # what a page shows when it is opened again is what the figure began with
            self.player.watched = True
            self.player.refresh()

    # -- showing ---------------------------------------------------------------------------------------------------

    def _between_steps(self) -> Any:
        return self.player.exclusive()

    def _draw(self) -> int:
        """Send what has changed; on the player's thread, or on the caller's while that one rests."""
        with self.player.lock:
            looks = self.taylor.looks()
            self._show_readouts()
            with self.figure.batch_update():
                figures.update(self.figure, self.run.history, looks)
            self.viewer.frame += 1
            return self.viewer.frame

    def _show_knobs(self) -> None:
        for name, control in self.controls.items():
            if control.value != self.run.knobs[name] or control.note.value:
                control.show(self.run.knobs[name])
        self._show_readouts()

    def _show_readouts(self) -> None:
        run, player = self.run, self.player
        _set(self.budget, readouts.budget_text(run))
        _set(self.half_life, readouts.half_life_text(run.lr, run.knobs))
        _set(self.status, readouts.status(run, player))
        self.taylor.show()
        error = player.error
        self._fail(f"Training stopped after step {run.steps:,}. {type(error).__name__}: {error}" if error else "")

    def _fail(self, text: str) -> None:
        _set(self.failure, f"<div class='gsm-error' role='alert'>{escape(text)}</div>" if text else "")

    def _laid_out(self, hide: set[str]) -> list[widgets.Widget]:
        def row(children: list[widgets.Widget], **layout: str) -> widgets.HBox:
            return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", **layout))

        grid = widgets.Layout(
            width="100%", grid_template_columns="repeat(auto-fit, minmax(430px, 1fr))", grid_gap="2px 28px"
        )
        presets = [widgets.Button(description=p.name, tooltip=p.explanation) for p in self.presets]
        for button, preset in zip(presets, self.presets, strict=True):
            button.layout.width = "auto"
            button.on_click(lambda _, preset=preset: self._chosen(preset))
        copy, load = widgets.Button(description="Copy state", icon="copy"), widgets.Button(description="Load state")
        copy.on_click(self._copied)
        load.on_click(self._loaded)
        self.preset_buttons, self.copy_button, self.load_button = presets, copy, load
        for name, button in (("copy", copy), ("load", load)):
            button.layout.width = "auto"
            button.add_class(f"gsm-button-{name}")
        self.state_line.layout.flex, self.state_line.layout.width = "1 1 300px", "auto"
        self.state_line.add_class("gsm-state")
        self.figure.layout.autosize = True
        buttons = [b for name, b in self.buttons.items() if name not in hide]
        parts = {
            "buttons": row([*buttons, self.status]),
            "live": widgets.GridBox(
                [self.controls[n] for n in LIVE if n in self.controls and n not in hide], layout=grid
            ),
            "readouts": row([self.budget, self.half_life], grid_gap="4px 40px"),
            "restarts": row([self.controls[n] for n in RESTARTS if n not in hide], grid_gap="2px 24px"),
            "presets": widgets.VBox([row([widgets.HTML("<b>Presets</b>"), *presets]), self.explanation]),
            "failure": self.failure,
            "figure": self.figure,
            "taylor": self.taylor.text,
            "state": widgets.VBox([row([copy, load, self.state_line]), self.state_note]),
        }
        self._parts = parts  # those that are not laid out too: what is not closed by name is kept, and with it the run
        shown = [part for name, part in parts.items() if name not in hide]
        return [widgets.HTML(STYLE), *shown, self.viewer]


def _set(widget: widgets.HTML, text: str) -> None:
    if widget.value != text:
        widget.value = text
