"""Grids of runs: from a YAML file to run folders, figures and a table, here or on a cluster."""

from .command import main

__all__ = ["main"]
