"""Where the tiles of a picture lie, and how their results are joined.

The tiling of PG-DIP: regions of about ``tile`` pixels partition the picture; each is restored on
the region grown by ``overlap`` pixels on every side, by reflection where that leaves the picture;
neighbours are cross-faded linearly over 2·overlap pixels across each border, bilinearly in corners.

A window is (top, bottom, left, right) in pixels; ``bottom`` and ``right`` lie just outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import UserError

Window = tuple[int, int, int, int]


class Readable(Protocol):
    """A picture that gives windows of itself."""

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """[C, bottom − top, right − left] float32."""


@dataclass(frozen=True)
class InMemory:
    """A picture in memory, [C, H, W], read by windows."""

    picture: np.ndarray

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return self.picture[:, top:bottom, left:right]


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the layout, its region, and the region grown by the overlap.

    ``grown`` may reach outside the picture: below 0 or beyond its size.
    """

    index: int
    row: int
    column: int
    region: Window
    grown: Window

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the grown region, which is what is restored."""
        top, bottom, left, right = self.grown
        return bottom - top, right - left


@dataclass(frozen=True)
class Layout:
    """The tiles of a picture of ``size`` (H, W), row by row; ``layout[i]``, ``len`` and iteration.

    Along each side lie round(side / tile) regions, at least one, whose lengths differ by a pixel at
    most: no slivers. Where they would be shorter than 2·overlap, the stretch of one cross-fade,
    there is one region fewer, so that fades never meet.

    Raises:
        UserError: a side or ``tile`` below 1, ``overlap`` below 0 or not below half of ``tile``.
    """

    size: tuple[int, int]
    tile: int = 128
    overlap: int = 16

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"a picture of {self.size[0]}×{self.size[1]} pixels has no tiles")
        if self.tile < 1:
            raise UserError(f"--tile {self.tile}: must be at least 1 pixel")
        if self.overlap < 0:
            raise UserError(f"--overlap {self.overlap}: must not be negative; 0 joins without fade")
        if 2 * self.overlap >= self.tile:
            raise UserError(
                f"--overlap {self.overlap}: must be below half of --tile {self.tile}; "
                "lower it, or take larger tiles"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """How many (rows, columns) of tiles there are."""
        return self._count(self.size[0]), self._count(self.size[1])

    def __len__(self) -> int:
        rows, columns = self.shape
        return rows * columns

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        return self._at(*divmod(index, self.shape[1]))

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def touching(self, window: Window) -> list[Tile]:
        """The tiles whose grown regions touch ``window``, row by row.

        Raises:
            ValueError: the window is empty or not within the picture.
        """
        top, bottom, left, right = window
        height, width = self.size
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(f"window {window} of a picture of {height}×{width} pixels")
        columns = self._touching(left, right, width)
        return [
            self._at(row, column)
            for row in self._touching(top, bottom, height)
            for column in columns
        ]

    def windows(self, side: int = 512) -> Iterator[Window]:
        """Squares of ``side`` pixels, cut at the edges, that partition the picture row by row.

        A tile touches at most four of them as long as its grown region is no larger than ``side``.
        """
        height, width = self.size
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield top, min(top + side, height), left, min(left + side, width)

    def inside(self, tile: Tile) -> Window:
        """The part of the grown region that lies in the picture."""
        return grown(tile.region, self.overlap, self.size)

    def weights(self, tile: Tile) -> np.ndarray:
        """How much the tile counts at each pixel of ``inside(tile)``: [h, w] float32 in (0, 1].

        The weights of all tiles add up to 1 at every pixel of the picture. There is no fade at the
        edge of the picture.
        """
        rows, columns = self.shape
        top, bottom, left, right = self.inside(tile)
        down = self._ramps(bottom - top, tile.row > 0, tile.row < rows - 1)
        across = self._ramps(right - left, tile.column > 0, tile.column < columns - 1)
        return np.outer(down, across)

    def read(self, tile: Tile, source: Readable) -> np.ndarray:
        """The grown region [C, h, w] float32 of ``source``, a picture of the layout's size.

        Only the part inside the picture is read; the rest is reflected from it, without repeating
        the edge and as often as needed, as ``np.pad`` with mode "reflect" does.
        """
        top, bottom, left, right = self.inside(tile)
        data = np.asarray(source.read(top, bottom, left, right), np.float32)
        rows = _reflected(np.arange(*tile.grown[:2]), self.size[0]) - top
        columns = _reflected(np.arange(*tile.grown[2:]), self.size[1]) - left
        return np.ascontiguousarray(data[:, rows[:, None], columns])

    def _count(self, side: int) -> int:
        """How many regions there are along a side of the picture."""
        count = (2 * side + self.tile) // (2 * self.tile)  # side / tile, rounded half up
        if self.overlap:
            count = min(count, side // (2 * self.overlap))
        return max(count, 1)

    def _at(self, row: int, column: int) -> Tile:
        rows, columns = self.shape
        height, width = self.size
        top, bottom = height * row // rows, height * (row + 1) // rows
        left, right = width * column // columns, width * (column + 1) // columns
        o = self.overlap
        grown = (top - o, bottom + o, left - o, right + o)
        return Tile(row * columns + column, row, column, (top, bottom, left, right), grown)

    def _touching(self, start: int, stop: int, side: int) -> range:
        """The rows (or columns) of tiles that touch the pixels from ``start`` to ``stop``."""
        count = self._count(side)
        first, last = max(start - self.overlap, 0), min(stop + self.overlap, side) - 1
        # the region of pixel p is the last one that begins at or before it
        return range(((first + 1) * count - 1) // side, ((last + 1) * count - 1) // side + 1)

    def _ramps(self, length: int, rising: bool, falling: bool) -> np.ndarray:
        """1, with a ramp over 2·overlap pixels where there is a neighbour: [length] float32."""
        weights = np.ones(length, np.float32)
        fade = 2 * self.overlap
        ramp = (np.arange(fade, dtype=np.float32) + np.float32(0.5)) / np.float32(max(fade, 1))
        if fade and rising:
            weights[:fade] = ramp
        if fade and falling:
            weights[-fade:] = 1 - ramp
        return weights


def blend(layout: Layout, window: Window, restored: Callable[[Tile], np.ndarray]) -> np.ndarray:
    """The finished pixels of a window: [C, bottom − top, right − left] float32.

    ``restored`` gives a tile's grown region [C, h, w], h and w as in ``Tile.size``; what lies
    outside the picture is dropped. It is called once for each tile that touches the window, and no
    more than one of its results is held at a time.

    Raises:
        ValueError: the window is empty or not within the picture; a tile has another size.
    """
    top, bottom, left, right = window
    blended = None
    for tile in layout.touching(window):
        data = restored(tile)
        if data.ndim != 3 or data.shape[1:] != tile.size:
            raise ValueError(f"tile {tile.index} has the shape {data.shape}, not [C, *{tile.size}]")
        if blended is None:
            blended = np.zeros((len(data), bottom - top, right - left), np.float32)
        inside = layout.inside(tile)
        shared = (
            max(inside[0], top), min(inside[1], bottom), max(inside[2], left), min(inside[3], right)
        )  # fmt: skip
        weights = layout.weights(tile)[slices(shared, inside)]
        blended[(slice(None), *slices(shared, window))] += (
            weights * data[(slice(None), *slices(shared, tile.grown))]
        )
    return blended


def grown(window: Window, margin: int, size: tuple[int, int]) -> Window:
    """``window`` and ``margin`` pixels around it, as far as a picture of ``size`` (H, W) goes."""
    top, bottom, left, right = window
    height, width = size
    return (
        max(top - margin, 0), min(bottom + margin, height),
        max(left - margin, 0), min(right + margin, width),
    )  # fmt: skip


def slices(window: Window, within: Window) -> tuple[slice, slice]:
    """Where ``window`` lies in an array that holds the pixels of ``within``."""
    top, bottom, left, right = window
    return slice(top - within[0], bottom - within[0]), slice(left - within[2], right - within[2])


def _reflected(pixels: np.ndarray, side: int) -> np.ndarray:
    """The pixel 0 … side − 1 that reflection at the edges shows at each of ``pixels``."""
    period = max(2 * (side - 1), 1)
    pixels = pixels % period
    return np.minimum(pixels, period - pixels)
