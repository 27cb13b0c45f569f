"""Noise added to a picture, and the noise level read from one.

Pictures are numpy arrays [C, H, W] with values in [0, 1]; sigma is on the 0–255 scale.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from .errors import UserError


def add_gaussian(x: np.ndarray, sigma: float, rng: np.random.RandomState) -> np.ndarray:
    """Add white Gaussian noise and clip to [0, 1], as a camera would. [C, H, W] -> same, float32.

    ``sigma`` is the deviation on the 0–255 scale (UserError if negative). The noise is drawn in
    the order C, H, W: with ``RandomState(7)`` it is the noisy picture that the field's programs
    make after ``np.random.seed(7)``.
    """
    if not 0 <= sigma < math.inf:
        raise UserError(f"--noise_sigma {sigma}: must be 0 or more (0-255 scale)")
    return np.clip(x + rng.normal(scale=sigma / 255, size=x.shape), 0, 1).astype(np.float32)


def add_poisson(x: np.ndarray, scale: float, rng: np.random.RandomState) -> np.ndarray:
    """Replace ``x`` by photon counts and clip to [0, 1]. [C, H, W] in [0, 1] -> same, float32.

    One photon is worth ``scale``: a pixel becomes scale · Poisson(x / scale), whose mean is x and
    variance scale · x. UserError unless scale > 0.
    """
    if not 0 < scale < math.inf:
        raise UserError(f"--poisson_scale {scale}: must be above 0")
    return np.clip(rng.poisson(x / scale) * scale, 0, 1).astype(np.float32)


def clipped_moments(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of clip(x + n, 0, 1) for n normal with deviation ``sigma`` (0–255 scale).

    With s = sigma/255, a = −x/s, b = (1−x)/s and E the second moment about x: mean = x(Φ(b) − Φ(a))
    + s(φ(a) − φ(b)) + 1 − Φ(b); E = s²[Φ(b) − Φ(a) − bφ(b) + aφ(a)] + x²Φ(a) + (1−x)²(1 − Φ(b));
    variance = E − (mean − x)². What Foi, "Practical denoising of clipped or overexposed noisy
    images", EUSIPCO 2008, fits by polynomials, in closed form. ``x`` of any shape; sigma > 0.
    """
    x, s = np.asarray(x, dtype=np.float64), sigma / 255
    a, b = -x / s, (1 - x) / s
    below, above = norm.cdf(a), norm.sf(b)
    inside = 1 - below - above
    mean = x * inside + s * (norm.pdf(a) - norm.pdf(b)) + above
    second = s**2 * (inside - b * norm.pdf(b) + a * norm.pdf(a))
    second += x**2 * below + (1 - x) ** 2 * above
    return mean, second - (mean - x) ** 2


def clipped_deviation(y: np.ndarray, sigma: float) -> float:
    """RMS deviation (0–255) that noise of level ``sigma`` has after clipping, told from ``y``.

    ``y`` [C, H, W] is the noisy, clipped picture. Slightly smoothed it is near the mean that
    clipping leaves at each pixel; from that mean the variance follows. Over the pictures and noise
    levels of results/README.md it is within 2 % of what the clean picture would give.
    """
    mean = gaussian_filter(np.asarray(y, dtype=np.float64), (0, 1, 1))
    means, variances = clipped_moments(np.linspace(0, 1, 2001), sigma)
    return 255 * float(np.sqrt(np.interp(mean, means, variances).mean()))


# High-pass filter of Daubechies' wavelet with two vanishing moments ("db2").
_ROOT3 = math.sqrt(3)
_DB2 = np.array([-(1 + _ROOT3), 3 + _ROOT3, -(3 - _ROOT3), 1 - _ROOT3]) / (4 * math.sqrt(2))


def estimate_sigma(y: np.ndarray) -> float:
    """Estimate the deviation of white Gaussian noise in ``y`` [C, H, W], on the 0–255 scale.

    The median absolute deviation of the finest diagonal wavelet coefficients, over that of a unit
    Gaussian (0.6745), averaged over channels: section 4.2 of Donoho & Johnstone, "Ideal spatial
    adaptation by wavelet shrinkage", Biometrika 81 (1994). Same numbers as scikit-image's
    ``estimate_sigma``, which needs PyWavelets and this does not. Coefficients that are zero (flat,
    saturated regions) tell nothing and are left out; a flat picture gives 0. Fine texture is taken
    for noise; the mirrored border makes small pictures read low (by 1 % at 128 pixels a side, 3 %
    at 131).
    """
    y = np.asarray(y, dtype=np.float64)
    diagonal = _finest_detail(_finest_detail(y).swapaxes(-1, -2))
    return 255 * float(np.mean([_gaussian_mad(channel) for channel in diagonal]))


def _finest_detail(x: np.ndarray) -> np.ndarray:
    """One level of wavelet detail along the last axis: [..., n] -> [..., (n + 3) // 2]."""
    n = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 3)], mode="symmetric")
    return sum(tap * padded[..., 3 - j : 5 - j + n : 2] for j, tap in enumerate(_DB2))


def _gaussian_mad(coefficients: np.ndarray) -> float:
    magnitude = np.abs(coefficients)
    magnitude = magnitude[magnitude > 1e-12]  # zero but for rounding
    return float(np.median(magnitude) / norm.ppf(0.75)) if magnitude.size else 0.0
