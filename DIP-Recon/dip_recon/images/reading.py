"""Finding picture files and reading one into a ``Picture``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from .decoding import Place, decode
from .picture import READABLE, Picture
from .quiet import quiet


def read(path: str | os.PathLike) -> Picture:
    """Read a PNG, JPEG, TIFF, BMP, WebP or GIF picture of any depth and colour kind.

    Integer samples are divided by their maximum (255 or 65535); a float TIFF is taken as it is.
    Palette and CMYK become RGB (a palette of greys becomes grey), 1-bit becomes 0 and 1.

    Raises UserError, in one line with the mend, if the file is missing, empty, truncated, not a
    picture, over ``MAX_PIXELS``, animated or multi-page, float with values that are not finite or
    not in [0, 1], or 16-bit colour PNG while pypng is not installed.
    """
    return read_at(Path(path), None)


def read_at(path: Path, place: Place | None) -> Picture:
    """The picture at ``place`` in a TIFF; without, the only one in a file. See ``read``."""
    _check_file(path)
    try:
        with quiet():
            values, alpha, kind = decode(path, place)
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"{path}: too large for this machine's memory; crop or reduce it first"
        ) from None
    except Exception as error:  # whatever a decoder raises on bytes from outside means a bad file
        raise UserError(
            f"{path}: cannot be read as a picture ({_one_line(error)}); it is damaged, cut short "
            "or of an unusual kind: get it again, or save it anew as PNG"
        ) from None
    if values.dtype.kind == "f":
        _check_float(path, values)
        data = values.astype(np.float32)
    else:
        top = 1 if kind.bits == 1 else np.iinfo(values.dtype).max
        data = values.astype(np.float32) / np.float32(top)
    return Picture(np.ascontiguousarray(data.transpose(2, 0, 1)), alpha, kind, path)


def list_pictures(folder: str | os.PathLike) -> list[Path]:
    """The pictures right in ``folder``, sorted by name: files with a suffix that ``read`` knows.

    Upper and lower case suffixes count alike; hidden and other files are passed over.
    Raises UserError if the folder is missing, is not a folder, or has no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "there is no such folder"
        raise UserError(f"{folder}: {what}; give a folder of pictures")
    try:
        files = sorted(f for f in folder.iterdir() if is_picture_name(f) and f.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from None
    if not files:
        raise UserError(f"{folder}: no pictures in it; put {', '.join(READABLE)} files there")
    return files


def is_picture_name(path: Path) -> bool:
    """Whether the name alone says picture: a suffix that ``read`` knows, and not hidden."""
    return path.suffix.lower() in READABLE and not path.name.startswith(".")


def _check_file(path: Path) -> None:
    """Raise UserError unless ``path`` is a readable file with something in it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a picture; give a file in it")
    if not path.exists():
        raise UserError(f"{path}: there is no such file; check the path")
    if not path.is_file():
        raise UserError(f"{path}: is not a regular file; give a picture file")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions"
        ) from None
    if not first:
        raise UserError(f"{path}: the file is empty (0 bytes); get it again")


def _check_float(path: Path, values: np.ndarray) -> None:
    """Raise UserError unless float samples are finite and in [0, 1]."""
    if not np.isfinite(values).all():
        raise UserError(f"{path}: has values that are NaN or infinite; replace them first")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{path}: its float values run from {low:g} to {high:g}; scale them to 0…1 first"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
