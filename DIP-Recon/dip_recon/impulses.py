"""Salt and pepper: values that are black or white by chance, found and filled in.

A fit is no match for them. They hold nothing of the picture, so that the mean that a network comes
down to is off wherever they are; told where they are, a few neighbours say what belongs there.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.special import ndtr  # scipy.stats takes a second to import

from .noise import gaussian_mad

SIDE = 7  # pixels a side of what a value is held against
KNOWN = 3 / SIDE**2  # share of it that must be neither black nor white
MIDDLE = (0.2, 0.8)  # between which a value is far from black and white
RARE, FEW = 0.001, 20  # share, and number, of both salt and pepper below which there is none
EVEN = 4.0  # times that there may be more of the one than of the other
APART = 0.15  # above chance, how often a neighbour may be so too: in lines and letters most are
NEAR = 0.03  # from black or white: there are fewer values so near it than on it
STRONG = 0.12  # deviation of the rest from which the two cannot be told apart
CLEAR, FAR = 0.06, 3.0  # how far off its surroundings an impulse is; the same in deviations
FILLED = "salt and pepper filled in, the rest unchanged"
BLOCK, MARGIN = 128, 8  # pixels a side that are filled at once, and around them


def find(y: np.ndarray) -> np.ndarray | None:
    """Where a picture [C, H, W] in [0, 1] is salt or pepper, True at each such value; None where
    there is no such noise.

    Each channel has its own. There is such noise where far from black and white, in the mean of
    their surroundings, both occur, about as often, alone, and more often than the deviation of the
    other values explains: stars, letters, hot pixels and clipped noise are not so.
    """
    if min((y <= 0).sum(), (y >= 1).sum()) < FEW:
        return None
    around, free, spread = _surroundings(y)
    middle = _middle(around, free)
    inside = middle & (y > 0) & (y < 1)
    deviation = _deviation(y, around, middle)
    far = _far(y, around, free, spread)
    ends = (y <= 0) & middle & far, (y >= 1) & middle & far
    counts = [int(end.sum()) for end in ends]
    total = max(int(middle.sum()), 1)
    if min(counts) < max(FEW, RARE * total) or max(counts) > EVEN * min(counts):
        return None
    if deviation > STRONG:
        return None
    for end, count, off in zip(ends, counts, (y, 1 - y), strict=True):
        level = around if off is y else 1 - around
        explained = ndtr(-level[middle] / deviation).sum() if deviation else 0
        near = (inside & far & (off < NEAR)).sum()
        if count < 3 * explained or count < 2 * near or _touching(end) > count / total + APART:
            return None
    return places(y)


def places(y: np.ndarray) -> np.ndarray:
    """Where a picture [C, H, W] in [0, 1] that has salt and pepper has it: what is black or white
    and far off its surroundings."""
    around, free, spread = _surroundings(y)
    middle = _middle(around, free)
    # a value too many that is filled in does less harm than one that is left
    spread = np.minimum(spread, _deviation(y, around, middle))
    return ((y <= 0) | (y >= 1)) & _far(y, around, free, spread)


def _middle(around: np.ndarray, free: np.ndarray) -> np.ndarray:
    return free & (around > MIDDLE[0]) & (around < MIDDLE[1])


def _deviation(y: np.ndarray, around: np.ndarray, middle: np.ndarray) -> float:
    """Of what is neither black nor white about its surroundings."""
    off = (y - around)[middle & (y > 0) & (y < 1)]
    return gaussian_mad(off.astype(np.float64))


def _far(y: np.ndarray, around: np.ndarray, free: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """What is far off its surroundings."""
    least = np.where(free, np.maximum(CLEAR, FAR * spread), 0.5)
    return np.abs(y - around) > least


def _surroundings(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of what is around each value and neither black nor white; where there is enough of
    it, elsewhere it is the mean of all; and the deviation of such values there."""
    window = (1, SIDE, SIDE)
    inside = (y > 0) & (y < 1)
    share = uniform_filter(np.float32(inside), window)
    free = share >= KNOWN - 1e-4
    share = np.maximum(share, 1e-6)
    mean = uniform_filter(np.float32(inside * y), window) / share
    around = np.where(free, mean, uniform_filter(np.float32(y), window))
    off = uniform_filter(np.float32(inside * np.abs(y - around)), window) / share
    return around, free, math.sqrt(math.pi / 2) * off  # as of a Gaussian


def _touching(end: np.ndarray) -> float:
    """How often the value beside or below one in ``end`` is in it too."""
    beside, below = end[..., 1:] & end[..., :-1], end[..., 1:, :] & end[..., :-1, :]
    return (beside.sum() + below.sum()) / (2 * end.sum())


def filled(y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``y`` [C, H, W] with what is True in ``where`` filled in smoothly from what is around it.

    By biharmonic functions (Damelin & Hoang, Int. J. Math. Math. Sci., 2018), as scikit-image has
    them, block by block.
    """
    from skimage.restoration import inpaint_biharmonic  # takes a while to import

    picture = np.array(y, np.float32)
    height, width = y.shape[1:]
    for channel, holes, out in zip(y, where, picture, strict=True):
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                block = np.s_[top : top + BLOCK, left : left + BLOCK]
                if not holes[block].any():
                    continue
                up, before = min(top, MARGIN), min(left, MARGIN)
                near = np.s_[top - up : top + BLOCK + MARGIN, left - before : left + BLOCK + MARGIN]
                if holes[near].all():
                    continue
                found = inpaint_biharmonic(channel[near], holes[near])
                inner = found[up : up + BLOCK, before : before + BLOCK]
                out[block] = np.where(holes[block], inner.clip(0, 1), channel[block])
    return picture
