"""Plots, drawn from run folders alone."""

from .paper import FIGURES, draw
from .responses import draw_responses
from .run import draw_run

__all__ = ["FIGURES", "draw", "draw_responses", "draw_run"]
