import io
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from skimage import data

from dip_recon import images, noise
from dip_recon.data import resolve
from dip_recon.errors import UserError


@pytest.fixture(scope="module")
def picture():
    return np.moveaxis(data.astronaut(), -1, 0)[:, :201, :256].astype(np.float32) / 255


def test_gaussian_noise_is_the_fields_bit_for_bit(picture):
    state = np.random.get_state()
    np.random.seed(7)
    expected = np.clip(picture + np.random.normal(scale=25 / 255, size=picture.shape), 0, 1)
    np.random.set_state(state)
    noisy = noise.add_gaussian(picture, 25, np.random.RandomState(7))
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(noisy, expected.astype(np.float32))


def test_poisson_noise(picture):
    noisy = noise.add_poisson(picture, 0.01, np.random.RandomState(7))
    state = np.random.get_state()
    np.random.seed(7)
    expected = np.clip(np.random.poisson(lam=picture / 0.01, size=picture.shape) * 0.01, 0, 1)
    np.random.set_state(state)
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(noisy, expected.astype(np.float32))
    grey = np.full((1, 300, 300), 0.4, np.float32)
    counts = noise.add_poisson(grey, 0.01, np.random.RandomState(0))
    assert counts.mean() == pytest.approx(0.4, abs=0.002)
    assert counts.var() == pytest.approx(0.01 * 0.4, rel=0.03)


def test_nothing_is_added_at_zero_and_input_is_kept(picture):
    before = picture.copy()
    np.testing.assert_array_equal(noise.add_gaussian(picture, 0, np.random.RandomState(0)), picture)
    noise.add_gaussian(picture, 50, np.random.RandomState(0))
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_refusals(picture, bad):
    with pytest.raises(UserError, match="--noise_sigma"):
        noise.add_gaussian(picture, bad, np.random.RandomState(0))
    for scale in (bad, 0):
        with pytest.raises(UserError, match="--poisson_scale"):
            noise.add_poisson(picture, scale, np.random.RandomState(0))


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_estimate_sigma_of_unclipped_noise(sigma, channels):
    y = 0.5 + np.random.RandomState(0).normal(scale=sigma / 255, size=(channels, 250, 301))
    assert noise.estimate_sigma(y) == pytest.approx(sigma, rel=0.025)


def test_estimate_sigma_of_a_picture(picture):
    y = noise.add_gaussian(picture, 25, np.random.RandomState(7))
    rms = 255 * np.sqrt(np.mean((y - picture) ** 2))
    assert noise.estimate_sigma(y) == pytest.approx(rms, rel=0.08)
    assert noise.estimate_sigma(y[:1]) == pytest.approx(rms, rel=0.08)


def test_estimate_sigma_leaves_out_flat_regions_and_survives_small_pictures():
    y = 0.5 + np.random.RandomState(0).normal(scale=0.1, size=(1, 128, 128))
    y[:, :, :80] = 0.3
    assert noise.estimate_sigma(y) == pytest.approx(25.5, rel=0.05)
    assert noise.estimate_sigma(np.full((3, 16, 16), 0.7, np.float32)) == 0
    for size in [(1, 1), (1, 9), (2, 3)]:
        assert np.isfinite(noise.estimate_sigma(np.random.RandomState(0).rand(1, *size)))


@pytest.mark.parametrize("size", [(64, 64), (37, 31), (5, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_estimate_sigma_is_scikit_images(size, channels):
    pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma

    y = np.random.RandomState(0).rand(channels, *size)
    expected = 255 * estimate_sigma(y, average_sigmas=True, channel_axis=0)
    assert noise.estimate_sigma(y) == pytest.approx(expected, rel=1e-9)


def test_estimate_sigma_is_the_wavelet_formula():
    """Written out: the diagonal db2 filter as one 4×4 kernel, median over 0.67449."""
    y = np.random.RandomState(0).rand(1, 24, 30)
    a = np.sqrt(3)
    taps = np.array([1 + a, -(3 + a), 3 - a, -(1 - a)]) / (4 * np.sqrt(2))
    assert taps.sum() == pytest.approx(0, abs=1e-12) and (taps**2).sum() == pytest.approx(1)
    assert (taps * np.arange(4)).sum() == pytest.approx(0, abs=1e-12)  # blind to ramps
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(y[0], ((2, 2), (2, 2)), mode="symmetric"), (4, 4)
    )
    detail = (windows[::2, ::2, ::-1, ::-1] * np.outer(taps, taps)).sum((-1, -2))
    expected = 255 * np.median(np.abs(detail)) / 0.6744897501960817
    assert noise.estimate_sigma(y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", [10, 25, 50])
@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut"])
@pytest.mark.parametrize("grey", [False, True])
def test_the_noise_level_is_told_from_a_picture(name, sigma, grey):
    [item] = resolve(f"bundled/{name}")
    clean = images.read(item.path).data[:, 40:200, 60:220]
    clean = clean.mean(0, keepdims=True) if grey else clean
    y = noise.add_gaussian(clean, sigma, np.random.RandomState(7))
    assert noise.before_clipping(y, noise.noise_level(y)) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_that_grows_with_brightness_gives_its_mean_power(channels):
    clean = np.linspace(0.1, 0.8, 160, dtype=np.float32)[None, None].repeat(160, 1)
    y = noise.add_poisson(np.repeat(clean, channels, 0), 0.02, np.random.RandomState(7))
    rms = 255 * float(np.sqrt(np.square(y - clean).mean()))
    assert noise.noise_level(y) == pytest.approx(rms, rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_alone_is_measured_without_bias(channels):
    rng = np.random.RandomState(0)
    for size, within in ((16, 0.05), (64, 0.03)):
        draws = 0.5 + rng.normal(0, 20 / 255, (12, channels, size, size))
        found = np.mean([noise.noise_level(y) for y in draws])
        assert found == pytest.approx(20, rel=within), size


@pytest.mark.parametrize("sigma", [10, 25, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_noise_level_of_a_picture_that_is_clipped_in_places(channels, sigma):
    [item] = resolve("bundled/coffee")
    clean = images.read(item.path).data[:, 40:232, 60:252]
    clean = (clean if channels == 3 else clean.mean(0, keepdims=True)) * 3 - 0.9
    y = noise.add_gaussian(clean.clip(0, 1), sigma, np.random.RandomState(7))
    assert np.mean((y <= 0) | (y >= 1)) > 0.1
    assert noise.before_clipping(y, noise.noise_level(y)) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_border_of_one_colour_has_not_the_noise_in_it(channels, picture):
    y = noise.add_gaussian(picture[:channels], 15, np.random.RandomState(7))
    y[:, :50] = 16 / 255
    expected = 15 * math.sqrt(1 - 50 / y.shape[1])  # its mean power, the border counted
    assert expected < 13.1
    assert noise.noise_level(y) == pytest.approx(expected, rel=0.07)
    assert noise.before_clipping(y, noise.noise_level(y)) == pytest.approx(15, rel=0.07)
    assert noise.clipped_deviation(y, 15) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("empty, sigma", [((0, 2), 25), ((0, 2), 5), ((2,), 10)])
def test_channels_that_are_empty_have_no_noise(picture, empty, sigma):
    y = noise.add_gaussian(picture, sigma, np.random.RandomState(7))
    y[list(empty)] = 0
    expected = sigma * math.sqrt(1 - len(empty) / 3)
    assert noise.noise_level(y) == pytest.approx(expected, rel=0.07)
    assert noise.before_clipping(y, noise.noise_level(y)) == pytest.approx(sigma, rel=0.07)


def test_noise_that_channels_share_is_seen_beside_a_blown_sky(picture):
    rng = np.random.RandomState(7)
    y = (picture + rng.normal(0, 25 / 255, picture.shape[1:])).clip(0, 1).astype(np.float32)
    flat = noise.flat_level(y)
    y[:, :30] = 1
    assert noise.flat_level(y) == pytest.approx(flat, rel=0.15) and flat > 20
    expected = 25 * math.sqrt(1 - 30 / y.shape[1])
    assert noise.noise_level(y) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("side, top, left", [(57, 0, 0), (98, 20, 100)])
def test_a_page_with_a_small_photograph_has_no_noise(picture, side, top, left):
    page = Image.new("L", (400, 400), 255)
    write, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    for row in range(10, 400, 20):
        write.text((10, row), "The quick brown fox jumps ov", fill=0, font=font)
    y = np.asarray(page)[None] / np.float32(255)
    y[:, 100 : 100 + side, 230 : 230 + side] = picture[:1, top : top + side, left : left + side]
    assert noise.noise_level(y) < 0.01


def test_a_noisy_thing_in_a_black_sky(picture):
    clean = np.full_like(picture, -0.05)
    clean[:, 40:-40, 40:-40] = 0.1 * picture[:, 40:-40, 40:-40]
    y = noise.add_gaussian(clean, 4, np.random.RandomState(7))
    y = np.round(255 * y) / 255
    true = 255 * math.sqrt(np.square(y - clean.clip(0, 1)).mean())
    assert np.mean(y == 0) > 0.3 and noise.noise_level(y) == pytest.approx(true, rel=0.15)


def test_black_and_white_at_random_is_what_no_clipping_explains():
    y = (np.random.RandomState(0).rand(1, 128, 128) > 0.5).astype(np.float32)
    assert noise.noise_level(y) == pytest.approx(127.5, rel=0.15)


def test_texture_is_taken_off_as_far_as_structure_tells_it():
    """Detail whose power follows the structure, in a picture without a plain place."""
    rng = np.random.RandomState(3)
    amount = 0.05 + 0.15 * np.abs(np.sin(np.arange(192) / 30))[:, None]
    clean = 0.5 + amount * gaussian_filter(rng.normal(0, 1, (192, 192)), 0.6)
    y = noise.add_gaussian(clean[None], 10, np.random.RandomState(7))
    assert noise.noise_level(y) == pytest.approx(10, rel=0.15)
    assert noise.noise_level(clean[None]) < 3


def test_a_flat_or_tiny_picture_has_no_noise_level():
    for value in (0, 0.4, 1):
        assert noise.noise_level(np.full((3, 64, 64), value, np.float32)) < 1e-3
    for size in ((1, 1), (1, 50), (50, 1), (2, 2), (3, 3), (3, 37), (9, 9), (20, 15)):
        for channels in (1, 3):
            found = noise.noise_level(np.random.RandomState(0).rand(channels, *size))
            assert math.isfinite(found), size


def test_texture_of_all_directions_is_not_taken_for_noise():
    rng = np.random.RandomState(3)
    h, w = np.mgrid[0.3:0.7:128j, 0.3:0.7:128j]
    clean = np.stack([h, w, (h + w) / 2])
    clean[:, :, 80:] += rng.normal(0, 30 / 255, (3, 128, 48))  # no direction is free of it
    y = noise.add_gaussian(clean, 10, np.random.RandomState(7))
    assert noise.noise_level(y) == pytest.approx(10, rel=0.1)
    assert noise.noise_level(y[:, :, 80:]) > 25, "where it is everywhere nothing tells it"


def test_noise_by_brightness():
    h = np.linspace(0.1, 0.8, 160, dtype=np.float32)[None, :, None].repeat(160, 2)
    rng = np.random.RandomState(7)
    y = noise.add_poisson(np.repeat(h, 3, 0), 0.02, rng)
    means = [0.1 + 0.7 * q for q in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    expected = [255 * math.sqrt(0.02 * mean) for mean in means]
    assert noise.by_brightness(y) == pytest.approx(expected, rel=0.1)
    assert noise.by_brightness(np.full((1, 9, 9), 0.4)) == [0, 0, 0, 0]


def test_noise_alone_is_told_from_a_picture():
    alone = noise.add_gaussian(np.full((3, 64, 64), 0.5), 25, np.random.RandomState(7))
    ramp = np.linspace(-0.1, 0.1, 64)
    assert noise.is_noise_alone(alone, 25.0)
    assert not noise.is_noise_alone(alone + ramp, 25.0)
    assert not noise.is_noise_alone(alone, 0.0)
    assert not noise.is_noise_alone(alone[:, :20], 25.0), "too small to tell"


def test_clipping_is_undone_where_it_can_be():
    y = noise.add_gaussian(np.full((1, 128, 128), 0.05), 40, np.random.RandomState(7))
    left = 255 * float(y.std())
    assert left < 30 and noise.before_clipping(y, left) == pytest.approx(40, rel=0.06)
    assert noise.before_clipping(y, 300.0) == 300


def test_a_gradient_is_no_noise_and_noise_that_pixels_share_is_seen():
    h, w = np.mgrid[0:1:96j, 0:1:96j]
    ramp = (0.2 + 0.3 * h + 0.3 * w)[None].repeat(3, 0)
    assert noise.flat_level(ramp) < 0.01
    white = np.random.RandomState(7).normal(0, 12 / 255, ramp.shape)
    assert noise.flat_level(ramp + white) == pytest.approx(12, rel=0.15)
    shared = gaussian_filter(white, (0, 1.5, 1.5))
    rms = 255 * float(shared.std())
    assert 0.6 * rms < noise.flat_level(ramp + shared) < rms
    assert noise.noise_level(ramp + shared) < 0.3 * rms


def stored(y, **jpeg):
    """[3, H, W] through 8 bits, and through a JPEG where ``jpeg`` says so."""
    eight = (np.moveaxis(y.clip(0, 1), 0, -1) * 255).round().astype(np.uint8)
    if jpeg:
        file = io.BytesIO()
        Image.fromarray(eight).save(file, "JPEG", **jpeg)
        eight = np.asarray(Image.open(file))
    return np.moveaxis(eight, -1, 0).astype(np.float32) / 255


def test_noise_that_channels_share_is_told():
    rng = np.random.RandomState(7)
    cat = np.moveaxis(data.chelsea()[50:178, 100:228].astype(np.float32) / 255, -1, 0)
    n = rng.normal(scale=25 / 255, size=cat.shape)
    grey = noise.add_gaussian(cat[:1], 25, rng)
    as_grey = noise.noise_level(stored(np.repeat(grey, 3, 0))[:1])
    assert as_grey == pytest.approx(25, rel=0.1)
    assert noise.noise_level(stored(np.repeat(grey, 3, 0))) == pytest.approx(as_grey, rel=1e-3)
    sepia = noise.noise_level(stored(grey * np.array([1, 0.8, 0.6])[:, None, None]))
    assert sepia == pytest.approx(0.8 * 25, rel=0.1)
    assert noise.noise_level(stored(cat + n[:1])) == pytest.approx(25, rel=0.1)
    # of luma: 25 times the root of 0.299² + 0.587² + 0.114²
    halved = noise.noise_level(stored(cat + n, quality=95, subsampling=2))
    assert halved == pytest.approx(16.7, rel=0.15)
    assert noise.noise_level(stored(cat + n)) == pytest.approx(25, rel=0.1), "independent"
    assert noise.noise_level(stored(cat)) < 1


def test_texture_that_channels_share_is_not_their_noise():
    grass = data.grass()[:192, :192].astype(np.float32) / 255
    coloured = np.stack([0.9 * grass, grass, 0.7 * grass + 0.1 * np.roll(grass, 1, 1)])
    assert noise.noise_level(stored(coloured)) < noise.noise_level(stored(coloured).mean(0)[None])


@pytest.mark.parametrize("paper", [0, 200, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_of_text_has_no_noise(paper, channels):
    page = Image.new("L", (256, 256), paper)
    for line in range(18):
        words = "The quick brown fox jumps over the lazy dog"
        ImageDraw.Draw(page).text((5, 5 + 14 * line), words, fill=235 if paper == 0 else 20)
    y = np.repeat(np.asarray(page, np.float32)[None] / 255, channels, 0)
    assert noise.noise_level(y) < 0.1
    if paper == 200:
        noisy = noise.add_gaussian(y, 15, np.random.RandomState(7))
        assert noise.noise_level(noisy) == pytest.approx(15, rel=0.05)
