"""Noise added to a picture, and the noise level read from one.

Pictures are numpy arrays [C, H, W] with values in [0, 1]; sigma is on the 0–255 scale.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter, uniform_filter, uniform_filter1d
from scipy.optimize import brentq
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


def clipped_deviation(y: np.ndarray, sigma: float, where: np.ndarray | None = None) -> float:
    """RMS deviation (0–255) that noise of level ``sigma`` has after clipping, told from ``y``.

    ``y`` [C, H, W] is the noisy, clipped picture. Slightly smoothed it is near the mean that
    clipping leaves at each pixel; from that mean the variance follows. Over the pictures and noise
    levels of results/README.md it is within 2 % of what the clean picture would give. ``where``, of
    the shape of ``y``, is True for the values that count; all do without it.
    """
    means, variances = clipped_moments(np.linspace(0, 1, 2001), sigma)
    mean = gaussian_filter(np.asarray(y, dtype=np.float64), (0, 1, 1))
    variance = np.interp(mean, means, variances)
    return 255 * float(np.sqrt(variance.mean(where=True if where is None else where)))


def hardly_clipped(y: np.ndarray, sigma: float, margin: float) -> np.ndarray:
    """Where the mean of ``y`` [C, H, W] is ``margin`` times ``sigma`` (0–255) off 0 and off 1.

    The mean is over a Gaussian of 2 pixels, so that noise has little say in it: black with noise,
    clipped, has a mean of 0.4 of ``sigma``.
    """
    off = margin * sigma / 255
    mean = gaussian_filter(np.asarray(y, dtype=np.float64), (0, 2, 2))
    return (mean >= off) & (mean <= 1 - off)


def texture(y: np.ndarray, deviation: float) -> float:
    """How far the detail of ``y`` [C, H, W] rises above its noise: their RMS's ratio, 0 and up.

    Detail is what a Gaussian of 1.5 pixels takes away; the noise's share of it is known.
    """
    if deviation <= 0:
        return float("inf")
    detail = np.asarray(y, np.float32) - gaussian_filter(y, (0, 1.5, 1.5))
    impulse = np.zeros((25, 25))
    impulse[12, 12] = 1
    share = float(np.square(impulse - gaussian_filter(impulse, 1.5)).sum())
    power = float(np.square(detail, dtype=np.float64).mean()) - share * (deviation / 255) ** 2
    return float(np.sqrt(max(power, 0.0)) * 255 / deviation)


def drawn_back(restored: np.ndarray, y: np.ndarray, deviation: float) -> tuple[np.ndarray, float]:
    """``restored`` no further from ``y`` than noise of ``deviation`` (0–255) would be.

    Where the RMS r between the two exceeds the noise's s, more was lost than noise, and of all
    mixtures y + w (restored − y) the one with w = s²/r² has the least expected error as long as
    the loss has nothing to do with the noise (Stein's shrinkage towards y); a twentieth more than
    the noise is let pass. Returns it and w.
    """
    r = 255 * float(np.sqrt(np.square(restored - y, dtype=np.float64).mean()))
    if r <= 1.05 * deviation:
        return restored, 1.0
    w = (1.05 * deviation / r) ** 2
    return (y + np.float32(w) * (restored - y)).astype(np.float32), w


PATCHES = 60_000  # that the noise level is told from, at most
TEXTURED = 0.9  # share of the level of all patches, below which that of the plainest is believed


def noise_level(y: np.ndarray) -> float:
    """Deviation (0–255) of the noise in ``y`` [C, H, W] about the mean that clipping leaves of it.

    Patches of a picture lie near a subspace; across it there is noise alone. So the least
    eigenvalues of the patches' covariance are the noise's variance: as many of them are taken as
    have their mean where their median is (Chen, Zhu & Heng, "An efficient statistical method for
    image noise level estimation", ICCV 2015, algorithm 1). Patches hold all channels, which share
    their texture and not their noise; their side is 8 pixels, less in small pictures, where there
    are few. A grey picture has less to spare: of its patches only those with the least structure
    count, and none that is mostly clipped. They are asked in a colour picture as well, and believed
    where they have clearly less noise: then it is texture of many directions that all have. Noise
    that grows with brightness gives its mean power, noise that its neighbours share is not seen
    (see ``flat_level``); a flat picture gives 0.
    """
    # on noise alone it reads low: few samples, and of grey patches the plainest have less of it
    if len(y) == 1:
        return 1.035 * _least_deviation(y, 7, plainest=True)
    level = 1.01 * _least_deviation(y, 8, plainest=False)
    plain = 1.01 * _least_deviation(y, 5, plainest=True)
    return plain if plain < TEXTURED * level else level


def _least_deviation(y: np.ndarray, side: int, plainest: bool) -> float:
    """Deviation (0–255) in the directions in which patches of ``side`` pixels vary least."""
    channels, height, width = y.shape
    while side > 3 and 30 * channels * side**2 > (height - side + 1) * (width - side + 1):
        side -= 1
    if min(height, width) < side:
        return 0.0
    patches = _patches(y, side)
    if plainest:
        patches = _plainest(patches, channels, side)
    patches = patches - patches.mean(0)
    values = np.linalg.eigvalsh(patches.T @ patches / max(len(patches) - 1, 1))[::-1]
    for n in range(len(values)):
        variance = values[n:].mean()
        if np.median(values[n:]) >= variance:
            break
    return 255 * math.sqrt(max(variance, 0.0))


def flat_level(y: np.ndarray, side: int = 12) -> float:
    """Deviation (0–255) in the flattest places of ``y`` [C, H, W]: noise of any spectrum, and what
    texture there is even there.

    The 5 % quantile, over the picture, of the deviation from a plane in windows of ``side`` pixels,
    so that a gradient is no noise. A camera that sharpens, scales and compresses leaves noise that
    neighbouring pixels share, which hardly shows in ``noise_level``.
    """
    if min(y.shape[1:]) < 2 * side:
        return 0.0
    y = np.asarray(y, np.float64)
    mean = uniform_filter(y, (0, side, side))
    variance = uniform_filter(np.square(y), (0, side, side)) - np.square(mean)
    ramp = np.arange(side) - (side - 1) / 2
    for along, across in ((1, 2), (2, 1)):
        slope = correlate1d(uniform_filter1d(y, side, across), ramp / side, along)
        variance -= np.square(slope) / np.square(ramp).mean()
    half = side // 2
    inside = variance[:, half:-half:4, half:-half:4].mean(0)
    return 255 * math.sqrt(max(float(np.quantile(inside, 0.05)), 0.0))


def by_brightness(y: np.ndarray, parts: int = 4) -> list[float]:
    """Deviation (0–255) of the noise in the darkest to the brightest quarter of ``y`` [C, H, W].

    The median deviation of 2×2 differences in each, which texture raises a little.
    """
    y = np.asarray(y, np.float64)
    y = y[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2]
    a, b, c, d = (y[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    mean, difference = (a + b + c + d).ravel(), (a - b - c + d).ravel() / 2
    edges = np.quantile(mean, np.linspace(0, 1, parts + 1)[1:-1])
    part = np.searchsorted(edges, mean)
    return [255 * _gaussian_mad(difference[part == n]) for n in range(parts)]


def is_noise_alone(y: np.ndarray, deviation: float) -> bool:
    """Whether ``y`` [C, H, W] smoothed over 4 pixels varies no more than white noise of
    ``deviation`` (0–255) would. False where there is no noise, and of less than 32 pixels a side.
    """
    if deviation <= 0 or min(y.shape[-2:]) < 32:
        return False
    smooth = gaussian_filter(np.asarray(y, np.float64), (0, 4, 4))
    left = (deviation / 255) ** 2 / (4 * np.pi * 4**2)
    return bool(smooth.var(axis=(-2, -1)).max() < 2 * left)


def _patches(y: np.ndarray, side: int) -> np.ndarray:
    """Overlapping patches [n, C·side²], all of them or ``PATCHES`` drawn from all over."""
    windows = np.lib.stride_tricks.sliding_window_view(y, (side, side), axis=(1, 2))
    windows = windows.transpose(1, 2, 0, 3, 4)
    rows, columns = windows.shape[:2]
    chosen = np.arange(rows * columns)
    if len(chosen) > PATCHES:
        chosen = np.random.RandomState(0).randint(rows * columns, size=PATCHES)
    picked = windows[chosen // columns, chosen % columns]
    return picked.reshape(len(chosen), -1).astype(np.float64)


def _plainest(patches: np.ndarray, channels: int, side: int) -> np.ndarray:
    """The fifth of the patches that vary least when smoothed by 2×2 means.

    Of colour ones a fifth of each quarter in brightness, so that noise that grows with it shows;
    grey pictures have too few for that.
    """
    clipped = ((patches <= 0) | (patches >= 1)).mean(1)
    least = 30 * side**2
    free = patches[clipped <= 0.25]
    free = free if len(free) >= least else patches
    even = side // 2 * 2
    means = free.reshape(-1, channels, side, side)[..., :even, :even]
    means = means.reshape(-1, channels, even // 2, 2, even // 2, 2).mean((3, 5))
    structure = means.reshape(len(free), channels, -1).var(2).sum(1)
    count = min(len(free), max(least, len(patches) // 5))
    chosen = []
    for part in np.array_split(np.argsort(free.mean(1), kind="stable"), 4 if channels > 1 else 1):
        by_structure = np.argsort(structure[part], kind="stable")
        chosen.append(part[by_structure[: round(count * len(part) / len(free))]])
    return free[np.concatenate(chosen)]


def before_clipping(y: np.ndarray, deviation: float) -> float:
    """The noise level (0–255) whose noise has ``deviation`` after clipping, on this picture.

    The inverse of ``clipped_deviation``; ``deviation`` itself where clipping cannot explain it.
    """
    if deviation < 0.1 or clipped_deviation(y, 400.0) <= deviation:
        return deviation
    return float(brentq(lambda s: clipped_deviation(y, s) - deviation, 0.05, 400.0, xtol=0.01))


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
