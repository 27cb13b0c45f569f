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
X, Y, UNIT = 282, 283, 296  # tags of TIFF and EXIF
DESCRIPTION = 270
_UNITS = {2: INCH, 3: 1.0}  # cm; 1 is none
_OF_IMAGEJ = {
    "micron": 1e-4, "um": 1e-4, "µm": 1e-4, "μm": 1e-4, "\\u00b5m": 1e-4, "nm": 1e-7, "mm": 0.1,
    "cm": 1.0, "m": 100.0, "inch": INCH, "inches": INCH,
}  # fmt: skip


def of_pillow(image: Image.Image, described: str | None = None) -> Density | None:
    """Of a picture that Pillow has opened; None where it is not said, or only the pixels' shape.

    ``described``: what the first page of a TIFF says of all.
    """
    if image.format == "TIFF":
        return _of_tags(lambda tag: described if tag == DESCRIPTION else image.tag_v2.get(tag))
    # of a JPEG that says nothing Pillow tells 72 dots per inch
    said = image.format not in ("JPEG", "MPO") or image.info.get("jfif_unit") in (1, 2)
    density = _checked(image.info.get("dpi"), INCH) if said else None
    # EXIF tells it by all three tags, or not at all
    return density or _of_tags(lambda tag: image.getexif()[tag] if tag != DESCRIPTION else None)


def of_page(page: tifffile.TiffPage) -> Density | None:
    """Of a page of a TIFF; ImageJ describes a stack on its first."""

    def tag(number: int) -> Any:
        if number == DESCRIPTION:
            return page.parent.pages.first.description
        return getattr(page.tags.get(number), "value", None)

    return _of_tags(tag)


def _of_tags(tag: Callable[[int], Any]) -> Density | None:
    try:
        return of_tags({number: tag(number) for number in (X, Y, UNIT, DESCRIPTION)})
    except Exception:  # whatever is raised on bytes from outside
        return None


def of_tags(tags: Mapping[int, Any]) -> Density | None:
    """Of the tags of a TIFF; ImageJ has other units than TIFF knows in its description."""
    unit, description = tags.get(UNIT), tags.get(DESCRIPTION)
    unit = INCH if unit is None else _UNITS.get(unit)
    if unit is None and isinstance(description, str) and description.startswith("ImageJ="):
        lines = dict(line.partition("=")[::2] for line in description.splitlines())
        unit = _OF_IMAGEJ.get(lines.get("unit", "").strip().lower())
    return _checked((tags.get(X), tags.get(Y)), unit) if unit else None


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


def enlarged(density: Density, across: float, down: float) -> Density | None:
    """That of a picture with so many times the pixels; None where no pixel is as small or large."""
    return _checked((density[0] * across, density[1] * down), 1.0)


def pillow_options(density: Density | None, name: str) -> dict[str, Any]:
    """What Pillow is to write of it into a PNG, BMP, TIFF or JPEG, whatever ``name`` says; in a
    WebP it is among the EXIF, see ``with_tags``."""
    none = {"dpi": (0, 0)} if name == "BMP" else {}  # or Pillow says 96
    if density is None or name == "WEBP":
        return none
    across, down = density
    if name == "TIFF":
        return {"resolution_unit": "cm", "x_resolution": across, "y_resolution": down}
    held = _whole(density, INCH, 2**16 - 1) if name == "JPEG" else per_metre(density)
    return {"dpi": (across * INCH, down * INCH)} if held else none


def tiff_options(density: Density | None) -> dict[str, Any]:
    """What tifffile is to write of it."""
    return {} if density is None else {"resolution": density, "resolutionunit": "CENTIMETER"}


def per_metre(density: Density) -> tuple[int, int] | None:
    """Pixels per metre as PNG and BMP have it; see ``_whole``."""
    return _whole(density, 100, 2**31 - 1)


def with_tags(exif: bytes | None, density: Density | None) -> bytes | None:
    """EXIF that tells it too, for what has no other place for it."""
    if density is None:
        return exif
    notes = Image.Exif()
    notes.load(exif or b"")
    notes[X], notes[Y], notes[UNIT] = *density, 3
    return notes.tobytes()


def _whole(density: Density, unit: float, most: int) -> tuple[int, int] | None:
    """Pixels per ``unit`` cm as whole numbers of at most ``most``; None if that is not true to 2 %,
    because the pixels are as large as that."""
    across, down = (round(value * unit) for value in density)
    near = all(
        n <= most and abs(n - value * unit) <= 0.02 * n
        for n, value in zip((across, down), density, strict=True)
    )
    return (across, down) if near and min(across, down) > 0 else None
