"""Image restoration with untrained networks (Deep Image Prior)."""

__version__ = "0.1.0"
