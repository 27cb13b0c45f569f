"""Pictures larger than memory: restored tile by tile, on one machine or many, and joined."""

from .layout import Layout
from .tiles import Tiles

__all__ = ["Layout", "Tiles"]
