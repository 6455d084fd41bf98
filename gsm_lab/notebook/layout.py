"""Where the playground's widgets stand, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets


def button(
    text: str, icon: str, style: str, tooltip: str, clicked: Callable[[], None], name: str = ""
) -> widgets.Button:
    """A button as wide as its text, with the class `gsm-button-NAME` if it has a name."""
    made = widgets.Button(description=text, icon=icon, button_style=style, tooltip=tooltip, layout={"width": "auto"})
    if name:
        made.add_class(f"gsm-button-{name}")
    made.on_click(lambda _: clicked())
    return made


def parts(pg: Any, hide: set[str]) -> dict[str, widgets.Widget]:
    """All parts in order, by the names under which they can be hidden; hidden buttons and controls are in none."""
    controls = [control for name, control in pg.controls.items() if name not in hide]
    live = [control for control in controls if control.knob.live]
    pg.state_line.layout.flex, pg.state_line.layout.width = "1 1 300px", "auto"
    pg.state_line.add_class("gsm-state")
    pg.figure.layout.autosize = True
    grid = widgets.Layout(
        width="100%", grid_template_columns="repeat(auto-fit, minmax(430px, 1fr))", grid_gap="2px 28px"
    )
    presets = _row([widgets.HTML("<b>Presets</b>"), *pg.preset_buttons])
    return {
        "buttons": _row([*(one for name, one in pg.buttons.items() if name not in hide), pg.status]),
        "live": widgets.GridBox(live, layout=grid),
        "readouts": _row([pg.budget, pg.half_life], grid_gap="4px 40px"),
        "restarts": _row([control for control in controls if not control.knob.live], grid_gap="2px 24px"),
        "presets": widgets.VBox([presets, pg.explanation]),
        "failure": pg.failure,
        "figure": pg.figure,
        "taylor": pg.taylor.text,
        "state": widgets.VBox([_row([pg.copy_button, pg.load_button, pg.state_line]), pg.state_note]),
    }


def _row(children: list[widgets.Widget], **layout: str) -> widgets.HBox:
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", **layout))
