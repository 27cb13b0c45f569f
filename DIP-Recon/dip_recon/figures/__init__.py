"""Plots, drawn from run folders alone."""

from importlib import import_module

_IN = {"FIGURES": "paper", "draw": "paper", "draw_responses": "responses", "draw_run": "run"}
__all__ = ["FIGURES", "draw", "draw_responses", "draw_run"]


def __getattr__(name: str):
    if name not in _IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Matplotlib takes a second to import: not before something is drawn
    return getattr(import_module(f".{_IN[name]}", __name__), name)
