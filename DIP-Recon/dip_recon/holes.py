"""A picture with holes, part by part: only what is around a hole says what belongs there.

Holes that are near each other are filled together, from what is within ``CONTEXT`` pixels; where
they stretch far they are cut into cells that are cross-faded, as tiles are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import find_objects, label, maximum_filter

from . import needs, operators
from .options import Options
from .prepare import resolve
from .tasks import Job

CONTEXT = 64  # pixels on each side of a hole
LARGE = 192  # pixels a side up to which a picture with holes is fitted as a whole
CELL, FADE = 256, 16  # pixels a side of what long holes are cut into, and of a cross-fade there
KNOWN = 0.25  # share of what a cell is filled from that is known, if so much is elsewhere
Place = tuple[slice, slice]


@dataclass(frozen=True)
class Part:
    """What is around some holes of a picture, to be fitted by itself.

    place: its rows and columns. weight: [h, w], how much it counts for each pixel that is to be
    filled, 0 for others.
    """

    job: Job
    place: Place
    weight: np.ndarray

    def paste(self, picture: np.ndarray, restored: np.ndarray) -> np.ndarray:
        """``picture`` [C, H, W] with the holes filled from ``restored`` [C, h, w]."""
        filled, holes = picture.copy(), self.weight > 0
        filled[(..., *self.place)][:, holes] = restored[:, holes]
        return filled


def parts(job: Job, options: Options, whole: bool | None = None) -> list[Part]:
    """The surroundings of the holes of an inpainting, in the order of their rows.

    Holes that are near each other go together; where they stretch far they are cut into cells. It
    is all of the picture if that is small, or if they come to more than half of it and memory has
    room for it as a whole. whole: what that came to before, where a fit is gone on with.
    """
    missing = job.problem.A.mask[0, 0].cpu().numpy() == 0
    found = [] if whole or max(missing.shape) <= LARGE else list(_places(missing))
    if found and whole is None and 2 * sum(weight.size for _, weight in found) > missing.size:
        whole = not needs.too_large(job, resolve(options)[0])
    if whole or not found:
        place = tuple(slice(0, side) for side in missing.shape)
        return [Part(job, place, np.float32(missing))]
    return [Part(_cut(job, place), place, weight) for place, weight in found]


def _places(missing: np.ndarray) -> Iterator[tuple[Place, np.ndarray]]:
    """Where the surroundings of the holes are, and how much each counts there."""
    labels, _ = label(maximum_filter(missing, 2 * CONTEXT + 1), np.ones((3, 3)))
    for number, place in enumerate(find_objects(labels), 1):
        holes = missing[place] & (labels[place] == number)
        if max(holes.shape) <= 2 * CELL:
            yield place, np.float32(holes)
        else:
            these = np.zeros_like(missing)
            these[place] = holes
            yield from _cells(place, these, missing)


def _cells(
    place: Place, holes: np.ndarray, missing: np.ndarray
) -> Iterator[tuple[Place, np.ndarray]]:
    """The ``holes`` of one group, a mask of the picture, which lie at ``place``, cell by cell."""
    for top in range(place[0].start, place[0].stop, CELL):
        for left in range(place[1].start, place[1].stop, CELL):
            if not holes[top : top + CELL, left : left + CELL].any():
                continue
            window, ramps = _surroundings((top, left), missing), []
            for first, side in zip((top, left), window, strict=True):
                at = np.arange(side.start, side.stop)
                beyond = np.maximum(np.maximum(first - at, at - first - CELL + 1), 0)
                ramps.append(np.clip(1 - beyond / FADE, 0, 1))
            yield window, np.float32(np.outer(*ramps) * holes[window])


def _surroundings(corner: tuple[int, int], missing: np.ndarray) -> Place:
    """A cell with so much around it that enough is known to fill it from."""
    enough, reach = min(KNOWN, (1 - missing.mean()) / 2), CONTEXT
    while True:
        place = tuple(
            slice(max(first - reach, 0), min(first + CELL + reach, side))
            for first, side in zip(corner, missing.shape, strict=True)
        )
        if reach >= max(missing.shape) or 1 - missing[place].mean() >= enough:
            return place
        reach += CONTEXT


def _cut(job: Job, place: Place) -> Job:
    problem, like = job.problem, job.like
    if like is not None and like.alpha is not None:
        like = replace(like, alpha=like.alpha[place])
    A = operators.Mask(problem.A.mask[(..., *place)])
    size = tuple(side.stop - side.start for side in place)
    small = replace(problem, y=problem.y[(..., *place)], A=A, size=size)
    seen, digest = job.seen[(..., *place)], f"{job.digest}, {place}"
    return replace(job, problem=small, seen=seen, digest=digest, like=like)


def joined(job: Job, found: list[Part], restored: list[np.ndarray]) -> np.ndarray:
    """The picture [C, H, W] whose holes are filled from what was restored of its parts."""
    picture = job.problem.y[0].numpy().copy()
    total = np.zeros(picture.shape[1:], np.float32)
    for part in found:
        total[part.place] += part.weight
    for part, values in zip(found, restored, strict=True):
        share = part.weight / np.maximum(total[part.place], 1e-6)
        picture[(..., *part.place)] += share * values  # which is 0 where it is missing
    return picture
