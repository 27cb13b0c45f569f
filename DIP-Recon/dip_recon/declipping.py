"""What clipping takes from the mean of noise, given back to a restored picture.

Noise on black that is cut off at 0 has a mean above black, and at white one below it. A network
that is fitted to it comes down to that mean: grey where there was black. How far off it is can be
told from the restored picture and what it leaves of the noisy one.

Pictures are numpy arrays [C, H, W] with values in [0, 1].
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from .noise import density

BINS = 256  # of brightness, that what was left is counted in
PARTS = 64  # at most, of equally many pixels, that they are joined to
NEAR, FAR = 2.5, 1.5  # deviations off an end: within NEAR it is felt; off both by FAR, hardly
FADES = 0.8  # share of the noise elsewhere, below which it fades towards the end by itself
PILED = 0.5  # share of the pixels that clipping would have piled up at the end, at least
FEW = 0.002  # share of all pixels: less than that at the end is not worth it
# For x = tσ above the end and normal noise of deviation σ: mean and deviation, in units of σ, of
# what clipping leaves, and their ratio, which rises with t.
_T = np.linspace(-3, 6, 4001)
_MEAN = density(_T) + _T * ndtr(_T)
_DEVIATION = np.sqrt((_T**2 + 1) * ndtr(_T) + _T * density(_T) - _MEAN**2)
_RATIO = _MEAN / _DEVIATION
_MEAN_AT_END = float(density(0))
TRUE = np.linspace(0, 1, 2001)


class Declipping:
    """Told of a restored picture and the noisy one, it undoes what clipping did to the mean.

    At each brightness the residual has a deviation. The ratio of the two tells how far above the
    end, in deviations, the picture was before clipping, and with it how strong the noise was there
    (the inversion of Foi, "Clipped noisy images: heteroskedastic modeling and practical denoising",
    Signal Processing 89(12), 2009, for one end at a time). An end is believed to have clipped when
    the noise is as strong there as elsewhere, as that of photons on black is not, and about as many
    pixels lie exactly at the end as such noise would put there.

    Over all brightnesses its variance is taken to be a straight line, as that of sensors is: then
    every true value has a mean that clipping leaves of it, and the restored picture is taken back
    along that curve.

    ``level``: for (black, white) the noise's deviation there, on the 0–255 scale; None where
    nothing was clipped. It is there after ``judge``.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((5, BINS))
        self.level: tuple[float | None, float | None] = (None, None)
        self._means: list[np.ndarray | None] = [None, None]  # of TRUE values, from either end

    def add(self, restored: np.ndarray, y: np.ndarray) -> None:
        """Count in a picture, or a window of it."""
        r = np.clip(restored, 0, 1).ravel().astype(np.float64)
        y = np.asarray(y, dtype=np.float64).ravel()
        place = np.minimum((r * BINS).astype(int), BINS - 1)
        for row, weights in enumerate((np.ones_like(r), r, (y - r) ** 2, y <= 0, y >= 1)):
            self._counts[row] += np.bincount(place, weights, BINS)

    def judge(self) -> Declipping:
        """Decide which ends have clipped, from all that was counted in."""
        total = self._counts[0].sum()
        if total:
            whole = np.cumsum(self._counts[0])
            part = np.minimum((whole - self._counts[0]) / total * PARTS, PARTS - 1).astype(int)
            n, r, square, black, white = (np.bincount(part, row) for row in self._counts)
            n, r, square, black, white = (a[n > 0] for a in (n, r, square, black, white))
            mean, deviation = r / n, np.sqrt(square / n)
            self._means = [
                _means(mean, deviation, n, black),
                _means(1 - mean[::-1], deviation[::-1], n[::-1], white[::-1]),
            ]
            at_end = (None if m is None else float(255 * m[0] / _MEAN_AT_END) for m in self._means)
            self.level = tuple(at_end)
        return self

    def undo(self, restored: np.ndarray) -> np.ndarray:
        """The restored picture, or a window of it, as it was before clipping; within [0, 1]."""
        black, white = self._means
        if black is not None:
            restored = np.interp(restored, black, TRUE).astype(np.float32)
        if white is not None:
            restored = 1 - np.interp(1 - restored, white, TRUE).astype(np.float32)
        return restored

    def told(self) -> str:
        """What was undone, in words; empty if nothing was."""
        ends = [name for name, level in zip(("black", "white"), self.level, strict=True) if level]
        if not ends:
            return ""
        return f"noise clipped at {' and '.join(ends)} had shifted the mean there: put right"


def declipped(restored: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str]:
    """``Declipping`` of a whole picture: it as it was before clipping, and what is to be told."""
    ends = Declipping()
    ends.add(restored, y)
    return ends.judge().undo(restored), ends.told()


def _means(mean: np.ndarray, deviation: np.ndarray, n: np.ndarray, at_end: np.ndarray):
    """The mean of each ``TRUE`` value where the end, 0, has clipped the noise; None if it has not.

    Of parts in order of brightness: mean, residual's deviation, pixels, and those exactly at 0.
    """
    ratio = mean / np.maximum(deviation, 1e-9)
    t, free = np.interp(ratio, _RATIO, _T), ratio > _RATIO[-1]
    sigma = np.where(free, deviation, mean / np.interp(t, _T, _MEAN))
    true = np.where(free, mean, t * sigma).clip(0)
    near = ratio < NEAR
    to_other = (1 - mean) / np.maximum(deviation, 1e-9)
    off = np.minimum(ratio, to_other)
    if not near.any() or off.max() < FAR or at_end.sum() < FEW * n.sum():
        return None
    level = np.median(sigma[near])
    fades = level < FADES * np.median(sigma[np.argsort(off)[-8:]])
    piled = at_end[near].sum() >= PILED * (n * ndtr(-t))[near].sum()
    if fades or not piled or level <= 0:
        return None
    counts = to_other > 2  # the other end has hardly any say in it
    slope, start = 0.0, level**2
    if counts.sum() > 2 and np.ptp(true[counts]) > 0.1:
        slope, start = np.polyfit(true[counts], sigma[counts] ** 2, 1, w=np.sqrt(n[counts]))
    sigma = np.sqrt(np.maximum(start + slope * TRUE, (0.2 * level) ** 2))
    means = np.interp(TRUE / sigma, _T, _MEAN) * sigma
    return np.maximum.accumulate(np.where(TRUE / sigma > _T[-1], TRUE, means))
