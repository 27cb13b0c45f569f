"""Plots, drawn from run folders alone."""

from .responses import draw_responses
from .run import draw_run

__all__ = ["draw_responses", "draw_run"]
