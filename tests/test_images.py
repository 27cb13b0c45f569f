"""Pictures come in and go out in kind; bad ones are refused in one line."""

import errno
import io
import math
import os
import struct
import tempfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import refused
from PIL import Image, ImageOps

from dip_recon import images
from dip_recon.images.density import of_tags
from dip_recon.images.encoding import encode_png16
from dip_recon.images.large import create_sink, open_source
from dip_recon.images.picture import Kind

rng = np.random.default_rng(0)
GREY8 = rng.integers(0, 256, (31, 37), dtype=np.uint8)
RGB8 = rng.integers(0, 256, (31, 37, 3), dtype=np.uint8)
RGBA8 = rng.integers(0, 256, (31, 37, 4), dtype=np.uint8)
GREY16 = rng.integers(0, 65536, (31, 37), dtype=np.uint16)
RGB16 = rng.integers(0, 65536, (31, 37, 3), dtype=np.uint16)
RGBA16 = rng.integers(0, 65536, (31, 37, 4), dtype=np.uint16)
SMOOTH = np.stack([*np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 40)), np.ones((40, 48))])


def png16(path, samples, **options):
    import png

    h, w = samples.shape[:2]
    planes = samples.size // (h * w)
    with open(path, "wb") as file:
        png.Writer(
            w, h, bitdepth=16, greyscale=planes < 3, alpha=planes in (2, 4), **options
        ).write(file, samples.reshape(h, -1).tolist())


def tiff(path, samples, **options):
    tifffile.imwrite(path, samples, metadata=None, **options)


def pil(path, samples, mode=None, **options):
    image = Image.fromarray(samples)
    (image.convert(mode) if mode else image).save(path, **options)


def la8(path, samples, **options):
    Image.merge("LA", [Image.fromarray(samples[..., i].copy()) for i in (0, 1)]).save(path)


# name of the file, how it is made, samples, kind
LOSSLESS = [
    ("grey.png", pil, GREY8, "8-bit grey"),
    ("rgb.png", pil, RGB8, "8-bit rgb"),
    ("rgba.png", pil, RGBA8, "8-bit rgb"),
    ("la.png", la8, RGBA8[..., :2], "8-bit grey"),
    ("grey.tif", pil, GREY8, "8-bit grey"),
    ("rgb.TIFF", pil, RGB8, "8-bit rgb"),
    ("rgba.tif", pil, RGBA8, "8-bit rgb"),
    ("la.tif", la8, RGBA8[..., :2], "8-bit grey"),
    ("grey.bmp", pil, GREY8, "8-bit grey"),
    ("rgb.BMP", pil, RGB8, "8-bit rgb"),
    ("grey16.png", pil, GREY16, "16-bit grey"),
    ("la16.png", png16, RGBA16[..., :2], "16-bit grey"),
    ("rgb16.png", png16, RGB16, "16-bit rgb"),
    ("rgba16.PNG", png16, RGBA16, "16-bit rgb"),
    ("grey16.tif", tiff, GREY16, "16-bit grey"),
    ("rgb16.tif", tiff, RGB16, "16-bit rgb"),
    ("rgba16.tif", tiff, RGBA16, "16-bit rgb"),
    ("float.tif", tiff, GREY16.astype(np.float32) / 65535, "32-bit float grey"),
]


@pytest.mark.parametrize("row", LOSSLESS, ids=lambda row: row[0])
def test_lossless_round_trip_is_bit_identical(tmp_path, row):
    name, make, samples, kind = row
    make(tmp_path / name, samples)
    picture = images.read(tmp_path / name)
    planes = np.atleast_3d(samples)
    has_alpha = planes.shape[-1] in (2, 4)
    top = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    colours = planes[..., :-1] if has_alpha else planes

    assert str(picture.kind) == kind
    assert picture.size == (31, 37)
    assert picture.data.dtype == np.float32 and picture.data.flags.c_contiguous
    np.testing.assert_allclose(picture.data, colours.transpose(2, 0, 1) / top, atol=1e-7)
    if has_alpha:
        np.testing.assert_array_equal(picture.alpha, planes[..., -1])
        assert picture.alpha.dtype == samples.dtype
    else:
        assert picture.alpha is None

    out = tmp_path / f"again{Path(name).suffix}"
    images.write(out, picture.data, like=picture)
    again = images.read(out)
    assert again.kind == picture.kind
    np.testing.assert_array_equal(again.data, picture.data)
    if has_alpha:
        np.testing.assert_array_equal(again.alpha, picture.alpha)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, out.name])


def test_16_bit_png_is_written_as_pypng_and_pillow_read_it(tmp_path):
    import png

    tiff(tmp_path / "a.tif", RGB16)
    picture = images.read(tmp_path / "a.tif")
    images.write(tmp_path / "a.png", picture.data, like=picture)
    _, _, rows, info = png.Reader(filename=str(tmp_path / "a.png")).read()
    assert info["bitdepth"] == 16
    np.testing.assert_array_equal(np.vstack(list(rows)).reshape(RGB16.shape), RGB16)
    assert Image.open(tmp_path / "a.png").size == (37, 31)


def test_16_bit_colour_png_without_pypng_names_the_extra(tmp_path, monkeypatch):
    png16(tmp_path / "a.png", RGB16)
    monkeypatch.setitem(__import__("sys").modules, "png", None)
    refused(lambda: images.read(tmp_path / "a.png"), "a.png", "pip install pypng")


def test_interlaced_and_colour_keyed_16_bit_png(tmp_path):
    png16(tmp_path / "a.png", RGB16, interlace=True, transparent=tuple(RGB16[3, 4].tolist()))
    picture = images.read(tmp_path / "a.png")
    np.testing.assert_allclose(picture.data, RGB16.transpose(2, 0, 1) / 65535, atol=1e-7)
    assert picture.alpha[3, 4] == 0 and (picture.alpha == 65535).sum() == 31 * 37 - 1


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_stays_palette(tmp_path, suffix):
    source = tmp_path / f"p{suffix}"
    Image.fromarray(RGB8).quantize(64).save(source)
    picture = images.read(source)
    assert picture.kind.space == "palette" and picture.data.shape == (3, 31, 37)
    images.write(tmp_path / f"q{suffix}", picture.data, like=picture)
    assert Image.open(tmp_path / f"q{suffix}").mode == "P"
    np.testing.assert_array_equal(images.read(tmp_path / f"q{suffix}").data, picture.data)

    images.write(tmp_path / f"r{suffix}", SMOOTH, like=picture)  # far more than 256 colours
    assert Image.open(tmp_path / f"r{suffix}").mode == "P"
    assert np.abs(images.read(tmp_path / f"r{suffix}").data - SMOOTH).mean() < 0.03


@pytest.mark.parametrize("levels", [(0, 255), (0, 80, 255)])
def test_palette_with_transparency(tmp_path, levels):
    image = Image.fromarray(RGB8).quantize(16)
    keys = bytes(levels[i % len(levels)] for i in range(16))
    image.save(tmp_path / "p.png", transparency=keys)
    picture = images.read(tmp_path / "p.png")
    assert set(np.unique(picture.alpha)) == set(levels)
    images.write(tmp_path / "same.png", picture.data, like=picture)
    same = images.read(tmp_path / "same.png")
    np.testing.assert_array_equal(same.data, picture.data)
    np.testing.assert_array_equal(same.alpha, picture.alpha)

    changed = rng.random((3, 31, 37), dtype=np.float32)
    images.write(tmp_path / "changed.png", changed, like=picture)
    assert Image.open(tmp_path / "changed.png").mode == "P"
    back = images.read(tmp_path / "changed.png")
    np.testing.assert_array_equal(back.alpha, picture.alpha)
    assert np.abs(back.data - changed)[:, picture.alpha > 0].mean() < 0.1


def test_palette_with_too_many_levels_of_alpha_becomes_rgba(tmp_path):
    Image.fromarray(RGB8).quantize(256).save(tmp_path / "p.png", transparency=bytes(range(256)))
    picture = images.read(tmp_path / "p.png")
    images.write(tmp_path / "q.png", rng.random((3, 31, 37)), like=picture)
    assert Image.open(tmp_path / "q.png").mode == "RGBA"
    np.testing.assert_array_equal(images.read(tmp_path / "q.png").alpha, picture.alpha)


def test_grey_palette_and_gif_are_read_as_grey(tmp_path):
    Image.fromarray(GREY8).convert("P").save(tmp_path / "p.png")
    pil(tmp_path / "g.gif", GREY8)
    for name in ("p.png", "g.gif"):
        np.testing.assert_array_equal(images.read(tmp_path / name).data[0], GREY8 / np.float32(255))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_is_thresholded(tmp_path, suffix):
    bits = GREY8 > 127
    Image.fromarray(bits).save(tmp_path / f"b{suffix}")
    picture = images.read(tmp_path / f"b{suffix}")
    assert str(picture.kind) == "1-bit grey"
    np.testing.assert_array_equal(picture.data[0], bits)
    images.write(tmp_path / f"c{suffix}", picture.data * 0.2 + 0.4, like=picture)
    assert Image.open(tmp_path / f"c{suffix}").mode == "1"
    np.testing.assert_array_equal(images.read(tmp_path / f"c{suffix}").data, picture.data)


@pytest.mark.parametrize(("mode", "key"), [("1", 0), ("L", 7), ("RGB", (1, 2, 3))])
def test_colour_key_becomes_alpha(tmp_path, mode, key):
    image = Image.fromarray(RGB8).convert(mode)
    image.putpixel((5, 6), key)
    image.save(tmp_path / "k.png", transparency=key)
    picture = images.read(tmp_path / "k.png")
    assert picture.alpha[6, 5] == 0
    images.write(tmp_path / "l.png", picture.data, like=picture)
    np.testing.assert_array_equal(images.read(tmp_path / "l.png").alpha, picture.alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_comes_back_as_cmyk(tmp_path, suffix):
    pixels = np.rint(np.moveaxis(SMOOTH, 0, -1) * 255).astype(np.uint8)
    pil(tmp_path / f"c{suffix}", pixels, mode="CMYK")
    picture = images.read(tmp_path / f"c{suffix}")
    assert picture.kind.space == "cmyk"
    np.testing.assert_allclose(picture.data, SMOOTH, atol=0.05)
    images.write(tmp_path / f"d{suffix}", picture.data, like=picture)
    assert Image.open(tmp_path / f"d{suffix}").mode == "CMYK"
    again = images.read(tmp_path / f"d{suffix}").data
    assert np.abs(again - picture.data).max() < (0.006 if suffix == ".tif" else 0.05)


def test_16_bit_cmyk_tiff(tmp_path):
    tiff(tmp_path / "c.tif", RGBA16, photometric="separated")
    picture = images.read(tmp_path / "c.tif")
    c = RGBA16 / 65535
    rgb = (1 - c[..., :3]) * (1 - c[..., 3:])
    np.testing.assert_allclose(picture.data, rgb.transpose(2, 0, 1), atol=1e-6)
    images.write(tmp_path / "d.tif", picture.data, like=picture)
    again = images.read(tmp_path / "d.tif")
    assert str(again.kind) == "16-bit cmyk"
    np.testing.assert_allclose(again.data, picture.data, atol=1e-4)


@pytest.mark.parametrize("samples", [RGBA8, RGBA16, RGBA8[..., :2], RGBA16[..., :2]])
@pytest.mark.parametrize("by_windows", [False, True])
def test_a_channel_that_is_not_marked_as_alpha_is_refused(tmp_path, samples, by_windows):
    photometric = "rgb" if samples.shape[-1] > 2 else "minisblack"
    how = {"photometric": photometric, "planarconfig": "contig", "extrasamples": ["unspecified"]}
    tiff(tmp_path / "x.tif", samples, **how)
    read = images.large.open_source if by_windows else images.read
    refused(lambda: read(tmp_path / "x.tif"), "x.tif", f"channel {samples.shape[-1]}", "alpha")


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_white_is_0_alpha_is_not_turned(tmp_path, dtype, planarconfig):
    top = np.iinfo(dtype).max
    grey = np.full((31, 37), top // 4, dtype)
    grey[:9] = 0
    samples = np.stack([grey, np.full_like(grey, top)], 0 if planarconfig == "separate" else -1)
    options = {"photometric": "miniswhite", "extrasamples": ["unassalpha"]}
    tiff(tmp_path / "a.tif", samples, planarconfig=planarconfig, **options)
    read = images.read(tmp_path / "a.tif")
    with open_source(tmp_path / "a.tif") as source:
        windows = source.read(0, 31, 0, 37), source.read_alpha(0, 31, 0, 37)
    for data, alpha in ((read.data, read.alpha), windows):
        assert (alpha == top).all() and (data[0, :9] == 1).all()
        np.testing.assert_allclose(data[0, 9:], 1 - (top // 4) / top, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_stored_times_alpha_are_read_as_they_look(tmp_path, dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    colours = SMOOTH.transpose(1, 2, 0)
    alpha = np.linspace(0.2, 1, 48)[None, :, None] * np.ones((40, 1, 1))
    stored = np.concatenate([colours * alpha, alpha], axis=2) * top
    how = {"photometric": "rgb", "extrasamples": ["assocalpha"]}
    tiff(tmp_path / "x.tif", (stored if top == 1 else stored.round()).astype(dtype), **how)
    picture = images.read(tmp_path / "x.tif")
    np.testing.assert_allclose(picture.data, SMOOTH, atol=4 / 255 if top == 255 else 1e-4)
    images.write(tmp_path / "y.tif", picture.data, like=picture)
    np.testing.assert_allclose(images.read(tmp_path / "y.tif").data, picture.data, atol=1e-6)


def test_webp_is_written_lossless_and_jpeg_close(tmp_path):
    pil(tmp_path / "a.webp", RGBA8, lossless=True, exact=True)
    picture = images.read(tmp_path / "a.webp")
    images.write(tmp_path / "b.webp", picture.data, like=picture)
    again = images.read(tmp_path / "b.webp")
    np.testing.assert_array_equal(again.data, picture.data)
    np.testing.assert_array_equal(again.alpha, RGBA8[..., 3])
    images.write(tmp_path / "s.jpg", SMOOTH)
    assert np.abs(images.read(tmp_path / "s.jpg").data - SMOOTH).max() < 0.05


@pytest.mark.parametrize("suffix", images.WRITABLE)
@pytest.mark.parametrize("row", [r for r in LOSSLESS if r[0].split(".")[0] in ("la16", "rgba16")])
def test_every_suffix_holds_the_nearest(tmp_path, row, suffix):
    name, make, samples, _ = row
    make(tmp_path / name, samples)
    picture = images.read(tmp_path / name)
    out = tmp_path / f"out{suffix}"
    images.write(out, picture.data, like=picture)
    back = images.read(out)
    deep, alpha = suffix in (".png", ".tif", ".tiff"), suffix not in (".jpg", ".jpeg", ".bmp")
    assert back.kind.bits == (16 if deep else 8)
    assert (back.alpha is not None) == alpha
    if suffix != ".webp":  # WebP has no grey
        assert len(back.data) == len(picture.data)
    if alpha:
        top = np.iinfo(back.alpha.dtype).max
        assert np.abs(back.alpha / top - picture.alpha / 65535).max() <= 0.5 / 255 + 1e-9


def test_float_goes_to_16_bit_png_and_8_bit_jpeg(tmp_path):
    tiff(tmp_path / "f.tif", np.float64(RGB16 / 65535), photometric="rgb")
    picture = images.read(tmp_path / "f.tif")
    assert str(picture.kind) == "64-bit float rgb"
    images.write(tmp_path / "f.png", picture.data, like=picture)
    np.testing.assert_array_equal(images.read(tmp_path / "f.png").data, picture.data)
    images.write(tmp_path / "f.jpg", picture.data, like=picture)
    assert images.read(tmp_path / "f.jpg").kind == images.Kind("rgb")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jpg", "floats"),
        ("a.png", "floats"),
        ("a.tif", ""),
        ("b.png", "CMYK"),
        ("b.jpg", ""),
        ("c.bmp", "a colour profile"),
        ("c.zarr", "a colour profile"),
        ("c.webp", ""),
    ],
)
def test_what_a_format_does_not_hold_is_told(tmp_path, name, said):
    kinds = {"a": Kind("rgb", 32, True), "b": Kind("cmyk"), "c": Kind("rgb", icc=b"x")}
    kind = kinds[name[0]]
    told = images.lost(tmp_path / name, kind, False)
    assert bool(told) == bool(said) and said in told


def test_alpha_follows_a_larger_result(tmp_path):
    pil(tmp_path / "a.png", RGBA8)
    picture = images.read(tmp_path / "a.png")
    images.write(tmp_path / "b.png", np.zeros((3, 124, 148)), like=picture)
    again = images.read(tmp_path / "b.png")
    assert again.alpha.shape == (124, 148)
    assert abs(again.alpha.mean() - picture.alpha.mean()) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    pixels = np.kron(rng.integers(0, 256, (3, 5), dtype=np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pil(tmp_path / "o.jpg", pixels, exif=exif, quality=95)
    deep = pixels.astype(np.uint16) * 257
    tiff(tmp_path / "o.tif", np.dstack([deep] * 3), extratags=[(274, 3, 1, orientation, True)])
    jpeg, tif = images.read(tmp_path / "o.jpg"), images.read(tmp_path / "o.tif")
    assert jpeg.size == ((80, 48) if orientation > 4 else (48, 80))
    np.testing.assert_allclose(jpeg.data[0], tif.data[0], atol=0.06)


def test_colour_profile_is_carried_over(tmp_path):
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pil(tmp_path / "a.png", RGB8, icc_profile=icc)
    tiff(tmp_path / "a.tif", RGB16, iccprofile=icc)
    for source in ("a.png", "a.tif"):
        picture = images.read(tmp_path / source)
        for suffix in (".png", ".tif", ".jpg", ".webp"):
            images.write(tmp_path / f"b{suffix}", picture.data, like=picture)
            assert images.read(tmp_path / f"b{suffix}").kind.icc == icc


def test_what_the_camera_noted_is_carried_over(tmp_path):
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "A camera", 6  # held on its side
    exif.get_ifd(0x8769).update({0x9003: "2026:11:21 10:00:00", 0xA002: 80, 0x927C: b"maker's own"})
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x0100] = 4000  # pixels
    for source in ("a.png", "a.jpg", "a.webp"):
        pil(tmp_path / source, RGB8, exif=exif)
        picture = images.read(tmp_path / source)
        deep = replace(picture, kind=replace(picture.kind, bits=16))
        written = [(".png", picture), (".jpg", picture), (".webp", picture), (".png", deep)]
        for suffix, like in written:
            images.write(tmp_path / f"b{suffix}", picture.data, like=like)
            with Image.open(tmp_path / f"b{suffix}") as image:
                found = image.getexif()
                assert dict(found.get_ifd(0x8769)) == {0x9003: "2026:11:21 10:00:00"}
                assert found[0x0110] == "A camera" and found.get_ifd(0x8825)[1] == "N"
                assert not {0x0100, 0x0112} & set(found) and image.size == (31, 37)
            assert images.read(tmp_path / f"b{suffix}").kind.exif == picture.kind.exif
        images.write(tmp_path / "b.tif", picture.data, like=picture)
        assert images.read(tmp_path / "b.tif").kind.exif is None


CM = {"resolution": (200.0, 100.0), "resolutionunit": "CENTIMETER"}  # pixels per cm


@pytest.mark.parametrize(
    "name, write, samples",
    [
        ("a.png", partial(pil, dpi=(508, 254)), GREY8),
        ("a.jpg", partial(pil, dpi=(508, 254)), RGB8),
        ("a.bmp", partial(pil, dpi=(508, 254)), RGB8),
        ("a.tif", partial(pil, dpi=(508, 254)), RGB8),
        ("a.tif", partial(tiff, **CM), GREY8),
        ("a.tif", partial(tiff, **CM), RGBA16),
        ("a.tif", partial(tiff, photometric="rgb", **CM), np.float32(RGB16 / 65535)),
        ("a.png", partial(png16, x_pixels_per_unit=20_000, y_pixels_per_unit=10_000,
                          unit_is_meter=True), RGB16),
    ],
)  # fmt: skip
def test_the_size_of_a_pixel_is_carried_over(tmp_path, name, write, samples):
    write(tmp_path / name, samples)
    picture = images.read(tmp_path / name)
    assert picture.kind.density == pytest.approx((200, 100), rel=1e-3)
    for suffix in images.WRITABLE:
        images.write(tmp_path / f"b{suffix}", picture.data, like=picture)
        found = images.read(tmp_path / f"b{suffix}").kind.density
        assert found == pytest.approx((200, 100), rel=5e-3), suffix  # a JPEG has whole numbers
    twice = picture.data.repeat(2, 1).repeat(4, 2)  # smaller pixels
    images.write(tmp_path / "b.tif", twice, like=picture)
    assert images.read(tmp_path / "b.tif").kind.density == pytest.approx((800, 200), rel=1e-3)
    source = open_source(tmp_path / name)
    with create_sink(tmp_path / "c.tif", source.size, source.channels, source.kind) as sink:
        sink.write(0, 0, picture.data)
        sink.close()
    assert images.read(tmp_path / "c.tif").kind.density == pytest.approx((200, 100), rel=1e-3)


@pytest.mark.parametrize("samples", [GREY8, GREY16])
@pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "um"])
def test_the_size_of_a_pixel_under_a_microscope(tmp_path, samples, unit):
    """ImageJ has its unit in words."""
    described = f"ImageJ=1.53t\nunit={unit}\n"
    tiff(tmp_path / "a.tif", samples, resolution=(4, 5), resolutionunit=1, description=described)
    picture = images.read(tmp_path / "a.tif")
    assert picture.kind.density == pytest.approx((40_000, 50_000))  # 0.25 and 0.2 µm
    images.write(tmp_path / "b.tif", picture.data, like=picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as written:
        tags = written.pages[0].tags
        assert tags[282].value[0] / tags[282].value[1] == pytest.approx(40_000)
        assert tags[296].value == 3  # cm
    images.write(tmp_path / "b.jpg", picture.data, like=picture)  # holds no such number
    assert images.read(tmp_path / "b.jpg").kind.density is None


def test_a_picture_on_its_side_has_pixels_on_their_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pil(tmp_path / "a.jpg", RGB8, dpi=(508, 254), exif=exif)
    tiff(tmp_path / "a.tif", GREY16, extratags=[(274, 3, 1, 6, True)], **CM)
    for name in ("a.jpg", "a.tif"):
        assert images.read(tmp_path / name).kind.density == pytest.approx((100, 200))


@pytest.mark.parametrize("suffix", images.WRITABLE)
@pytest.mark.parametrize("samples", [GREY8, RGB16])
def test_the_size_of_a_pixel_that_a_format_does_not_hold(tmp_path, suffix, samples):
    """Pixels of a nanometre enlarged eight times, and pixels of metres in whole numbers."""
    data = np.ones((1 if samples is GREY8 else 3, 4, 4))
    bits = 8 if samples is GREY8 else 16
    for density, factor in (((1e7, 1e7), 8), ((0.004, 0.02), 1), (None, 1)):
        kind = images.Kind("grey" if samples is GREY8 else "rgb", bits, density=density)
        like = images.Picture(data, None, kind, tmp_path / "a.tif")
        enlarged = data.repeat(factor, 1).repeat(factor, 2)
        images.write(tmp_path / f"b{suffix}", enlarged, like=like)
        found = images.read(tmp_path / f"b{suffix}").kind.density
        assert found is None or (factor == 1 and found == pytest.approx(density, rel=0.02))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_a_cameras_size_of_a_pixel(tmp_path, name):
    """It is not left behind as it was in EXIF, and none is invented where there is none."""
    exif = Image.Exif()
    exif[0x0110] = "Cam"
    pil(tmp_path / name, RGB8, exif=exif)
    assert images.read(tmp_path / name).kind.density is None
    exif[0x011A], exif[0x011B], exif[0x0128] = 254.0, 508.0, 2
    pil(tmp_path / name, RGB8, exif=exif)
    picture = images.read(tmp_path / name)
    assert picture.kind.density == pytest.approx((100, 200))
    for suffix in images.WRITABLE:
        twice = picture.data.repeat(2, 1).repeat(2, 2)
        images.write(tmp_path / f"b{suffix}", twice, like=picture)
        again = images.read(tmp_path / f"b{suffix}")
        assert again.kind.density == pytest.approx((200, 400), rel=5e-3), suffix
        with Image.open(tmp_path / f"b{suffix}") as written:
            noted = written.getexif()
            assert suffix in (".bmp", ".tif", ".tiff") or noted[0x0110] == "Cam"
            assert suffix in (".webp", ".tif", ".tiff") or 0x011A not in noted


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {282: (1, 0), 283: (1, 0)},
        {282: (1, 2), 283: math.nan},
        {282: "many", 283: (1, 2)},
        {282: ((1, 2), (1, 2)), 283: (1, 2)},
        {282: (300, 1), 283: (300, 1), 296: 1},
        {282: (300, 1), 283: (300, 1), 296: 1, 270: "ImageJ=1\nunit=pixel"},
        {282: (300, 1), 283: (300, 1), 296: 1, 270: b"ImageJ=1\nunit=cm"},
        {282: (0, 1), 283: (300, 1)},
        {282: (2**32 - 1, 1), 283: (300, 1)},
    ],
)
def test_what_tells_no_size_of_a_pixel(tags):
    assert of_tags(tags) is None
    assert of_tags({282: (254, 1), 283: 254.0}) == pytest.approx((100, 100))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_notes_of_a_camera_are_left(tmp_path, content, suffix):
    pil(tmp_path / f"a.{suffix}", RGB8, exif=content)
    assert images.read(tmp_path / f"a.{suffix}").kind.exif is None


def test_a_note_that_cannot_be_written_again_does_not_spoil_the_picture(tmp_path):
    exif = struct.pack("<2sHIH", b"II", 42, 8, 2)  # TIFF header, and two entries:
    exif += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # turned
    exif += struct.pack("<HHI4s", 0x0128, 2, 4, b"abc\0") + bytes(4)  # a unit that is a text
    pil(tmp_path / "a.jpg", RGB8, exif=b"Exif\0\0" + exif)
    found = images.read(tmp_path / "a.jpg")
    assert found.size == RGB8.shape[1::-1]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("samples", [GREY8, RGB8, GREY16, RGBA8])
def test_pictures_are_turned_as_pillow_does(tmp_path, orientation, samples, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pil(tmp_path / "e.png", samples, exif=exif)
    with Image.open(tmp_path / "e.png") as image:
        upright = np.atleast_3d(np.asarray(ImageOps.exif_transpose(image)))
    path = tmp_path / f"a{suffix}"
    pil(path, samples, **({"exif": exif} if suffix == ".png" else {"tiffinfo": {274: orientation}}))
    found = images.read(path)
    top = 65535 if samples is GREY16 else 255
    stored = np.moveaxis(found.data, 0, -1) * top
    np.testing.assert_allclose(stored, upright[..., : stored.shape[-1]], atol=0.01)
    if samples is RGBA8:
        np.testing.assert_array_equal(found.alpha, upright[..., 3])


def test_values_are_rounded_and_clipped(tmp_path):
    values = np.array([[[-1, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 2]]])
    for call in (images.write, images.save_png):
        call(tmp_path / "v.png", values)
        assert np.asarray(Image.open(tmp_path / "v.png")).tolist() == [[0, 0, 1, 254, 255, 255]]


def test_save_png_gives_the_same_bytes(tmp_path):
    images.save_png(tmp_path / "a.png", SMOOTH)
    images.save_png(tmp_path / "b.png", SMOOTH)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_lzw_16_bit_grey_tiff_is_read_without_more(tmp_path):
    pil(tmp_path / "l.tif", GREY16, compression="tiff_lzw")
    np.testing.assert_allclose(images.read(tmp_path / "l.tif").data[0], GREY16 / 65535, atol=1e-7)


@pytest.mark.parametrize("order", "<>")
def test_so_it_is_where_white_is_0(tmp_path, order):
    options = {"photometric": "miniswhite", "byteorder": order}
    tiff(tmp_path / "z.tif", GREY16, **options)
    pil(tmp_path / "l.tif", GREY16, compression="tiff_lzw", tiffinfo={262: 0})
    with Image.open(tmp_path / "l.tif") as image:
        assert image.tag_v2[262] == 0
    for name in "zl":
        found = images.read(tmp_path / f"{name}.tif").data[0]
        np.testing.assert_allclose(found, 1 - GREY16 / 65535, atol=1e-7)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_an_alpha_beyond_1_is_opaque(tmp_path, suffix):
    samples = np.full((40, 48, 4), 1.001, np.float32)
    samples[..., :3] = SMOOTH.transpose(1, 2, 0)
    samples[0, 0, 3] = np.nan
    tiff(tmp_path / "f.tif", samples, photometric="rgb", extrasamples=["unassalpha"])
    picture = images.read(tmp_path / "f.tif")
    images.write(tmp_path / f"g{suffix}", picture.data, like=picture)
    alpha = images.read(tmp_path / f"g{suffix}").alpha
    assert (alpha[1:] >= (1 if suffix == ".tif" else 255)).all()


def test_camera_jpeg_with_previews_is_one_picture(tmp_path):
    frames = [Image.fromarray(RGB8), Image.fromarray(RGB8)]
    frames[0].save(tmp_path / "m.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert images.read(tmp_path / "m.jpg").size == (31, 37)


# ---------------------------------------------------------------------------------- bad input


def pil_bytes(form, samples, **options):
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, format=form, **options)
    return buffer.getvalue()


def tiff_bytes(samples, **options):
    buffer = io.BytesIO()
    tiff(buffer, samples, **options)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def huge_png(depth=8, colour=2, side=60_000):
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def huge_tiff(bits):
    """A header alone: 200,000 × 200,000 pixels."""
    entries = [(256, 4, 200_000), (257, 4, 200_000), (258, 3, bits), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, 200_000), (279, 4, 100)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4)


PNG = pil_bytes("PNG", RGB8)
JPEG = pil_bytes("JPEG", RGB8)
TIFF8 = pil_bytes("TIFF", RGB8)
TIFF8_LZW = pil_bytes("TIFF", RGB8, compression="tiff_lzw")
TIFF16 = tiff_bytes(RGB16)
TIFF16_ZIP = tiff_bytes(RGB16, compression="zlib")
SAMPLES = struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 2048)
PNG16 = encode_png16(RGB16, Kind("rgb", 16))

BAD = {
    "empty.png": (b"", "empty"),
    "text.png": (b"these are words, not pixels\n" * 20, "not a picture"),
    "cut.png": (PNG[: len(PNG) // 2], "cut short"),
    "head.png": (PNG[:20], "head.png"),
    "cut16.png": (PNG16[: len(PNG16) // 2], "cut short"),
    "head16.png": (PNG16[:60], "head16.png"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "cut short"),
    "cut8.tif": (TIFF8[: len(TIFF8) // 2], "cut short"),
    "lzw.tif": (TIFF8_LZW[:-700], "cut short"),
    "lzw_spoilt.tif": (TIFF8_LZW[:40] + b"\xff" * 400 + TIFF8_LZW[440:], "damaged"),
    "samples.tif": (TIFF8.replace(*SAMPLES), "samples.tif"),
    "cut16.tif": (TIFF16[: len(TIFF16) // 2], "cut short"),
    "zip16.tif": (TIFF16_ZIP[: len(TIFF16_ZIP) // 2], "cut short"),
    "head.tif": (TIFF16[:12], "head.tif"),
    "noise.tif": (b"II*\0" + rng.bytes(300), "noise.tif"),
    "spoilt.png": (PNG[:60] + bytes(200) + PNG[260:], "spoilt.png"),
    "bomb.png": (huge_png(), "400 megapixels"),
    "bomb16.png": (huge_png(16), "400 megapixels"),
    "bomb8.tif": (huge_tiff(8), "400 megapixels"),
    "bomb16.tif": (huge_tiff(16), "400 megapixels"),
    "over.png": (huge_png(side=20_001), "20001×20001"),
    "nan.tif": (tiff_bytes(np.full((8, 8), np.nan, np.float32)), "NaN"),
    "inf.tif": (tiff_bytes(np.full((8, 8), np.inf, np.float32)), "infinite"),
    "range.tif": (tiff_bytes(np.linspace(-3, 255, 64, dtype="f4").reshape(8, 8)), "-3 to 255"),
    "signed.tif": (tiff_bytes(GREY16.view(np.int16)), "int16"),
    "int32.tif": (tiff_bytes(GREY16.astype(np.uint32)), "uint32"),
    "pages.tif": (tiff_bytes(np.zeros((3, 8, 8), "u2"), photometric="minisblack"), "3 pages"),
    "pages8.tif": (tiff_bytes(np.zeros((5, 8, 8), "u1"), photometric="minisblack"), "5 pages"),
    "bands.tif": (tiff_bytes(np.zeros((8, 8, 7), "u2"), planarconfig="contig"), "7 channels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, capfd, name):
    body, word = BAD[name]
    (tmp_path / name).write_bytes(body)
    line = refused(lambda: images.read(tmp_path / name), tmp_path / name, word)
    assert len(line) < 400
    assert capfd.readouterr() == ("", "")  # no decoder spoke


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_are_refused(tmp_path, name):
    frames = [Image.fromarray(RGB8), Image.fromarray(RGB8[::-1].copy())]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    refused(lambda: images.read(tmp_path / name), name, "2 pictures", "file of its own")


def test_wrong_paths(tmp_path):
    refused(lambda: images.read(tmp_path), tmp_path, "folder")
    refused(lambda: images.read(tmp_path / "no.png"), "no.png", "no such file")


def test_list_pictures(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.tiff", ".hidden.png", "notes.txt", "d.png.tmp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in images.list_pictures(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
    refused(lambda: images.list_pictures(tmp_path / "folder.png"), "folder.png", "no pictures")
    refused(lambda: images.list_pictures(tmp_path / "none"), "none", "no such folder")
    refused(lambda: images.list_pictures(tmp_path / "a.jpg"), "a.jpg", "not a folder")


def test_write_refuses_before_writing(tmp_path):
    refused(lambda: images.write(tmp_path / "a.gif", SMOOTH), "a.gif", ".png, .jpg")
    refused(lambda: images.write(tmp_path / "a", SMOOTH), "without suffix")
    refused(lambda: images.write(tmp_path / "none" / "a.png", SMOOTH), "no folder")
    (tmp_path / "d.png").mkdir()
    refused(lambda: images.write(tmp_path / "d.png", SMOOTH), "d.png", "folder")
    for bad in (SMOOTH[0], SMOOTH[:2], SMOOTH * np.nan, SMOOTH[:, :0]):
        with pytest.raises(ValueError):
            images.write(tmp_path / "e.png", bad)
    refused(lambda: images.write(tmp_path / "w.webp", np.zeros((1, 1, 17_000))), "w.webp", ".png")
    refused(lambda: images.write(tmp_path / "w.jpg", np.zeros((1, 1, 70_000))), "w.jpg", ".tif")
    assert [p.name for p in tmp_path.iterdir()] == ["d.png"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["write", "replace"])
def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, code, step):
    images.write(tmp_path / "a.png", SMOOTH)
    before = (tmp_path / "a.png").read_bytes()

    def half(self, body):
        with open(self, "wb") as file:
            file.write(body[:50])
        raise OSError(code, os.strerror(code))

    def fail(*_):
        raise OSError(code, os.strerror(code))

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", fail)
    for call in (images.write, images.save_png):
        line = refused(lambda call=call: call(tmp_path / "a.png", SMOOTH * 0), tmp_path / "a.png")
        assert ("space" in line) == (code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full(tmp_path, monkeypatch):
    def write_bytes(self, body):
        with open("/dev/full", "wb") as file:
            file.write(body)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    refused(lambda: images.save_png(tmp_path / "a.png", SMOOTH), "a.png", "space")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write anywhere
    refused(lambda: images.write(tmp_path / "a.png", SMOOTH), "a.png", "Permission denied")
