"""Values in [0, 1], alpha and kind -> the content of a picture file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from .density import per_metre, pillow_options, tiff_options, with_tags
from .picture import Kind
from .quiet import quiet


def encode(data: np.ndarray, alpha: np.ndarray | None, kind: Kind, suffix: str) -> bytes:
    """The content of a ``suffix`` file with ``data`` [H, W, C] in [0, 1] and ``alpha`` [H, W]."""
    if kind.bits > 8 and suffix != ".png":
        samples, options = tiff_page(data, alpha, kind)
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, samples, **options)
        return buffer.getvalue()
    values = _values(data, kind)
    samples = values if alpha is None else np.dstack([values, alpha])
    if kind.bits <= 8:
        image = None
        if kind.space == "palette" and (alpha is None or suffix == ".png"):
            image = _paletted(values, alpha)
        if image is None:
            image = _image(samples, kind)
        return _encode_pillow(image, kind, suffix)
    return encode_png16(samples, kind)


def tiff_page(
    data: np.ndarray, alpha: np.ndarray | None, kind: Kind
) -> tuple[np.ndarray, dict[str, Any]]:
    """The samples of a TIFF page and how tifffile is to write them; arguments as of ``encode``.

    The samples are [H, W] or [H, W, 2…5]. A page of 8-bit CMYK has no alpha, as Pillow reads none.
    """
    options = {"compression": "zlib", "iccprofile": kind.icc, "metadata": None}
    options |= tiff_options(kind.density)
    values = _values(data, kind)
    if kind.bits == 1:
        return values[..., 0] > 0, options | {"photometric": "minisblack"}
    if kind.space == "palette" and alpha is None:
        image = _paletted(values, None)
        table = np.zeros((256, 3), np.uint16)
        colours = np.reshape(image.getpalette("RGB"), (-1, 3))
        table[: len(colours)] = colours * 257  # as 16 bits
        return np.asarray(image), options | {"photometric": "palette", "colormap": table.T}
    if alpha is not None and (kind.space != "cmyk" or kind.bits > 8):
        options["extrasamples"] = ["unassalpha"]
        samples = np.dstack([values, alpha])
    else:
        samples = values[..., 0] if values.shape[-1] == 1 else values
    options["photometric"] = {1: "minisblack", 3: "rgb", 4: "separated"}[values.shape[-1]]
    options["planarconfig"] = "contig" if samples.ndim > 2 else None
    return samples, options


def _values(data: np.ndarray, kind: Kind) -> np.ndarray:
    """``data`` [H, W, C] in [0, 1] as samples of ``kind``: 1-bit as 0 and 255, RGB as CMYK."""
    if kind.bits == 1:
        data = (data >= 0.5).astype(np.float64)
    if kind.space == "cmyk":
        data = _rgb_to_cmyk(data)
    return quantise(data, sample_type(kind))


def sample_type(kind: Kind) -> np.dtype:
    """The sample type of a kind; 1-bit is held in 8."""
    return np.dtype(f"{'f' if kind.floating else 'u'}{max(kind.bits, 8) // 8}")


def quantise(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in [0, 1] -> samples of ``dtype``, rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def _image(samples: np.ndarray, kind: Kind) -> Image.Image:
    """8-bit samples [H, W, 1…5] as a Pillow image of the mode that ``kind`` says."""
    if kind.space == "cmyk":  # Pillow has no CMYK with alpha
        return Image.frombytes("CMYK", samples.shape[1::-1], samples[..., :4].tobytes())
    if samples.shape[-1] == 1:
        image = Image.fromarray(samples[..., 0])
        return image.convert("1", dither=Image.Dither.NONE) if kind.bits == 1 else image
    return Image.fromarray(samples)  # LA, RGB or RGBA


def _encode_pillow(image: Image.Image, kind: Kind, suffix: str) -> bytes:
    name = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    options: dict = {
        "WEBP": {"lossless": True, "exact": True},
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "JPEG": {"quality": 95, "subsampling": 0},
    }.get(name, {})
    options |= pillow_options(kind.density, name)
    if kind.icc:
        options["icc_profile"] = kind.icc
    exif = with_tags(kind.exif, kind.density) if name == "WEBP" else kind.exif
    if exif:
        options["exif"] = exif
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    buffer = io.BytesIO()
    with quiet():
        image.save(buffer, format=name, **options)
    return buffer.getvalue()


def encode_png16(samples: np.ndarray, kind: Kind) -> bytes:
    """A PNG of uint16 samples [H, W, 1…4] (grey, grey + alpha, RGB, RGBA), rows filtered "up"."""
    height, width, planes = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)  # bytes
    up = rows.copy()
    up[1:] -= rows[:-1]
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), up], axis=1)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[planes]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if kind.icc:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(kind.icc)))
    if kind.density and (dots := per_metre(kind.density)):
        chunks.append((b"pHYs", struct.pack(">IIB", *dots, 1)))
    if kind.exif:
        chunks.append((b"eXIf", kind.exif.removeprefix(b"Exif\0\0")))
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
