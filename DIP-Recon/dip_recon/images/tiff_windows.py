"""TIFF and BigTIFF by windows, through tifffile."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
import tifffile

from .. import memory
from ..errors import UserError
from ..files import atomic, sync
from .decoding import check_chain, check_inflated, extra_channel, only_place, segment_bytes
from .density import of_page, tiff_options
from .picture import MAX_PIXELS, Kind
from .quiet import quiet
from .windows import TYPES, Sink, Source, damaged, kind_of, other_picture, temporary_name

_CLASSIC = 2**32 - 2**25  # bytes of samples that a classic TIFF holds; more make a BigTIFF
_CACHE = 64 * 2**20  # bytes of decoded strips or tiles that a source keeps
_ROWS = 256  # pixel rows of strips that it keeps at least: those of a row of tiles
_STRIP = 2**20  # bytes in a strip that is written
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _ICC = 274, 34675
_JPEG = (6, 7, 34892, 33007)
_COLOURS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
)


def is_tiff(path: Path) -> bool:
    """Whether ``path`` is a file that begins as a TIFF does."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


def needs_bigtiff(count: int) -> bool:
    """Whether ``count`` bytes of samples are too many for a classic TIFF."""
    return count > _CLASSIC


def open_tiff(path: Path) -> Source | None:
    """The picture in a TIFF; None if it is of a kind that is only read whole.

    Raises:
        UserError: damaged, several pictures, or only read whole and too large for that.
    """
    try:
        check_chain(path)
        with quiet(), tifffile.TiffFile(path) as tiff:
            page = tiff.pages[only_place(path, tiff).page]
            whole, free = segment_bytes(page), memory.free()
            if not page.is_final and 2 * whole > free:
                raise UserError(
                    f"{path}: a part of its {page.imagewidth}×{page.imagelength} pixels takes "
                    f"{memory.words(2 * whole)} to read, and {memory.words(free)} are free; save "
                    "it anew in smaller strips or tiles"
                )
            obstacle = _obstacle(page)
            if obstacle is None:
                return (_Rows if page.is_final else _Segments)(path, page)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever tifffile raises on bytes from outside
        raise damaged(path, error) from None
    if page.imagewidth * page.imagelength > MAX_PIXELS:
        raise UserError(
            f"{path}: {page.imagewidth}×{page.imagelength} pixels with {obstacle} cannot be read "
            "part by part; save it as grey or RGB of 8 bits, 16 bits or float, uncompressed or "
            "with deflate"
        )
    return None


def _obstacle(page: tifffile.TiffPage) -> str | None:
    """Why a page cannot be read by windows, None if it can be."""
    dtype, samples, extra = page.dtype, page.samplesperpixel, tuple(page.extrasamples)
    if dtype not in TYPES or page.bitspersample != 8 * dtype.itemsize:
        return f"{page.bitspersample}-bit {dtype} samples"
    if page.photometric not in _COLOURS:
        return f"colours stored as {getattr(page.photometric, 'name', page.photometric)}"
    if samples > 4 or page.axes not in ("YX", "YXS", "SYX"):
        return f"{samples} channels and the axes {page.axes}"
    if extra_channel(page) or extra not in ((), (tifffile.EXTRASAMPLE.UNASSALPHA,)):
        return "premultiplied alpha or another channel"
    if getattr(page.tags.get(_ORIENTATION), "value", 1) != 1:
        return "an orientation other than upright"
    try:
        page.decode(None, 0)  # raises if there is no decoder
        decoder = page.compression not in _JPEG
    except (ValueError, NotImplementedError):
        decoder = False
    return None if decoder else f"{getattr(page.compression, 'name', page.compression)} compression"


class _TiffSource(Source):
    """What both ways of reading a TIFF share."""

    def __init__(self, path: Path, page: tifffile.TiffPage) -> None:
        self._planes, self._dtype = page.samplesperpixel, page.dtype
        channels = 3 if self._planes > 2 else 1
        icc = getattr(page.tags.get(_ICC), "value", None)
        kind = kind_of(self._dtype, channels, icc, of_page(page))
        size = (page.imagelength, page.imagewidth)
        super().__init__(path, size, channels, kind, self._planes > channels)
        self._planar = page.axes == "SYX"
        self._white_is_0 = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        self._file = path.open("rb")

    def close(self) -> None:
        self._file.close()

    def _samples(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        samples = np.empty((bottom - top, right - left, self._planes), self._dtype)
        if self._planar:
            for number in range(self._planes):
                self._fill(samples[..., number : number + 1], number, top, left)
        else:
            self._fill(samples, 0, top, left)
        if self._white_is_0:
            white = 1 if self.kind.floating else np.iinfo(self._dtype).max
            samples[..., 0] = white - samples[..., 0]  # alpha stays
        return samples

    def _fill(self, samples: np.ndarray, plane: int, top: int, left: int) -> None:
        """Fill ``samples`` [h, w, S] with the pixels from (top, left) on.

        S = 1 of ``plane`` where planes are stored one after the other, else all and ``plane`` 0.
        """
        raise NotImplementedError

    def _bytes(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        content = self._file.read(count)
        if len(content) < count:
            raise ValueError("the file is cut short")
        return content


class _Rows(_TiffSource):
    """A TIFF whose rows lie one after the other, uncompressed: only the window is read."""

    def __init__(self, path: Path, page: tifffile.TiffPage) -> None:
        if page.dataoffsets[0] + page.nbytes > path.stat().st_size:
            raise ValueError("the file is cut short")
        super().__init__(path, page)
        self._offset = page.dataoffsets[0]
        self._stored = page.dtype.newbyteorder(page.parent.byteorder)

    def _fill(self, samples: np.ndarray, plane: int, top: int, left: int) -> None:
        height, width = self.size
        pixel = samples.shape[2] * self._stored.itemsize  # bytes
        for i, row in enumerate(samples, plane * height + top):
            content = self._bytes(self._offset + (i * width + left) * pixel, len(row) * pixel)
            row[:] = np.frombuffer(content, self._stored).reshape(row.shape)


class _Segments(_TiffSource):
    """A TIFF in strips or tiles: those that a window touches are decoded, and kept for a while.

    A compressed picture in one strip is thereby read whole.
    """

    def __init__(self, path: Path, page: tifffile.TiffPage) -> None:
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if len(ends) < np.prod(page.chunked) or max(ends) > path.stat().st_size:
            raise ValueError("the file is cut short")
        super().__init__(path, page)
        self._page, self._most = page, segment_bytes(page)
        if page.is_tiled:
            self._segment = (page.tilelength, page.tilewidth)
        else:
            self._segment = (page.rowsperstrip, page.imagewidth)
        self._grid = tuple(ceil(a / b) for a, b in zip(self.size, self._segment, strict=True))
        samples = np.prod(self._segment) * (1 if self._planar else self._planes)
        kept = _CACHE // int(samples * self._dtype.itemsize)
        least = 1 if page.is_tiled else ceil(_ROWS / page.rowsperstrip) + 1
        self._decoded = lru_cache(max(kept, least))(self._decode)

    def close(self) -> None:
        self._decoded.cache_clear()
        super().close()

    def _fill(self, samples: np.ndarray, plane: int, top: int, left: int) -> None:
        (height, width), (rows, columns) = self._segment, self._grid
        bottom, right = top + samples.shape[0], left + samples.shape[1]
        for row in range(top // height, ceil(bottom / height)):
            for column in range(left // width, ceil(right / width)):
                segment = self._decoded((plane * rows + row) * columns + column)
                y, x = row * height, column * width
                part = segment[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
                y, x = max(y, top) - top, max(x, left) - left
                samples[y : y + height, x : x + width][: len(part), : part.shape[1]] = part

    def _decode(self, index: int) -> np.ndarray:
        """A strip or tile, [h, w, S]; zeros (or the file's own value) where none is stored."""
        page = self._page
        count = page.databytecounts[index]
        content = self._bytes(page.dataoffsets[index], count) if count else None
        if content:
            check_inflated(content, page, self._most)
        segment, _, shape = page.decode(content, index)
        if segment is None:
            return np.full(shape[1:], page.nodata, self._dtype)
        return segment[0]


class TiffSink(Sink):
    """An uncompressed TIFF, in rows; a BigTIFF if a classic one is too small. See ``Sink``."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        channels: int,
        kind: Kind,
        alpha: Source | None,
        resume: bool,
    ) -> None:
        super().__init__(path, size, channels, kind, alpha)
        self._temporary = temporary_name(path)
        self.resumed = resume and self._temporary.exists()
        if not self.resumed:
            self._begin()
        self._offset = self._first_sample()
        self._file = self._temporary.open("r+b")

    def _begin(self) -> None:
        """Make the temporary file at its full size, all black."""
        height, width = self.size
        row = width * self.planes * self.dtype.itemsize  # bytes
        with atomic(self._temporary) as path, quiet():
            tifffile.imwrite(
                path,
                shape=(height, width, self.planes) if self.planes > 1 else self.size,
                dtype=self.dtype,
                bigtiff=needs_bigtiff(height * row),
                photometric="minisblack" if self.channels == 1 else "rgb",
                planarconfig="contig" if self.planes > 1 else None,
                extrasamples=None if self.alpha is None else ["unassalpha"],
                rowsperstrip=max(_STRIP // row, 1),
                iccprofile=self.kind.icc,
                metadata=None,
                **tiff_options(self.kind.density),
            )
            _reserve(path)

    def _first_sample(self) -> int:
        """Where the samples begin in the temporary file; UserError if it is of another picture."""
        try:
            with quiet(), tifffile.TiffFile(self._temporary) as tiff:
                page = tiff.pages[0]
                first = page.dataoffsets[0]
                found = (page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype)
                icc = getattr(page.tags.get(_ICC), "value", None)
                whole = page.is_final and first + page.nbytes <= self._temporary.stat().st_size
        except Exception:  # whatever tifffile raises on bytes from outside
            raise other_picture(self.path, self._temporary) from None
        if not whole or (*found, icc) != (*self.size, self.planes, self.dtype, self.kind.icc):
            raise other_picture(self.path, self._temporary)
        return first

    def _put(self, top: int, left: int, data: np.ndarray) -> None:
        samples = self._stored(top, left, data)
        pixel = self.planes * self.dtype.itemsize  # bytes
        for i, row in enumerate(samples, top):
            self._file.seek(self._offset + (i * self.size[1] + left) * pixel)
            self._file.write(row)
        self._file.flush()

    def _let_go(self) -> None:
        self._file.close()

    def _finish(self) -> None:
        self._file.close()
        sync(self._temporary)
        os.replace(self._temporary, self.path)
        sync(self.path.parent)


def _reserve(path: Path) -> None:
    """Have the disk set the file's space aside, where it can, so that it is not missing later."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # this disk cannot
                raise
