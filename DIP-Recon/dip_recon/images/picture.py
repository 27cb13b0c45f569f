"""What a picture is here, which files hold one, and what each format can hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .density import Density

MAX_PIXELS = 400_000_000  # larger headers are refused before anything is decoded

_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
WRITABLE = (".png", *_JPEG, *_TIFF, ".bmp", ".webp")
READABLE = (*WRITABLE, ".gif")

# What a format holds, by the suffix of the file.
HOLDS_ALPHA = (".png", ".webp", *_TIFF)
HOLDS_PALETTE = HOLDS_ONE_BIT = (".png", ".bmp", *_TIFF)
HOLDS_CMYK = (*_JPEG, *_TIFF)
HOLDS_ICC = (".png", ".webp", *_JPEG, *_TIFF)
HOLDS_EXIF = (".png", ".webp", *_JPEG)
HOLDS_DEEP = (".png", *_TIFF)  # more than 8 bits a sample
HOLDS_FLOAT = _TIFF
MAX_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


@dataclass(frozen=True)
class Kind:
    """How a picture is stored.

    space: "grey", "rgb", "palette" or "cmyk". bits: 1, 8 or 16 a sample; 16, 32 or 64 if
    ``floating``. icc: the colour profile, carried over unless the colours were converted (CMYK).
    exif: what a camera noted (date, lens, place), without how it was held, which is applied.
    density: pixels per centimetre, (across, down), None where it is not known.
    """

    space: str
    bits: int = 8
    floating: bool = False
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    density: Density | None = None

    def without_palette(self, channels: int) -> Kind:
        """As it is, but grey or RGB, as 1 or 3 ``channels`` are, in the place of a palette."""
        if self.space != "palette":
            return self
        return replace(self, space="grey" if channels == 1 else "rgb")

    def __str__(self) -> str:
        return f"{self.bits}-bit {'float ' if self.floating else ''}{self.space}"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    data: [C, H, W] float32 in [0, 1], C = 1 (grey) or 3 (RGB), upright (EXIF orientation applied).
    alpha: [H, W] as stored (uint8, uint16 or float), or None. kind: how it was stored. path: where.
    """

    data: np.ndarray
    alpha: np.ndarray | None
    kind: Kind
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.data.shape[1], self.data.shape[2]
