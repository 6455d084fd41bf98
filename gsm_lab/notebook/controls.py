"""The widgets of one knob: a slider on the knob's own scale and an entry for exact values, or a choice."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets

from gsm_lab.knobs import Knob

Changed = Callable[[str, Any], None]
NOTCHES = 200  # of a slider; an arrow key moves one
_WRONG = "#B00020"


def formatted(value: Any) -> str:
    """A value as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _notch(position: float) -> float:
    """The nearest place where the browser's slider can stand; from any other it would move by itself, and say so."""
    return round(position * NOTCHES) / NOTCHES


def _row(children: list[widgets.Widget]) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(align_items="center"))


class KnobControl(widgets.VBox):
    """A slider with an entry beside it, kept in step; a wrong entry turns red and says why, and changes nothing.

    Args:
        knob: what it sets.
        value: where it stands.
        changed: called with (name, value) when a person moves it, not when the program does.

    `slider` and `entry` have the classes `gsm-slider-NAME` and `gsm-entry-NAME`.
    """

    def __init__(self, knob: Knob, value: Any, changed: Changed) -> None:
        self.knob, self._value, self._changed, self._quiet = knob, value, changed, False
        moves = "live" if knob.live else "restarts"
        unit = f" ({knob.unit})" if knob.unit else ""
        badge = f"<span class='gsm-{moves}'>{moves}</span>"
        self.label = widgets.HTML(f"<b>{escape(knob.label or knob.name)}</b>{escape(unit)} {badge}")
        self.slider = widgets.FloatSlider(
            value=_notch(knob.position(value)), min=0.0, max=1.0, step=1 / NOTCHES, readout=False, tooltip=knob.help
        )
        self.entry = widgets.Text(value=formatted(value), continuous_update=False, tooltip=knob.valid)
        self.note = widgets.HTML()
        self.label.layout.width, self.label.layout.flex = "244px" if knob.live else "auto", "0 0 auto"
        self.slider.layout.flex, self.slider.layout.min_width = "1 1 auto", "60px"
        self.entry.layout.width, self.note.layout.display = "86px", "none"
        self.slider.add_class(f"gsm-slider-{knob.name}")
        self.entry.add_class(f"gsm-entry-{knob.name}")
        self.label.tooltip = knob.help
        row = [self.label, self.slider, self.entry] if knob.live else [self.label, self.entry]
        super().__init__([_row(row), self.note])
        self.slider.observe(self._slid, "value")
        self.entry.observe(self._entered, "value")

    @property
    def value(self) -> Any:
        """The value it stands at; setting it moves slider and entry, and is as good as a person's move."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self.show(self.knob.check(value))
        self._changed(self.knob.name, self._value)

    def show(self, value: Any) -> None:
        """Stand at `value` without telling anybody."""
        self._value = value
        self._quiet = True
        try:
            self.slider.value = _notch(self.knob.position(value))
            self.entry.value = formatted(value)
        finally:
            self._quiet = False
        self.complain("")

    def complain(self, reason: str) -> None:
        """Turn red and say why; with an empty reason, all is well."""
        self.note.value = f"<span class='gsm-wrong' role='alert'>{escape(reason)}</span>" if reason else ""
        self.note.layout.display = "" if reason else "none"
        self.entry.style.background = "#FFE3E6" if reason else None
        self.entry.style.text_color = _WRONG if reason else None
        (self.add_class if reason else self.remove_class)("gsm-invalid")

    def _slid(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self.value = self.knob.at(change["new"])

    def _entered(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        try:
            value = self.knob.check(change["new"])
        except ValueError as error:
            self.complain(str(error))
            return
        self.value = value


class ChoiceControl(widgets.VBox):
    """A knob with a fixed set of names, as a drop-down list; `value` and `show` as in `KnobControl`."""

    def __init__(self, knob: Knob, value: str, changed: Changed) -> None:
        self.knob, self._changed, self._quiet = knob, changed, False
        options = list(knob.choices) if value in knob.choices else [value]
        self.label = widgets.HTML(
            f"<b>{escape(knob.label or knob.name)}</b> <span class='gsm-restarts'>restarts</span>"
        )
        self.select = widgets.Dropdown(options=options, value=value, disabled=len(options) == 1, tooltip=knob.help)
        self.select.layout.width, self.label.layout.width = "130px", "auto"
        self.select.add_class(f"gsm-select-{knob.name}")
        self.note = widgets.HTML()
        self.note.layout.display = "none"
        super().__init__([_row([self.label, self.select]), self.note])
        self.select.observe(self._selected, "value")

    @property
    def value(self) -> str:
        """The name that is chosen."""
        return self.select.value

    @value.setter
    def value(self, value: str) -> None:
        self.select.value = value

    def show(self, value: str) -> None:
        """Stand at `value` without telling anybody."""
        self._quiet = True
        try:
            if value not in self.select.options:  # back from a state to a model or data set of one's own, or from it
                self.select.options = (*self.select.options, value)
            self.select.value = value
        finally:
            self._quiet = False
        self.complain("")

    complain = KnobControl.complain

    @property
    def entry(self) -> widgets.Dropdown:
        """What turns red."""
        return self.select

    def _selected(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self._changed(self.knob.name, change["new"])
