"""How large a pixel is: pixels per centimetre, (across, down), between files and ``Kind``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tifffile
from PIL import Image

Density = tuple[float, float]

INCH = 2.54  # cm
_LEAST, _MOST = 1e-3, 2e7  # per cm: pixels of ten metres to half a nanometre
_JPEG = 65_535  # dots per inch that a JPEG holds
_X, _Y, _UNIT, _DESCRIPTION = 282, 283, 296, 270  # tags of TIFF
_UNITS = {2: INCH, 3: 1.0}  # cm; 1 is none
_OF_IMAGEJ = {
    "micron": 1e-4, "um": 1e-4, "µm": 1e-4, "μm": 1e-4, "\\u00b5m": 1e-4, "nm": 1e-7, "mm": 0.1,
    "cm": 1.0, "m": 100.0, "inch": INCH, "inches": INCH,
}  # fmt: skip


def of_pillow(image: Image.Image) -> Density | None:
    """Of a picture that Pillow has opened; None where it is not said, or only the pixels' shape."""
    if image.format == "TIFF":
        return _of_tags(image.tag_v2.get)
    return _checked(image.info.get("dpi"), INCH)


def of_page(page: tifffile.TiffPage) -> Density | None:
    """Of a page of a TIFF."""
    return _of_tags(lambda tag: getattr(page.tags.get(tag), "value", None))


def _of_tags(tag: Callable[[int], Any]) -> Density | None:
    try:
        return of_tags({number: tag(number) for number in (_X, _Y, _UNIT, _DESCRIPTION)})
    except Exception:  # whatever is raised on bytes from outside
        return None


def of_tags(tags: Mapping[int, Any]) -> Density | None:
    """Of the tags of a TIFF; ImageJ has other units than TIFF knows in its description."""
    unit, description = tags.get(_UNIT), tags.get(_DESCRIPTION)
    unit = INCH if unit is None else _UNITS.get(unit)
    if unit is None and isinstance(description, str) and description.startswith("ImageJ="):
        lines = dict(line.partition("=")[::2] for line in description.splitlines())
        unit = _OF_IMAGEJ.get(lines.get("unit", "").strip().lower())
    return _checked((tags.get(_X), tags.get(_Y)), unit) if unit else None


def _checked(pair: Any, unit: float) -> Density | None:
    """Pixels per ``unit`` cm as a density; None if it is none: it comes from outside."""
    try:
        across, down = (_number(value) / unit for value in pair)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    sane = all(math.isfinite(v) and _LEAST < v < _MOST for v in (across, down))
    return (across, down) if sane else None


def _number(value: Any) -> float:
    return value[0] / value[1] if isinstance(value, tuple) else float(value)


def pillow_options(density: Density | None, name: str) -> dict[str, Any]:
    """What Pillow is to write of it into a PNG, BMP, TIFF or JPEG, whatever ``name`` says."""
    if density is None:
        return {}
    across, down = density
    if name == "TIFF":
        return {"resolution_unit": "cm", "x_resolution": across, "y_resolution": down}
    dots = (across * INCH, down * INCH)
    beyond = name == "JPEG" and not (min(dots) >= 1 and max(dots) <= _JPEG)
    return {} if beyond else {"dpi": dots}


def tiff_options(density: Density | None) -> dict[str, Any]:
    """What tifffile is to write of it."""
    return {} if density is None else {"resolution": density, "resolutionunit": "CENTIMETER"}


def per_metre(density: Density) -> tuple[int, int]:
    """Pixels per metre, at least 1, as PNG has it."""
    across, down = (max(round(100 * value), 1) for value in density)
    return across, down
