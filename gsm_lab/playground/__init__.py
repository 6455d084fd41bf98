"""`Playground`, a run to play with, and `explore`, a figure with menus. The only room that imports ipywidgets."""

from gsm_lab.playground.board import Playground
from gsm_lab.playground.explore import explore
from gsm_lab.playground.presets import PRESETS, Preset

__all__ = ["PRESETS", "Playground", "Preset", "explore"]
