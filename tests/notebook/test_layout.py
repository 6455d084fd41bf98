"""What teachers can hide."""

from collections.abc import Callable

import ipywidgets as widgets
import pytest

from gsm_lab import Playground
from gsm_lab.notebook.playground import LIVE, RESTARTS
from tests.notebook.playgrounds import inside


def part(pg: Playground, name: str) -> widgets.Widget:
    if name in pg.controls:
        return pg.controls[name]
    if name in pg.buttons:
        return pg.buttons[name]
    parts = {"buttons": pg.status, "readouts": pg.half_life, "presets": pg.preset_buttons[0]}
    return (parts | {"figure": pg.figure, "taylor": pg.taylor.text, "state": pg.state_line})[name]


HIDEABLE = (
    *LIVE, *RESTARTS, "play", "pause", "step", "step_50", "reset", "new_seed", "buttons", "readouts", "presets",
    "figure", "taylor", "state",
)  # fmt: skip


@pytest.mark.parametrize("bit", range(len(HIDEABLE).bit_length()))
def test_what_is_hidden_is_not_shown_and_all_else_is(board: Callable[..., Playground], bit: int) -> None:
    """Each of two names is hidden in one of these playgrounds in which the other is shown."""
    one = [name for i, name in enumerate(HIDEABLE) if i >> bit & 1]
    for hide in (one, [name for name in HIDEABLE if name not in one]):
        pg = board(hide=hide)
        shown = inside(pg)
        assert pg.viewer in shown and pg.failure in shown
        for name in HIDEABLE:
            hidden = name in hide or (name in (*pg.buttons, "buttons") and "buttons" in hide)
            assert (part(pg, name) in shown) != hidden, (name, hide)


def test_what_is_hidden_works_from_code(board: Callable[..., Playground]) -> None:
    pg = board(hide=HIDEABLE)
    pg.step(3)
    pg.set(lr=0.2)
    pg.load_state(pg.state)
    assert pg.run.knobs["lr"] == 0.2


def test_hide_one_name_and_unknown(board: Callable[..., Playground]) -> None:
    assert "lr" in board(hide="lr").controls
    with pytest.raises(ValueError, match=r"hide has 'learning rate'; valid: compression, momentum"):
        Playground(hide=["lr", "learning rate"])
