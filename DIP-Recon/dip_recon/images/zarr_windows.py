"""Zarr arrays by windows, through zarr (an extra)."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import memory
from ..errors import UserError
from ..files import cannot_write
from . import zarr_codecs
from .picture import Kind
from .quiet import quiet
from .windows import TYPES, Sink, Source, damaged, kind_of, other_picture, temporary_name

_CHUNK = 512  # pixels a side in what is written
_MARKS = ("zarr.json", ".zarray", ".zgroup")
_METADATA = 2**24  # bytes of a file of it
_COPIES = 7  # of a chunk, while it is read: three, and four that a hostile one may swell to
_INDEX = 16  # bytes of a shard's index for each chunk in it
_CODECS = {
    "blosc", "bytes", "bz2", "crc32c", "delta", "gzip", "lz4", "lzma", "sharding_indexed",
    "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip
_AXES = {
    "height": "y", "row": "y", "rows": "y", "width": "x", "column": "x", "columns": "x",
    "channel": "c", "channels": "c", "band": "c", "bands": "c", "rgb": "c", "s": "c",
}  # fmt: skip


def is_zarr(path: Path) -> bool:
    """Whether ``path`` is a folder with a Zarr array or group."""
    return any((path / mark).is_file() for mark in _MARKS)


class ZarrSource(Source):
    """A Zarr array, or the one in a group, or level 0 of an OME-Zarr picture. See ``Source``.

    [H, W] is grey; [H, W, C] and [C, H, W] have 1 to 4 channels, 2 and 4 with alpha as the last;
    in an OME-Zarr there is no alpha. Which axis is which is told by the names of the dimensions,
    else by their lengths, where 1 to 4 at the end, else at the beginning, are channels. Named
    further axes of length 1 are passed over.
    """

    def __init__(self, path: Path) -> None:
        try:
            with quiet(), zarr_codecs.bounding(_zarr(path)):
                array, axes, alpha = _picture(path)
                _check_codecs(path, array)
                if array.metadata.zarr_format == 2:
                    zarr_codecs.bound(array)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever zarr raises on bytes from outside
            raise damaged(path, error) from None
        dtype = array.dtype.newbyteorder("=")
        if dtype not in TYPES:
            raise UserError(
                f"{path}: stores {dtype} samples; save it as 8-bit, 16-bit unsigned or float"
            )
        if 0 in array.shape:
            raise UserError(f"{path}: is empty, {_times(array.shape)}; get it again")
        _check_chunks(path, array)
        lengths = dict(zip(axes, array.shape, strict=True))
        planes = lengths.get("c", 1)
        if planes not in ((1, 2, 3, 4) if alpha else (1, 3)):
            raise UserError(f"{path}: has {planes} channels; save it as grey or RGB")
        channels = 1 if planes < 3 else 3
        size, kind = (lengths["y"], lengths["x"]), kind_of(dtype, channels)
        super().__init__(path, size, channels, kind, planes > channels)
        self._array, self._axes, self._dtype = array, axes, dtype

    def _samples(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        wanted = {"y": slice(top, bottom), "x": slice(left, right), "c": slice(None)}
        samples = self._array[tuple(wanted.get(name, 0) for name in self._axes)]
        order = [name for name in self._axes if name in wanted]
        if "c" not in order:
            samples, order = samples[..., None], [*order, "c"]
        return samples.transpose([order.index(name) for name in "yxc"]).astype(self._dtype)


def _zarr(path: Path) -> ModuleType:
    """The package; UserError names the extra if it is missing."""
    try:
        import zarr
    except ImportError:
        zarr = None
    if not hasattr(zarr, "create_array"):  # none, or the old 2
        raise UserError(
            f"{path}: Zarr needs the package zarr 3 (Python 3.11 or newer); "
            "pip install 'dip-recon[large]'"
        )
    return zarr


def _store(path: Path, zarr: ModuleType):
    """The folder as zarr reads it: regular files in it, and what they are links to in it."""
    root, metadata = path.resolve(), (*_MARKS, ".zattrs", ".zmetadata")

    class Store(zarr.storage.LocalStore):
        most = (_METADATA, _METADATA)  # bytes of a file and of a part of one, until they are known

        async def get(self, key, prototype=None, byte_range=None):
            file = path / key
            if file.exists():
                if not file.resolve().is_relative_to(root):
                    raise ValueError(f"the link {key} leads out of it")
                if not file.is_file():
                    raise ValueError(f"{key} is not a file")
                size = _asked(byte_range, file.stat().st_size)
                most = _METADATA if file.name in metadata else self.most[byte_range is not None]
                if size > most:
                    raise ValueError(f"{key} has {size} bytes of a chunk")
            return await super().get(key, prototype, byte_range)

        async def get_partial_values(self, prototype, key_ranges):
            return [await self.get(key, prototype, part) for key, part in key_ranges]

    return Store(path, read_only=True)


def _asked(byte_range, size: int) -> int:
    """Bytes of a file of ``size`` bytes that zarr asks for."""
    if hasattr(byte_range, "end"):
        return byte_range.end - byte_range.start
    if hasattr(byte_range, "suffix"):
        return min(byte_range.suffix, size)
    return size - getattr(byte_range, "offset", 0)


def _check_codecs(path: Path, array) -> None:
    """Raise UserError for codecs that do more than compress: numcodecs has one that unpickles."""
    described = array.metadata.to_dict()
    if array.metadata.zarr_format == 2:
        stages = [described.get("compressor"), *(described.get("filters") or [])]
        found = [stage["id"] for stage in stages if stage]
    else:
        found, left = [], list(described["codecs"])
        while left:
            codec = left.pop()
            found.append(codec["name"])
            for inner in ("codecs", "index_codecs"):
                left += codec.get("configuration", {}).get(inner, [])
    for name in found:
        if name not in _CODECS:
            raise UserError(
                f"{path}: is stored with the codec {name}; save it with one of "
                f"{', '.join(sorted(_CODECS))}"
            )


def _check_chunks(path: Path, array) -> None:
    """Raise UserError where reading a single chunk takes more memory than there is.

    What is stored of one is bounded from here on.
    """
    sides, size = getattr(array, "shards", None) or array.chunks, array.dtype.itemsize
    index = _INDEX * math.prod(sides) // max(math.prod(array.chunks), 1)
    needed = _COPIES * math.prod(sides) * size + index
    part = max(zarr_codecs.most_stored(array.chunks, size, whole=False), 2 * index + 1024)
    array.store.most = zarr_codecs.most_stored(sides, size, whole=True) + index, part
    free = memory.free()
    if needed > free:
        raise UserError(
            f"{path}: a chunk of {_times(sides)} takes {memory.words(needed)} to read, and "
            f"{memory.words(free)} are free; save it anew in smaller chunks"
        )


def _picture(path: Path) -> tuple:
    """The array with the picture, its axes (see ``_named``), and whether it may have alpha."""
    zarr = _zarr(path)
    node = zarr.open(store=_store(path, zarr), mode="r")
    array, names, alpha = node, None, True
    if not isinstance(node, zarr.Array):
        attributes = dict(node.attrs)
        pyramids = attributes.get("ome", attributes).get("multiscales")
        if pyramids:
            array, names = _level_0(path, node, pyramids)
            alpha = False
        else:
            array = _only_array(path, node)
    if not isinstance(array, zarr.Array):
        raise ValueError("there is no array where its metadata says")
    names = (
        names
        or getattr(array.metadata, "dimension_names", None)
        or dict(array.attrs).get("_ARRAY_DIMENSIONS")  # xarray's, of format 2
    )
    return array, _named(names, array.shape) or _guessed(path, array.shape), alpha


def _level_0(path: Path, group, pyramids: list) -> tuple:
    """The full resolution of the one picture in an OME-Zarr, and the names of its dimensions."""
    if len(pyramids) > 1:
        raise UserError(
            f"{path}: holds {len(pyramids)} pictures; give the folder of one of them in it"
        )
    axes = [a["name"] if isinstance(a, dict) else a for a in pyramids[0].get("axes", [])]
    return group[pyramids[0]["datasets"][0]["path"]], axes


def _only_array(path: Path, group):
    """The one array right in a group."""
    arrays = dict(group.arrays())
    if len(arrays) != 1:
        names = ", ".join(sorted(arrays)[:5])
        what = f"holds {len(arrays)} arrays ({names})" if arrays else "holds no array"
        raise UserError(f"{path}: {what}; give the folder of one array")
    return next(iter(arrays.values()))


def _named(names: list | None, shape: tuple[int, ...]) -> list[str] | None:
    """The axes, as y, x, c and others of length 1, by their names; None if these do not tell."""
    if names is None or len(names) != len(shape) or not all(isinstance(n, str) for n in names):
        return None
    axes = [_AXES.get(name.lower(), name.lower()) for name in names]
    used = [n for n, length in zip(axes, shape, strict=True) if n in ("y", "x", "c") or length > 1]
    return axes if sorted(used) in (["x", "y"], ["c", "x", "y"]) else None


def _guessed(path: Path, shape: tuple[int, ...]) -> list[str]:
    """The axes by their lengths; UserError if these are no picture's."""
    if len(shape) == 2:
        return ["y", "x"]
    if len(shape) == 3 and shape[2] in (1, 2, 3, 4):
        return ["y", "x", "c"]
    if len(shape) == 3 and shape[0] in (1, 2, 3, 4):
        return ["c", "y", "x"]
    raise UserError(
        f"{path}: is an array of {_times(shape)}; a picture is [H, W], [H, W, C] or [C, H, W] with "
        "1 to 4 channels"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "no dimensions"


class ZarrSink(Sink):
    """A Zarr array (format 3) [H, W] or [H, W, C], in chunks of 512² pixels. See ``Sink``.

    Windows on that grid are written fastest: of other ones, chunks are read and written again.
    A colour profile is not kept; 1-bit becomes 8-bit, palette and CMYK become RGB.
    """

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
        self._array = self._again() if self.resumed else self._begin()

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.size, self.planes) if self.planes > 1 else self.size

    def _begin(self):
        """Make the temporary array, all black."""
        zarr = _zarr(self.path)
        if self._temporary.exists():
            _remove(self.path, self._temporary)
        try:
            return zarr.create_array(
                str(self._temporary),
                shape=self._shape,
                chunks=(_CHUNK, _CHUNK, self.planes)[: len(self._shape)],
                dtype=self.dtype,
                fill_value=0,
                zarr_format=3,
                dimension_names=["y", "x", "c"][: len(self._shape)],
            )
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _again(self):
        """The temporary array that is there; UserError if it is of another picture."""
        zarr = _zarr(self.path)
        try:
            with quiet():
                array = zarr.open_array(str(self._temporary), mode="r+")
        except Exception:  # whatever zarr raises on bytes from outside
            raise other_picture(self.path, self._temporary) from None
        if array.shape != self._shape or array.dtype != self.dtype:
            raise other_picture(self.path, self._temporary)
        return array

    def _put(self, top: int, left: int, data: np.ndarray) -> None:
        samples = self._stored(top, left, data)
        bottom, right = top + len(samples), left + samples.shape[1]
        self._array[top:bottom, left:right] = samples if self.planes > 1 else samples[..., 0]

    def _finish(self) -> None:
        if hasattr(os, "sync"):  # thousands of files, which may not come after their name
            os.sync()
        if not self.path.exists():
            os.rename(self._temporary, self.path)
            return
        if not is_zarr(self.path):
            raise not_a_zarr(self.path)
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=self.path.parent))
        os.rename(self.path, old / self.path.name)
        os.rename(self._temporary, self.path)
        shutil.rmtree(old, ignore_errors=True)  # the picture is in place


def not_a_zarr(path: Path) -> UserError:
    """What to say of a target that is not a Zarr and therefore not replaced."""
    return UserError(f"{path}: is there and not a Zarr; move it away, or choose another name")


def _remove(path: Path, temporary: Path) -> None:
    """Delete a half-written Zarr; UserError if it is anything else."""
    if not is_zarr(temporary):
        raise other_picture(path, temporary)
    try:
        shutil.rmtree(temporary)
    except OSError as error:
        raise cannot_write(temporary, error) from error
