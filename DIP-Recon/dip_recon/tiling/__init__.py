"""Pictures larger than memory: restored tile by tile, on one machine or many, and joined."""

from .layout import Layout
from .tiles import Tiles, too_large

__all__ = ["Layout", "Tiles", "too_large"]
