"""Figures: tables and histories in, `plotly.graph_objects.Figure` out; nothing here trains."""

from gsm_lab.figures.dashboard import PANELS, curves, dashboard, marks, title_texts, update
from gsm_lab.figures.lines import lines
from gsm_lab.figures.style import line, show, static

__all__ = ["PANELS", "curves", "dashboard", "line", "lines", "marks", "show", "static", "title_texts", "update"]
