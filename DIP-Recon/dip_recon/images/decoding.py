"""The content of a picture file -> samples as stored, alpha and kind."""

from __future__ import annotations

import lzma
import struct
import zlib
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from .. import memory
from ..errors import UserError
from .density import DESCRIPTION, UNIT, Density, X, Y, of_page, of_pillow
from .picture import MAX_PIXELS, Kind
from .quiet import quiet, quiet_libtiff

Decoded = tuple[np.ndarray, np.ndarray | None, Kind]

DECODING = 12  # bytes that reading a sample takes at most, in whole copies of the picture
LARGEST_TILE = 1024  # pixels a side that a tile may have, however small the picture is
# What tifffile decompresses by itself without regard to how much comes of it.
_DECOMPRESSORS = {
    tifffile.COMPRESSION.ADOBE_DEFLATE: zlib.decompressobj,
    tifffile.COMPRESSION.DEFLATE: zlib.decompressobj,
    tifffile.COMPRESSION.LZMA: partial(lzma.LZMADecompressor, memlimit=2**28),
}
_PHOTOMETRIC = 262  # TIFF tag: what the samples stand for; 0 where white is 0
_ORIENTATION, _CAMERA = 0x0112, 0x8769  # tags of EXIF and TIFF
# Width, height and density, which ``Kind`` has; other pictures in the file, and the maker's own,
# which point to where they lay.
_STALE = (0x0100, 0x0101, 0xA002, 0xA003, X, Y, UNIT, 0x014A, 0x927C)
_MOST_EXIF = 65_000  # bytes; a JPEG holds 65,533
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_ASSOCIATED = tifffile.EXTRASAMPLE.ASSOCALPHA  # colours are stored times alpha
_TIFF_COLOURS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.SEPARATED,
)


class Place(NamedTuple):
    """Where in a TIFF a picture is.

    page: the number of its page, from 0. part: its number in a stack that lies in that one page,
    uncompressed and one after the other; None if the page is the picture.
    """

    page: int
    part: int | None = None


def check_header(path: Path) -> None:
    """Raise UserError for a file that is no picture, or whose header says too many pixels."""
    with quiet():
        try:
            with Image.open(path, formats=_FORMATS) as image:
                check_size(path, image.width, image.height, len(image.getbands()))
        except UserError:
            raise
        except Exception as error:  # whatever a decoder raises on bytes from outside
            raise UserError(f"{path}: is not a picture that can be read ({error})") from None


def decode(path: Path, place: Place | None = None) -> Decoded:
    """Samples [H, W, C] as stored (C = 1 or 3; CMYK as float RGB), alpha [H, W] or None, kind.

    Of the picture at ``place`` in a TIFF; without, of the only one in the file, whatever its format
    (UserError if it holds several).
    """
    page = None
    with path.open("rb") as file:
        head = file.read(26)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        page = _decode_tiff(path, place)
        if not isinstance(page, int):
            return page
    # not by its name: then Pillow maps some TIFFs, wrongly where they lie on their side
    with path.open("rb") as file, _opened(path, file) as image:
        described = image.tag_v2.get(DESCRIPTION) if image.format == "TIFF" else None
        if page is not None:
            image.seek(page)
        check_size(path, image.width, image.height, len(image.getbands()))
        # A camera's MPO is a JPEG with previews behind it; its first picture is the picture.
        single = page is not None or image.format == "MPO"
        frames = 1 if single else getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(
                f"{path}: holds {frames} pictures (animated or multi-page); save the one you want "
                "to a file of its own"
            )
        if image.format == "PNG":
            depth, colour_type = head[24:]  # of IHDR; type 0 is grey, which Pillow keeps at 16 bits
            key = image.info.get("transparency")
            if key is not None and depth in (2, 4) and colour_type == 0:
                # Pillow spreads the levels to 0…255, but not the one that means transparent.
                image.info["transparency"] = key * (255 // (2**depth - 1))
            if depth == 16 and colour_type != 0:
                return _decode_png16(path, image)
        return _decode_pillow(image, described)


def _opened(path: Path, file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{path}: is not a picture that can be read; give one of {', '.join(_FORMATS)}"
        ) from None


def _decode_pillow(image: Image.Image, described: str | None) -> Decoded:
    """See ``decode``: pictures of up to 8 bits a sample, and 16-bit grey; ``described``: as for
    ``of_pillow``."""
    icc = image.info.get("icc_profile")
    key = image.info.get("transparency")
    with quiet_libtiff() if image.format == "TIFF" else nullcontext():
        image.load()
    orientation, density, exif = _notes(image, described)
    values, alpha, kind = _samples(image, key, icc)
    if kind.bits == 16 and image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:
        values = 65535 - values  # white is 0, which Pillow heeds up to 8 bits
    values = _turn(values, orientation)
    alpha = None if alpha is None else _turn(alpha[..., None], orientation)[..., 0]
    return values, alpha, replace(kind, exif=exif, density=density)


def _notes(
    image: Image.Image, described: str | None = None
) -> tuple[int, Density | None, bytes | None]:
    """The orientation; the density, and what a camera noted, as ``Kind`` has them, once upright."""
    orientation = _orientation(image)
    density = _turned(of_pillow(image, described), orientation)  # before it is taken out of EXIF
    return orientation, density, _exif(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow raises on bytes from outside
        return 1


def _exif(image: Image.Image) -> bytes | None:
    """What a camera noted, see ``Kind``; None if nothing, or nothing that can be read."""
    if image.format == "TIFF":  # whose tags say how its samples lie
        return None
    try:
        exif = image.getexif()
        for notes in (exif, exif.get_ifd(_CAMERA)):
            for tag in (_ORIENTATION, *_STALE):
                notes.pop(tag, None)
        content = exif.tobytes() if exif else b""
    except Exception:  # whatever Pillow raises on bytes from outside
        return None
    return content if 0 < len(content) < _MOST_EXIF else None


def _samples(image: Image.Image, key, icc: bytes | None) -> Decoded:
    """See ``decode``; key: the level or colour that stands for transparent, if one does."""
    mode = image.mode
    if mode.startswith("I"):  # 16-bit grey; "I" in older releases of Pillow
        values = np.asarray(image).astype(np.uint16)
        alpha = None if key is None else np.where(values == key, 0, 65535).astype(np.uint16)
        return values[..., None], alpha, Kind("grey", 16, icc=icc)
    if mode == "CMYK":
        return _cmyk_to_rgb(np.asarray(image) / 255.0), None, Kind("cmyk")

    opaque = key is None and mode not in ("LA", "La", "PA", "RGBA", "RGBa")
    grey = mode in ("1", "L", "LA", "La")
    if mode == "1" and key is not None:
        image = image.convert("L")
        key = 255 * bool(key)
    if mode == "La":
        image = image.convert("LA")
    if grey and key is not None:  # one grey level stands for transparent
        values = np.asarray(image)
        stack = np.stack([values, np.where(values == key, 0, 255).astype(np.uint8)], axis=-1)
    else:
        target = ("L" if grey else "RGB") + ("" if opaque else "A")
        stack = np.atleast_3d(np.asarray(image.convert(target)))  # [H, W, samples] uint8
    values, alpha = (stack, None) if opaque else (stack[..., :-1], stack[..., -1].copy())

    if mode == "1":
        return values // 255, alpha, Kind("grey", 1)
    if mode in ("P", "PA"):
        if (values == values[..., :1]).all():
            values, icc = values[..., :1], None
        return values, alpha, Kind("palette", icc=icc)
    return values, alpha, Kind("grey" if grey else "rgb", icc=icc)


def _decode_png16(path: Path, image: Image.Image) -> Decoded:
    """See ``decode``: 16-bit PNG with colour or alpha; ``image`` is its header."""
    try:
        import png
    except ImportError:
        raise UserError(
            f"{path}: reading a 16-bit colour PNG needs pypng; install it: pip install pypng"
        ) from None
    channels = {2: 3, 4: 2, 6: 4}.get(_colour_type(path), 4)
    # a filter's byte a row, and up to seven passes over the picture
    _check_idat(path, image.height * (2 * image.width * channels + 1) + 14 * image.height + 64)
    with path.open("rb") as file:
        reader = png.Reader(file=file)
        width, height, rows, info = reader.read()
        samples = np.empty((height, width * info["planes"]), np.uint16)
        filled = 0
        for filled, row in enumerate(rows, 1):
            samples[filled - 1] = row
        if filled < height:
            raise ValueError(f"{filled} of {height} rows")
    samples = samples.reshape(height, width, info["planes"])  # [H, W, 2 | 3 | 4]
    orientation, density, exif = _notes(image)
    samples = _turn(samples, orientation)
    values, alpha = samples, None
    if info["alpha"]:
        values, alpha = samples[..., :-1], samples[..., -1].copy()
    elif reader.transparent is not None:  # one colour stands for transparent
        key = (samples == np.array(reader.transparent, np.uint16)).all(-1)
        alpha = np.where(key, 0, 65535).astype(np.uint16)
    space = "grey" if info["greyscale"] else "rgb"
    kind = Kind(space, 16, icc=image.info.get("icc_profile"), exif=exif, density=density)
    return values, alpha, kind


def _colour_type(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(26)[25]


def _check_idat(path: Path, most: int) -> None:
    """Raise ValueError if the samples of a PNG decompress to more than ``most`` bytes: pypng would
    decompress all that a chunk holds at once."""
    inflate, count = zlib.decompressobj(), 0
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind != b"IDAT":
                file.seek(length + 4, 1)
                continue
            stored = file.read(length)
            while stored and not inflate.eof:
                count += len(inflate.decompress(stored, 2**20))
                if count > most:
                    raise ValueError(f"more than the {most} bytes of samples that it should hold")
                stored = inflate.unconsumed_tail
            file.seek(4, 1)


def check_chain(path: Path) -> None:
    """Raise ValueError for a TIFF whose pages lead back to one before: tifffile would go round."""
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        form, entry = (("Q", "Q"), 20) if big else (("H", "I"), 12)
        count, offset = (struct.Struct(order + letter) for letter in form)
        at, seen = offset.unpack_from(head.ljust(16, b"\0"), 8 if big else 4)[0], set()
        while at:
            if at in seen:
                raise ValueError("its pages lead back to one before")
            seen.add(at)
            file.seek(min(at, 2**62))
            tags = file.read(count.size)
            if len(tags) < count.size:
                return
            file.seek(min(count.unpack(tags)[0] * entry, 2**62 - file.tell()), 1)
            after = file.read(offset.size)
            if len(after) < offset.size:
                return
            at = offset.unpack(after)[0]


def places(tiff: tifffile.TiffFile) -> list[Place]:
    """Where the pictures are; reduced levels of a pyramid and previews do not count."""
    pages = [number for number, page in enumerate(tiff.pages) if not page.is_reduced]
    if not pages:
        raise ValueError("there is no page in it")
    if len(pages) == 1 and (tiff.is_imagej or tiff.is_shaped or tiff.is_stk):
        count = tiff.series[0].size // tiff.pages[pages[0]].size
        if count > 1:
            return [Place(pages[0], part) for part in range(count)]
    return [Place(number) for number in pages]


def only_place(path: Path, tiff: tifffile.TiffFile) -> Place:
    """Where the only picture of a TIFF is; UserError if it holds several."""
    first, *others = places(tiff)
    if others:
        raise UserError(
            f"{path}: holds {1 + len(others)} pages; save the one you want to a file of its own"
        )
    return first


def _decode_tiff(path: Path, place: Place | None) -> Decoded | int:
    """See ``decode``: TIFF of more than 8 bits a sample; a page's number leaves it to Pillow."""
    check_chain(path)
    with tifffile.TiffFile(path) as tiff:
        number, part = place or only_place(path, tiff)
        page = tiff.pages[number]
        check_size(path, page.imagewidth, page.imagelength, min(page.samplesperpixel, 5))
        if part is None:
            ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
        else:
            ends = [page.dataoffsets[0] + (part + 1) * page.nbytes]
        if max(ends, default=0) > path.stat().st_size:
            raise ValueError("the file is cut short")
        most = segment_bytes(page)
        cmyk = page.photometric == tifffile.PHOTOMETRIC.SEPARATED
        if page.samplesperpixel > 4 + cmyk:
            raise UserError(
                f"{path}: has {page.samplesperpixel} channels; save it as grey, RGB or CMYK"
            )
        if extra_channel(page):
            raise UserError(
                f"{path}: its channel {page.samplesperpixel} is not marked as alpha; remove it, or "
                "save channels to files of their own"
            )
        dtype = page.dtype
        greys = {tifffile.PHOTOMETRIC.MINISBLACK: 2, tifffile.PHOTOMETRIC.MINISWHITE: 1}
        most_planes = greys.get(page.photometric, page.samplesperpixel)
        # which Pillow reads in part, or not at all
        planes = page.axes == "SYX" or page.samplesperpixel > most_planes
        if part is None and dtype in (np.dtype(bool), np.dtype(np.uint8)) and not planes:
            return number
        if dtype is None or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"{page.bitspersample} bits a sample, axes {page.axes}")
        # all the bits are used
        whole = dtype in (np.uint8, np.uint16) and page.bitspersample == 8 * dtype.itemsize
        if not whole and dtype.kind != "f":
            raise UserError(
                f"{path}: stores {page.bitspersample}-bit {dtype} samples; "
                "save it as 8-bit, 16-bit unsigned or float"
            )
        if page.photometric not in _TIFF_COLOURS:
            raise UserError(
                f"{path}: stores colours as {page.photometric.name}; save it as grey, RGB or CMYK"
            )
        try:
            if part is None:
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
                    tiff.filehandle.seek(offset)
                    check_inflated(tiff.filehandle.read(count), page, most)
            samples = page.asarray() if part is None else _part(tiff, page, part)
        except (ValueError, KeyError) as error:
            if "imagecodecs" not in str(error):
                raise
            if whole and (page.samplesperpixel == 1 or dtype == np.uint8):
                return number  # Pillow keeps 16-bit grey and 8 bits, and has the codec
            raise UserError(
                f"{path}: is compressed with {page.compression.name}; save it uncompressed or "
                "with deflate, or: pip install imagecodecs"
            ) from None
        samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
        orientation = getattr(page.tags.get(_ORIENTATION), "value", 1)
        samples = _turn(np.atleast_3d(samples), orientation)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            white = 1 if dtype.kind == "f" else np.iinfo(dtype).max
            grey, alpha = samples[..., :1], samples[..., 1:]
            samples = np.concatenate([white - grey, alpha], axis=-1)
        icc = getattr(page.tags.get(34675), "value", None)
        premultiplied = _ASSOCIATED in page.extrasamples
        density = _turned(of_page(page), orientation)
    deep = {"bits": 8 * dtype.itemsize, "floating": dtype.kind == "f", "density": density}
    samples = samples.astype(dtype.newbyteorder("="))
    colours = 4 if cmyk else 3 if samples.shape[-1] > 2 else 1
    values = samples[..., :colours]
    alpha = samples[..., colours].copy() if samples.shape[-1] > colours else None
    top = 1.0 if deep["floating"] else float(np.iinfo(dtype).max)
    if premultiplied and alpha is not None:
        shares = np.maximum(alpha / top, 1e-9)[..., None]
        plain = np.minimum(values / shares, top)
        values = (plain if deep["floating"] else np.rint(plain)).astype(samples.dtype)
    if cmyk:
        return _cmyk_to_rgb(values / top), alpha, Kind("cmyk", **deep)
    return values, alpha, Kind("grey" if colours == 1 else "rgb", icc=icc, **deep)


def extra_channel(page: tifffile.TiffPage) -> bool:
    """Whether there is a channel beside the colours that is not said to be alpha."""
    count, cmyk = page.samplesperpixel, page.photometric == tifffile.PHOTOMETRIC.SEPARATED
    extra = count - (4 if cmyk else 3 if count > 2 else 1)
    alpha = {_ASSOCIATED, tifffile.EXTRASAMPLE.UNASSALPHA}
    return extra > 0 and alpha.isdisjoint(page.extrasamples[-1:])


def _part(tiff: tifffile.TiffFile, page: tifffile.TiffPage, part: int) -> np.ndarray:
    """The samples of one picture of a stack that lies in one page; see ``Place``."""
    offset = page.dataoffsets[0] + part * page.nbytes
    stored = page.dtype.newbyteorder(tiff.byteorder)
    return tiff.filehandle.read_array(stored, page.size, offset).reshape(page.shape)


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Samples [H, W, C] made upright from the EXIF/TIFF orientation 1…8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _turned(density: Density | None, orientation: int) -> Density | None:
    """The density of what ``_turn`` has turned."""
    return density[::-1] if density and orientation in (5, 6, 7, 8) else density


def check_size(path: Path, width: int, height: int, samples: int) -> None:
    """Raise UserError for a header that says more than ``MAX_PIXELS``, or more of them, of so many
    ``samples`` each, than memory has room for; ValueError for one that says none."""
    if width < 1 or height < 1:
        raise ValueError(f"{width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: its header says {width}×{height} pixels, more than "
            f"{MAX_PIXELS // 1_000_000} megapixels; crop or reduce it first"
        )
    needed, free = width * height * samples * DECODING, memory.free()
    if needed > free:
        raise UserError(
            f"{path}: its header says {width}×{height} pixels, which take {memory.words(needed)} "
            f"to read, and {memory.words(free)} are free; crop or reduce it first"
        )


def segment_bytes(page: tifffile.TiffPage) -> int:
    """Bytes of samples in a whole strip or tile of a TIFF.

    Raises ValueError where that is out of proportion to the picture.
    """
    if page.is_tiled:
        sides = (page.tilelength, page.tilewidth)
        for side, pixels in zip(sides, (page.imagelength, page.imagewidth), strict=True):
            if not 0 < side <= max(2 * pixels, LARGEST_TILE):
                raise ValueError(f"tiles of {sides[1]}×{sides[0]} pixels")
        count = sides[0] * sides[1]
    else:
        if page.rowsperstrip < 1:
            raise ValueError(f"{page.rowsperstrip} rows a strip")
        count = min(page.rowsperstrip, page.imagelength) * page.imagewidth
    planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else 1
    return count * planes * (1 if page.dtype is None else page.dtype.itemsize)


def check_inflated(stored: bytes, page: tifffile.TiffPage, most: int) -> None:
    """Raise ValueError if a strip or tile decompresses to more than ``most`` bytes.

    tifffile decompresses it whole, however much comes of it; here nothing is kept.
    """
    decompressor = _DECOMPRESSORS.get(page.compression)
    if decompressor is None:
        return
    inflate, count = decompressor(), 0
    while True:
        part = inflate.decompress(stored, 2**20)
        count += len(part)
        if count > most:
            raise ValueError(f"more than the {most} bytes that a part of it should hold")
        stored = getattr(inflate, "unconsumed_tail", b"")
        if inflate.eof and page.compression == tifffile.COMPRESSION.LZMA and inflate.unused_data:
            stored, inflate = inflate.unused_data, decompressor()  # one after the other
        elif inflate.eof or not part:
            return


def _cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    """CMYK [H, W, 4] -> RGB [H, W, 3], both float in [0, 1]."""
    return (1 - cmyk[..., :3]) * (1 - cmyk[..., 3:])
