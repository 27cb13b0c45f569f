"""TIFF files of several pages, frame by frame: one frame at a time is in memory."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import tifffile

from ..errors import UserError
from ..files import atomic, cannot_write
from .decoding import Place, check_chain, places
from .encoding import tiff_page
from .picture import Kind, Picture
from .quiet import quiet
from .reading import read, read_at
from .tiff_windows import is_tiff, needs_bigtiff
from .windows import damaged
from .writing import check_writable, checked, in_kind

_TIFF = (".tif", ".tiff")
_PAGE = 4096  # bytes that the tags of a page take at most, without a colour profile


def count_frames(path: str | os.PathLike) -> int:
    """How many frames the TIFF at ``path`` holds; 1 for every other file, and for none.

    Reduced levels of a pyramid and previews do not count; stacks of ImageJ and tifffile do, also
    where they lie in one page. Files that cannot be read count as 1: ``read`` says what is wrong.

    Raises UserError for several frames that are not of equal size and kind, of a stack that is not
    readable frame by frame, or of a file that is cut short between frames.
    """
    return len(_frames(Path(path)))


def read_frame(path: str | os.PathLike, index: int) -> Picture:
    """Frame ``index``, from 0, of a TIFF of several pages, as ``images.read`` reads a picture.

    Frame 0 of any other file is its picture. Raises IndexError if there is no such frame, and
    UserError as ``images.read`` and ``count_frames``; its line counts frames from 1.
    """
    path = Path(path)
    frames = _frames(path)
    if not 0 <= index < len(frames):
        raise IndexError(f"{path}: has {len(frames)} frames, there is no number {index} from 0")
    if len(frames) == 1:
        return read(path)
    try:
        return read_at(path, frames[index])
    except UserError as error:
        raise UserError(f"frame {index + 1} of {error}") from error


class FrameWriter:
    """A TIFF of ``count`` pages, written one after the other; a context manager.

    Pages are compressed with deflate, and the file is a BigTIFF if a classic one may be too small.
    It is written under a temporary name beside ``path`` and takes its name when the block ends well
    and all frames are written (ValueError if some are missing); otherwise it is removed, and what
    was at ``path`` before is still there.

    Raises UserError, before anything is written, for a name that does not end in .tif or .tiff,
    and a missing or unwritable folder; ValueError if ``count`` is not above 0.
    """

    def __init__(self, path: str | os.PathLike, count: int) -> None:
        self.path = Path(path)
        self.count = count
        self.written = 0
        if count < 1:
            raise ValueError(f"a TIFF has at least 1 page, not {count}")
        if self.path.suffix.lower() not in _TIFF:
            raise UserError(f"{path}: only a TIFF holds several frames; end the name in .tif")
        check_writable(self.path)
        self._writer: tifffile.TiffWriter | None = None
        self._first: tuple[str, tuple[int, ...]] | None = None  # kind and shape of frame 1

    def write(self, data: np.ndarray, like: Picture | None = None) -> None:
        """Append ``data`` [C, H, W], C = 1 or 3, as a page, stored as ``images.write`` would.

        Values are clipped to [0, 1] and rounded; depth, colour kind and alpha are those of
        ``like``, without it 8-bit grey or RGB.

        Raises:
            UserError: another size or kind than the first frame, a full disk.
            ValueError: a wrong shape, values that are not finite, or more than ``count`` frames.
        """
        if self.written == self.count:
            raise ValueError(f"{self.path}: all {self.count} frames are written already")
        data = checked(data)
        alpha, kind = in_kind(data, like, ".tif")
        samples, options = tiff_page(data.transpose(1, 2, 0), alpha, kind)
        self._check_alike(samples, kind)
        try:
            with quiet():
                self._opened(samples, kind).write(samples, contiguous=False, **options)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.written += 1

    def __enter__(self) -> FrameWriter:
        self._atomic = atomic(self.path)
        self._temporary = self._atomic.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as own:
            self._give_up()
            if isinstance(own, OSError):
                raise cannot_write(self.path, own) from own
            raise
        if error is None:
            self._atomic.__exit__(None, None, None)
        else:
            self._give_up()

    def _finish(self) -> None:
        if self.written < self.count:
            raise ValueError(f"{self.path}: {self.written} of {self.count} frames were written")
        self._writer.close()

    def _give_up(self) -> None:
        """Remove the temporary file."""
        with suppress(Exception):
            if self._writer is not None:
                self._writer.close()
        stop = Exception()  # not the block's own, which ``atomic`` may take for a failed write
        self._atomic.__exit__(Exception, stop, None)

    def _opened(self, samples: np.ndarray, kind: Kind) -> tifffile.TiffWriter:
        """The writer, opened for the first frame, from which the size of the file is known."""
        if self._writer is None:
            frame = samples.nbytes + len(kind.icc or b"") + _PAGE  # bytes
            self._writer = tifffile.TiffWriter(
                self._temporary, bigtiff=needs_bigtiff(self.count * frame)
            )
        return self._writer

    def _check_alike(self, samples: np.ndarray, kind: Kind) -> None:
        """Raise UserError if a frame is not of the size and kind of the first."""
        this = str(kind), samples.shape
        self._first = self._first or this
        if this != self._first:
            was, now = (f"{k} of {'×'.join(map(str, shape))}" for k, shape in (self._first, this))
            raise UserError(
                f"{self.path}: frame {self.written + 1} is {now} but frame 1 {was}; "
                "the frames of a TIFF must be of equal size and kind"
            )


def _frames(path: Path) -> tuple[Place, ...]:
    """Where the frames of the TIFF at ``path`` are; one for anything else. See ``count_frames``."""
    if not is_tiff(path):
        return (Place(0),)
    try:
        state = path.stat()
        return _places(path, state.st_mtime_ns, state.st_size)
    except (UserError, MemoryError):
        raise
    except Exception:  # a file that ``read`` has a word on
        return (Place(0),)


@lru_cache(4)
def _places(path: Path, mtime_ns: int, size: int) -> tuple[Place, ...]:
    """See ``_frames``; remembered as long as the file has this time and size."""
    check_chain(path)
    with quiet(), tifffile.TiffFile(path) as tiff:
        found = tuple(places(tiff))
        if len(found) == 1:
            return found
        if found[0].part is not None:
            if not tiff.pages[found[0].page].is_final:
                raise UserError(
                    f"{path}: is a stack of {len(found)} frames in one page that cannot be read "
                    "frame by frame; save it as an uncompressed TIFF with a page a frame"
                )
            return found
        _check_pages(path, tiff, [place.page for place in found])
        if _is_cut(tiff):
            raise damaged(path, f"the file is cut short after frame {len(found)}")
        return found


def _check_pages(path: Path, tiff: tifffile.TiffFile, numbers: list[int]) -> None:
    """Raise UserError unless the pages are of equal size and kind."""
    first = _look(tiff.pages[numbers[0]])
    for frame, number in enumerate(numbers[1:], 2):
        this = _look(tiff.pages[number])
        if this != first:
            raise UserError(
                f"{path}: frame {frame} is {this} but frame 1 {first}; save frames of equal size "
                "and kind to a file of their own"
            )


def _look(page: tifffile.TiffPage) -> str:
    """The size and kind of a page, in words."""
    width, height = page.imagewidth, page.imagelength
    if getattr(page.tags.get(274), "value", 1) > 4:  # lies on its side
        width, height = height, width
    colours = getattr(page.photometric, "name", page.photometric)
    extra = "" if not page.extrasamples else f" + {len(page.extrasamples)}"
    bits = f"{page.bitspersample}-bit {page.dtype}"
    return f"{width}×{height} pixels, {page.samplesperpixel} × {bits} ({colours}{extra})"


def _is_cut(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page that can be read names another one after it."""
    handle = tiff.filehandle
    handle.seek(tiff.pages.next_page_offset)
    return any(handle.read(tiff.tiff.offsetsize))
