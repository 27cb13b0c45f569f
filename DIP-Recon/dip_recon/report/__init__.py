"""The web page of finished runs, made from run folders alone."""

from .page import write

__all__ = ["write"]
