"""Writing an array to a file, in kind with the picture it came from."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic, cannot_write
from .density import enlarged
from .encoding import encode, quantise, sample_type
from .picture import (
    HOLDS_ALPHA,
    HOLDS_CMYK,
    HOLDS_DEEP,
    HOLDS_EXIF,
    HOLDS_FLOAT,
    HOLDS_ICC,
    HOLDS_ONE_BIT,
    HOLDS_PALETTE,
    MAX_SIDE,
    WRITABLE,
    Kind,
    Picture,
)


def write(path: str | os.PathLike, data: np.ndarray, like: Picture | None = None) -> None:
    """Write ``data`` [C, H, W], C = 1 or 3, to ``path``; the suffix chooses the format.

    Values are clipped to [0, 1] and rounded. With ``like``, the picture is stored as that one was
    (depth, palette, 1-bit by threshold, CMYK) and takes its alpha, resized if the size differs, as
    far as the format holds it; without, 8-bit grey or RGB. A float picture becomes 16-bit in PNG;
    WebP is written lossless, JPEG at quality 95. Whether it is grey or colour is up to ``data``.

    The file appears whole or not at all. Raises UserError for an unsupported suffix, a missing or
    unwritable folder, a full disk, a size the format cannot hold; ValueError for a wrong shape or
    values that are not finite.
    """
    path = Path(path)
    data = checked(data)
    check_writable(path, data.shape[1:])
    suffix = path.suffix.lower()
    _replace(path, encode(data.transpose(1, 2, 0), *in_kind(data, like, suffix), suffix))


def save_png(path: str | os.PathLike, data: np.ndarray) -> None:
    """Write ``data`` [C, H, W], C = 1 or 3, clipped and rounded, as an 8-bit PNG.

    The same data give the same bytes. The file appears whole or not at all. Raises as ``write``.
    """
    data = checked(data).transpose(1, 2, 0)
    kind = Kind("grey" if data.shape[-1] == 1 else "rgb")
    _replace(Path(path), encode(data, None, kind, ".png"))


def check_writable(path: str | os.PathLike, size: tuple[int, int] = (1, 1)) -> None:
    """Raise UserError if ``write`` could not write a picture of ``size`` (H, W) to ``path``; to be
    asked before a long run."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise UserError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'!r}; "
            f"end the name in one of {', '.join(WRITABLE)}"
        )
    if max(size) > MAX_SIDE.get(suffix, math.inf):
        raise UserError(
            f"{path}: a {suffix} file holds at most {MAX_SIDE[suffix]} pixels a side; "
            "write .png or .tif instead"
        )
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(2**16))  # an empty file fits on a full disk
            file.flush()
    except OSError as error:
        raise cannot_write(path, error) from error


def lost(path: str | os.PathLike, kind: Kind, has_alpha: bool) -> str:
    """What of a picture of this kind a file of this suffix does not hold, in words; "" if nothing.

    A .zarr holds all but CMYK and colour profiles. Of what a camera noted and of the size of
    a pixel nothing is said.
    """
    suffix = Path(path).suffix.lower()
    words = ["transparency"] * (has_alpha and suffix not in (*HOLDS_ALPHA, ".zarr"))
    words += ["CMYK"] * (kind.space == "cmyk" and suffix not in HOLDS_CMYK)
    if kind.floating:
        words += ["floats"] * (suffix not in (*HOLDS_FLOAT, ".zarr"))
    elif kind.bits > 8 and suffix not in (*HOLDS_DEEP, ".zarr"):
        words.append(f"{kind.bits} bits a sample")
    words += ["a colour profile"] * bool(kind.icc and suffix not in HOLDS_ICC)
    if not words:
        return ""
    return f"{path}: a {suffix} file does not hold {' or '.join(words)}; a .tif does"


def checked(data: np.ndarray) -> np.ndarray:
    """``data`` as a float array [C, H, W] clipped to [0, 1]; ValueError if it is no picture."""
    data = np.asarray(data)
    if data.ndim != 3 or data.shape[0] not in (1, 3) or 0 in data.shape:
        raise ValueError(f"a picture has the shape [1 or 3, H, W], this is {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("the picture has values that are NaN or infinite")
    return np.clip(data.astype(np.float64), 0, 1)


def in_kind(data: np.ndarray, like: Picture | None, suffix: str) -> tuple[np.ndarray | None, Kind]:
    """The alpha [H, W], or None, and the kind with which ``data`` [C, H, W] goes to a file.

    As ``like``, as far as a ``suffix`` file holds it; without ``like``, 8-bit grey or RGB.
    """
    if like is None:
        return None, Kind("grey" if len(data) == 1 else "rgb")
    kind = _nearest_kind(like, data, suffix)
    if like.alpha is None or suffix not in HOLDS_ALPHA:
        return None, kind
    return _alpha_for(like.alpha, data.shape[1:], kind), kind


def _nearest_kind(like: Picture, data: np.ndarray, suffix: str) -> Kind:
    """The kind of ``like`` for ``data`` [C, H, W], or the nearest that a ``suffix`` file holds."""
    kind, colours = like.kind, len(data)
    space, bits, floating = "grey" if colours == 1 else "rgb", kind.bits, kind.floating
    if (kind.space == "palette" and suffix in HOLDS_PALETTE) or (
        kind.space == "cmyk" and suffix in HOLDS_CMYK and colours == 3
    ):
        space = kind.space
    if floating and suffix == ".png":
        bits, floating = 16, False
    if bits > 8 and suffix not in HOLDS_DEEP:
        bits, floating = 8, False
    if bits == 1 and (suffix not in HOLDS_ONE_BIT or colours == 3 or like.alpha is not None):
        bits = 8
    icc = kind.icc if suffix in HOLDS_ICC and colours == len(like.data) else None
    exif = kind.exif if suffix in HOLDS_EXIF else None
    density = kind.density
    if density:  # what is enlarged has smaller pixels
        down, across = (n / m for n, m in zip(data.shape[1:], like.size, strict=True))
        density = enlarged(density, across, down)
    return Kind(space, bits, floating, icc, exif, density)


def _alpha_for(alpha: np.ndarray, size: tuple[int, int], kind: Kind) -> np.ndarray:
    """``alpha`` [H, W] at ``size`` in the sample type of ``kind``; untouched where it fits."""
    dtype = sample_type(kind)
    if alpha.shape == size and alpha.dtype == dtype:
        return alpha
    top = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    level = alpha.astype(np.float64) / top
    if alpha.shape != size:
        height, width = size
        image = Image.fromarray(level.astype(np.float32))
        level = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return quantise(np.nan_to_num(level).clip(0, 1), dtype)


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)
