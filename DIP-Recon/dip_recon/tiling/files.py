"""Denoise a picture of any size from file to file, tile by tile."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from .. import images, impulses
from ..cluster import Cluster
from ..declipping import Declipping
from ..errors import Kept, UserError
from ..files import check_alone
from ..images import large
from ..images.windows import temporary_name
from ..options import NOT_IN_THE_NUMBERS, DenoisingOptions
from ..prepare import resolve
from ..runs import Run, check_free, read_csv
from ..tasks import Brightest, as_grey, span
from .layout import Layout, Readable, grown, slices
from .tiles import Tiles

LARGE = 4096**2  # pixels from which a TIFF is denoised by tiles
SAMPLE = 1024  # pixels a side that the options are chosen from
AROUND = 16  # pixels around a window from which its salt and pepper is filled in
TELLING = 0.5  # share of its pixels that may show noise, from which the middle is the sample


def is_large(path: Path) -> bool:
    """Whether a picture is a Zarr, or a TIFF of more than ``LARGE`` pixels."""
    if path.suffix.lower() == ".zarr":
        return True
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    with large.open_source(path) as source:
        return math.prod(source.size) > LARGE


def denoise_file(
    path: Path,
    output: Path,
    choose: Callable[[np.ndarray, float, float], tuple[DenoisingOptions | None, float]],
    say: Callable[[str], None],
    cluster: Cluster,
    keep: Path,
    kept: bool = True,
    overwrite: bool = False,
    declipping: bool = True,
    cancelled: Callable[[], bool] | None = None,
    bar: bool = True,
) -> dict:
    """Denoise a picture of any size by tiles, from file to file.

    Returns what the tiles came to, as ``Tiles.write_table`` does; nothing if there was no noise.

    choose: the options, ``tile`` and ``overlap`` among them, for a sample [C, h, w] of the picture
        divided by its ``span``, which it is given too, with the share of salt and pepper in it,
        and the noise level (0–255), before clipping, that no tile is to go beyond; None for a
        picture to be left as it is. overwrite: replace ``output``.
    Finished tiles stay in ``keep`` until the result is written: the same command goes on there.
    kept: whether what else is there stays. declipping: put right what clipping has done to the
    noise's mean. cancelled, bar: as for ``run_one``.
    A TIFF or Zarr is read and written by windows, so that memory does not grow with the picture.
    """
    run = Run(keep)
    with large.open_source(path) as source:
        if source.channels not in (1, 3):
            raise UserError(f"{path}: has {source.channels} channels; grey or colour is wanted")
        this = identity(path)
        if output.exists() and not overwrite:
            if counts := _done(run, this, output):
                say(f"{output}: was written already when it was interrupted")
                _tidy(run, kept)
                return counts
            raise UserError(f"{output}: is there already; choose another --output, or --overwrite")
        white = _span(source, source.size, source.channels)
        sample = _sample(source, source.size)
        found = impulses.find(sample, white)
        picture, most, struck = source, white, 0.0
        if found is not None:
            struck = float(found.places(sample).mean())
            picture = _Filled(source, source.size, found)
            most = _span(picture, source.size, source.channels)
        stretched = _Stretched(picture, most)
        options, level = choose(_sample(stretched, source.size), most, struck)
        alpha = source if source.has_alpha else None
        kind = {"size": source.size, "channels": source.channels, "kind": source.kind}
        kind |= {"alpha": alpha, "overwrite": overwrite}
        if lost := images.lost(output, source.kind, source.has_alpha):
            say(lost)
        if options is None:
            if struck:
                kind["kind"] = source.kind.without_palette(source.channels)
            with large.create_sink(output, **kind) as sink:
                for top, bottom, left, right in Layout(source.size, SAMPLE, 0).windows():
                    sink.write(top, left, picture.read(top, bottom, left, right))
            say(f"{output}: {impulses.FILLED if struck else 'unchanged'}")
            return {}
        kind["kind"] = source.kind.without_palette(source.channels)  # as it would change colours
        options, _ = resolve(options)
        options.validate()
        layout = Layout(source.size, options.tile, options.overlap)
        device, precision = cluster.choose(options.device, options.precision)
        options = replace(options, device=device, precision=precision)
        config = {**asdict(options), **this, "span": most, "filled": struck}
        check_alone(keep)
        check_free("--keep", run)
        try:
            with run.alone():
                _check_same(run, config)
                tiles = Tiles(
                    stretched, layout, keep / "tiles", options, name=path.name, faithful=level
                )
                tiles.check(here=not cluster.scheduler)
                cluster.check()
                # made first, so that a full disk or a bad name shows before hours of fitting
                large.create_sink(output, **kind).suspend()
                run.begin(config, overwrite=False)
                tiles.fit(cluster, bar, cancelled)
                counts = tiles.write_table(keep / "tiles.csv")
                ends = Declipping()
                for window, restored in tiles.blended() if declipping else ():
                    ends.add(restored, stretched.read(*window))
                ends.judge()
                with large.create_sink(output, **kind, resume=True) as sink:
                    for window, restored in tiles.blended():
                        top, _, left, _ = window
                        y = picture.read(*window)
                        done = as_grey(ends.undo(restored), y) * np.float32(most)
                        sink.write(top, left, np.where(y > most, y, done))  # what towers
                _tidy(run, kept)
        except KeyboardInterrupt as interrupt:
            raise Kept from interrupt
    said = (
        f"{output}: {counts['tiles']} tiles, {counts['stop_iteration']} iterations each in the "
        f"middle, {counts['seconds']:.0f} s in all"
    )
    say("; ".join([said, ends.told()] if ends.told() else [said]))
    return counts


def _check_same(run: Run, config: dict) -> None:
    absent = {"span": 1.0, "filled": 0.0}
    try:
        run.check(config, NOT_IN_THE_NUMBERS, resume=True, overwrite=False, absent=absent)
    except UserError as error:
        raise UserError(
            f"{run.folder}: holds tiles of another picture or other settings; delete it, or choose "
            "another --keep"
        ) from error


def identity(path: Path) -> dict:
    """By what it shows whether a picture was changed meanwhile: where it is, its bytes and its
    time; of a Zarr the bytes of all its files together, and a hash of their names and times."""
    if path.is_dir():  # whose own time stays when a chunk is written
        files = sorted(file for file in path.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(path)), file.stat()) for file in files]
        size = sum(stat.st_size for _, stat in stats)
        told = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        time = hashlib.sha256(told.encode()).hexdigest()
    else:
        size, time = path.stat().st_size, path.stat().st_mtime_ns
    return {"picture": str(path.resolve()), "bytes": size, "time": time}


def _done(run: Run, this: dict, output: Path) -> dict:
    """What the tiles of this picture came to, if its process ended after it had written ``output``
    and before it had tidied up; else nothing."""
    table = run.folder / "tiles.csv"
    there = run.begun and run.cut_off and table.is_file()
    if not there or temporary_name(output).exists():
        return {}
    config = run.config()
    same = all(config.get(key) == value for key, value in this.items())
    newer = output.is_dir() or output.stat().st_mtime_ns >= table.stat().st_mtime_ns
    if not (same and newer):
        return {}
    rows = read_csv(table)
    return {"tiles": len(rows), "gave_up": sum(row.get("gave_up") == "True" for row in rows)}


def _tidy(run: Run, kept: bool) -> None:
    """Remove the tiles, and unless the folder is ``kept`` all that is in it."""
    with run.alone():
        run.tidy()
        if not kept:
            run.remove()


@dataclass(frozen=True)
class _Stretched:
    """A picture whose values are divided by ``most``, at most 1, read by windows."""

    source: Readable
    most: float

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        values = self.source.read(top, bottom, left, right)
        return np.minimum(values / np.float32(self.most), 1)


@dataclass(frozen=True)
class _Filled:
    """A picture of ``size`` (H, W) whose salt and pepper is filled in, read by windows."""

    source: Readable
    size: tuple[int, int]
    found: impulses.Impulses

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window = top, bottom, left, right
        near = grown(window, AROUND, self.size)
        y = self.source.read(*near)
        return impulses.filled(y, self.found.places(y))[(slice(None), *slices(window, near))]


def _span(source: Readable, size: tuple[int, int], channels: int) -> float:
    """``span`` of a picture of any size; where it is 1, no more is read than it takes to see it."""
    found = Brightest(channels * math.prod(size))
    for window in Layout(size, SAMPLE, 0).windows():
        found.add(source.read(*window))
        if found.certain:
            return 1.0
    return span(found.value())


def _sample(source: Readable, size: tuple[int, int]) -> np.ndarray:
    """[C, h, w], at most ``SAMPLE`` pixels a side, that the whole picture is judged by.

    The middle, unless it is blank, black or white; then that of nine places where least is.
    """
    places = []
    for n in size:
        room = n - min(n, SAMPLE)
        places.append([(at, at + min(n, SAMPLE)) for at in dict.fromkeys((room // 2, 0, room))])
    best, most = None, -1.0
    for (top, bottom), (left, right) in product(*places):
        sample = source.read(top, bottom, left, right)
        share = _telling(sample)
        if share > most:
            best, most = sample, share
        if most >= TELLING:
            break
    return best


def _telling(y: np.ndarray) -> float:
    """Share of the values of ``y`` [C, H, W] in [0, 1] that are neither clipped nor as the one
    beside them is: where nearly all are, there is no noise to be seen."""
    inside = (y[..., 1:] > 0) & (y[..., 1:] < 1)
    return float((inside & (y[..., 1:] != y[..., :-1])).mean()) if inside.size else 0.0
