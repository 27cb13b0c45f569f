"""Denoise a picture of any size from file to file, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..cluster import Cluster
from ..declipping import Declipping
from ..errors import UserError
from ..files import check_alone
from ..images import large
from ..options import NOT_IN_THE_NUMBERS, DenoisingOptions
from ..prepare import resolve
from ..runs import Run, check_free
from ..tasks import as_grey, span
from .layout import Layout, Readable
from .tiles import Tiles

LARGE = 4096**2  # pixels from which a TIFF is denoised by tiles
SAMPLE = 1024  # pixels a side that the options are chosen from


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
    choose: Callable[[np.ndarray, float], tuple[DenoisingOptions | None, float]],
    cluster: Cluster,
    keep: Path,
    kept: bool = True,
    overwrite: bool = False,
    declipping: bool = True,
    cancelled: Callable[[], bool] | None = None,
    bar: bool = True,
) -> tuple[str, dict]:
    """Denoise a picture of any size by tiles, from file to file.

    Returns what to print of it, and what the tiles came to, as ``Tiles.write_table`` does.

    choose: the options, ``tile`` and ``overlap`` among them, for a sample [C, h, w] of the picture
        divided by its ``span``, which it is given too, and the noise level (0–255) that no tile is
        to go beyond; None for a picture to be left as it is. overwrite: replace ``output``.
    Finished tiles stay in ``keep`` until the result is written: the same command goes on there.
    kept: whether what else is there stays. declipping: put right what clipping has done to the
    noise's mean. cancelled, bar: as for ``run_one``.
    A TIFF or Zarr is read and written by windows, so that memory does not grow with the picture.
    """
    run = Run(keep)
    with large.open_source(path) as source:
        if source.channels not in (1, 3):
            raise UserError(f"{path}: has {source.channels} channels; grey or colour is wanted")
        if output.exists() and not overwrite:
            raise UserError(f"{output}: is there already; choose another --output, or --overwrite")
        most = _span(source)
        stretched = _Stretched(source, most)
        options, level = choose(stretched.read(*_middle(source.size)), most)
        alpha = source if source.has_alpha else None
        kind = {"size": source.size, "channels": source.channels, "kind": source.kind}
        kind |= {"alpha": alpha, "overwrite": overwrite}
        if options is None:
            with large.create_sink(output, **kind) as sink:
                for top, bottom, left, right in Layout(source.size, SAMPLE, 0).windows():
                    sink.write(top, left, source.read(top, bottom, left, right))
            return f"{output}: unchanged", {}
        kind["kind"] = source.kind.without_palette(source.channels)  # as it would change colours
        options, _ = resolve(options)
        options.validate()
        layout = Layout(source.size, options.tile, options.overlap)
        stat = path.stat()
        identity = {"picture": str(path.resolve()), "bytes": stat.st_size, "time": stat.st_mtime_ns}
        device, precision = cluster.choose(options.device, options.precision)
        options = replace(options, device=device, precision=precision)
        config = {**asdict(options), **identity, "span": most}
        check_alone(keep)
        try:
            absent = {"span": 1.0}
            run.check(config, NOT_IN_THE_NUMBERS, resume=True, overwrite=False, absent=absent)
        except UserError as error:
            raise UserError(
                f"{keep}: holds tiles of another picture or other settings; delete it, or choose "
                "another --keep"
            ) from error
        check_free("--keep", run)
        with run.alone():
            how = {"name": path.name, "faithful": level}
            tiles = Tiles(stretched, layout, keep / "tiles", options, **how)
            tiles.check(here=not cluster.scheduler)
            cluster.check()
            # made first, so that a full disk or a bad name shows before hours of fitting
            large.create_sink(output, **kind).suspend()
            run.begin(config, overwrite=False)
            tiles.fit(cluster, bar, cancelled)
            ends = Declipping()
            for window, restored in tiles.blended() if declipping else ():
                ends.add(restored, stretched.read(*window))
            ends.judge()
            with large.create_sink(output, **kind, resume=True) as sink:
                for window, restored in tiles.blended():
                    top, _, left, _ = window
                    done = as_grey(ends.undo(restored), source.read(*window))
                    sink.write(top, left, done * np.float32(most))
            counts = tiles.write_table(keep / "tiles.csv")
            tiles.remove()
            if not kept:
                run.remove()
    said = (
        f"{output}: {counts['tiles']} tiles, {counts['stop_iteration']} iterations each in the "
        f"middle, {counts['seconds']:.0f} s in all"
    )
    return "; ".join([said, ends.told()] if ends.told() else [said]), counts


@dataclass(frozen=True)
class _Stretched:
    """A picture whose values are divided by ``most``, read by windows."""

    source: Readable
    most: float

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return self.source.read(top, bottom, left, right) / np.float32(self.most)


def _span(source: large.Source) -> float:
    """``span`` of a picture of any size; where it is 1, no more is read than it takes to see it."""
    most = 0.0
    for window in Layout(source.size, SAMPLE, 0).windows():
        most = max(most, float(source.read(*window).max()))
        if most and span(most) == 1:
            break
    return span(most)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window of ``SAMPLE`` pixels a side in the middle of a picture of this size."""
    (top, bottom), (left, right) = (
        ((n - min(n, SAMPLE)) // 2, (n + min(n, SAMPLE)) // 2) for n in size
    )
    return top, bottom, left, right
