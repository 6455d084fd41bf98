"""`Playground`: a run to play with, its knobs live while it trains. The only room that imports ipywidgets."""

from gsm_lab.playground.board import Playground
from gsm_lab.playground.presets import PRESETS, Preset

__all__ = ["PRESETS", "Playground", "Preset"]
