"""The networks, by name; every file here is imported and registers the family in it."""

from importlib import import_module
from pkgutil import iter_modules

from . import upsamplers
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
    "get",
    "input_size",
    "names",
    "register",
    "upsamplers",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
