"""What a chunk of a Zarr may swell to: zarr and numcodecs decompress whatever comes.

The size is told before anything is decoded, from the header where the format has one, else by
decompressing piece by piece and throwing it away.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType

_SLACK = 2**20  # bytes; zstd tells a stream's size in blocks of 128 kB
_TIMES = 4  # of a chunk's own bytes: differences may be stored in a wider type
_PIECE, _FED = 2**20, 2**16  # bytes that come out of a stream at once, or are put in
_LZMA_MEMORY = 2**28  # xz -9 needs 65 MiB


def most_stored(shape: tuple[int, ...], itemsize: int, whole: bool) -> int:
    """Bytes that a chunk may have before it is decoded: as a file, or as a part of one."""
    own = math.prod(shape) * itemsize
    return _most(shape, itemsize) if whole else own + own // 8 + 1024


def bound(array) -> None:
    """Have the codecs of an array of format 2 raise ValueError for a chunk that swells.

    Those of format 3 are bounded by ``bounding`` while the array is opened.
    """
    most = _most(array.chunks, array.dtype.itemsize)
    for codec in (array.metadata.compressor, *(array.metadata.filters or [])):
        if codec is not None and codec.codec_id in _SIZES:
            codec.decode = functools.partial(_decoded, codec, codec.decode, most)


def _decoded(codec, decode: Callable, most: int, data, out=None):
    _check(codec.codec_id, data, most, codec)
    return decode(data, out)


def bounding(zarr: ModuleType) -> AbstractContextManager:
    """While this is open, arrays of format 3 are opened with codecs that raise ValueError."""
    return zarr.config.set({f"codecs.{name}": path for name, path in _registered(zarr).items()})


@functools.cache
def _registered(zarr: ModuleType) -> dict[str, str]:
    """Register the bounded codecs with zarr; each one's class by the codec's name."""
    known = {"blosc": "BloscCodec", "gzip": "GzipCodec", "zstd": "ZstdCodec"}
    paths = {}
    for name, plain in known.items():
        bounded = type(f"Bounded{plain}", (_Bounded, getattr(zarr.codecs, plain)), {"id": name})
        paths[name] = f"{__name__}.{bounded.__name__}"
        zarr.registry.register_codec(name, bounded, qualname=paths[name])
    return paths


class _Bounded:
    """Mixed into one of zarr's codecs."""

    async def decode(self, chunks_and_specs):
        chunks_and_specs = list(chunks_and_specs)
        for data, spec in chunks_and_specs:
            if data is not None:
                most = _most(spec.shape, spec.dtype.to_native_dtype().itemsize)
                _check(self.id, data.as_numpy_array(), most)
        return await super().decode(chunks_and_specs)


def _most(shape: tuple[int, ...], itemsize: int) -> int:
    return _TIMES * math.prod(shape) * itemsize + _SLACK


def _check(name: str, data, most: int, codec=None) -> None:
    """Raise ValueError if what this codec makes of ``data`` has more than ``most`` bytes."""
    size = 0
    for more in _SIZES[name](memoryview(data).cast("B"), codec):
        size += more
        if size > most:
            raise ValueError(f"a chunk swells to more than {most} bytes by {name}")


def _in_header(first: int) -> Callable[..., Iterator[int]]:
    """Four bytes from ``first`` on, little endian."""
    return lambda data, codec: iter([int.from_bytes(data[first : first + 4], "little")])


def _pieces(open_: Callable) -> Callable[..., Iterator[int]]:
    """The lengths of what comes of a compressed file that ``open_`` opens, piece by piece."""

    def lengths(data: memoryview, codec) -> Iterator[int]:
        with open_(io.BytesIO(data)) as file:
            while piece := file.read(_PIECE):
                yield len(piece)

    return lengths


def _inflated(data: memoryview, codec) -> Iterator[int]:
    stream = zlib.decompressobj()
    for at in range(0, len(data), _FED):
        rest = data[at : at + _FED]
        while len(rest) and not stream.eof:
            yield len(stream.decompress(rest, _PIECE))
            rest = stream.unconsumed_tail


def _lzma(data: memoryview, codec) -> Iterator[int]:
    raw = codec.format == lzma.FORMAT_RAW
    memory = None if raw else _LZMA_MEMORY
    rest = bytes(data)
    while rest:
        stream = lzma.LZMADecompressor(codec.format, memory, codec.filters)
        piece = stream.decompress(rest, _PIECE)
        while piece and not stream.eof:
            yield len(piece)
            piece = stream.decompress(b"", _PIECE)
        yield len(piece)
        rest = stream.unused_data if stream.eof else b""


def _zstd(data: memoryview, codec) -> Iterator[int]:
    """A frame's own word for its size, else the most that its blocks can hold (RFC 8878)."""
    at = 0
    while at + 5 <= len(data):
        magic, flags = int.from_bytes(data[at : at + 4], "little"), data[at + 4]
        if magic & ~15 == 0x184D2A50:  # a frame to be skipped
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if magic != 0xFD2FB528:
            return  # the decoder will say so
        single, field = flags >> 5 & 1, flags >> 6
        at += 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        width = (single, 2, 4, 8)[field]
        content = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
        at, last, held = at + width, 0, 0
        while not last and at + 3 <= len(data):
            block = int.from_bytes(data[at : at + 3], "little")
            last, kind, size = block & 1, block >> 1 & 3, block >> 3
            held += size if kind < 2 else 2**17
            at += 3 + (1 if kind == 1 else size)
        at += 4 * (flags >> 2 & 1)
        yield content if width else held


_SIZES: dict[str, Callable[..., Iterator[int]]] = {
    "blosc": _in_header(4),
    "bz2": _pieces(bz2.open),
    "gzip": _pieces(gzip.open),
    "lz4": _in_header(0),
    "lzma": _lzma,
    "zlib": _inflated,
    "zstd": _zstd,
}
