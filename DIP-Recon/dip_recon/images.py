"""Image files <-> float arrays.

``read`` gives a ``Picture``: ``data`` [C, H, W] float32 in [0, 1], the alpha channel as stored, and
the ``Kind`` of storage, so that ``write(path, data, like=picture)`` can give the result back in
kind: 16-bit stays 16-bit, greyscale stays greyscale, alpha is carried over. Where the format of the
output cannot hold that, the nearest thing it holds is written.

Up to 8 bits a sample Pillow reads and writes. Beyond, it would silently cut colour down to 8 bits,
so there tifffile reads TIFF, pypng (an extra) reads colour PNG, and neither is written by Pillow.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from .errors import UserError
from .files import atomic

MAX_PIXELS = 400_000_000  # larger headers are refused before anything is decoded

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
WRITABLE = (".png", *_JPEG, *_TIFF, ".bmp", ".webp")
READABLE = (*WRITABLE, ".gif")

# What a format holds, by the suffix of the file.
_HOLDS_ALPHA = (".png", ".webp", *_TIFF)
_HOLDS_PALETTE = _HOLDS_ONE_BIT = (".png", ".bmp", *_TIFF)
_HOLDS_CMYK = (*_JPEG, *_TIFF)
_HOLDS_ICC = (".png", ".webp", *_JPEG, *_TIFF)
_HOLDS_DEEP = (".png", *_TIFF)  # more than 8 bits a sample
_MAX_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}

_TIFF_COLOURS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.SEPARATED,
)


@dataclass(frozen=True)
class Kind:
    """How a picture is stored.

    space: "grey", "rgb", "palette" or "cmyk". bits: 1, 8 or 16 a sample; 16, 32 or 64 if
    ``floating``. icc: the colour profile, carried over unless the colours were converted (CMYK).
    """

    space: str
    bits: int = 8
    floating: bool = False
    icc: bytes | None = field(default=None, repr=False)

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


# ------------------------------------------------------------------------------------- reading


def read(path: str | os.PathLike) -> Picture:
    """Read a PNG, JPEG, TIFF, BMP, WebP or GIF picture of any depth and colour kind.

    Integer samples are divided by their maximum (255 or 65535); a float TIFF is taken as it is.
    Palette and CMYK become RGB (a palette of greys becomes grey), 1-bit becomes 0 and 1.

    Raises UserError, in one line with the mend, if the file is missing, empty, truncated, not a
    picture, over ``MAX_PIXELS``, animated or multi-page, float with values that are not finite or
    not in [0, 1], or 16-bit colour PNG while pypng is not installed.
    """
    path = Path(path)
    _check_file(path)
    try:
        with _quiet():
            values, alpha, kind = _decode(path)
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


def _decode(path: Path) -> tuple[np.ndarray, np.ndarray | None, Kind]:
    """Samples [H, W, C] as stored (C = 1 or 3; CMYK as float RGB), alpha [H, W] or None, kind."""
    head = path.open("rb").read(26)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        deep = _decode_tiff(path)
        if deep is not None:
            return deep
    try:
        image = Image.open(path, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{path}: is not a picture that can be read; give one of {', '.join(_FORMATS)}"
        ) from None
    with image:
        _check_size(path, image.width, image.height)
        # A camera's MPO is a JPEG with previews behind it; its first picture is the picture.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(
                f"{path}: holds {frames} pictures (animated or multi-page); save the one you want "
                "to a file of its own"
            )
        if image.format == "PNG" and head[24] in (2, 4) and head[25] == 0:
            key = image.info.get("transparency")  # Pillow spreads the levels to 0…255, but not it
            if key is not None:
                image.info["transparency"] = key * (255 // (2 ** head[24] - 1))
        # IHDR: depth is byte 24, colour type byte 25 (0 grey, which Pillow keeps at 16 bits).
        if image.format == "PNG" and head[24] == 16 and head[25] != 0:
            return _decode_png16(path, image)
        return _decode_pillow(image)


def _decode_pillow(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, Kind]:
    """See ``_decode``: pictures of up to 8 bits a sample, and 16-bit grey."""
    icc = image.info.get("icc_profile")
    key = image.info.get("transparency")
    with _quiet_libtiff() if image.format == "TIFF" else nullcontext():
        image.load()
    image = ImageOps.exif_transpose(image)
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


def _decode_png16(path: Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, Kind]:
    """See ``_decode``: 16-bit PNG with colour or alpha; ``image`` is its header."""
    try:
        import png
    except ImportError:
        raise UserError(
            f"{path}: reading a 16-bit colour PNG needs pypng; "
            'install it: pip install "dip-recon[png16]"'
        ) from None
    with path.open("rb") as file:
        reader = png.Reader(file=file)
        width, height, rows, info = reader.read()
        samples = np.empty((height, width * info["planes"]), np.uint16)
        filled = 0
        for row in rows:
            samples[filled] = row
            filled += 1
        if filled < height:
            raise ValueError(f"{filled} of {height} rows")
    samples = samples.reshape(height, width, info["planes"])  # [H, W, 2 | 3 | 4]
    samples = _turn(samples, image.getexif().get(0x0112, 1))
    values, alpha = samples, None
    if info["alpha"]:
        values, alpha = samples[..., :-1], samples[..., -1].copy()
    elif reader.transparent is not None:  # one colour stands for transparent
        key = (samples == np.array(reader.transparent, np.uint16)).all(-1)
        alpha = np.where(key, 0, 65535).astype(np.uint16)
    space = "grey" if info["greyscale"] else "rgb"
    return values, alpha, Kind(space, 16, icc=image.info.get("icc_profile"))


def _decode_tiff(path: Path) -> tuple[np.ndarray, np.ndarray | None, Kind] | None:
    """See ``_decode``: TIFF of more than 8 bits a sample; None leaves the others to Pillow."""
    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not page.is_reduced]  # previews do not count
        if len(pages) > 1:
            raise UserError(
                f"{path}: holds {len(pages)} pages; save the one you want to a file of its own"
            )
        page = pages[0]
        _check_size(path, page.imagewidth, page.imagelength)
        ends = (a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > path.stat().st_size:
            raise ValueError("the file is cut short")
        cmyk = page.photometric == tifffile.PHOTOMETRIC.SEPARATED
        if page.samplesperpixel > 4 + cmyk:
            raise UserError(
                f"{path}: has {page.samplesperpixel} channels; save it as grey, RGB or CMYK"
            )
        dtype = page.dtype
        if dtype in (np.dtype(bool), np.dtype(np.uint8)):
            return None
        if dtype is None or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"{page.bitspersample} bits a sample, axes {page.axes}")
        whole = dtype == np.uint16 and page.bitspersample == 16  # all 16 bits used
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
            samples = page.asarray()
        except (ValueError, KeyError) as error:
            if "imagecodecs" not in str(error):
                raise
            if whole and page.samplesperpixel == 1:
                return None  # Pillow keeps 16-bit grey, and has the codec
            raise UserError(
                f"{path}: is compressed with {page.compression.name}; save it uncompressed or "
                "with deflate, or: pip install imagecodecs"
            ) from None
        samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
        samples = _turn(np.atleast_3d(samples), getattr(page.tags.get(274), "value", 1))
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            samples = (1 if dtype.kind == "f" else 65535) - samples
        icc = getattr(page.tags.get(34675), "value", None)
    deep = {"bits": 8 * dtype.itemsize, "floating": dtype.kind == "f"}
    samples = samples.astype(dtype.newbyteorder("="))
    colours = 4 if cmyk else 3 if samples.shape[-1] > 2 else 1
    values = samples[..., :colours]
    alpha = samples[..., colours].copy() if samples.shape[-1] > colours else None
    if cmyk:
        top = 1.0 if deep["floating"] else 65535.0
        return _cmyk_to_rgb(values / top), alpha, Kind("cmyk", **deep)
    return values, alpha, Kind("grey" if colours == 1 else "rgb", icc=icc, **deep)


def _turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Samples [H, W, C] made upright from the EXIF/TIFF orientation 1…8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _check_size(path: Path, width: int, height: int) -> None:
    """Raise UserError for a header that says no pixels or more than ``MAX_PIXELS``."""
    if width < 1 or height < 1:
        raise ValueError(f"{width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: its header says {width}×{height} pixels, more than "
            f"{MAX_PIXELS // 1_000_000} megapixels; crop or reduce it first"
        )


def _check_float(path: Path, values: np.ndarray) -> None:
    """Raise UserError unless float samples are finite and in [0, 1]."""
    if not np.isfinite(values).all():
        raise UserError(f"{path}: has values that are NaN or infinite; replace them first")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{path}: its float values run from {low:g} to {high:g}; scale them to 0…1 first"
        )


def _cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    """CMYK [H, W, 4] -> RGB [H, W, 3], both float in [0, 1]."""
    return (1 - cmyk[..., :3]) * (1 - cmyk[..., 3:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the decoders from speaking on stderr; ``_check_size`` stands for Pillow's own limit."""
    loggers = [logging.getLogger("PIL"), logging.getLogger("tifffile")]
    before = [logger.level for logger in loggers], Image.MAX_IMAGE_PIXELS
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before[0], strict=True):
            logger.setLevel(level)
        Image.MAX_IMAGE_PIXELS = before[1]


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Send file descriptor 2 nowhere: libtiff, which Pillow calls, writes its complaints to it."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nothing to keep quiet
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


# ------------------------------------------------------------------------------------- writing


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
    check_writable(path)
    data = _checked(data)
    suffix = path.suffix.lower()
    if max(data.shape) > _MAX_SIDE.get(suffix, math.inf):
        raise UserError(
            f"{path}: a {suffix} file holds at most {_MAX_SIDE[suffix]} pixels a side; "
            "write .png or .tif instead"
        )
    alpha = None
    kind = Kind("grey" if len(data) == 1 else "rgb")
    if like is not None:
        kind = _nearest_kind(like, data, suffix)
        if like.alpha is not None and suffix in _HOLDS_ALPHA:
            alpha = _alpha_for(like.alpha, data.shape[1:], kind)
    _replace(path, _encode(data.transpose(1, 2, 0), alpha, kind, suffix))


def save_png(path: str | os.PathLike, data: np.ndarray) -> None:
    """Write ``data`` [C, H, W], C = 1 or 3, clipped and rounded, as an 8-bit PNG.

    The same data give the same bytes. The file appears whole or not at all. Raises as ``write``.
    """
    data = _checked(data).transpose(1, 2, 0)
    kind = Kind("grey" if data.shape[-1] == 1 else "rgb")
    _replace(Path(path), _encode(data, None, kind, ".png"))


def check_writable(path: str | os.PathLike) -> None:
    """Raise UserError if ``write`` could not write to ``path``; to be asked before a long run."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise UserError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'!r}; "
            f"end the name in one of {', '.join(WRITABLE)}"
        )
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: the folder {path.parent} is not writable; choose another")


def _checked(data: np.ndarray) -> np.ndarray:
    """``data`` as a float array [C, H, W] clipped to [0, 1]; ValueError if it is no picture."""
    data = np.asarray(data)
    if data.ndim != 3 or data.shape[0] not in (1, 3) or 0 in data.shape:
        raise ValueError(f"a picture has the shape [1 or 3, H, W], this is {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("the picture has values that are NaN or infinite")
    return np.clip(data.astype(np.float64), 0, 1)


def _nearest_kind(like: Picture, data: np.ndarray, suffix: str) -> Kind:
    """The kind of ``like`` for ``data`` [C, H, W], or the nearest that a ``suffix`` file holds."""
    kind, colours = like.kind, len(data)
    space, bits, floating = "grey" if colours == 1 else "rgb", kind.bits, kind.floating
    if (kind.space == "palette" and suffix in _HOLDS_PALETTE) or (
        kind.space == "cmyk" and suffix in _HOLDS_CMYK and colours == 3
    ):
        space = kind.space
    if floating and suffix == ".png":
        bits, floating = 16, False
    if bits > 8 and suffix not in _HOLDS_DEEP:
        bits, floating = 8, False
    if bits == 1 and (suffix not in _HOLDS_ONE_BIT or colours == 3 or like.alpha is not None):
        bits = 8
    icc = kind.icc if suffix in _HOLDS_ICC and colours == len(like.data) else None
    return Kind(space, bits, floating, icc)


def _alpha_for(alpha: np.ndarray, size: tuple[int, int], kind: Kind) -> np.ndarray:
    """``alpha`` [H, W] at ``size`` in the sample type of ``kind``; untouched where it fits."""
    dtype = _dtype(kind)
    if alpha.shape == tuple(size) and alpha.dtype == dtype:
        return alpha
    top = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    level = alpha.astype(np.float64) / top
    if alpha.shape != tuple(size):
        height, width = size
        image = Image.fromarray(level.astype(np.float32))
        level = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    return _quantise(level, dtype)


def _dtype(kind: Kind) -> np.dtype:
    """The sample type of a kind; 1-bit is held in 8."""
    return np.dtype(f"{'f' if kind.floating else 'u'}{max(kind.bits, 8) // 8}")


def _quantise(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in [0, 1] -> samples of ``dtype``, rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def _encode(data: np.ndarray, alpha: np.ndarray | None, kind: Kind, suffix: str) -> bytes:
    """The content of a ``suffix`` file with ``data`` [H, W, C] in [0, 1] and ``alpha`` [H, W]."""
    if kind.bits == 1:
        data = (data >= 0.5).astype(np.float64)
    if kind.space == "cmyk":
        data = _rgb_to_cmyk(data)
    values = _quantise(data, _dtype(kind))
    samples = values if alpha is None else np.dstack([values, alpha])
    if kind.bits <= 8:
        image = _paletted(values, alpha) if kind.space == "palette" else None
        if image is None or (alpha is not None and suffix != ".png"):
            image = _image(samples, kind, suffix)
        return _encode_pillow(image, kind, suffix)
    if suffix == ".png":
        return _encode_png16(samples, kind.icc)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        samples.squeeze(-1) if samples.shape[-1] == 1 else samples,
        photometric={"grey": "minisblack", "cmyk": "separated"}.get(kind.space, "rgb"),
        planarconfig="contig" if samples.shape[-1] > 1 else None,
        extrasamples=None if alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=kind.icc,
        metadata=None,
    )
    return buffer.getvalue()


def _image(samples: np.ndarray, kind: Kind, suffix: str) -> Image.Image:
    """8-bit samples [H, W, 1…4] as a Pillow image of the mode that ``kind`` says."""
    if kind.space == "cmyk" and samples.shape[-1] > 4:
        samples = samples[..., :4]  # Pillow has no CMYK with alpha
    if samples.shape[-1] == 1:
        image = Image.fromarray(samples[..., 0])
        return image.convert("1", dither=Image.Dither.NONE) if kind.bits == 1 else image
    if samples.shape[-1] == 2:
        bands = [Image.fromarray(np.ascontiguousarray(samples[..., i])) for i in (0, 1)]
        return Image.merge("LA", bands)
    if kind.space == "cmyk":
        return Image.frombytes("CMYK", samples.shape[1::-1], samples.tobytes())
    return Image.fromarray(samples)


def _encode_pillow(image: Image.Image, kind: Kind, suffix: str) -> bytes:
    options: dict = {
        ".webp": {"lossless": True, "exact": True},
        ".tif": {"compression": "tiff_adobe_deflate"},
        ".jpg": {"quality": 95, "subsampling": 0},
    }.get({".tiff": ".tif", ".jpeg": ".jpg"}.get(suffix, suffix), {})
    if kind.icc:
        options["icc_profile"] = kind.icc
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    name = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    buffer = io.BytesIO()
    with _quiet():
        image.save(buffer, format=name, **options)
    return buffer.getvalue()


def _encode_png16(samples: np.ndarray, icc: bytes | None) -> bytes:
    """A PNG of uint16 samples [H, W, 1…4] (grey, grey + alpha, RGB, RGBA), rows filtered "up"."""
    height, width, planes = samples.shape
    rows = (
        np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    )  # [H, 2·W·planes] bytes
    up = rows.copy()
    up[1:] -= rows[:-1]
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), up], axis=1)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[planes]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(icc)))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _paletted(values: np.ndarray, alpha: np.ndarray | None) -> Image.Image | None:
    """8-bit values [H, W, 1 | 3] and alpha [H, W] as a palette image, or None.

    Exact where 256 entries do; else the colours are quantised, with fewer colours until colour and
    alpha together fit. None if the alpha alone has too many levels.
    """
    height, width = values.shape[:2]
    rgb = np.broadcast_to(values, (height, width, 3))
    a = np.full((height, width), 255, np.uint8) if alpha is None else alpha
    for colours in (None, 256, 255, 128, 64, 32):
        if colours:
            shown = rgb * (a > 0)[..., None].astype(np.uint8)  # what cannot be seen is one colour
            quantised = Image.fromarray(shown).quantize(colours, dither=Image.Dither.NONE)
            shown = np.asarray(quantised.convert("RGB"))
        else:
            shown = rgb
        pixels = np.dstack([shown, a]).astype(np.uint32) @ np.array([1 << 24, 1 << 16, 1 << 8, 1])
        entries, index = np.unique(pixels, return_inverse=True)
        if len(entries) <= 256:
            table = np.stack([entries >> 24, entries >> 16, entries >> 8, entries]).T & 255
            table = table.astype(np.uint8)  # [entries, RGBA]
            image = Image.fromarray(index.reshape(height, width).astype(np.uint8))
            image.putpalette(table[:, :3].tobytes())  # L becomes P
            if alpha is not None:
                image.info["transparency"] = table[:, 3].tobytes()
            return image
    return None


def _rgb_to_cmyk(rgb: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3] -> CMYK [H, W, 4] with all common grey in K; float in [0, 1]."""
    white = rgb.max(-1, keepdims=True)  # 1 − K
    inks = 1 - rgb / np.where(white == 0, 1, white)
    return np.concatenate([np.where(white == 0, 0, inks), 1 - white], axis=-1)


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)
