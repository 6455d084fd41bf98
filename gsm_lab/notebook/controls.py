"""The widgets of one knob: a slider on its own scale with an entry for exact values, or a choice; where they stand."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets

from gsm_lab.knobs import Knob

Changed = Callable[[str, Any], None]
NOTCHES = 200  # of a slider; an arrow key moves one


class _Control(widgets.VBox):
    """A knob's label; what sets it, of which `entry` turns red; a note of what is wrong."""

    def __init__(self, knob: Knob, changed: Changed, entry: widgets.Widget, *before: widgets.Widget) -> None:
        self.knob, self.entry, self._changed, self._quiet = knob, entry, changed, False
        unit = f" <small>({escape(knob.unit)})</small>" if knob.unit else ""
        self.label = widgets.HTML(f"<b>{escape(knob.label or knob.name)}</b>{unit}")
        self.note = widgets.HTML(layout={"display": "none"})
        row = widgets.HBox([self.label, *before, entry], layout={"align_items": "center"})
        super().__init__([row, self.note])
        self.add_class("gsm-knob")

    def show(self, value: Any) -> None:
        """Stand at `value` without telling anybody."""
        self._quiet = True
        try:
            self._stand_at(value)
        finally:
            self._quiet = False
        self.complain("")

    def complain(self, reason: str) -> None:
        """Turn red and say why; with an empty reason, all is well."""
        self.note.value = f"<span class='gsm-wrong' role='alert'>{escape(reason)}</span>" if reason else ""
        self.note.layout.display = "" if reason else "none"
        self.entry.style.background = "#FFE3E6" if reason else None
        self.entry.style.text_color = "#B00020" if reason else None
        (self.add_class if reason else self.remove_class)("gsm-invalid")


class KnobControl(_Control):
    """A slider with an entry beside it, kept in step; a wrong entry turns red and says why, and changes nothing.

    Args:
        knob: what it sets.
        value: where it stands.
        changed: called with (name, value) when a person moves it, not when the program does.

    `slider` and `entry` have the classes `gsm-slider-NAME` and `gsm-entry-NAME`.
    """

    def __init__(self, knob: Knob, value: Any, changed: Changed) -> None:
        self.slider = widgets.FloatSlider(
            min=0.0, max=1.0, step=1 / NOTCHES, readout=False, tooltip=knob.help,
            layout={"flex": "1 1 auto", "min_width": "50px"},
        )  # fmt: skip
        entry = widgets.Text(continuous_update=False, tooltip=knob.valid, layout={"width": "76px"})
        super().__init__(knob, changed, entry, *([self.slider] if knob.live else []))
        self.label.layout.width, self.label.layout.flex = "166px" if knob.live else "auto", "0 0 auto"
        self.label.tooltip = knob.help
        self.slider.add_class(f"gsm-slider-{knob.name}")
        entry.add_class(f"gsm-entry-{knob.name}")
        self.show(value)
        self.slider.observe(self._slid, "value")
        entry.observe(self._entered, "value")

    @property
    def value(self) -> Any:
        """The value it stands at; setting it moves slider and entry, and is as good as a person's move."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self.show(self.knob.check(value))
        self._changed(self.knob.name, self._value)

    def _stand_at(self, value: Any) -> None:
        self._value = value
        # The nearest place where the browser's slider can stand; from any other it would move by itself, and say so.
        self.slider.value = round(self.knob.position(value) * NOTCHES) / NOTCHES
        self.entry.value = f"{value:g}" if isinstance(value, float) else str(value)

    def _slid(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self.value = self.knob.at(change["new"])

    def _entered(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        try:
            self.value = change["new"]
        except ValueError as error:
            self.complain(str(error))


class ChoiceControl(_Control):
    """A knob with a fixed set of names, as a drop-down list; `value` and `show` as in `KnobControl`."""

    def __init__(self, knob: Knob, value: str, changed: Changed) -> None:
        options = list(knob.choices) if value in knob.choices else [value]
        self.select = widgets.Dropdown(
            options=options, value=value, disabled=len(options) == 1, tooltip=knob.help, layout={"width": "130px"}
        )
        super().__init__(knob, changed, self.select)
        self.label.layout.width = "auto"
        self.select.add_class(f"gsm-select-{knob.name}")
        self.select.observe(self._selected, "value")

    @property
    def value(self) -> str:
        """The name that is chosen."""
        return self.select.value

    @value.setter
    def value(self, value: str) -> None:
        self.select.value = value

    def _stand_at(self, value: str) -> None:
        if value not in self.select.options:  # back from a state to a model or data set of one's own, or from it
            self.select.options = (*self.select.options, value)
        self.select.value = value

    def _selected(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self._changed(self.knob.name, change["new"])


# -- where they and the rest stand, from top to bottom -----------------------------------------------------------------


def button(
    text: str, icon: str, style: str, tooltip: str, clicked: Callable[[], None], name: str = ""
) -> widgets.Button:
    """A button as wide as its text, with the class `gsm-button-NAME` if it has a name."""
    made = widgets.Button(description=text, icon=icon, button_style=style, tooltip=tooltip, layout={"width": "auto"})
    if name:
        made.add_class(f"gsm-button-{name}")
    made.on_click(lambda _: clicked())
    return made


def badge(live: bool) -> widgets.HTML:
    """Says how the knobs behind it move."""
    text, when = ("live", "act at the next step") if live else ("restarts", "begin again")
    return widgets.HTML(f"<span class='gsm-{text}' title='these {when}'>{text}</span>")


def parts(pg: Any, hide: set[str]) -> dict[str, widgets.Widget]:
    """All parts in order, by the names under which they can be hidden; hidden buttons and controls are in none."""
    controls = [control for name, control in pg.controls.items() if name not in hide]
    live, restarts = ([c for c in controls if c.knob.live is how] for how in (True, False))
    pg.state_line.layout.flex, pg.state_line.layout.width = "1 1 300px", "auto"
    pg.state_line.add_class("gsm-state")
    pg.figure.layout.autosize = True
    knobs = widgets.Box([*live, badge(True)] if live else [])
    knobs.add_class("gsm-knobs")
    presets = _row([widgets.HTML("<b>Presets</b>"), *pg.preset_buttons])
    files = _row([widgets.HTML("Save as"), *pg.save_buttons, pg.file_note], grid_gap="0 2px")
    return {
        "buttons": _row([*(one for name, one in pg.buttons.items() if name not in hide), pg.status]),
        "live": widgets.VBox([knobs]),
        "readouts": _row([pg.budget, pg.half_life], grid_gap="0 40px"),
        "presets": widgets.VBox([presets, pg.explanation]),
        "failure": pg.failure,
        "views": _row([pg.views.tabs, pg.views.steps, files], grid_gap="0 18px"),
        "figure": pg.figure,
        "taylor": pg.taylor.text,
        "network": pg.views.note,
        "restarts": _row([badge(False), *restarts] if restarts else [], grid_gap="0 18px"),
        "kept": _row([pg.keep_button, pg.kept_menu, pg.back_button]),
        "state": widgets.VBox([_row([pg.copy_button, pg.load_button, pg.state_line]), pg.state_note]),
    }


def _row(children: list[widgets.Widget], **layout: str) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", **layout))
