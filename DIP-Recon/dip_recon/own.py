"""One's own picture: no ground truth, no flags of a paper, a result in kind."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import data, images, models, operators
from .cluster import Cluster
from .errors import UserError
from .experiment import configuration, run_one
from .flags import Switches
from .images import large
from .options import (
    NOT_IN_THE_NUMBERS,
    DenoisingOptions,
    InpaintingOptions,
    Options,
    SuperResolutionOptions,
    TiledOptions,
)
from .prepare import network_settings, resolve
from .problem import Problem
from .runs import Run, check_writable
from .tasks import Job, denoising_job, enlarge, tensor
from .tiling import Layout, Tiles

LARGE = 4096**2  # pixels from which a TIFF is denoised by tiles

# ES-WMV's patience of 1000 iterations is as long as a whole run of these small networks.
DENOISING = DenoisingOptions(
    task="real_denoising", num_iters=3000, stopping="ES-WMV", patience=500, iters_print_acc=500
)
_HOURGLASS = {"model_type": "skip", "dim": [64], "num_scales": 5, "iters_print_acc": 500}
INPAINTING = InpaintingOptions(**_HOURGLASS, mask_type="file", num_iters=2000)
SUPER_RESOLUTION = SuperResolutionOptions(**_HOURGLASS, num_iters=2000)


def _read(path: Path) -> tuple[images.Picture, str]:
    return images.read(path), hashlib.sha256(path.read_bytes()).hexdigest()


def denoising(path: Path) -> Job:
    """A noisy picture as a problem."""
    picture, digest = _read(path)
    return Job(
        path.stem,
        Problem.denoising(tensor(picture.data), name=path.stem),
        picture.data,
        digest,
        picture,
    )


def inpainting(path: Path, mask_path: Path) -> Job:
    """A picture with holes; the mask is white where it is known."""
    picture, digest = _read(path)
    mask_picture, mask_digest = _read(mask_path)
    try:
        mask = operators.mask_from_picture(mask_picture.data, picture.size)
    except UserError as error:
        raise UserError(f"--mask {mask_path}: {error}") from error
    A = operators.Mask(mask)
    y = A(tensor(picture.data))
    problem = Problem(y, A, picture.size, name=path.stem)
    return Job(path.stem, problem, y[0].numpy(), digest + mask_digest, picture, keep_known=True)


def super_resolution(path: Path, factor: int) -> Job:
    """A small picture, to be ``factor`` times larger."""
    if not 2 <= factor <= 16:
        raise UserError(f"--factor {factor}: give a whole number from 2 to 16")
    picture, digest = _read(path)
    size = tuple(factor * n for n in picture.size)
    problem = Problem(tensor(picture.data), operators.Downsample(factor), size, name=path.stem)
    return Job(path.stem, problem, enlarge(picture.data, size), digest, picture)


def restore(job: Job, options: Options, given: dict, folder: Path) -> tuple[dict, np.ndarray]:
    """Fit ``job`` in run folder ``folder``; its summary and the restored picture [C, H, W].

    A folder that holds an unfinished run of the same picture and settings is gone on with.
    """
    options, _ = resolve(replace(options, **given))
    options.validate()
    run = Run(folder)
    config = configuration(options, job, *Cluster().choose(options.device, options.precision))
    try:
        run.check(config, NOT_IN_THE_NUMBERS, resume=True, overwrite=False)
    except UserError as error:
        raise UserError(
            f"--keep {folder}: holds another run, or a damaged one; choose a new one"
        ) from error
    models.check_size(options.model_type, **network_settings(job, options))
    _check_free("--keep", run)
    return run_one(job, run, options, Switches(resume=True), lambda line: None)


TILED = TiledOptions(task="real_denoising")


def is_large(path: Path) -> bool:
    """Whether a picture is a Zarr, or has more pixels than the whole-picture path takes on."""
    if path.suffix.lower() == ".zarr":
        return True
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    with large.open_source(path) as source:
        return math.prod(source.size) > LARGE


def denoise_tiled(path: Path, output: Path, given: dict, cluster: Cluster, keep: Path) -> str:
    """Denoise a picture of any size by tiles, from file to file; returns what to print of it.

    Finished tiles stay in ``keep`` until the result is written: the same command goes on there.
    A TIFF or Zarr is read and written by windows, so that memory does not grow with the picture.
    """
    options, _ = resolve(replace(TILED, **given))
    options.validate()
    run = Run(keep)
    with large.open_source(path) as source:
        if source.channels not in (1, 3):
            raise UserError(f"{path}: has {source.channels} channels; grey or colour is wanted")
        layout = Layout(source.size, options.tile, options.overlap)
        if output.exists():
            raise UserError(f"{output}: is there already; choose another --output, or remove it")
        stat = path.stat()
        identity = {"picture": str(path.resolve()), "bytes": stat.st_size, "time": stat.st_mtime_ns}
        device, precision = cluster.choose(options.device, options.precision)
        options = replace(options, device=device, precision=precision)
        config = {**asdict(options), **identity}
        try:
            run.check(config, NOT_IN_THE_NUMBERS, resume=True, overwrite=False)
        except UserError as error:
            raise UserError(
                f"{keep}: holds tiles of another picture or other settings; delete it, or choose "
                "another --keep"
            ) from error
        _check_free("--keep", run)
        tiles = Tiles(source, layout, keep / "tiles", options, name=path.name)
        tiles.check()
        cluster.check()
        # made first, so that a full disk or a bad name shows before hours of fitting
        alpha = source if source.has_alpha else None
        large.create_sink(output, source.size, source.channels, source.kind, alpha=alpha).suspend()
        run.begin(config, overwrite=False)
        if tiles.sigma is not None:
            known = "as given" if options.sigma else "estimated from the picture"
            print(f"{path.name}: {len(layout)} tiles, noise level {tiles.sigma:.2f}, {known}")
        tiles.fit(cluster)
        sink = large.create_sink(
            output, source.size, source.channels, source.kind, alpha=alpha, resume=True
        )
        with sink:
            for (top, _, left, _), window in tiles.blended():
                sink.write(top, left, window)
        counts = tiles.write_table(keep / "tiles.csv")
        tiles.remove()
    return (
        f"{output}: {counts['tiles']} tiles, {counts['stop_iteration']} iterations each in the "
        f"middle, {counts['seconds']:.0f} s in all"
    )


def _check_free(flag: str, run: Run) -> None:
    """Raise UserError unless the folder can be written and holds a run, or nothing."""
    if run.folder.is_dir() and any(run.folder.iterdir()) and not run.begun:
        raise UserError(f"{flag} {run.folder}: holds other files; choose a new folder")
    check_writable(run.folder)


DEMO = replace(
    DENOISING,
    task="denoising",
    folder_path="bundled/rocket",
    crop=[256, 256],
    noise_sigma=25.0,
    patience=300,
)


def demo(folder: Path) -> str:
    """Restore a picture that scikit-image ships; returns a table of what came of it."""
    run = Run(folder)
    _check_free("--output", run)
    job = denoising_job(data.resolve(DEMO.folder_path)[0], DEMO)
    print(f"{job.name}, 256×256, Gaussian noise sigma 25; {DEMO.model_type}, {DEMO.stopping}")
    options, _ = resolve(DEMO)
    summary, _ = run_one(job, run, options, Switches(overwrite=True), lambda line: None)
    rows = (
        ("noisy PSNR", f"{summary['psnr_noisy']:.2f} dB"),
        ("restored PSNR", f"{summary['psnr_stopped']:.2f} dB"),
        ("restored SSIM", f"{summary['ssim_stopped']:.3f}"),
        ("stopped at iteration", f"{summary['stop_iteration']} (ran {summary['iterations']})"),
        ("seconds", f"{summary['seconds']:.0f} ({summary['device']}, {summary['precision']})"),
        (
            "oracle, for comparison",
            f"{summary['psnr_oracle']:.2f} dB at {summary['oracle_iteration']}",
        ),
        ("side by side", run.folder / "comparison.png"),
    )
    return "\n".join(f"{name:<24}{value}" for name, value in rows)
