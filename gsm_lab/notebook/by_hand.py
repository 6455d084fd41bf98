"""What a playground does when somebody presses, drags or types: callbacks that leave a message for its player.

A callback may come on any thread, so it computes nothing and waits for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from html import escape
from typing import Any

from IPython.display import display

from gsm_lab.knobs import KNOBS
from gsm_lab.notebook import export, readouts
from gsm_lab.notebook.kept import Kept
from gsm_lab.notebook.presets import Preset

# Said where a board's place is empty, or says "model not found": the style that comes with a board hides it.
_LOST = (
    '<div class="gsm-lost">The board above lives in a kernel. Where it is not shown, that kernel has ended, or this '
    "page has lost it: run this cell again to have it here.</div>"
)


class Asking:
    """What any widget with a `player` and a line `failure` shares: callbacks, and how it gets into a page."""

    def _ipython_display_(self, **options: Any) -> None:
        display(self._repr_mimebundle_(**options), raw=True)
        display({"text/html": _LOST, "text/plain": ""}, raw=True)

    def _ask(self, request: Callable[[], None], pause: bool = False) -> None:
        """Ask the player for something; where another has closed it, the page says so."""
        if pause:
            self.player.playing = False
        try:
            request()
        except RuntimeError as error:
            self._fail(str(error))

    def _fail(self, text: str) -> None:
        self.failure.value = f"<div class='gsm-error' role='alert'>{escape(text)}</div>" if text else ""

    def _watched(self, content: dict[str, Any]) -> None:
        """What the page says of frames and views."""
        if "seen" in content:
            self.player.acknowledge(content["seen"])
        if content.get("opened"):
            self.player.watched = True
            self.player.refresh()


class ByHand(Asking):
    """The callbacks of a `Playground`."""

    def _pressed(self, name: str) -> None:
        steps = {"play": None, "step": 1, "step_50": 50}
        actions = {
            "pause": lambda: None,
            "reset": lambda: self._restart({}),
            "new_seed": lambda: self._restart({"seed": self.run.settings.seed + 1}),
        }
        if name in steps:
            self._ask(lambda: self.player.play(steps[name]))
        else:
            self._ask(lambda: self.player.post(actions[name]), pause=True)

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
        """Begin again, between two steps. `refused` is told why the run cannot have a setting; else that is raised."""
        try:
            self.run.reset(**knobs)
        except (ValueError, OSError) as error:
            if refused is None:
                raise
            refused(str(error))
            return
        self.player.error, self.player.note = None, ""
        self._show_knobs()

    def _keeping(self) -> None:
        self._ask(lambda: self.player.post(lambda: self._show_kept(self.shelf.keep(self.run).name)))

    def _coming(self) -> None:
        if (name := self.kept_menu.value) is not None:
            self._ask(lambda: self.player.post(lambda: self._come_back(self.shelf[name])), pause=True)

    def _come_back(self, kept: Kept) -> None:
        kept.back_into(self.run)
        self.player.error, self.player.note = None, ""
        self._show_knobs()

    def _show_kept(self, name: str) -> None:
        self.kept_menu.options = [(kept.line, kept.name) for kept in self.shelf]
        self.kept_menu.value, self.kept_menu.disabled = name, False

    def _chosen(self, preset: Preset) -> None:
        self.chosen = preset
        self._ask(lambda: self.player.post(lambda: (self.run.set(**preset.knobs), self._show_knobs())))

    def _copied(self) -> None:
        self.state_line.value = self.state
        self.viewer.send({"copy": self.state})

    def _loaded(self) -> None:
        def refused(reason: str) -> None:
            self.state_note.value = f"<span class='gsm-wrong' role='alert'>{escape(reason)}</span>"

        try:
            knobs = readouts.read_state(self.state_line.value, self.run)
        except ValueError as error:
            refused(str(error))
            return
        self.state_note.value, self.chosen = "", None
        self._ask(lambda: self.player.post(lambda: self._restart(knobs, refused)), pause=True)

    def _refresh(self) -> None:
        """Somebody has chosen what to see: draw it, on the player's thread."""
        self._ask(lambda: self.player.post(lambda: None))

    def _saving(self, kind: str) -> None:
        """A file for the page to keep, made on a thread of its own: a picture takes seconds."""

        def make() -> None:
            try:
                contents = self._written(kind)
            except RuntimeError as error:
                self.file_note.value = f"<span class='gsm-wrong' role='alert'>{escape(str(error))}</span>"
                return
            self.file_note.value = ""
            name = f"{self.run.settings.model}-{self.run.knobs['data']}-step-{self.run.steps}.{kind}"
            self.viewer.send({"file": name, "type": export.KINDS[kind]}, [contents])

        threading.Thread(target=make, daemon=True, name="gsm_lab file").start()

    def _written(self, kind: str) -> bytes:
        about = f"{self!r}, step {self.run.steps:,}"
        return export.written(self._whole(), kind, about, self.state)

    def _whole(self) -> Any:
        with self.player.exclusive():
            return self.views.whole()

    def _heard(self, _: Any, content: dict[str, Any], buffers: Any = None) -> None:
        if "width" in content:
            self.views.sized(content["width"], content.get("page"))
        self._watched(content)
