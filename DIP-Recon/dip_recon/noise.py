"""Noise added to a picture, and the noise level read from one.

Pictures are numpy arrays [C, H, W] with values in [0, 1]; sigma is on the 0–255 scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import (
    correlate1d,
    gaussian_filter,
    maximum_filter,
    minimum_filter,
    uniform_filter,
    uniform_filter1d,
)
from scipy.special import ndtr, ndtri  # scipy.stats takes a second to import

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


def density(x: np.ndarray) -> np.ndarray:
    """φ(x), the density of the standard normal distribution; ``x`` of any shape."""
    return np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)


def clipped_moments(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of clip(x + n, 0, 1) for n normal with deviation ``sigma`` (0–255 scale).

    With s = sigma/255, a = −x/s, b = (1−x)/s and E the second moment about x: mean = x(Φ(b) − Φ(a))
    + s(φ(a) − φ(b)) + 1 − Φ(b); E = s²[Φ(b) − Φ(a) − bφ(b) + aφ(a)] + x²Φ(a) + (1−x)²(1 − Φ(b));
    variance = E − (mean − x)². What Foi, "Practical denoising of clipped or overexposed noisy
    images", EUSIPCO 2008, fits by polynomials, in closed form. ``x`` of any shape; sigma > 0.
    """
    x, s = np.asarray(x, dtype=np.float64), sigma / 255
    a, b = -x / s, (1 - x) / s
    below, above = ndtr(a), ndtr(-b)
    inside = 1 - below - above
    mean = x * inside + s * (density(a) - density(b)) + above
    second = s**2 * (inside - b * density(b) + a * density(a))
    second += x**2 * below + (1 - x) ** 2 * above
    return mean, second - (mean - x) ** 2


def clipped_deviation(y: np.ndarray, sigma: float, where: np.ndarray | None = None) -> float:
    """RMS deviation (0–255) that noise of level ``sigma`` has after clipping, told from ``y``.

    ``y`` [C, H, W] is the noisy, clipped picture. Slightly smoothed it is near the mean that
    clipping leaves at each pixel; from that mean the variance follows. Over the pictures and noise
    levels of results/README.md it is within 2 % of what the clean picture would give. Places of one
    value, as borders and blown skies are, have no noise. ``where``, of the shape of ``y``, is True
    for the values that count; all do without it.
    """
    return _Brightness(y, where).deviation(sigma)


class _Brightness:
    """How bright a noisy picture [C, H, W] is where it has noise: the means of many ``BINS``, and
    the share of its values that lie in each."""

    BINS = 4096

    def __init__(self, y: np.ndarray, where: np.ndarray | None = None) -> None:
        y = np.asarray(y)
        near = (1, 3, 3)
        noisy = maximum_filter(y, near) > minimum_filter(y, near)
        noisy |= not noisy.any()
        total = noisy.size if where is None else max(int(where.sum()), 1)
        mean = gaussian_filter(y.astype(np.float64), (0, 1, 1))
        mean = mean[noisy if where is None else noisy & where]
        place = np.clip(mean * self.BINS, 0, self.BINS - 1).astype(int)
        counts = np.bincount(place, minlength=self.BINS)
        self.means = np.bincount(place, mean, self.BINS) / np.maximum(counts, 1)
        self.shares = counts / total

    def deviation(self, sigma: float) -> float:
        """RMS deviation (0–255) that clipping leaves of noise of level ``sigma``."""
        means, variances = clipped_moments(np.linspace(0, 1, 2001), sigma)
        return 255 * math.sqrt(self.shares @ np.interp(self.means, means, variances))


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


# SIDE, PLAINEST, DIRECTIONS and GROWS were chosen on CBSD68 (crops, and at half the size),
# scikit-image's pictures and Set12, with Gaussian and Poisson noise: the least error, with
# a scatter of at most 2 % on noise alone of 128 pixels a side. The others did well at first guess.
PATCHES = 60_000  # that the noise level is told from, at most
SIDE = 6  # pixels a side of a patch; of 4, 6 and 8 the best
PLAINEST = 0.1  # share of the patches that is asked
PER_DIMENSION = 30  # patches at least, for the directions to be found
DIRECTIONS = 1 / 8  # share of them in which there is least texture
BLOCK = 16  # pixels a side of the places in which directions are found, or noise is measured
CLIPPED = (0.1, 0.25, 0.5, 1)  # share of a patch that may be; the next where too few are left
EMPTY = 0.8  # share of a channel's values that are clipped, beyond which it says nothing
OBJECT = 0.2  # share of the patches with something in them that are off black and white
FREE = 0.1  # share of the patches: fewer are the letters on noisy paper
COMMON = 2.0  # level from which noise is told that channels share; JPEG alone leaves some
BLANK = 0.1  # share of a window that may be black or white
GROWS = 0.9, 1.4  # correlation of variance with brightness, and its growth, that are believed


def noise_level(y: np.ndarray) -> float:
    """Deviation (0–255) of the noise in ``y`` [C, H, W] about the mean that clipping leaves of it.

    Patches of a picture lie near a subspace; across it there is noise alone, so the least
    eigenvalues of their covariance are the noise's variance (Pyatykh, Hesser & Zheng, "Image noise
    level estimation by principal component analysis", TIP 2013; Chen, Zhu & Heng, ICCV 2015).
    Here only the detail of patches is asked, what 2×2 means leave, and only in the patches whose
    means vary least: of white noise neither knows of the other, so that choosing is no bias. Nor is
    the choice of directions, for they are found in one half of the places and the variance is
    measured in the other. Patches hold all channels, which share their texture and not their noise.
    What the chosen patches are clipped is undone by their brightness.

    Where the channels do share their noise (a grey picture stored as RGB, noise of brightness
    alone, a JPEG that keeps colour at half the size) there is none across them: then their mean is
    asked. That is so where they are the same, or where the mean reads half as much again as the
    channels, of which independent noise would leave 0.58, and is as noisy in its flattest places,
    which texture is not.

    Where the variance grows with brightness from quarter to quarter its mean over all is given.
    Noise that its neighbours share is not seen (see ``flat_level``), texture that is everywhere and
    in all directions is taken for noise; a flat picture gives 0.
    """
    if min(y.shape[1:]) < 2:
        return 0.0
    mean = np.mean(y, axis=0, keepdims=True)
    common = _patch_level(mean)
    if np.abs(y - mean).max() < 0.5 / 255:
        return common
    level = _patch_level(y)
    shared = common > max(1.5 * level, COMMON) and 0.6 < flat_level(mean) / common < 1.2
    return common if shared else level


def _patch_level(y: np.ndarray) -> float:
    y = np.asarray(y, np.float32)
    # an empty channel, or one that is clipped nearly everywhere, would have the least directions
    told = ((y <= 0) | (y >= 1)).mean((1, 2)) <= EMPTY
    told = told if told.any() else told | True
    deviation, level = _Patches(y[told]).deviation()
    if level is None:
        return deviation * math.sqrt(told.mean())
    return clipped_deviation(y, level)


class _Patches:
    """Patches of a picture [C, H, W]: detail, brightness and structure of each, and where it is."""

    def __init__(self, y: np.ndarray) -> None:
        self.channels, height, width = y.shape
        self.side = min(SIDE, max(2, min(height, width) // 4 * 2))
        windows = np.lib.stride_tricks.sliding_window_view(y, (self.side, self.side), axis=(1, 2))
        windows = windows.transpose(1, 2, 0, 3, 4)
        rows, columns = windows.shape[:2]
        at = np.arange(rows * columns)
        if len(at) > PATCHES:
            at = np.random.RandomState(0).randint(rows * columns, size=PATCHES)
        patches = windows[at // columns, at % columns]  # [n, C, side, side]
        a, b, c, d = (patches[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        detail = np.stack([a - b + c - d, a + b - c - d, a - b - c + d], 2) / 2
        # clipped, or of one colour, as borders and captions are: neither has the noise in it
        clipped = ((patches <= 0) | (patches >= 1)).mean((2, 3)).max(1)
        nothing = (np.abs(detail) < 1e-6).mean((1, 2, 3, 4))
        one = nothing > 0.5
        # but where most is so, and the rest without noise too, it is a drawing or a page of text
        # a black sky may have a noisy thing in it; white paper with a photograph is a page
        rest = ~one & (clipped == 0)
        sky = one.any() and np.mean(patches[one] <= 0) > 0.9
        rest = rest if sky and rest.sum() >= OBJECT * np.sum(~one) else ~one
        self.drawn = one.mean() > 0.5 and (one.all() or nothing[rest].mean() > 0.1)
        lost = np.where(one, 0 if self.drawn else 1, clipped)
        least = PER_DIMENSION * detail[0].size
        enough = max(least, FREE * len(lost))
        allowed = next((share for share in CLIPPED if np.sum(lost <= share) >= enough), 1)
        kept = lost <= allowed
        at, a, b, c, d = (n[kept] for n in (at, a, b, c, d))
        self.detail = detail[kept].reshape(len(at), -1)  # [n, 3/4 of C·side²], orthonormal
        block = max(self.side, min(BLOCK, min(height, width) // 4))
        self.odd = (at // columns // block + at % columns // block) % 2 == 1
        self.count = max(least, round(PLAINEST * len(at)))
        means = ((a + b + c + d) / 4).reshape(len(at), self.channels, -1)
        self.brightness = means.mean(2, dtype=np.float64)  # [n, C]
        n = means.shape[2]
        # of white noise alone its variance
        self.structure = 4 * n / max(n - 1, 1) * means.var(2).mean(1)

    def deviation(self) -> tuple[float, float | None]:
        """Deviation (0–255) of the noise in the chosen patches, and the level (0–255) of which
        clipping leaves that there, None where it cannot."""
        order = np.argsort(self.brightness.mean(1), kind="stable")
        quarters = [self._plainest(part, self.count // 2) for part in np.array_split(order, 4)]
        many = len(order) >= 4 * PER_DIMENSION and not self.drawn
        if many and self._grows(quarters, self._variances(quarters)[0]):
            # a dark channel has less noise than the others: the least directions are all its own
            groups, share = quarters, 1 / 2
        else:
            groups, share = [self._plainest(order, 2 * self.count)], DIRECTIONS
        variances, weight = self._variances(groups, share)
        chosen = np.concatenate([_halves(group)[0] for group in groups])
        deviation = 255 * math.sqrt(float(variances.mean()))
        return deviation, self._before_clipping(chosen, deviation, weight)

    def _plainest(self, among: np.ndarray, count: int) -> np.ndarray:
        return among[np.argsort(self.structure[among], kind="stable")[:count]]

    def _variances(self, groups: list[np.ndarray], share: float = DIRECTIONS) -> tuple:
        """The noise's variance in the plainer half of each group of patches, and the weight that it
        has in each channel.

        Where there is no plain place texture adds to the variance in proportion to the structure;
        noise alone would have the same of both, and so far the line is followed back.
        """
        power, weight = self._power(np.concatenate(groups), share)
        power = np.split(power, np.cumsum([len(group) for group in groups])[:-1])
        plain, more = np.array([[half.mean() for half in _halves(p)] for p in power]).T
        halves = [[self.structure[half].mean() for half in _halves(g)] for g in groups]
        structure, more_structure = np.array(halves).T
        # followed no further than it is seen, and to no less than half, lest it swing
        step = max((more_structure - structure).sum(), structure.sum())
        slope = min(max((more - plain).sum() / step, 0.0), 0.5) if step > 0 else 0.0
        without = np.maximum((plain - slope * structure) / (1 - slope), plain / 2)
        return np.where(structure > plain, without, plain), weight

    def _power(self, chosen: np.ndarray, share: float) -> tuple[np.ndarray, ...]:
        """Of each chosen patch the mean square along the least directions, and their weight in each
        channel. Those of the one half of the places are found in the other."""
        detail, odd = self.detail[chosen], self.odd[chosen]
        halves = [odd, ~odd] if 1 < odd.sum() < len(odd) - 1 else [odd | True] * 2
        power, weight = np.zeros(len(chosen)), np.zeros(detail.shape[1])
        for here, there in (halves, halves[::-1]):
            found = detail[here] - detail[here].mean(0)
            least = np.linalg.eigh((found.T @ found).astype(np.float64))[1]
            least = least[:, : max(1, round(share * least.shape[1]))]
            measured = (detail[there] - detail[there].mean(0)) @ least.astype(np.float32)
            power[there] = np.square(measured).mean(1)
            weight += np.square(least).mean(1) / 2
        return power, weight.reshape(self.channels, -1).sum(1)

    def _grows(self, quarters: list[np.ndarray], variances: np.ndarray) -> bool:
        """Whether variance grows from the darkest quarter to the brightest, in a straight line."""
        bright = np.array([self.brightness[_halves(quarter)[0]].mean() for quarter in quarters])
        if np.ptp(bright) < 1e-4 or np.ptp(variances) <= 0:
            return False
        straight, growth = GROWS
        slope, start = np.polyfit(bright, variances, 1)
        first, *_, last = start + slope * bright
        return bool(np.corrcoef(bright, variances)[0, 1] > straight and last > growth * first)

    def _before_clipping(
        self, chosen: np.ndarray, given: float, weight: np.ndarray
    ) -> float | None:
        def deviation(sigma: float) -> float:
            means, variances = clipped_moments(np.linspace(0, 1, 501), sigma)
            left = np.interp(self.brightness[chosen], means, variances).mean(0)
            return 255 * math.sqrt(float(left @ weight))

        return _inverse(deviation, given)


def _halves(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = (len(group) + 1) // 2
    return group[:middle], group[middle:] if len(group) > 1 else group


def _inverse(deviation: Callable[[float], float], given: float) -> float | None:
    """The noise level (0–255) of which clipping leaves the deviation ``given``, None if of none."""
    if given < 0.1 or deviation(400.0) <= given:
        return None
    from scipy.optimize import brentq  # takes half a second to import: not in every process

    return float(brentq(lambda s: deviation(s) - given, 0.05, 400.0, xtol=0.01))


def flat_level(y: np.ndarray, side: int = 12) -> float:
    """Deviation (0–255) in the flattest places of ``y`` [C, H, W]: noise of any spectrum, and what
    texture there is even there.

    The 5 % quantile, over the picture, of the deviation from a plane in windows of ``side`` pixels,
    so that a gradient is no noise. Windows with black or white in them, as bars and blown skies
    have, do not count unless most have. A camera that sharpens, scales and compresses leaves noise
    that neighbouring pixels share, which hardly shows in ``noise_level``.
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
    looked_at = np.s_[:, half:-half:4, half:-half:4]
    inside = variance[looked_at].mean(0)
    blank = minimum_filter(((y <= 0) | (y >= 1)).all(0, keepdims=True), (1, 3, 3))
    some = uniform_filter(blank.astype(np.float64), (0, side, side))
    free = some[looked_at][0] <= BLANK
    if free.mean() >= 0.5:
        inside = inside[free]
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
    return [255 * gaussian_mad(difference[part == n]) for n in range(parts)]


def is_noise_alone(y: np.ndarray, deviation: float) -> bool:
    """Whether ``y`` [C, H, W] smoothed over 4 pixels varies no more than white noise of
    ``deviation`` (0–255) would. False where there is no noise, and of less than 32 pixels a side.
    """
    if deviation <= 0 or min(y.shape[-2:]) < 32:
        return False
    smooth = gaussian_filter(np.asarray(y, np.float64), (0, 4, 4))
    left = (deviation / 255) ** 2 / (4 * np.pi * 4**2)
    return bool(smooth.var(axis=(-2, -1)).max() < 2 * left)


def before_clipping(y: np.ndarray, deviation: float) -> float:
    """The noise level (0–255) whose noise has ``deviation`` after clipping, on this picture.

    The inverse of ``clipped_deviation``; ``deviation`` itself where clipping cannot explain it.
    """
    level = _inverse(_Brightness(y).deviation, deviation)
    return deviation if level is None else level


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
    return 255 * float(np.mean([gaussian_mad(channel) for channel in diagonal]))


def _finest_detail(x: np.ndarray) -> np.ndarray:
    """One level of wavelet detail along the last axis: [..., n] -> [..., (n + 3) // 2]."""
    n = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 3)], mode="symmetric")
    return sum(tap * padded[..., 3 - j : 5 - j + n : 2] for j, tap in enumerate(_DB2))


def gaussian_mad(coefficients: np.ndarray) -> float:
    """The deviation of Gaussian ``coefficients`` about 0, told from the median of their magnitudes:
    zeros do not count, and a few that are far off hardly do; 0 of nothing."""
    magnitude = np.abs(coefficients)
    magnitude = magnitude[magnitude > 1e-12]  # zero but for rounding
    return float(np.median(magnitude) / ndtri(0.75)) if magnitude.size else 0.0
