"""Playgrounds for tests, and what a person does with one."""

import threading
import time
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import torch
from torch import nn

from gsm_lab import Dataset, Playground

SECONDS = 120  # that something may take before a test gives up on it


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


def mine() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (rng.normal(size=(3, 6))[y] + rng.normal(size=(90, 6))).astype(np.float32)
    return Dataset(x[:60], y[:60], x[60:], y[60:], name="corners")


def until(pg: Playground, condition: Callable[[], bool]) -> None:
    """Wait, turn by turn of the player's thread, until it holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        settle(pg)


def settle(pg: Playground) -> None:
    """Wait until all that was asked for has been done."""
    event = threading.Event()
    pg.player.post(event.set)
    assert event.wait(SECONDS)


def press(pg: Playground, name: str) -> None:
    """Press a button and wait until all is done."""
    pg.buttons[name].click()
    settle(pg)
    if name != "play":
        until(pg, lambda: not pg.player.playing)
    pg._draw()


def enter(pg: Playground, name: str, text: str) -> None:
    """Type into an entry, and Enter."""
    pg.controls[name].entry.value = text
    settle(pg)
    pg._draw()


def red(pg: Playground, name: str) -> str:
    """The reason a control is red, or nothing."""
    control = pg.controls[name]
    assert (
        ("gsm-invalid" in control._dom_classes) == bool(control.note.value) == (control.note.layout.display != "none")
    )
    assert bool(control.note.value) == bool(control.entry.style.background) or isinstance(
        control.entry, widgets.Dropdown
    )
    return control.note.value


def inside(widget: widgets.Widget) -> list[widgets.Widget]:
    """A widget and all in it."""
    return [widget, *(one for child in getattr(widget, "children", ()) for one in inside(child))]
