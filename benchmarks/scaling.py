"""Seconds and memory against size, width and number of runs: the part scaling of `suite.py`.

An exponent is the slope of the logarithms: against pixels 1 is linear, 0 constant. Memory is what
came on top of what the process had before.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import clock, each, in_turns, note, state, timed, warm

from dip_recon import memory, needs
from dip_recon.callbacks import peak_memory
from dip_recon.cluster import Cluster
from dip_recon.fit import State, choose, step
from dip_recon.flags import fill
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job, tensor
from dip_recon.tiling import Layout, Tiles
from dip_recon.together import Batch, stackable

NETWORK = "DIP_2_scaled"


@dataclass(frozen=True)
class Random:
    """A picture [3, size, size] of no use, made as it is read: it takes no memory."""

    size: int

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return np.random.RandomState(0).rand(3, bottom - top, right - left).astype(np.float32)


def level() -> int:
    """Bytes in use, what is free given back; from here on the most is counted."""
    gc.collect()
    memory.trim()
    return peak_memory(choose()[0], reset=True)


def whole(size: int, width: int, rounds: int) -> tuple[float, int]:
    """Seconds of a step, and bytes; MemoryError where it takes more than there is."""
    small = state(NETWORK, 16, "auto", dim=[width])[1]
    y = np.zeros((3, size, size), np.float32)
    job = Job("picture", Problem.denoising(tensor(y)), y, "")
    if needs.needed(job, small) > needs.SPARE * memory.free(choose()[0]):
        raise MemoryError
    before = level()
    s = state(NETWORK, size, "auto", dim=[width])[0]
    warm(step, s)
    seconds = [timed(step, s) for _ in range(rounds + 1)][1:]
    return statistics.median(seconds), peak_memory(choose()[0]) - before


def tiled(size: int, width: int, tile: int) -> tuple[float, int]:
    """Seconds of a step of every tile, stored and joined, and bytes."""
    settings = {"tile": tile, "dim": [width], "num_iters": 1, "stopping": "fixed", "seed": 7}
    o, _ = resolve(fill(DenoisingOptions, {"model_type": NETWORK, **settings})[0])
    with tempfile.TemporaryDirectory() as folder:
        before, began = level(), clock()
        layout = Layout((size, size), o.tile, o.overlap)
        tiles = Tiles(Random(size), layout, Path(folder), o)
        tiles.fit(Cluster(), bar=False)
        for _ in tiles.blended():
            pass
        return clock() - began, peak_memory(choose()[0]) - before


def scaling(a) -> None:
    sizes, widths, runs = (128, 256, 512, 1024), (8, 16, 32, 64, 128), (2, 4)
    tile, width = 128, 32
    if a.full:
        sizes += (2048, 4096)
    large = (*sizes[1:], *(() if a.full else (2048,)))
    if a.quick:
        sizes, large, tile, width = (32, 48), (64, 128), 64, 4
        widths, runs = (4, 8), (2,)
    found: dict[str, list] = {}

    def one(against: str, value: int, measured: Callable[[], tuple[float, int]]) -> None:
        def measure(against: str, value: int) -> None:
            seconds, taken = measured()
            found.setdefault(against, []).append((value, seconds, taken))
            note("scaling", against=against, value=value, seconds=f"{seconds:.4f}",
                 megabytes=round(taken / 1e6))  # fmt: skip

        each(a, "scaling", [(against, value)], measure)

    each(a, "scaling", [(tile, width, tile)], tiled)  # the first is not like the others
    for size in large:
        one("pixels, tiled", size**2, lambda size=size: tiled(size, width, tile))
    for size in sizes:
        rounds = max(a.rounds // 2, 1) if size < 512 else 1
        one("pixels", size**2, lambda size=size, rounds=rounds: whole(size, width, rounds))
    for w in widths:
        one("width", w, lambda w=w: whole(sizes[0], w, max(a.rounds // 2, 1)))
    each(a, "scaling", [(n,) for n in runs], lambda n: together(n, sizes[0], width, a))
    exponents: dict[str, tuple[float, float]] = {}
    for against, points in found.items():
        if len(points) < 2:
            continue
        logs = np.log([(value, seconds, max(taken, 1)) for value, seconds, taken in points])
        time_, bytes_ = (np.polyfit(logs[:, 0], logs[:, n], 1)[0] for n in (1, 2))
        note("scaling", against=against, exponent_of_time=f"{time_:.2f}",
             exponent_of_memory=f"{bytes_:.2f}")  # fmt: skip
        exponents[against] = time_, bytes_
    if a.figure and exponents:
        _draw(found, exponents, a.figure)


def together(count: int, size: int, width: int, a) -> None:
    """A step of each of several runs, and of all as one batch, as a GPU takes them.

    On a CPU the runs of a picture go in turn, and take as many times as much.
    """

    def states() -> list[State]:
        return [state(NETWORK, size, "auto", seed, dim=[width])[0] for seed in range(count)]

    alone, joined = states(), states()
    if not stackable(joined):
        note("scaling", against="runs", value=count, left_out="not to be batched")
        return
    joint = Batch(joined).stack()
    variants = {"in turn": (lambda _: [step(s) for s in alone], joint), "batch": (step, joint)}
    turns = in_turns(variants, a)
    _, least, middle, most = turns["batch"]
    note("scaling", against="runs", value=count, seconds=f"{turns['in turn'][0]:.4f}",
         batch_by_turn=f"{middle:.3f} ({least:.3f} – {most:.3f})")  # fmt: skip


def _draw(found: dict[str, list], exponents: dict[str, tuple[float, float]], path: Path) -> None:
    """A column against pixels, whole and tiled, and one against width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns: dict[str, list[str]] = {}
    for against in exponents:
        columns.setdefault(against.split(",")[0], []).append(against)
    looks = {"figsize": (4.5 * len(columns), 6), "layout": "tight", "sharex": "col"}
    figure, axes = pyplot.subplots(2, len(columns), squeeze=False, **looks)
    for column, (label, lines) in zip(axes.T, columns.items(), strict=True):
        for against in lines:
            values, seconds, taken = zip(*found[against], strict=True)
            name = "tiled" if "tiled" in against else "whole"
            megabytes = [max(n, 1) / 1e6 for n in taken]
            for axis, measured, power in zip(
                column, (seconds, megabytes), exponents[against], strict=True
            ):
                axis.loglog(values, measured, "o-", label=f"{name}: power {power:.2f}")
        for axis, what in zip(column, ("seconds a step", "megabytes"), strict=True):
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
            axis.legend()
        column[1].set_xlabel(label)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
