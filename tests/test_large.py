"""Pictures read and written by windows agree with pictures read and written whole."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import refused
from PIL import Image

from dip_recon import images
from dip_recon.files import clean
from dip_recon.images import Kind, tiff_windows
from dip_recon.images.large import create_sink, open_source

rng = np.random.default_rng(0)
SIZE = (150, 131)
GREY8 = rng.integers(0, 256, SIZE, dtype=np.uint8)
RGB8 = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
RGBA8 = rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
GREY16 = rng.integers(0, 65536, SIZE, dtype=np.uint16)
RGB16 = rng.integers(0, 65536, (*SIZE, 3), dtype=np.uint16)
RGBA16 = rng.integers(0, 65536, (*SIZE, 4), dtype=np.uint16)
FLOAT = rng.random(SIZE, dtype=np.float32)
WINDOWS = [
    (0, 150, 0, 131),
    (3, 40, 5, 130),
    (60, 70, 120, 131),
    (149, 150, 0, 1),
    (63, 66, 63, 66),
]

KINDS = {
    "8-bit grey": GREY8,
    "8-bit rgb": RGB8,
    "8-bit grey with alpha": RGBA8[..., :2],
    "8-bit rgb with alpha": RGBA8,
    "16-bit grey": GREY16,
    "16-bit rgb": RGB16,
    "16-bit rgb with alpha": RGBA16,
    "16-bit float grey": FLOAT.astype(np.float16),
    "32-bit float grey": FLOAT,
    "64-bit float rgb": (RGB16 / 65535).astype(np.float64),
}


def tiff(path, samples, **options):
    colours = (
        "rgb" if samples.ndim == 3 and 3 in (samples.shape[-1], samples.shape[-1] - 1) else None
    )
    if samples.ndim == 3 and samples.shape[-1] in (2, 4):
        options.setdefault("extrasamples", ["unassalpha"])
    options.setdefault("photometric", colours or "minisblack")
    if samples.ndim == 3:
        options.setdefault("planarconfig", "contig")
    tifffile.imwrite(path, samples, metadata=None, **options)
    return path


def planes(path, samples, **options):
    """In planes, one after the other."""
    moved = np.ascontiguousarray(np.moveaxis(samples, -1, 0))
    tifffile.imwrite(
        path, moved, metadata=None, photometric="rgb", planarconfig="separate", **options
    )
    return path


def agrees(path, samples):
    """Each window is the samples' and what ``images.read`` gives; the whole source is returned."""
    stacked = np.atleast_3d(samples)
    alpha = stacked[..., -1] if stacked.shape[-1] in (2, 4) else None
    colours = stacked if alpha is None else stacked[..., :-1]
    top = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    expected = colours.astype(np.float32).transpose(2, 0, 1) / np.float32(top)
    with open_source(path) as source:
        assert source.size == samples.shape[:2]
        assert source.channels == colours.shape[-1]
        assert source.has_alpha == (alpha is not None)
        for window in WINDOWS:
            rows, columns = slice(*window[:2]), slice(*window[2:])
            data = source.read(*window)
            assert data.dtype == np.float32 and data.flags.c_contiguous
            np.testing.assert_array_equal(data, expected[:, rows, columns])
            if alpha is None:
                assert source.read_alpha(*window) is None
            else:
                np.testing.assert_array_equal(source.read_alpha(*window), alpha[rows, columns])
        for window in [(0, 151, 0, 10), (-1, 5, 0, 10), (5, 5, 0, 10), (0, 10, 9, 3)]:
            with pytest.raises(ValueError, match="window"):
                source.read(*window)
    return source


# ------------------------------------------------------------------------------------- reading

STORED = {
    "rows": {},
    "bigtiff": {"bigtiff": True},
    "strips": {"rowsperstrip": 7},
    "big endian": {"byteorder": ">", "rowsperstrip": 7},
    "tiles": {"tile": (64, 48)},
    "deflate strips": {"compression": "zlib", "rowsperstrip": 11},
    "deflate tiles": {"compression": "zlib", "tile": (32, 64)},
    "one deflate strip": {"compression": "zlib", "rowsperstrip": 150},
    "big endian tiles": {"compression": "zlib", "tile": (32, 64), "byteorder": ">"},
    "all of it": {"bigtiff": True, "compression": "zlib", "tile": (32, 32), "byteorder": ">"},
}


@pytest.mark.parametrize("options", STORED.values(), ids=STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_tiff(tmp_path, kind, options):
    path = tiff(tmp_path / "a.tif", KINDS[kind], **options)
    source = agrees(path, KINDS[kind])
    assert type(source).__name__ in ("_Rows", "_Segments")  # not read whole
    assert str(source.kind) == kind.removesuffix(" with alpha")


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_the_picture_read_whole(tmp_path, kind):
    path = tiff(tmp_path / "a.tif", KINDS[kind], tile=(64, 48), compression="zlib")
    whole = images.read(path)
    with open_source(path) as source:
        assert source.kind == whole.kind
        np.testing.assert_array_equal(source.read(3, 40, 5, 130), whole.data[:, 3:40, 5:130])


@pytest.mark.parametrize("options", STORED.values(), ids=STORED)
@pytest.mark.parametrize("samples", [RGB8, RGB16], ids=["8", "16"])
def test_windows_of_tiff_in_planes(tmp_path, samples, options):
    agrees(planes(tmp_path / "a.tif", samples, **options), samples)


@pytest.mark.parametrize("samples", [GREY8, GREY16], ids=["8", "16"])
@pytest.mark.parametrize("predictor", [False, True])
def test_predictor_and_white_is_0(tmp_path, samples, predictor):
    options = {"compression": "zlib", "predictor": predictor, "photometric": "miniswhite"}
    path = tiff(tmp_path / "a.tif", samples, **options)
    agrees(path, np.iinfo(samples.dtype).max - samples)
    np.testing.assert_array_equal(
        images.read(path).data[0], open_source(path).read(0, *SIZE[:1], 0, SIZE[1])[0]
    )


def test_missing_tiles_are_black(tmp_path):
    samples = GREY8.copy()
    samples[64:128, 64:128] = 0
    path = tiff(tmp_path / "a.tif", samples, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages[0].databytecounts)
        counts[4] = 0  # the tile at (64, 64), in 3×3
        file.pages[0].tags["TileByteCounts"].overwrite(counts)
    agrees(path, samples)


def test_pyramids_and_previews_are_one_picture(tmp_path):
    with tifffile.TiffWriter(tmp_path / "sub.tif") as file:
        options = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
        file.write(RGB8, subifds=1, **options)
        file.write(RGB8[::2, ::2], subfiletype=1, **options)
    with tifffile.TiffWriter(tmp_path / "chain.tif") as file:
        file.write(GREY16, metadata=None)
        file.write(GREY16[::2, ::2], subfiletype=1, metadata=None)
    agrees(tmp_path / "sub.tif", RGB8)
    agrees(tmp_path / "chain.tif", GREY16)


def test_colour_profile_goes_from_source_to_sink(tmp_path):
    path = tiff(tmp_path / "a.tif", RGB16, iccprofile=b"profile" * 40)
    with open_source(path) as source, create_sink(tmp_path / "b.tif", SIZE, 3, source.kind) as sink:
        sink.write(0, 0, source.read(0, SIZE[0], 0, SIZE[1]))
    assert images.read(tmp_path / "b.tif").kind.icc == b"profile" * 40


@pytest.mark.parametrize(
    "name", ["a.png", "a.bmp", "turned.tif", "palette.tif", "lzw.tif", "x.webp"]
)
def test_other_kinds_are_read_whole(tmp_path, name):
    image = Image.fromarray(RGB8)
    if name == "turned.tif":
        tiff(tmp_path / name, RGB8, extratags=[(274, 3, 1, 6, True)])
    elif name == "palette.tif":
        image.quantize(64).save(tmp_path / name)
    else:
        image.save(tmp_path / name, **{"l": {"compression": "tiff_lzw"}}.get(name[0], {}))
    picture = images.read(tmp_path / name)
    with open_source(tmp_path / name) as source:
        assert type(source).__name__ == "_Held" or name == "lzw.tif"  # imagecodecs decodes LZW
        assert (source.size, source.kind) == (picture.size, picture.kind)
        np.testing.assert_array_equal(source.read(3, 40, 5, 130), picture.data[:, 3:40, 5:130])
        with pytest.raises(ValueError, match="window"):
            source.read(0, 10, 0, 1000)


def test_held_alpha(tmp_path):
    Image.fromarray(RGBA8).save(tmp_path / "a.png")
    agrees(tmp_path / "a.png", RGBA8)


def test_only_what_a_window_touches_is_decoded(tmp_path, monkeypatch):
    path = tiff(tmp_path / "a.tif", np.tile(GREY8, (8, 8)), tile=(64, 64), compression="zlib")
    decoded = []
    original = tiff_windows._Segments._decode
    monkeypatch.setattr(
        tiff_windows._Segments, "_decode", lambda self, i: (decoded.append(i), original(self, i))[1]
    )
    with open_source(path) as source:
        source.read(70, 120, 10, 80)
        assert decoded == [17, 18]  # of 19 × 17 tiles
        source.read(64, 150, 0, 64)
        assert decoded == [17, 18, 34]


def test_segments_kept_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_windows, "_CACHE", 10 * 64 * 64)
    path = tiff(tmp_path / "a.tif", np.tile(GREY8, (4, 4)), tile=(64, 64), compression="zlib")
    with open_source(path) as source:
        source.read(0, 600, 0, 524)
        assert source._decoded.cache_info().currsize == 10


def test_float_values_are_checked_in_each_window(tmp_path):
    values = FLOAT.copy()
    values[100, 50] = np.nan
    values[10, 120] = 7
    with open_source(tiff(tmp_path / "a.tif", values)) as source:
        source.read(0, 100, 0, 100)
        refused(lambda: source.read(90, 110, 40, 60), "a.tif", "NaN", "rows 90 to 109")
        refused(lambda: source.read(0, 20, 100, 131), "a.tif", "to 7 in rows 0 to 19", "scale them")


# ------------------------------------------------------------------------------ bad TIFF files


def test_bad_tiffs_are_refused_in_one_line(tmp_path, capfd):
    def bad(name, *words):
        refused(lambda: open_source(tmp_path / name), tmp_path / name, *words)

    bad("none.tif", "no such file")
    (tmp_path / "empty.tif").touch()
    bad("empty.tif", "empty")
    (tmp_path / "noise.tif").write_bytes(b"II*\0" + rng.bytes(300))
    bad("noise.tif", "damaged")
    (tmp_path / "text.tif").write_text("these are words")
    bad("text.tif", "not a picture")
    for name, options in [("rows", {}), ("zip", {"compression": "zlib", "tile": (32, 32)})]:
        body = tiff(tmp_path / "whole.tif", GREY16, **options).read_bytes()
        (tmp_path / f"{name}.tif").write_bytes(body[: len(body) // 2])
        bad(f"{name}.tif", "damaged")
    tiff(tmp_path / "pages.tif", np.zeros((3, 8, 8), np.uint16), planarconfig=None)
    bad("pages.tif", "3 pages", "file of its own")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 8), np.uint8), imagej=True)
    with tifffile.TiffWriter(tmp_path / "behind.tif", imagej=True) as file:
        file.write(np.zeros((5, 8, 8), np.uint8), truncate=True)
    bad("stack.tif", "3 pages")
    bad("behind.tif", "5 pages")
    for dtype in (np.int16, np.uint32, np.int64, np.complex64):
        tiff(tmp_path / "type.tif", np.zeros((8, 8), dtype))
        bad("type.tif", np.dtype(dtype).name)
    tiff(tmp_path / "bands.tif", np.zeros((8, 8, 7), np.uint16))
    bad("bands.tif", "7 channels")
    (tmp_path / "folder.tif").mkdir()
    bad("folder.tif", "folder")
    assert capfd.readouterr() == ("", "")


def test_a_spoilt_tile_is_told_when_it_is_read(tmp_path):
    path = tiff(tmp_path / "a.tif", GREY16, compression="zlib", tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[4]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 100)
    with open_source(path) as source:
        source.read(0, 64, 0, 131)
        refused(lambda: source.read(60, 70, 60, 70), path, "damaged")


def test_a_file_that_shrinks_is_told(tmp_path):
    with open_source(tiff(tmp_path / "a.tif", GREY16)) as source:
        os.truncate(tmp_path / "a.tif", 1000)
        refused(lambda: source.read(100, 140, 0, 100), "a.tif", "cut short")


def test_what_is_only_read_whole_may_not_be_huge(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_windows, "MAX_PIXELS", 1000)
    tiff(tmp_path / "a.tif", RGB8, extratags=[(274, 3, 1, 6, True)])
    refused(lambda: open_source(tmp_path / "a.tif"), "a.tif", "131×150", "orientation", "deflate")


# ---------------------------------------------------------------------------------------- Zarr


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr", minversion="3")


def make_zarr(zarr, path, samples, attributes=None, **options):
    options = {"chunks": tuple(min(n, 64) for n in samples.shape), **options}
    array = zarr.create_array(str(path), shape=samples.shape, dtype=samples.dtype, **options)
    array[...] = samples
    array.attrs.update(attributes or {})
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_zarr(tmp_path, zarr, kind, version):
    path = make_zarr(zarr, tmp_path / "a.zarr", KINDS[kind], zarr_format=version)
    source = agrees(path, KINDS[kind])
    assert str(source.kind) == kind.removesuffix(" with alpha")


def test_axes_of_zarr(tmp_path, zarr):
    first, stack = np.moveaxis(RGB8, -1, 0), RGB16.transpose(2, 1, 0)
    agrees(make_zarr(zarr, tmp_path / "first.zarr", first), RGB8)
    agrees(make_zarr(zarr, tmp_path / "one.zarr", GREY8[None]), GREY8)
    agrees(make_zarr(zarr, tmp_path / "last.zarr", GREY8[..., None]), GREY8)
    names = make_zarr(
        zarr, tmp_path / "names.zarr", stack, dimension_names=("band", "width", "height")
    )
    agrees(names, RGB16)
    xarray = {"_ARRAY_DIMENSIONS": ["x", "y"]}
    agrees(make_zarr(zarr, tmp_path / "x.zarr", GREY8.T, xarray, zarr_format=2), GREY8)
    deep = make_zarr(
        zarr,
        tmp_path / "deep.zarr",
        first[None, :, None],
        dimension_names=("t", "c", "z", "y", "x"),
    )
    agrees(deep, RGB8)
    odd = make_zarr(zarr, tmp_path / "odd.zarr", RGB8, dimension_names=("a", "b", "d"))
    agrees(odd, RGB8)  # names that say nothing


def test_big_endian_zarr(tmp_path, zarr):
    agrees(make_zarr(zarr, tmp_path / "a.zarr", RGB16.astype(">u2"), zarr_format=2), RGB16)


def test_groups_of_zarr(tmp_path, zarr):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    refused(lambda: open_source(tmp_path / "g.zarr"), "g.zarr", "no array")
    make_zarr(zarr, tmp_path / "g.zarr" / "a", RGB8)
    agrees(tmp_path / "g.zarr", RGB8)
    make_zarr(zarr, tmp_path / "g.zarr" / "b", RGB8[::2, ::2])
    refused(lambda: open_source(tmp_path / "g.zarr"), "g.zarr", "2 arrays (a, b)", "one array")
    agrees(tmp_path / "g.zarr" / "a", RGB8)
    axes = [{"name": name} for name in "yxc"]
    pyramid = [{"axes": axes, "datasets": [{"path": "a"}, {"path": "b"}]}]
    group.attrs["ome"] = {"multiscales": pyramid}
    agrees(tmp_path / "g.zarr", RGB8)
    group.attrs["ome"] = {"multiscales": pyramid * 2}
    refused(lambda: open_source(tmp_path / "g.zarr"), "g.zarr", "2 pictures")
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "none"}]}]}
    refused(lambda: open_source(tmp_path / "g.zarr"), "g.zarr", "cannot be read")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_has_no_alpha(tmp_path, zarr, version):
    group = zarr.open_group(str(tmp_path / "o.zarr"), mode="w")
    pyramid = [{"axes": [{"name": n} for n in "tczyx"], "datasets": [{"path": "0"}]}]
    group.attrs.update(
        {"multiscales": pyramid} if version == "0.4" else {"ome": {"multiscales": pyramid}}
    )
    make_zarr(zarr, tmp_path / "o.zarr" / "0", np.moveaxis(RGB8, -1, 0)[None, :, None])
    agrees(tmp_path / "o.zarr", RGB8)
    make_zarr(zarr, tmp_path / "o.zarr" / "0", np.zeros((1, 4, 1, 8, 8), np.uint8), overwrite=True)
    refused(lambda: open_source(tmp_path / "o.zarr"), "o.zarr", "4 channels")
    make_zarr(zarr, tmp_path / "o.zarr" / "0", np.zeros((2, 3, 1, 8, 8), np.uint8), overwrite=True)
    refused(lambda: open_source(tmp_path / "o.zarr"), "o.zarr", "2×3×1×8×8", "[H, W, C]")


def test_bad_zarrs_are_refused_in_one_line(tmp_path, zarr, capfd):
    def bad(name, *words):
        refused(lambda: open_source(tmp_path / name), tmp_path / name, *words)

    bad("none.zarr", "no such file")
    (tmp_path / "folder.zarr").mkdir()
    bad("folder.zarr", "zarr.json", "not a Zarr")
    for shape in [(8,), (8, 9, 10), (1, 3, 8, 8)]:
        make_zarr(zarr, tmp_path / "s.zarr", np.zeros(shape, np.uint8), overwrite=True)
        bad("s.zarr", "×".join(map(str, shape)) if len(shape) > 1 else "array of 8", "[H, W]")
    make_zarr(zarr, tmp_path / "n.zarr", np.zeros((5, 8, 8), "u1"), dimension_names=("c", "y", "x"))
    bad("n.zarr", "5 channels")
    make_zarr(zarr, tmp_path / "e.zarr", np.zeros((0, 8), "u1"), chunks=(1, 1))
    bad("e.zarr", "empty", "0×8")
    for dtype in ("i2", "u4", "i8", "c8", "bool"):
        make_zarr(zarr, tmp_path / "t.zarr", np.zeros((8, 8), dtype), overwrite=True)
        bad("t.zarr", np.dtype(dtype).name, "16-bit")
    (tmp_path / "t.zarr" / "zarr.json").write_text("{")
    bad("t.zarr", "damaged")
    make_zarr(zarr, tmp_path / "c.zarr", GREY8)
    (tmp_path / "c.zarr" / "c" / "1" / "1").write_bytes(b"spoilt")
    with open_source(tmp_path / "c.zarr") as source:
        source.read(0, 64, 0, 64)
        refused(lambda: source.read(60, 70, 60, 70), "c.zarr", "damaged")
    assert capfd.readouterr() == ("", "")


def test_without_zarr_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").touch()
    monkeypatch.setitem(sys.modules, "zarr", None)
    words = "pip install 'dip-recon[large]'"
    refused(lambda: open_source(tmp_path / "a.zarr"), "a.zarr", words)
    refused(lambda: create_sink(tmp_path / "b.zarr", SIZE, 1, Kind("grey")), "b.zarr", words)


# ------------------------------------------------------------------------------------- writing


def grid(size, side=64):
    """Windows of a picture in no order."""
    windows = [
        (top, min(top + side, size[0]), left, min(left + side, size[1]))
        for top in range(0, size[0], side)
        for left in range(0, size[1], side)
    ]
    return [windows[i] for i in np.random.default_rng(1).permutation(len(windows))]


def copy(source, sink, windows):
    for top, bottom, left, right in windows:
        sink.write(top, left, source.read(top, bottom, left, right))


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".zarr", ".png"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path, kind, suffix, request):
    if suffix == ".zarr":
        request.getfixturevalue("zarr")
    if suffix == ".png" and (kind.startswith("16-bit rgb") or "float rgb" in kind):
        pytest.importorskip("png")
    path = tiff(tmp_path / "a.tif", KINDS[kind], tile=(64, 64), compression="zlib")
    target = tmp_path / f"b{suffix}"
    with (
        open_source(path) as source,
        create_sink(target, SIZE, source.channels, source.kind, alpha=source) as sink,
    ):
        copy(source, sink, grid(SIZE))
        assert not target.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", target.name]
    if suffix == ".png" and KINDS[kind].dtype.kind == "f":  # becomes 16-bit
        agrees(target, np.rint(KINDS[kind].astype(np.float64) * 65535).astype(np.uint16))
    else:
        agrees(target, KINDS[kind])
    if suffix == ".tif":
        np.testing.assert_array_equal(images.read(target).data, images.read(path).data)


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".png"])
@pytest.mark.parametrize("kind", [Kind("grey"), Kind("grey", 16)], ids=str)
def test_values_are_clipped_and_rounded_as_images_write_does(tmp_path, suffix, kind, request):
    if suffix == ".zarr":
        request.getfixturevalue("zarr")
    values = np.random.default_rng(5).uniform(-0.2, 1.2, (1, 40, 50)).astype(np.float32)
    values[0, 0, :6] = [-1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.4 / 65535, 2]
    like = images.Picture(values, None, kind, Path("a.tif"))
    images.write(tmp_path / "whole.tif", values, like=like)
    with create_sink(tmp_path / f"a{suffix}", (40, 50), 1, kind) as sink:
        for top, bottom, left, right in grid((40, 50), 16):
            sink.write(top, left, values[:, top:bottom, left:right])
    with open_source(tmp_path / f"a{suffix}") as source:
        expected = images.read(tmp_path / "whole.tif").data
        np.testing.assert_array_equal(source.read(0, 40, 0, 50), expected)


def test_palette_is_collected_and_written_in_kind(tmp_path):
    Image.fromarray(RGB8).quantize(64).save(tmp_path / "a.png")
    with open_source(tmp_path / "a.png") as source:
        assert source.kind.space == "palette"
        for name in ("b.png", "b.tif"):
            with create_sink(tmp_path / name, SIZE, 3, source.kind) as sink:
                copy(source, sink, grid(SIZE))
            assert images.read(tmp_path / name).kind.space == "palette"


def test_other_programs_read_the_tiff(tmp_path):
    with create_sink(tmp_path / "a.tif", SIZE, 3, Kind("rgb")) as sink:
        sink.write(0, 0, RGB8.transpose(2, 0, 1) / np.float32(255))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tif")), RGB8)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert not file.is_bigtiff


def test_much_becomes_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_windows, "_CLASSIC", 150 * 131 * 2 - 1)
    with create_sink(tmp_path / "a.tif", SIZE, 1, Kind("grey", 16)) as sink:
        sink.write(0, 0, GREY16[None] / np.float32(65535))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    agrees(tmp_path / "a.tif", GREY16)


def test_the_tiff_is_in_strips(tmp_path):
    with create_sink(tmp_path / "a.tif", (3000, 1000), 1, Kind("grey")) as sink:
        sink.write(0, 0, np.ones((1, 1, 1)))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages[0].dataoffsets) == 3  # of 1 MB


def test_chunks_of_zarr(tmp_path, zarr):
    with create_sink(tmp_path / "a.zarr", (1100, 600), 3, Kind("rgb")) as sink:
        sink.write(512, 512, np.ones((3, 512, 88)))
    array = zarr.open_array(str(tmp_path / "a.zarr"), mode="r")
    assert array.chunks == (512, 512, 3) and array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("y", "x", "c")
    assert [p.name for p in (tmp_path / "a.zarr" / "c").iterdir()] == ["1"]


def test_wrong_windows(tmp_path):
    with create_sink(tmp_path / "a.tif", SIZE, 3, Kind("rgb")) as sink:
        bad = [(0, 0, np.zeros((1, 8, 8))), (0, 0, np.zeros((8, 8))), (-1, 0, np.zeros((3, 8, 8)))]
        bad += [(145, 0, np.zeros((3, 8, 8))), (0, 0, np.full((3, 8, 8), np.nan))]
        for top, left, data in bad:
            with pytest.raises(ValueError):
                sink.write(top, left, data)
    with pytest.raises(ValueError, match="channels"):
        create_sink(tmp_path / "b.tif", SIZE, 2, Kind("rgb"))
    with open_source(tiff(tmp_path / "c.tif", RGBA8)) as alpha:
        for size, kind in [((8, 8), Kind("rgb")), (SIZE, Kind("rgb", 16))]:
            with pytest.raises(ValueError, match="alpha"):
                create_sink(tmp_path / "b.tif", size, 3, kind, alpha=alpha)


# ------------------------------------------------------------- killed, resumed, not to be written

TARGETS = ["b.tif", "b.zarr", "b.png"]


@pytest.fixture(params=TARGETS)
def target(tmp_path, request):
    """The path of a picture that is there already: black, 8×8."""
    if request.param.endswith(".zarr"):
        request.getfixturevalue("zarr")
    with create_sink(tmp_path / request.param, (8, 8), 1, Kind("grey")) as sink:
        sink.write(0, 0, np.zeros((1, 8, 8)))
    return tmp_path / request.param


def is_old(path):
    with open_source(path) as source:
        return source.size == (8, 8) and not source.read(0, 8, 0, 8).any()


def test_what_is_there_is_only_replaced_when_told(target):
    refused(lambda: create_sink(target, SIZE, 1, Kind("grey")), target, "is there already")
    assert is_old(target)
    with create_sink(target, SIZE, 1, Kind("grey"), overwrite=True) as sink:
        sink.write(0, 0, GREY8[None] / np.float32(255))
        assert is_old(target)
    agrees(target, GREY8)
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_interrupted_sink_leaves_the_target(target):
    sink = create_sink(target, SIZE, 1, Kind("grey"), overwrite=True)
    with pytest.raises(KeyboardInterrupt), sink:
        sink.write(0, 0, np.ones((1, 8, 8)))
        raise KeyboardInterrupt
    sink.close()  # does nothing any more
    assert is_old(target)


@pytest.mark.parametrize("how", ["suspended", "killed"])
def test_resume(target, how):
    windows = grid(SIZE)
    data = GREY8[None] / np.float32(255)
    settings = {"overwrite": True, "resume": True}
    sink = create_sink(target, SIZE, 1, Kind("grey"), **settings)
    assert not sink.resumed
    for top, bottom, left, right in windows[:4]:
        sink.write(top, left, data[:, top:bottom, left:right])
    if how == "suspended":
        sink.suspend()
    assert is_old(target)
    again = create_sink(target, SIZE, 1, Kind("grey"), **settings)
    assert again.resumed == (target.suffix != ".png")  # what was in memory is gone
    for top, bottom, left, right in windows[4 if again.resumed else 0 :]:
        again.write(top, left, data[:, top:bottom, left:right])
    again.close()
    again.close()
    agrees(target, GREY8)
    assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("name", ["restored.tif", "restored.zarr"])
def test_what_a_sink_writes_is_nobodys_to_tidy(tmp_path, name, request):
    """The name has eight letters, as those of what is tidied have."""
    if name.endswith(".zarr"):
        request.getfixturevalue("zarr")
    with create_sink(tmp_path / name, SIZE, 1, Kind("grey")) as sink:
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))
        clean(tmp_path)
        sink.write(0, 0, np.full((1, *SIZE), 0.6, np.float32))
    with open_source(tmp_path / name) as source:
        assert source.read(0, 1, 0, 1)[0, 0, 0] == np.float32(0.6)


@pytest.mark.parametrize("name", ["b.tif", "b.zarr"])
def test_only_the_same_picture_is_resumed(tmp_path, name, request):
    if name.endswith(".zarr"):
        request.getfixturevalue("zarr")
    path, kind = tmp_path / name, Kind("grey")
    create_sink(path, SIZE, 1, kind).suspend()
    other = [((8, 8), 1, kind), (SIZE, 3, Kind("rgb")), (SIZE, 1, Kind("grey", 16))]
    for settings in other:
        refused(
            lambda s=settings: create_sink(path, *s, resume=True), path, f".half-{name}", "delete"
        )
    create_sink(path, *other[1]).suspend()  # without resume it is thrown away
    with create_sink(path, *other[1], resume=True) as sink:
        assert sink.resumed
    part = tmp_path / f".half-{name}"
    if name.endswith(".zarr"):
        part.mkdir()
        (part / "zarr.json").write_text("{")
    else:
        part.write_bytes(b"II*\0 no TIFF")
    refused(lambda: create_sink(path, SIZE, 1, kind, overwrite=True, resume=True), part.name)


def test_a_folder_that_is_no_zarr_is_never_touched(tmp_path, zarr):
    for name in ("a.zarr", ".half-b.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    (tmp_path / "c.zarr").write_text("a file")
    for name in ("a.zarr", "b.zarr", "c.zarr"):
        refused(
            lambda n=name: create_sink(tmp_path / n, SIZE, 1, Kind("grey"), overwrite=True), name
        )
    sink = create_sink(tmp_path / "d.zarr", SIZE, 1, Kind("grey"))
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr" / "thesis.tex").write_text("years of work")
    refused(sink.close, "d.zarr", "not a Zarr")
    assert len(list(tmp_path.rglob("thesis.tex"))) == 3


def test_wrong_targets(tmp_path, monkeypatch):
    grey = Kind("grey")
    for name in ("none/a.tif", "none/a.png", "none/a.zarr"):
        refused(lambda n=name: create_sink(tmp_path / n, SIZE, 1, grey), "no folder", "make it")
    refused(lambda: create_sink(tmp_path / "a.gif", SIZE, 1, grey), "a.gif", ".tif")
    huge = (20_001, 20_001)
    refused(lambda: create_sink(tmp_path / "a.png", huge, 1, grey), "a.png", "20001×20001", ".tif")
    refused(lambda: create_sink(tmp_path / "a.jpg", (8, 70_000), 1, grey), "a.jpg", "70000×8")
    (tmp_path / "d.tif").mkdir()
    refused(lambda: create_sink(tmp_path / "d.tif", SIZE, 1, grey, overwrite=True), "d.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["d.tif"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_is_told_at_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    refused(lambda: create_sink(tmp_path / "a.tif", SIZE, 1, Kind("grey")), "a.tif", "space")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_set_space_aside(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    with create_sink(tmp_path / "a.tif", SIZE, 1, Kind("grey")) as sink:
        sink.write(0, 0, GREY8[None] / np.float32(255))
    agrees(tmp_path / "a.tif", GREY8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up(tmp_path):
    sink = create_sink(tmp_path / "a.tif", SIZE, 1, Kind("grey"))
    sink._file.close()
    with Path("/dev/full").open("r+b", buffering=0) as sink._file:
        refused(lambda: sink.write(0, 0, np.ones((1, 8, 8))), "a.tif", "space")
    sink.suspend()
    assert not (tmp_path / "a.tif").exists()


def test_a_zarr_on_a_disk_that_fills_up(tmp_path, zarr, monkeypatch):
    from zarr.storage import LocalStore

    sink = create_sink(tmp_path / "a.zarr", SIZE, 1, Kind("grey"))
    monkeypatch.setattr(LocalStore, "set", full)
    refused(lambda: sink.write(0, 0, np.ones((1, 8, 8))), "a.zarr", "space")
    refused(lambda: create_sink(tmp_path / "b.zarr", SIZE, 1, Kind("grey")), "b.zarr", "space")


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_memory_is_that_of_a_window(tmp_path, suffix, request):
    import tracemalloc

    if suffix == ".zarr":
        request.getfixturevalue("zarr")
    size, side = (2048, 2048), 256
    data = np.random.default_rng(0).random((3, side, side), dtype=np.float32)
    path = tmp_path / f"a{suffix}"

    def write_and_read():
        with create_sink(path, size, 3, Kind("rgb", 16), overwrite=True) as sink:
            for top in range(0, size[0], side):
                for left in range(0, size[1], side):
                    sink.write(top, left, data)
        with open_source(path) as source:
            for top in range(0, size[0], side):
                for left in range(0, size[1], side):
                    source.read(top, top + side, left, left + side)

    tracemalloc.start()
    try:
        write_and_read()
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20  # the picture: 25 MB as stored
    finally:
        tracemalloc.stop()
