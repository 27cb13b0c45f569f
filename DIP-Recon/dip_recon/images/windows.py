"""Sources and sinks: pictures read and written by windows, whatever their format.

A window is (top, bottom, left, right) in pixels; ``bottom`` and ``right`` lie just outside it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import UserError
from ..files import cannot_write, hidden
from .density import Density
from .encoding import quantise, sample_type
from .picture import Kind

TYPES = (np.uint8, np.uint16, np.float16, np.float32, np.float64)  # of samples, native byte order


class Source:
    """A picture read by windows; a context manager. Not for several threads at once.

    path: where. size: (H, W) in pixels. channels: 1 (grey) or 3 (RGB). kind: how it is stored.
    has_alpha: whether there is an alpha channel besides.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], channels: int, kind: Kind, has_alpha: bool
    ) -> None:
        self.path = path
        self.size = size
        self.channels = channels
        self.kind = kind
        self.has_alpha = has_alpha

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """The window [C, bottom − top, right − left] float32 in [0, 1], as ``images.read`` has it.

        Raises:
            ValueError: the window is empty or not within the picture.
            UserError: the file is damaged there, or has float values that are not in [0, 1].
        """
        values = self._checked(top, bottom, left, right)[..., : self.channels]
        if values.dtype.kind == "f":
            self._check_float(values, f"rows {top} to {bottom - 1}, columns {left} to {right - 1}")
            data = values.astype(np.float32)
        else:
            data = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
        return np.ascontiguousarray(data.transpose(2, 0, 1))

    def read_alpha(self, top: int, bottom: int, left: int, right: int) -> np.ndarray | None:
        """The alpha of the window, [bottom − top, right − left] as stored; None if there is none.

        Raises as ``read``, but for the values.
        """
        if not self.has_alpha:
            return None
        return self._checked(top, bottom, left, right)[..., -1].copy()

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_window(self, top: int, bottom: int, left: int, right: int) -> None:
        """Raise ValueError if the window is empty or not within the picture."""
        height, width = self.size
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            window = (top, bottom, left, right)
            raise ValueError(f"window {window} of a picture of {height}×{width} pixels")

    def _checked(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """The samples of a window, [h, w, planes]; the format's errors are turned into ours."""
        self._check_window(top, bottom, left, right)
        try:
            return self._samples(top, bottom, left, right)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever a decoder raises on bytes from outside
            raise damaged(self.path, error) from None

    def _check_float(self, values: np.ndarray, where: str) -> None:
        """Raise UserError unless float samples are finite and in [0, 1]."""
        if not np.isfinite(values).all():
            raise UserError(
                f"{self.path}: has values that are NaN or infinite in {where}; replace them first"
            )
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise UserError(
                f"{self.path}: its float values run from {low:g} to {high:g} in {where}; "
                "scale them to 0…1 first"
            )

    def _samples(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """[h, w, C] as stored, C + 1 with alpha, which is last."""
        raise NotImplementedError


class Sink:
    """A picture written by windows, in any order; a context manager.

    It is written under a temporary name beside ``path`` and takes its name in ``close``, so that
    until then what was at ``path`` is still there. Leaving the ``with`` block by an exception
    suspends it instead.

    path: where. size: (H, W). channels: 1 (grey) or 3 (RGB). kind: how it is stored. alpha: the
    source whose alpha channel is carried over unchanged, or None. resumed: whether windows written
    before it was suspended, or its process ended, are still there.
    """

    resumed = False

    def __init__(
        self, path: Path, size: tuple[int, int], channels: int, kind: Kind, alpha: Source | None
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"a picture has 1 or 3 channels, not {channels}")
        alpha = alpha if alpha is not None and alpha.has_alpha else None
        if alpha is not None and alpha.size != size:
            raise ValueError(f"alpha of {alpha.size} pixels for a picture of {size}")
        if alpha is not None and sample_type(alpha.kind) != sample_type(kind):
            raise ValueError(f"alpha of a {alpha.kind} picture for a {kind} one")
        self.path = path
        self.size = size
        self.channels = channels
        self.kind = kind
        self.alpha = alpha
        self._open = True

    @property
    def dtype(self) -> np.dtype:
        """The type of the samples stored."""
        return sample_type(self.kind)

    @property
    def planes(self) -> int:
        """Samples a pixel: the channels and alpha."""
        return self.channels + (self.alpha is not None)

    def write(self, top: int, left: int, data: np.ndarray) -> None:
        """Put ``data`` [C, h, w] with its corner at (top, left), clipped to [0, 1] and rounded.

        Raises:
            ValueError: another number of channels, not within the picture, or values that are not
                finite.
            UserError: the disk is full, or the file cannot be written.
        """
        data = np.asarray(data)
        if data.ndim != 3 or len(data) != self.channels:
            raise ValueError(f"a window has the shape [{self.channels}, h, w], not {data.shape}")
        bottom, right = top + data.shape[1], left + data.shape[2]
        if min(top, left) < 0 or bottom > self.size[0] or right > self.size[1]:
            raise ValueError(f"window {(top, bottom, left, right)} of a picture of {self.size}")
        if not np.isfinite(data).all():
            raise ValueError("the window has values that are NaN or infinite")
        try:
            self._put(top, left, data)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Finish, and give the picture its name. Raises UserError if that fails."""
        if self._open:
            self._open = False
            try:
                self._finish()
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def suspend(self) -> None:
        """Stop without finishing: what was written stays under the temporary name, if it has one.

        ``create_sink`` with ``resume`` goes on with it.
        """
        if self._open:
            self._open = False
            with suppress(OSError):
                self._let_go()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.suspend()

    def _stored(self, top: int, left: int, data: np.ndarray) -> np.ndarray:
        """``data`` [C, h, w] as it is stored: [h, w, planes]."""
        values = np.clip(data.astype(np.float64), 0, 1).transpose(1, 2, 0)
        samples = quantise(values, self.dtype)
        if self.alpha is not None:
            alpha = self.alpha.read_alpha(top, top + data.shape[1], left, left + data.shape[2])
            samples = np.dstack([samples, alpha])
        return np.ascontiguousarray(samples)

    def _put(self, top: int, left: int, data: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close what is open; most formats have nothing."""


def kind_of(
    dtype: np.dtype,
    channels: int,
    icc: bytes | None = None,
    density: Density | None = None,
) -> Kind:
    """The kind of a picture that stores 1 or 3 channels as samples of one of ``TYPES``."""
    space = "grey" if channels == 1 else "rgb"
    floating = dtype.kind == "f"
    return Kind(space, 8 * dtype.itemsize, floating, icc, density=density)


def temporary_name(path: Path) -> Path:
    """The name beside ``path`` under which it is written."""
    return hidden(path, ".half-")  # not a name that ``files.clean`` knows


def other_picture(path: Path, temporary: Path) -> UserError:
    """What to say of a half-written picture that cannot be gone on with."""
    return UserError(
        f"{path}: {temporary.name} beside it is not the beginning of this picture (another size, "
        "another kind, or damaged); delete it"
    )


def damaged(path: Path, error: Exception | str) -> UserError:
    """What to say of a file that a decoder gave up on."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(
        f"{path}: cannot be read as a picture ({reason}); it is damaged, cut short or of an "
        "unusual kind: get it again, or save it anew"
    )
