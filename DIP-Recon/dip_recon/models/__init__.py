"""The networks, by name; each family is a file and registers itself when imported."""

from . import decoders, reproduction, skip, upsamplers
from .registry import (
    Entry,
    build,
    check_size,
    count_parameters,
    get,
    input_size,
    names,
    register,
)

__all__ = [
    "Entry",
    "build",
    "check_size",
    "count_parameters",
    "decoders",
    "get",
    "input_size",
    "names",
    "register",
    "reproduction",
    "skip",
    "upsamplers",
]
