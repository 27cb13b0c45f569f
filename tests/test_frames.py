"""A TIFF of several pages goes in and out frame by frame, in kind."""

import errno
import os

import numpy as np
import pytest
import tifffile
from conftest import refused
from PIL import Image

from dip_recon import images
from dip_recon.images import tiff_windows

rng = np.random.default_rng(0)
N, H, W = 4, 31, 37
GREY8 = rng.integers(0, 256, (N, H, W), dtype=np.uint8)
RGB8 = rng.integers(0, 256, (N, H, W, 3), dtype=np.uint8)
RGBA8 = rng.integers(0, 256, (N, H, W, 4), dtype=np.uint8)
GREY16 = rng.integers(0, 65536, (N, H, W), dtype=np.uint16)
RGB16 = rng.integers(0, 65536, (N, H, W, 3), dtype=np.uint16)
RGBA16 = rng.integers(0, 65536, (N, H, W, 4), dtype=np.uint16)
FLOAT = rng.random((N, H, W), dtype=np.float32)


def save(path, stack, **options):
    photometric = "rgb" if stack.ndim == 4 and stack.shape[-1] > 2 else "minisblack"
    tifffile.imwrite(path, stack, **{"photometric": photometric, **options})


def save_pillow(path, stack, mode=None, **options):
    first, *others = (Image.fromarray(frame).convert(mode) for frame in stack)
    first.save(path, save_all=True, append_images=others, **options)


def copy(source, target):
    """Read and write each frame; returns the pictures read."""
    pictures = [images.read_frame(source, i) for i in range(images.count_frames(source))]
    with images.FrameWriter(target, len(pictures)) as writer:
        for picture in pictures:
            writer.write(picture.data, like=picture)
    return pictures


def assert_same(path, pictures):
    assert images.count_frames(path) == len(pictures)
    for i, picture in enumerate(pictures):
        again = images.read_frame(path, i)
        assert again.kind == picture.kind
        np.testing.assert_array_equal(again.data, picture.data)
        if picture.alpha is None:
            assert again.alpha is None
        else:
            assert again.alpha.dtype == picture.alpha.dtype
            np.testing.assert_array_equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("options", [{}, {"metadata": None, "bigtiff": True}], ids=["", "big"])
@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        (GREY8, "8-bit grey"),
        (RGB8, "8-bit rgb"),
        (RGBA8, "8-bit rgb"),
        (GREY16, "16-bit grey"),
        (RGB16, "16-bit rgb"),
        (RGBA16, "16-bit rgb"),
        (FLOAT, "32-bit float grey"),
    ],
    ids=["grey8", "rgb8", "rgba8", "grey16", "rgb16", "rgba16", "float"],
)
def test_round_trip(tmp_path, stack, kind, options):
    has_alpha = stack.shape[-1] == 4
    if has_alpha:
        options = options | {"extrasamples": ["unassalpha"]}
    save(tmp_path / "a.tif", stack, **options)
    pictures = copy(tmp_path / "a.tif", tmp_path / "b.tiff")
    top = 1 if stack.dtype.kind == "f" else np.iinfo(stack.dtype).max
    assert len(pictures) == N
    for picture, samples in zip(pictures, stack, strict=True):
        assert str(picture.kind) == kind and picture.size == (H, W)
        colours = np.atleast_3d(samples)[..., : len(picture.data)]
        np.testing.assert_allclose(picture.data, colours.transpose(2, 0, 1) / top, atol=1e-7)
        assert (picture.alpha is not None) == has_alpha
    assert_same(tmp_path / "b.tiff", pictures)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tiff"), stack)
    with Image.open(tmp_path / "b.tiff") as image:
        assert image.n_frames == N
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tiff"]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK"])
def test_other_kinds_keep_their_kind(tmp_path, mode):
    coarse = RGB8 // 64 * 64  # 64 colours
    save_pillow(tmp_path / "a.tif", coarse, mode, compression="tiff_lzw")
    pictures = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert len(pictures) == N
    if mode == "CMYK":
        for i, picture in enumerate(pictures):
            again = images.read_frame(tmp_path / "b.tif", i)
            assert again.kind == picture.kind
            np.testing.assert_allclose(again.data, picture.data, atol=0.006)
    else:
        assert_same(tmp_path / "b.tif", pictures)
    with Image.open(tmp_path / "b.tif") as image:
        assert image.mode == mode


def test_pages_of_both_writers_are_alike(tmp_path):
    """A page of one frame reads as the file that ``write`` makes."""
    save(tmp_path / "a.tif", RGB16)
    picture = images.read_frame(tmp_path / "a.tif", 2)
    data = rng.random((3, 20, 20)) * 1.2 - 0.1
    for like in (None, picture):
        images.write(tmp_path / "one.tif", data, like=like)
        with images.FrameWriter(tmp_path / "page.tif", 1) as writer:
            writer.write(data, like=like)
        assert images.count_frames(tmp_path / "page.tif") == 1
        one, page = images.read(tmp_path / "one.tif"), images.read_frame(tmp_path / "page.tif", 0)
        assert one.kind == page.kind
        np.testing.assert_array_equal(one.data, page.data)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("imagej", [False, True])
@pytest.mark.parametrize("stack", [GREY8, GREY16, RGB8], ids=["grey8", "grey16", "rgb8"])
def test_stacks_of_imagej_and_tifffile_in_many_pages_and_in_one(tmp_path, stack, imagej, truncate):
    scale = {"resolution": (4, 5), "metadata": {"unit": "um"}} if imagej else {}
    save(tmp_path / "a.tif", stack, imagej=imagej, truncate=truncate, **scale)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert len(tiff.pages) == (1 if truncate else N)
    assert images.count_frames(tmp_path / "a.tif") == N
    for i in (N - 1, 0, 1):
        frame = images.read_frame(tmp_path / "a.tif", i)
        expected = np.atleast_3d(stack[i]).transpose(2, 0, 1) / np.iinfo(stack.dtype).max
        np.testing.assert_allclose(frame.data, expected, atol=1e-7)
        assert frame.kind.density == (pytest.approx((40_000, 50_000)) if imagej else None)
    refused(lambda: images.read(tmp_path / "a.tif"), "a.tif", f"holds {N} pages", "file of its own")


def test_pyramid_levels_are_no_frames(tmp_path):
    for stack in (GREY8[:1], GREY8, GREY16):
        with tifffile.TiffWriter(tmp_path / "p.tif") as tiff:
            for frame in stack:
                tiff.write(frame, metadata=None, photometric="minisblack")
                tiff.write(frame[::2, ::2], subfiletype=1, metadata=None, photometric="minisblack")
        assert images.count_frames(tmp_path / "p.tif") == len(stack)
        last = images.read_frame(tmp_path / "p.tif", len(stack) - 1)
        top = np.float32(np.iinfo(stack.dtype).max)
        np.testing.assert_array_equal(last.data[0], stack[-1] / top)


def test_files_of_one_picture_count_as_one(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif"):
        images.write(tmp_path / name, FLOAT[:1])
        assert images.count_frames(tmp_path / name) == 1
        frame, picture = images.read_frame(tmp_path / name, 0), images.read(tmp_path / name)
        np.testing.assert_array_equal(frame.data, picture.data)
        with pytest.raises(IndexError):
            images.read_frame(tmp_path / name, 1)
    save_pillow(tmp_path / "a.gif", GREY8)
    (tmp_path / "bad.tif").write_bytes(b"II*\0" + rng.bytes(300))
    words = {"none.tif": "no such file", "a.gif": "4 pictures", "bad.tif": "cannot be read"}
    for name, word in words.items():
        assert images.count_frames(tmp_path / name) == 1
        refused(lambda n=name: images.read_frame(tmp_path / n, 0), name, word)
    assert images.count_frames(tmp_path) == 1


def test_frames_of_different_size_or_kind_are_refused(tmp_path):
    other = {"size": GREY8[1, :-1], "kind": GREY16[1], "colours": RGB8[1]}
    for name, second in other.items():
        path = tmp_path / f"{name}.tif"
        with tifffile.TiffWriter(path) as tiff:
            for frame in (GREY8[0], second):
                tiff.write(frame, metadata=None)
        for call in (images.count_frames, lambda p: images.read_frame(p, 0)):
            refused(lambda call=call, path=path: call(path), path, "frame 2", "equal size")


def test_a_bad_frame_is_named(tmp_path):
    stack = FLOAT.copy()
    stack[2, 3, 4] = 2
    save(tmp_path / "f.tif", stack)
    assert images.read_frame(tmp_path / "f.tif", 1).size == (H, W)
    refused(lambda: images.read_frame(tmp_path / "f.tif", 2), "frame 3 of", "f.tif: its float")
    with pytest.raises(IndexError):
        images.read_frame(tmp_path / "f.tif", N)


def test_a_file_cut_short_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "whole.tif") as tiff:
        for frame in GREY16:
            tiff.write(frame, metadata=None, contiguous=False)
    whole = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) * 5 // 8])
    for call in (images.count_frames, lambda p: images.read_frame(p, 2)):
        refused(lambda call=call: call(tmp_path / "a.tif"), "a.tif", "cut short")


# ------------------------------------------------------------------------------------- writing


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_exception_in_the_block_leaves_nothing(tmp_path, error, written):
    (tmp_path / "a.tif").write_bytes(b"old")
    with pytest.raises(error), images.FrameWriter(tmp_path / "a.tif", 2) as writer:
        for _ in range(written):
            writer.write(FLOAT[:1])
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == b"old"


def test_the_name_comes_with_the_last_frame(tmp_path):
    with pytest.raises(ValueError, match="1 of 2"), images.FrameWriter(tmp_path / "a.tif", 2) as w:
        w.write(FLOAT[:1])
    assert list(tmp_path.iterdir()) == []
    with images.FrameWriter(tmp_path / "a.tif", 2) as writer:
        for _ in range(2):
            writer.write(FLOAT[:1])
            assert not (tmp_path / "a.tif").exists()
        with pytest.raises(ValueError, match="written already"):
            writer.write(FLOAT[:1])
    assert images.count_frames(tmp_path / "a.tif") == 2


def test_writer_refuses(tmp_path):
    refused(lambda: images.FrameWriter(tmp_path / "a.png", 2), "a.png", ".tif")
    refused(lambda: images.FrameWriter(tmp_path / "none" / "a.tif", 2), "no folder")
    with pytest.raises(ValueError):
        images.FrameWriter(tmp_path / "a.tif", 0)
    for second in (FLOAT[:1, :-1], FLOAT[:3]):

        def write(second=second):
            with images.FrameWriter(tmp_path / "a.tif", 2) as writer:
                writer.write(FLOAT[:1])
                writer.write(second)

        refused(write, "a.tif", "frame 2", "equal size")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write", "close", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write():
        with images.FrameWriter(tmp_path / "a.tif", 1) as writer:
            if step == "replace":
                monkeypatch.setattr(os, "replace", fail)
            else:
                monkeypatch.setattr(tifffile.TiffWriter, step, fail)
            writer.write(FLOAT[:1])

    refused(write, tmp_path / "a.tif", "space")
    assert list(tmp_path.iterdir()) == []


def test_many_frames_make_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_windows, "_CLASSIC", 10_000)
    save(tmp_path / "a.tif", GREY16)
    assert_same(tmp_path / "a.tif", copy(tmp_path / "a.tif", tmp_path / "b.tif"))
    assert (tmp_path / "b.tif").read_bytes()[:3] == b"II+"
