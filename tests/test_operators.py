import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import refused

from dip_recon import operators
from dip_recon.errors import UserError

SIZES = [(16, 16), (37, 31), (24, 41)]


def random_mask(size):
    return operators.bernoulli_mask(size, 0.3, seed=1)


def all_operators(size):
    rng = np.random.RandomState(0)
    yield operators.Identity()
    yield operators.Mask(random_mask(size))
    yield operators.Mask(rng.rand(2, 3, *size) > 0.5)
    yield operators.FourierSampling(random_mask(size)[0])
    yield operators.Blur(operators.gaussian_kernel(1.2))
    yield operators.Blur(operators.motion_kernel(7, 30))
    yield operators.Blur(rng.rand(4, 7))
    for kernel in operators.KERNELS:
        for factor in (2, 3, 4, 8):
            yield operators.Downsample(factor, kernel)
            if kernel != "box":
                yield operators.Downsample(factor, kernel, phase=0)


@pytest.mark.parametrize("size", SIZES)
def test_adjoint_differentiability_and_no_state(size):
    g = torch.Generator().manual_seed(0)
    for A in all_operators(size):
        x = torch.rand(2, 3, *size, generator=g, dtype=torch.float64, requires_grad=True)
        Ax = A(x)
        y = torch.rand(Ax.shape, generator=g, dtype=torch.float64)
        forms = [operators.adjoint(A, y, x.shape)]
        if isinstance(A, operators.Downsample):
            forms.append(A.adjoint(y, x.shape))
        else:
            forms.append(A.adjoint(y))
        left = (Ax * y).sum()
        for back in forms:
            assert back.shape == x.shape
            assert abs(left - (x * back).sum()) <= 1e-5 * abs(left), A
        (gradient,) = torch.autograd.grad(left, x)
        torch.testing.assert_close(gradient, forms[1])
        assert not A.state_dict() and not list(A.parameters())
        assert A(x.float()).dtype == torch.float32
        assert A.double()(x).dtype == torch.float64


def test_adjoint_serves_any_linear_callable():
    y = torch.rand(1, 1, 4, 4)
    back = operators.adjoint(lambda x: 2 * x.flip(-1)[..., ::2], y, (1, 1, 4, 8))
    expected = torch.zeros(1, 1, 4, 8)
    expected[..., 1::2] = 2 * y.flip(-1)
    torch.testing.assert_close(back, expected)
    with torch.no_grad():
        torch.testing.assert_close(operators.adjoint(torch.neg, y, y.shape), -y)


def sinc_lanczos_reduced(x, factor):
    """The dense 2-D formulation: 4·factor taps a side, edge padding, every factor-th window."""
    t = (np.arange(4 * factor) - (4 * factor - 1) / 2) / factor * np.pi
    taps = 2 * np.sin(t) * np.sin(t / 2) / t**2
    kernel = np.outer(taps, taps)
    kernel /= kernel.sum()
    pad = (4 * factor - factor) // 2
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(1, 2))
    return (windows[:, ::factor, ::factor] * kernel).sum((-1, -2))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (37, 31)])
def test_lanczos2_is_the_published_downsampler(factor, size):
    x = np.random.RandomState(0).rand(3, *size).astype(np.float32)
    y = operators.Downsample(factor, "lanczos2", phase=0.5)(torch.from_numpy(x)[None])[0]
    expected = sinc_lanczos_reduced(x, factor)
    assert y.shape == (3, size[0] // factor, size[1] // factor) == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_downsampling_keeps_constants_and_places_pixels():
    ramp = torch.arange(48.0).expand(1, 1, 48, 48) / 48
    for kernel in operators.KERNELS:
        for factor in (2, 3, 4, 5):
            for phase in (0.5,) if kernel == "box" else (0, 0.5):
                A = operators.Downsample(factor, kernel, phase)
                torch.testing.assert_close(A(torch.ones(1, 2, 48, 48)).mean(), torch.tensor(1.0))
                i = 24 // factor
                centre = factor * i + (factor - 1) / 2 * (phase == 0.5)
                assert abs(A(ramp)[0, 0, i, i] * 48 - centre) < 1e-3, (kernel, factor, phase)


def test_box_is_the_block_mean():
    x = torch.rand(1, 3, 24, 30)
    torch.testing.assert_close(
        operators.Downsample(3, "box")(x), torch.nn.functional.avg_pool2d(x, 3)
    )


def test_downsample_refusals():
    with pytest.raises(UserError, match="--sr_factor"):
        operators.Downsample(1)
    with pytest.raises(UserError, match="did you mean 'lanczos2'"):
        operators.Downsample(4, "lanczos22")
    with pytest.raises(UserError, match="phase"):
        operators.Downsample(4, "box", phase=0)
    with pytest.raises(UserError, match="too small"):
        operators.Downsample(8)(torch.rand(1, 1, 7, 20))


@pytest.mark.parametrize("size", SIZES)
def test_blur_is_scipys(size):
    rng = np.random.RandomState(0)
    x = rng.rand(*size).astype(np.float32)
    y = operators.Blur(operators.gaussian_kernel(1.3))(torch.from_numpy(x)[None, None])
    expected = scipy.ndimage.gaussian_filter(x, 1.3, mode="mirror")
    np.testing.assert_allclose(y[0, 0], expected, atol=2e-6)
    for shape in [(5, 5), (3, 7), (4, 6), (1, 1)]:
        kernel = rng.rand(*shape).astype(np.float32)
        y = operators.Blur(kernel)(torch.from_numpy(x)[None, None])
        expected = scipy.ndimage.convolve(x, kernel, mode="mirror")
        np.testing.assert_allclose(y[0, 0], expected, rtol=1e-5)


def test_blur_shows_its_kernel():
    kernel = np.random.RandomState(0).rand(5, 3).astype(np.float32)
    point = torch.zeros(1, 1, 11, 9)
    point[..., 5, 4] = 1
    np.testing.assert_array_equal(operators.Blur(kernel)(point)[0, 0, 3:8, 3:6], kernel)


def test_blur_refusals():
    with pytest.raises(UserError, match="too large"):
        operators.Blur(np.ones((9, 3)))(torch.rand(1, 1, 4, 20))
    for kernel in (np.ones(3), np.zeros((3, 3))):
        with pytest.raises(UserError, match="blur kernel"):
            operators.Blur(kernel)
    for bad in (0, -1, float("nan")):
        with pytest.raises(UserError, match="sigma"):
            operators.gaussian_kernel(bad)
    with pytest.raises(UserError, match="odd"):
        operators.gaussian_kernel(1, size=4)
    with pytest.raises(UserError, match="length"):
        operators.motion_kernel(0.5)


def test_motion_kernel():
    np.testing.assert_allclose(operators.motion_kernel(9), np.full((1, 9), 1 / 9), rtol=1e-6)
    np.testing.assert_allclose(operators.motion_kernel(9, 90), np.full((9, 1), 1 / 9), rtol=1e-6)
    assert operators.motion_kernel(1, 77).shape == (1, 1)
    tilted = operators.motion_kernel(9, 30)
    assert tilted.sum() == pytest.approx(1)
    np.testing.assert_allclose(tilted, tilted[::-1, ::-1], atol=1e-7)
    y, x = np.mgrid[: tilted.shape[0], : tilted.shape[1]]
    x, y = x - tilted.shape[1] // 2, tilted.shape[0] // 2 - y  # y upwards: the slope is positive
    assert (tilted * x * y).sum() > 0


def test_fourier_sampling_full_mask_is_orthonormal():
    x = torch.rand(2, 3, 15, 20)
    A = operators.FourierSampling(np.ones((15, 20)))
    y = A(x)
    assert y.shape == (2, 6, 15, 20)
    torch.testing.assert_close(A.adjoint(y), x)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    torch.testing.assert_close(y[:, :3, 0, 0], x.sum((-1, -2)) / (15 * 20) ** 0.5)


def test_mask_shapes():
    x = torch.rand(1, 3, 6, 5)
    for shape in [(6, 5), (1, 6, 5), (3, 6, 5), (1, 1, 6, 5), (1, 3, 6, 5)]:
        mask = np.random.RandomState(0).rand(*shape) > 0.5
        np.testing.assert_array_equal(
            operators.Mask(mask)(x)[0], x[0].numpy() * mask.reshape(mask.shape[-3:])
        )
    for shape in [(5, 6), (2, 6, 5), (1, 1)]:
        with pytest.raises(UserError, match="mask"):
            operators.Mask(np.ones(shape))(x)
    with pytest.raises(UserError, match="all zero"):
        operators.Mask(np.zeros((6, 5)))
    with pytest.raises(UserError, match="all zero"):
        operators.FourierSampling(np.zeros((6, 5)))


def test_bernoulli_mask_is_the_published_draw():
    expected = np.random.RandomState(100).random_sample((1, 20, 30)) > 0.5
    mask = operators.bernoulli_mask((20, 30))
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, expected)
    assert operators.bernoulli_mask((100, 100), 0.9).mean() == pytest.approx(0.1, abs=0.02)
    with pytest.raises(UserError, match="--zero_fraction"):
        operators.bernoulli_mask((4, 4), 1.0)


@pytest.mark.parametrize("size", [(64, 256), (301, 97), (512, 512), (9, 5)])
def test_text_mask(size):
    mask = operators.text_mask(size)
    assert mask.shape == (1, *size) and mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(mask, operators.text_mask(size))
    if min(size) > 50:  # letters in every quarter
        for rows in np.array_split(mask[0], 2):
            for part in np.array_split(rows, 2, axis=1):
                assert 0.4 < part.mean() < 0.95


def test_text_mask_options():
    assert (operators.text_mask((99, 99), "a ") != operators.text_mask((99, 99), "b ")).any()
    assert (operators.text_mask((99, 99), font_size=30) != operators.text_mask((99, 99))).any()
    two = operators.text_mask((99, 99), "a\nb ")
    np.testing.assert_array_equal(two, operators.text_mask((99, 99), "a b "))
    for bad in ({"text": "  "}, {"font_size": 0}):
        with pytest.raises(UserError, match="text"):
            operators.text_mask((9, 9), **bad)


def test_an_array_may_be_a_view_and_may_change_later(picture):
    x = torch.from_numpy(picture())[None]
    given = np.random.RandomState(0).rand(32, 32).astype(np.float32)
    for operator in (operators.Mask, operators.Blur, operators.FourierSampling):
        values = given[:5, :5].copy() if operator is operators.Blur else given.copy()
        A, turned = operator(values), operator(values[::-1].copy()[::-1])
        expected = A(x)
        values[:] = 0
        torch.testing.assert_close(A(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(turned(x), expected, rtol=0, atol=0)


def test_mask_from_picture():
    rng = np.random.RandomState(0)
    white = rng.rand(1, 8, 6) > 0.5
    picture = np.where(white, 1 - 0.09 * rng.rand(3, 8, 6), 0.09 * rng.rand(3, 8, 6))  # as a JPEG
    mask = operators.mask_from_picture(picture, size=(8, 6))
    assert mask.shape == (1, 8, 6) and mask.dtype == np.float32
    np.testing.assert_array_equal(mask, white)
    with pytest.raises(UserError, match="not a mask"):
        operators.mask_from_picture(rng.rand(3, 8, 6))
    assert operators.mask_from_picture(np.ones((8, 6))).all()
    soft = np.ones((30, 30))
    soft[3, :5] = 0, 0.3, 0.6, 0.8, 0.95  # the rim of a brush
    np.testing.assert_array_equal(operators.mask_from_picture(soft)[0, 3, :6], [0, 0, 0, 0, 1, 1])
    with pytest.raises(UserError, match="8×6 but the picture 6×8"):
        operators.mask_from_picture(picture, size=(6, 8))
    with pytest.raises(UserError, match="black"):
        operators.mask_from_picture(np.zeros((1, 8, 6)))


def test_mask_from_alpha():
    alpha = np.full((8, 6), 255, np.uint8)
    alpha[2:4, 1:5] = 0
    alpha[4, 1:3] = 127, 128  # less and more than half opaque
    missing = alpha < 128
    for form in (alpha, alpha.astype(np.uint16) * 257, alpha / np.float32(255)):
        mask = operators.mask_from_alpha(form)
        assert mask.shape == (1, 8, 6) and mask.dtype == np.float32
        np.testing.assert_array_equal(mask[0] == 0, missing)
    refused(lambda: operators.mask_from_alpha(np.ones((8, 6))), "no pixel is transparent")
    refused(lambda: operators.mask_from_alpha(np.zeros((8, 6), np.uint8)), "all pixels")


@pytest.mark.parametrize("colour", ["#ff0000", "#F00", "red", "Red "])
def test_mask_from_colour(colour):
    data = np.random.RandomState(0).rand(3, 8, 6).astype(np.float32) * 0.9
    data[:, 2:4, 1:5] = np.reshape([1, 5 / 255, 0], (3, 1, 1))
    data[:, 5, 5] = 1, 6 / 255, 0
    mask = operators.mask_from_colour(data, colour)
    assert mask.shape == (1, 8, 6) and mask.dtype == np.float32
    assert (mask[0, 2:4, 1:5] == 0).all() and mask.sum() == 48 - 8
    assert operators.mask_from_colour(data, colour, 0.05).sum() == 48 - 9
    refused(lambda: operators.mask_from_colour(data, colour, 0), "no pixel", "0.020")
    refused(lambda: operators.mask_from_colour(data[:, 2:4, 1:5], colour), "all pixels")


@pytest.mark.parametrize("colour", ["magenta", "black"])
def test_the_soft_rim_of_a_brush_is_missing_too(picture, colour):
    clean = 0.15 + 0.7 * picture(3, (64, 64))
    rows, columns = np.mgrid[:64, :64]
    away = np.hypot(rows - 30, columns - 30)
    rgb = np.reshape([1, 0, 1] if colour == "magenta" else [0, 0, 0], (3, 1, 1))
    for soft in (2, 1, 0):  # pixels
        share = np.clip((12.3 - away) / max(soft, 0.01) + 0.5, 0, 1)
        mask = operators.mask_from_colour(share * rgb + (1 - share) * clean, colour)[0]
        assert not mask[share > 0.25].any()
        assert mask[away > 15].all()
        assert soft or mask[share == 0].all()  # what has a hard edge is cut at it


def test_mask_from_colour_of_a_grey_picture_and_wrong_colours():
    data = np.full((1, 8, 6), 0.5)
    data[0, 3] = 1
    assert operators.mask_from_colour(data, "white")[0, 3].sum() == 0
    refused(lambda: operators.mask_from_colour(data, "red"), "no pixel is red")
    for wrong in ("ff0000", "#ff00", "#ff000080", "none", "0.5", "C0", "magneta", ""):
        refused(lambda w=wrong: operators.mask_from_colour(data, w), repr(wrong), "#rrggbb")
    refused(lambda: operators.mask_from_colour(data, "magneta"), "did you mean 'magenta'?")
    refused(lambda: operators.mask_from_colour(data, "white", 1), "tolerance")
