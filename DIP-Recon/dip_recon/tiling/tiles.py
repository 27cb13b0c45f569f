"""Fit every tile of a picture, keep what is finished, and write the picture they make.

The tiling of PG-DIP (Sidorenko, "Progressively Grown Deep Image Prior", EPFL 2018). A tile is a
fit like any other, with its own network, input and stop; the seed of tile i is the run's plus i.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import models, needs
from ..cluster import Cluster
from ..documents import read_npz
from ..errors import Kept, UserError
from ..files import atomic
from ..fit import State, choose, fit
from ..noise import clipped_deviation, drawn_back, noise_level
from ..options import METHOD_NOISE, Options
from ..prepare import check_rules, network_settings, prepare
from ..problem import Problem
from ..runs import make_folder
from ..tasks import Job, tensor
from .layout import Layout, Readable, Tile, Window, blend

SEEDS = 2**32 - 1  # numpy's seeds lie below


@dataclass(frozen=True)
class Task:
    """What a worker needs of a tile: its pixels [C, h, w] in [0, 1], and the options."""

    tile: Tile
    y: np.ndarray
    options: Options
    sigma: float | None
    estimated: bool = False
    name: str = "tile"
    faithful: float | None = None


@dataclass(frozen=True)
class Fitted:
    """A restored tile [C, h, w] float32 in [0, 1], and how it came about.

    retries: how often its guard put it back; gave_up: whether that was of no use in the end.
    """

    picture: np.ndarray
    iterations: int
    stop_iteration: int
    stopped_by_rule: bool
    seconds: float
    retries: int = 0
    gave_up: bool = False


def fit_tile(
    task: Task,
    cancelled: Callable[[], bool] | None = None,
    watch: Sequence[Callable[[State], None]] = (),
) -> Fitted:
    """Restore one tile. Raises KeyboardInterrupt soon after ``cancelled()`` is True.

    One of a single colour is as it is to be. ``watch`` is called with the state after every
    iteration.
    """
    if (task.y == task.y[:, :1, :1]).all():
        return Fitted(task.y.copy(), 0, 0, True, 0.0)
    o = replace(task.options, seed=(task.options.seed + task.tile.index) % SEEDS)

    def leave(_) -> None:
        if cancelled and cancelled():
            raise KeyboardInterrupt

    job = _job(task)
    state = prepare(job, o, *choose(o.device, o.precision))
    result = fit(state, o.num_iters, [*watch, leave])
    picture = result.restored[0].float().cpu().numpy()
    if task.faithful is not None:
        left = clipped_deviation(task.y, task.faithful)  # of the noise, where this tile is dark
        picture, _ = drawn_back(picture, task.y, left)
    stop = result.stop_iteration, result.stopped_by_rule
    guard = len(state.guard.troubles), state.guard.gave_up
    return Fitted(picture, result.iterations, *stop, result.seconds, *guard)


def _job(task: Task) -> Job:
    known = {"sigma": task.sigma, "estimated": task.estimated}
    problem = Problem.denoising(tensor(task.y), **known, name=task.name)
    return Job(task.name, problem, task.y, "")


class Tiles:
    """The tiles of one picture, each finished one a file in ``folder``.

    source: gives the noisy picture by windows, ``read(top, bottom, left, right)`` → [C, h, w].
    o: options; to fit, with the device and precision named, so that nothing but the time depends
        on the worker.
    sigma: noise level on the 0–255 scale; where it is not known, method-noise stopping goes by one
        estimated from many tiles.
    faithful: noise level (0–255), before clipping, that no restored tile is to be further from its
        pixels than; see ``noise.drawn_back``.
    """

    def __init__(
        self,
        source: Readable,
        layout: Layout,
        folder: Path,
        o: Options,
        sigma: float | None = None,
        name: str = "picture",
        faithful: float | None = None,
    ) -> None:
        self.source, self.layout, self.folder = source, layout, Path(folder)
        self.options, self.name, self.faithful = o, name, faithful
        self.sigma = o.sigma or sigma
        self.estimated = self.sigma is None and o.stopping in METHOD_NOISE
        if self.estimated:
            self.sigma = self._estimate()

    def check(self, here: bool = True) -> None:
        """Raise UserError if the network, the rule or a tile's size will not do, or if a tile does
        not fit into memory where it is computed ``here``; fits nothing."""
        job, settings = self._first()
        models.check_size(self.options.model_type, **settings)
        check_rules(job, self.options, settings)
        if here:
            needs.check(job, self.options)

    def parameters(self) -> int:
        """Of the network that each tile has."""
        _, settings = self._first()
        network = models.build(self.options.model_type, **settings, device="meta")
        return sum(p.numel() for p in network.parameters())

    def _first(self) -> tuple[Job, dict]:
        """The first tile as a problem, and its network's settings."""
        job = _job(self.task(self.layout[0]))
        return job, network_settings(job, self.options)

    def _estimate(self) -> float:
        """Noise level of the picture: the median over some of its tiles, evenly spread.

        A tile alone may be flat or all texture, and tell nothing of the noise.
        """
        step = max(len(self.layout) // 64, 1)
        tiles = (self.layout[i] for i in range(0, len(self.layout), step))
        return float(np.median([noise_level(self.layout.read(t, self.source)) for t in tiles]))

    def path(self, tile: Tile) -> Path:
        return self.folder / f"{tile.index:06d}.npz"

    def missing(self) -> list[Tile]:
        return [tile for tile in self.layout if not self.path(tile).is_file()]

    def fit(self, cluster: Cluster, bar: bool = True, cancelled=None) -> None:
        """Fit the tiles that are missing; a bar on stderr tells the time left.

        Pixels go to the workers and come back from them, so they need not see the same disk.
        """
        make_folder(self.folder)
        missing = self.missing()
        work = fit_tile if cancelled is None else partial(_fit_here, cancelled=cancelled)
        done = tqdm(
            total=len(self.layout), initial=len(self.layout) - len(missing), unit="tile",
            disable=not bar, desc="tiles", smoothing=0.1,
        )  # fmt: skip
        with done:
            for task, fitted in self._each(cluster, work, missing):
                if isinstance(fitted, Exception):
                    raise UserError(
                        f"tile {task.tile.index}: {type(fitted).__name__}: {fitted}; the same "
                        "command goes on with the tiles that are missing"
                    ) from fitted
                with atomic(self.path(task.tile)) as path, path.open("wb") as file:
                    np.savez(file, **vars(fitted))
                done.update()

    def _each(self, cluster: Cluster, work: Callable, missing: list[Tile]) -> Iterator:
        """``Cluster.each``, whose interruption is told to leave finished tiles."""
        try:
            yield from cluster.each(work, map(self.task, missing), large=True)
        except KeyboardInterrupt as interrupt:
            raise Kept from interrupt

    def task(self, tile: Tile) -> Task:
        """What it takes to fit a tile, wherever that is done."""
        y = self.layout.read(tile, self.source)
        name = f"{self.name}, tile {tile.index}"
        return Task(tile, y, self.options, self.sigma, self.estimated, name, self.faithful)

    def load(self, tile: Tile) -> Fitted:
        """A finished tile. Raises UserError if its file is damaged."""
        path = self.path(tile)
        try:
            values = read_npz(path, Fitted.__annotations__)
            picture = values.pop("picture")
            known = (len(self.source.read(0, 1, 0, 1)), *tile.size)
            if picture.shape != known or not np.isfinite(picture).all():
                raise ValueError(f"a tile of {picture.shape}")
            return Fitted(picture, **{name: value.item() for name, value in values.items()})
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged; delete it, and run the same command again"
            ) from error

    def blended(self, side: int = 512) -> Iterator[tuple[Window, np.ndarray]]:
        """The finished picture by windows of ``side``: (top, bottom, left, right) and [C, h, w]."""
        # neighbouring windows share tiles; those of a row are read again for the next, which is
        # cheap, so that memory does not grow with the picture
        load = lru_cache(maxsize=9)(lambda tile: self.load(tile).picture)
        for window in self.layout.windows(side):
            yield window, blend(self.layout, window, load)

    def write_table(self, path: Path) -> dict:
        """A row a tile, as CSV; returns what they come to: most iterations, the median stop, …"""
        rows = []
        for tile in self.layout:
            fitted = self.load(tile)
            place = dict(zip(("top", "bottom", "left", "right"), tile.region, strict=True))
            counts = {k: v for k, v in vars(fitted).items() if k != "picture"}
            rows.append(
                {"tile": tile.index, **place, **counts, "seconds": round(fitted.seconds, 3)}
            )
        with atomic(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        stops = sorted(row["stop_iteration"] for row in rows)
        return {
            "tiles": len(rows),
            "iterations": max(row["iterations"] for row in rows),
            "stop_iteration": stops[len(stops) // 2],
            "stopped_by_rule": all(row["stopped_by_rule"] for row in rows),
            "seconds": round(sum(row["seconds"] for row in rows), 2),
            **{k: n for k in ("retries", "gave_up") if (n := sum(row[k] for row in rows))},
        }

    def remove(self) -> None:
        """Delete the tiles' files, and the folder if nothing else is in it."""
        for tile in self.layout:
            self.path(tile).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _fit_here(task: Task, _, cancelled: Callable[[], bool]) -> Fitted:
    """``fit_tile`` for a run that is itself told when to end."""
    return fit_tile(task, cancelled)
