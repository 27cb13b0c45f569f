"""Salt and pepper: values that are black or white by chance, found and filled in.

A fit is no match for them. They hold nothing of the picture, so that the mean that a network comes
down to is off wherever they are; told where they are, a few neighbours say what belongs there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.special import ndtr  # scipy.stats takes a second to import

from .noise import gaussian_mad
from .tasks import span
from .tiling.layout import Layout, grown, slices

SIDE = 7  # pixels a side of what a value is held against
WINDOW = (1, SIDE, SIDE)
KNOWN = 3 / SIDE**2  # share of it that must be neither black nor white
MIDDLE = (0.2, 0.8)  # between which a value is far from black and white
RARE, FEW = 0.001, 20  # share, and number, of both salt and pepper below which there is none
EVEN = 4.0  # times that there may be more of the one than of the other
APART = 0.15  # above chance, how often a neighbour may be so too: in lines and letters most are
NEAR, LESS = 0.03, 2.0  # from black or white: so many times fewer values are so near it as on it
MORE = 3.0  # times as many as a Gaussian of the others' deviation would clip there
LEVELS = 6  # other values there must be: a picture of fewer is drawn or dithered
CROWD, SURE = 0.15, 5.0  # above chance, the share of black around black from which it is part of
# something; the same in deviations of that share
MIXED = 0.4  # of the salt elsewhere, what there must be around pepper: dots of a dither keep apart
STRONG = 0.12  # deviation of the rest from which the two cannot be told apart
CLEAR, FAR = 0.06, 3.0  # how far off its surroundings an impulse is; the same in deviations
BLOCK, MARGIN = 128, 8  # pixels a side that are filled at once, and around them
FILLED = "salt and pepper filled in, the rest unchanged"  # what a person is told
WHOLE = (0, 0, 0, 0)  # where windows of a whole picture are counted from


@dataclass(frozen=True)
class Impulses:
    """What ``find`` has seen of a picture's salt and pepper, by which all windows of it are told.

    white: what the white values are: 1, or the largest where that is less than half of the range.
    deviation: of the others about their surroundings. crowds: the share of black, and of white, in
    the surroundings of a value beyond which it is part of something black or white.
    """

    white: float
    deviation: float
    crowds: tuple[float, float]

    def places(self, y: np.ndarray) -> np.ndarray:
        """Where a window [C, H, W] of the picture is struck: True at each such value."""
        y = y / np.float32(self.white)
        around, free, spread = _surroundings(y)
        # a value too many that is filled in does less harm than one that is left
        far = _far(y, around, free, np.minimum(spread, self.deviation))
        return np.logical_or(*_alone(y, self.crowds)) & far


def find(y: np.ndarray, white: float | None = None) -> Impulses | None:
    """The salt and pepper in a picture [C, H, W] in [0, 1]; None where there is no such noise.

    white: what its white is, if ``y`` is but a window of it; by default the ``span`` of ``y``.

    Each channel has its own. There is such noise where far from black and white, in the mean of
    their surroundings, both occur, about as often, alone, whether the other is near or not, and
    more often than the deviation of the other values explains: stars, letters, hot pixels, the dots
    of a dither and clipped noise are not so.
    """
    white = white or span(float(y.max(initial=0)))  # such as 12 bits in 16
    y = y / np.float32(white)
    if min((y <= 0).sum(), (y >= 1).sum()) < FEW:
        return None
    around, free, spread = _surroundings(y)
    middle = free & (around > MIDDLE[0]) & (around < MIDDLE[1])
    inside = middle & (y > 0) & (y < 1)
    if len(np.unique(y[inside][:10000])) < LEVELS:
        return None
    deviation = gaussian_mad((y - around)[inside].astype(np.float64))
    if deviation > STRONG:
        return None
    total = int(middle.sum())
    far = _far(y, around, free, spread)
    crowds = (1.0, 1.0)
    for _ in range(3):
        struck = [alone & middle & far for alone in _alone(y, crowds)]
        counts = [int(end.sum()) for end in struck]
        crowds = tuple(_crowd(count / total) for count in counts)
    if min(counts) < max(FEW, RARE * total) or max(counts) > EVEN * min(counts):
        return None
    levels, off = (around, 1 - around), (y, 1 - y)
    for end in (0, 1):
        explained = ndtr(-levels[end][middle] / deviation).sum() if deviation else 0
        near = (inside & far & (off[end] < NEAR)).sum()
        if counts[end] < max(MORE * explained, LESS * near):
            return None
        if _touching(struck[end]) > counts[end] / total + APART:
            return None
        beside = uniform_filter(np.float32(struck[1 - end]), WINDOW)
        if beside[struck[end]].mean() < MIXED * beside[middle].mean():
            return None
    return Impulses(white, deviation, crowds)


def _crowd(density: float) -> float:
    """The share of one end in a window beyond which chance does not go, where it has so much."""
    return density + max(CROWD, SURE * math.sqrt(density * (1 - density)) / SIDE)


def _alone(y: np.ndarray, crowds: tuple[float, float]) -> list[np.ndarray]:
    """What is black, and what is white, and not among so many of its kind."""
    ends = y <= 0, y >= 1
    return [
        end & (uniform_filter(np.float32(end), WINDOW) <= crowd + 1e-4)
        for end, crowd in zip(ends, crowds, strict=True)
    ]


def _far(y: np.ndarray, around: np.ndarray, free: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """What is far off its surroundings."""
    least = np.where(free, np.maximum(CLEAR, FAR * spread), 0.5)
    return np.abs(y - around) > least


def _surroundings(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of what is around each value and neither black nor white; where there is enough of
    it, elsewhere it is the mean of all; and the deviation of such values there."""
    inside = (y > 0) & (y < 1)
    share = uniform_filter(np.float32(inside), WINDOW)
    free = share >= KNOWN - 1e-4
    share = np.maximum(share, 1e-6)
    mean = uniform_filter(np.float32(inside * y), WINDOW) / share
    around = np.where(free, mean, uniform_filter(np.float32(y), WINDOW))
    off = uniform_filter(np.float32(inside * np.abs(y - around)), WINDOW) / share
    return around, free, math.sqrt(math.pi / 2) * off  # as of a Gaussian


def _touching(end: np.ndarray) -> float:
    """How often the value beside or below one in ``end`` is in it too."""
    beside, below = end[..., 1:] & end[..., :-1], end[..., 1:, :] & end[..., :-1, :]
    return (beside.sum() + below.sum()) / (2 * end.sum())


def without(y: np.ndarray) -> tuple[np.ndarray, float]:
    """A picture [C, H, W] with its salt and pepper filled in, and the share of its values that was
    struck; as it is, and 0, if it has none."""
    found = find(y)
    if found is None:
        return y, 0.0
    where = found.places(y)
    return filled(y, where), float(where.mean())


def filled(y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``y`` [C, H, W] with what is True in ``where`` filled in smoothly from what is around it.

    By biharmonic functions (Damelin & Hoang, Int. J. Math. Math. Sci., 2018), as scikit-image has
    them, block by block.
    """
    from skimage.restoration import inpaint_biharmonic  # takes a while to import

    picture, size = np.array(y, np.float32), y.shape[1:]
    for window in Layout(size).windows(BLOCK):
        near = grown(window, MARGIN, size)
        block, around, inner = slices(window, WHOLE), slices(near, WHOLE), slices(window, near)
        for channel, holes, out in zip(y, where, picture, strict=True):
            if holes[block].any() and not holes[around].all():
                found = inpaint_biharmonic(channel[around], holes[around])
                found = found[inner].clip(0, channel.max())
                out[block] = np.where(holes[block], found, channel[block])
    return picture
