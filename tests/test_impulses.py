"""Salt and pepper: found where it is and nowhere else, and filled in before anything is fitted."""

import numpy as np
import pytest
from skimage import data

from dip_recon import api, cli, images, impulses
from dip_recon.metrics import psnr
from dip_recon.noise import add_gaussian, add_poisson


def clean(name="chelsea", side=128):
    x = np.atleast_3d(getattr(data, name)()[80 : 80 + side, 100 : 100 + side])
    return np.float32(np.moveaxis(x, -1, 0) / 255)


def peppered(x, share, seed=7, both=(0, 1)):
    rng = np.random.RandomState(seed)
    return np.where(rng.rand(*x.shape) < share, np.float32(rng.choice(both, x.shape)), x)


@pytest.mark.parametrize("name", ["chelsea", "camera"])
@pytest.mark.parametrize(("share", "least"), [(0.02, 45), (0.2, 34), (0.7, 24)])
def test_it_is_found_and_filled(name, share, least):
    x = clean(name)
    y = peppered(x, share)
    found = impulses.find(y)
    where = found.places(y)
    struck = np.abs(y - x) > 0.1
    assert where[struck].mean() > 0.97 and where[y == x].mean() < 0.01
    filled = impulses.filled(y, where)
    np.testing.assert_array_equal(filled[~where], y[~where])
    assert psnr(filled, x) > least
    without, struck = impulses.without(y)
    np.testing.assert_array_equal(without, filled)
    assert struck == where.mean()


def test_it_is_found_where_white_is_the_most_that_a_camera_gives():
    x, white = clean(), np.float32(4095 / 65535)
    filled, struck = impulses.without(white * peppered(x, 0.05))
    assert struck == pytest.approx(impulses.without(peppered(x, 0.05))[1], rel=0.01)
    assert psnr(filled / white, x) > 40


def test_it_is_found_under_other_noise():
    x = clean()
    y = peppered(add_gaussian(x, 15, np.random.RandomState(1)), 0.05)
    found = impulses.find(y)
    assert found.places(y)[np.abs(y - x) > 0.4].all()
    assert psnr(impulses.without(y)[0], x) > 24


@pytest.mark.parametrize("colour", [0, 1])
@pytest.mark.parametrize("share", [0.01, 0.2])
def test_a_frame_is_left_alone(colour, share):
    x = clean()
    x[:, :20] = x[:, -20:] = x[..., :9] = colour
    y = peppered(x, share)
    found = impulses.find(y)
    framed = (x == colour) & (y == colour)
    assert found.places(y)[framed].mean() < 0.005
    assert psnr(impulses.without(y)[0], x) > psnr(y, x) + 15


def test_windows_are_told_by_the_whole():
    """What noise has clipped in a dark place is no pepper there either."""
    x = clean(side=192)
    x[..., :96] = 0.07
    y = peppered(add_gaussian(x, 15, np.random.RandomState(1)), 0.03)
    found = impulses.find(y)
    whole, window = found.places(y)[..., :80], found.places(y[..., :96])[..., :80]
    np.testing.assert_array_equal(whole, window)
    assert whole[(y == 0)[..., :80]].mean() < 0.01


def dithered(levels):
    """An 8×8 ordered dither of a smooth grey picture."""
    order = np.array([[0]])
    for _ in range(3):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    steps = levels - 1
    x = steps * clean("camera").repeat(2, 1).repeat(2, 2) + np.tile((order + 0.5) / 64, (32, 32))
    return np.float32(np.floor(x) / steps)


def drawn():
    """Grey paper with black and white strokes of one pixel and more."""
    x = np.full((1, 128, 128), 0.5, np.float32)
    x[0, 10:120:12, 5:100] = 0
    x[0, 5:100, 14:120:12] = 1
    x[0, 104:120, 104:106] = x[0, 104:106, 104:120] = 0
    paper = 0.5 + 0.01 * np.random.RandomState(0).standard_normal(x.shape)
    return np.where(x == 0.5, np.float32(paper), x)


@pytest.mark.parametrize(
    "y",
    [
        clean(),
        *(add_gaussian(clean(), sigma, np.random.RandomState(1)) for sigma in (25, 50, 100, 200)),
        add_poisson(clean(), 0.3, np.random.RandomState(1)),
        peppered(clean(), 0.01, both=(1,)),  # stars, hot pixels
        drawn(),
        dithered(3),
        dithered(4),
        np.float32(clean() > 0.5),
        np.zeros((1, 64, 64), np.float32),
        clean(side=8),
    ],
)
def test_it_is_not_found_elsewhere(y):
    assert impulses.find(y) is None


def test_where_all_around_is_struck_nothing_is_made_up():
    y = np.zeros((1, 20, 20), np.float32)
    np.testing.assert_array_equal(impulses.filled(y, y == 0), y)


@pytest.mark.parametrize("tiles", [False, True])
def test_a_picture_with_nothing_else_is_filled_in(tmp_path, picture, capsys, tiles):
    x = 0.2 + 0.6 * picture(3, (96, 96))  # smooth: without noise
    y = np.round(255 * peppered(x, 0.05)) / np.float32(255)
    images.save_png(tmp_path / "a.png", y)
    assert cli.main(["denoise", str(tmp_path / "a.png"), *["--tile", "48"] * tiles]) == 0
    said = capsys.readouterr().out
    assert "% of the values are black or white by chance (salt and pepper)" in said
    assert "salt and pepper filled in, the rest unchanged" in said
    found = images.read(tmp_path / "a_denoised.png").data
    same = (y > 0) & (y < 1)
    np.testing.assert_array_equal(found[same], y[same])
    assert psnr(found, x) > psnr(y, x) + 15


@pytest.mark.parametrize("flags", [["--tile", "40", "--iterations", "40"], ["--draft"]])
def test_under_noise_it_is_filled_in_before_the_fit(tmp_path, picture, capsys, flags):
    x = 0.2 + 0.6 * picture(1, (80, 80))
    noisy = add_gaussian(x, 10, np.random.RandomState(1))
    y = peppered(noisy, 0.1)
    images.save_png(tmp_path / "a.png", y)
    words = ["denoise", str(tmp_path / "a.png"), "--width", "8", *flags]
    assert cli.main([*words, "--explain", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "salt and pepper" in said
    level = float(said.split("noise level: ")[1].split()[0])
    assert 6 < level < 13
    assert psnr(images.read(tmp_path / "a_denoised.png").data, x) > psnr(noisy, x) - 1


def test_from_python_in_kind(picture):
    x = 0.2 + 0.6 * picture(1, (64, 64))[0]
    y = np.uint8(np.round(255 * peppered(x, 0.1)))
    restored = api.denoise(y)
    assert restored.dtype == np.uint8 and restored.shape == y.shape
    same = (y > 0) & (y < 255)
    np.testing.assert_array_equal(restored[same], y[same])
    assert psnr(restored / 255, x) > 30


def test_what_is_shown_meanwhile_is_of_the_range_of_the_result(picture):
    rng = np.random.RandomState(1)
    x = 0.2 + 0.2 * picture(1, (64, 64))[0] + 0.02 * rng.standard_normal((64, 64))
    shown = []
    how = {"num_iters": 3, "dim": 8, "device": "cpu"}
    api.denoise(peppered(x, 0.08), progress=lambda step: shown.append(step.picture), **how)
    assert shown[-1].max() < 0.5


def test_white_is_that_of_the_whole_picture():
    window = np.float32(0.3) * peppered(clean(), 0.05)
    assert impulses.find(window).white == pytest.approx(0.3)
    assert impulses.find(window, white=1.0) is None
