"""Pictures larger than memory, read and written by windows.

``open_source`` gives a ``Source`` and ``create_sink`` a ``Sink``. TIFF and Zarr are read and
written window by window; every other format is read whole, or collected in memory until ``close``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from .picture import MAX_PIXELS, MAX_SIDE, Kind, Picture
from .reading import read
from .tiff_windows import TiffSink, is_tiff, open_tiff
from .windows import Sink, Source
from .writing import check_writable, write
from .zarr_windows import ZarrSink, ZarrSource, is_zarr, not_a_zarr

__all__ = ["Sink", "Source", "create_sink", "open_source"]


def open_source(path: str | os.PathLike) -> Source:
    """Open a picture to read it by windows.

    By windows: a Zarr (see ``ZarrSource``), and a TIFF or BigTIFF of grey or RGB in 8 or 16 bits or
    float, with or without alpha, in strips or tiles, in planes or interleaved, uncompressed or
    compressed with what tifffile decodes (deflate; more with imagecodecs). A compressed TIFF of one
    strip has to be decoded whole. Every other picture that ``images.read`` knows is read whole by
    it and held in memory, up to ``MAX_PIXELS``.

    Raises UserError, in one line with the mend, for what ``images.read`` refuses, a TIFF of several
    pages (the reduced levels of a pyramid do not count), a Zarr with other dimensions or channels,
    samples of another type, or when zarr is not installed. Float values are checked in each window.
    """
    path = Path(path)
    if is_zarr(path):
        return ZarrSource(path)
    if path.suffix.lower() == ".zarr" and path.is_dir():
        raise UserError(f"{path}: has no zarr.json, .zarray or .zgroup, so it is not a Zarr")
    source = open_tiff(path) if is_tiff(path) else None
    return source or _Held(read(path))


def create_sink(
    path: str | os.PathLike,
    size: tuple[int, int],
    channels: int,
    kind: Kind,
    *,
    alpha: Source | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Sink:
    """Begin a picture of ``size`` (H, W), 1 or 3 ``channels``, stored as ``kind`` says.

    The suffix chooses the format: .tif and .tiff of grey or RGB in 8 or 16 bits or float, and
    .zarr, are written window by window, uncompressed and compressed; every other is collected in
    memory and written by ``images.write`` in the end. ``alpha`` is a source of this size and depth
    whose alpha channel is carried over unchanged, as far as the format holds it.

    The picture gets its name in ``close``; before, it is ``.half-<name>`` beside it. With
    ``resume``, one that was left there is gone on with, and ``Sink.resumed`` tells whether there
    was one; without, it is thrown away.

    Raises:
        UserError: an unsupported suffix, a missing or unwritable folder, a full disk, something at
            ``path`` without ``overwrite`` (a folder that is not a Zarr is never replaced), a size
            the format or memory cannot hold, a half-written picture of another size or kind, or
            zarr is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".zarr":
        _check_folder(path)
    else:
        check_writable(path)
    if path.exists() and not overwrite:
        raise UserError(f"{path}: is there already; choose another name, or remove it")
    if suffix == ".zarr":
        return ZarrSink(path, size, channels, kind, alpha, resume)
    if suffix in (".tif", ".tiff") and kind.space in ("grey", "rgb") and kind.bits >= 8:
        return TiffSink(path, size, channels, kind, alpha, resume)
    _check_size(path, size)
    return _Collected(path, size, channels, kind, alpha)


def _check_folder(path: Path) -> None:
    """Raise UserError if a Zarr at ``path`` would have no folder to lie in, or replace no Zarr."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    if path.exists() and not is_zarr(path):
        raise not_a_zarr(path)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    """Raise UserError if a picture is too large to be collected in memory or for its format."""
    side = MAX_SIDE.get(path.suffix.lower(), math.inf)
    if max(size) > side or math.prod(size) > MAX_PIXELS:
        raise UserError(
            f"{path}: {size[1]}×{size[0]} pixels are too many for a {path.suffix} file; write a "
            "grey or RGB .tif, or .zarr, instead"
        )


class _Held(Source):
    """A picture that was read whole."""

    def __init__(self, picture: Picture) -> None:
        channels, has_alpha = len(picture.data), picture.alpha is not None
        super().__init__(picture.path, picture.size, channels, picture.kind, has_alpha)
        self._picture = picture

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        self._check_window(top, bottom, left, right)
        return self._picture.data[:, top:bottom, left:right].copy()

    def read_alpha(self, top: int, bottom: int, left: int, right: int) -> np.ndarray | None:
        self._check_window(top, bottom, left, right)
        return self._picture.alpha[top:bottom, left:right].copy() if self.has_alpha else None


class _Collected(Sink):
    """A picture held in memory, [C, H, W] float32, and written by ``images.write`` in the end."""

    def __init__(
        self, path: Path, size: tuple[int, int], channels: int, kind: Kind, alpha: Source | None
    ) -> None:
        super().__init__(path, size, channels, kind, alpha)
        self._data = np.zeros((channels, *size), np.float32)

    def _put(self, top: int, left: int, data: np.ndarray) -> None:
        _, height, width = data.shape
        self._data[:, top : top + height, left : left + width] = data

    def _finish(self) -> None:
        height, width = self.size
        alpha = self.alpha.read_alpha(0, height, 0, width) if self.alpha else None
        write(self.path, self._data, like=Picture(self._data, alpha, self.kind, self.path))
