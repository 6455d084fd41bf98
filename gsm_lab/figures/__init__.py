"""Figures: tables and histories in, `plotly.graph_objects.Figure` out; nothing here trains.

One module for each study, imported when first used: `communication`, `convergence`,
`network`, `reactivation`, `rivals`, `sensitivity`, `taylor`, `trajectories`.
"""

from importlib import import_module
from types import ModuleType

from gsm_lab.figures.arrangement import Arrangement, arrange
from gsm_lab.figures.dashboard import add_network, dashboard, marks, update
from gsm_lab.figures.headlines import PANELS, title_texts
from gsm_lab.figures.history_lines import curves
from gsm_lab.figures.pictures import static
from gsm_lab.figures.style import line, lines, show

__all__ = [
    "PANELS", "Arrangement", "add_network", "arrange", "curves", "dashboard", "line", "lines", "marks", "show",
    "static", "title_texts", "update",
]  # fmt: skip

_STUDIES = (
    "communication",
    "convergence",
    "network",
    "reactivation",
    "rivals",
    "sensitivity",
    "taylor",
    "trajectories",
)


def __getattr__(name: str) -> ModuleType:
    if name in _STUDIES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
