import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dip_recon import metrics

SHAPES = [(3, 32, 32), (1, 37, 31), (3, 37, 31)]


def pair(shape, dtype=np.float32):
    rng = np.random.RandomState(0)
    x = rng.rand(*shape)
    return x.astype(dtype), np.clip(x + rng.normal(scale=0.1, size=shape), 0, 1).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_psnr_is_scikit_images(shape, dtype):
    x, y = pair(shape, dtype)
    expected = peak_signal_noise_ratio(x, y, data_range=1)
    assert metrics.psnr(x, y) == pytest.approx(expected, abs=1e-5)
    tensors = torch.from_numpy(x)[None].requires_grad_(), torch.from_numpy(y)[None]
    value = metrics.psnr(*tensors)
    assert isinstance(value, float) and value == pytest.approx(expected, abs=1e-5)
    assert metrics.psnr(x[None], tensors[1]) == value


def test_psnr_clips_and_knows_the_ends():
    x, _ = pair((3, 16, 16))
    assert metrics.psnr(x, x) == math.inf
    white = np.ones((1, 8, 8), np.float32)
    assert metrics.psnr(white, 1.5 * white) == math.inf
    assert metrics.psnr(white, -white) == 0
    assert metrics.psnr(white, 0.9 * white) == pytest.approx(20, abs=1e-4)
    assert math.isnan(metrics.psnr(white, np.nan * white))


def test_psnr_of_half_precision_is_computed_in_single():
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.bfloat16)
    assert metrics.psnr(x, torch.full((1, 1, 8, 8), 0.501)) == pytest.approx(60, abs=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="shapes"):
        metrics.psnr(np.zeros((3, 8, 8)), np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="floats"):
        metrics.psnr(np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="channels"):
        metrics.psnr_luma(np.zeros((2, 18, 18)), np.zeros((2, 18, 18)))


def test_psnr_luma_is_the_published_evaluation():
    x, y = pair((3, 40, 50))

    def published_luma(rgb):  # OpenCV's full-range luma, squeezed into [16, 235]
        full_range = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
        return (full_range * (235 - 16) + 16) / 255

    for border in (0, 4):
        inner = (slice(None), slice(border, 40 - border), slice(border, 50 - border))
        expected = peak_signal_noise_ratio(
            published_luma(x[inner]), published_luma(y[inner]), data_range=1
        )
        assert metrics.psnr_luma(x, y, border) == pytest.approx(expected, abs=1e-3)
        batch = torch.from_numpy(x)[None], torch.from_numpy(y)[None]
        assert metrics.psnr_luma(*batch, border) == pytest.approx(expected, abs=1e-3)


def test_published_luma_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    x, y = pair((3, 40, 50))
    x_luma, y_luma = (
        (cv2.cvtColor(t.transpose(1, 2, 0), cv2.COLOR_RGB2YCR_CB)[..., 0] * 219 + 16) / 255
        for t in (x, y)
    )
    expected = peak_signal_noise_ratio(x_luma, y_luma, data_range=1)
    assert metrics.psnr_luma(x, y, border=0) == pytest.approx(expected, abs=0.01)


def test_psnr_luma_of_grey_and_of_too_little():
    x, y = pair((1, 40, 50))
    assert metrics.psnr_luma(x, y) == metrics.psnr(x[:, 4:-4, 4:-4], y[:, 4:-4, 4:-4])
    assert math.isnan(metrics.psnr_luma(x[:, :8], y[:, :8]))
    grey3 = np.repeat(x, 3, 0), np.repeat(y, 3, 0)
    span = 20 * math.log10(255 / 219)
    assert metrics.psnr_luma(*grey3) == pytest.approx(metrics.psnr_luma(x, y) + span, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_is_scikit_images(shape):
    x, y = pair(shape, np.float64)
    expected = structural_similarity(x, y, data_range=1, channel_axis=0)
    assert metrics.ssim(x, y) == pytest.approx(expected, abs=1e-12)
    batch = torch.from_numpy(x)[None].requires_grad_(), torch.from_numpy(y)[None]
    assert metrics.ssim(*batch) == pytest.approx(expected, abs=1e-12)
    both = np.stack([x, y])
    assert metrics.ssim(both, y) == pytest.approx((expected + 1) / 2, abs=1e-9)


def test_ssim_of_small_pictures_is_nan():
    x, y = pair((3, 6, 40))
    assert math.isnan(metrics.ssim(x, y))
