"""``import dip_recon``: restore arrays, as the command restores files.

    restored = dip_recon.denoise(picture)

Pictures are arrays [H, W] or [H, W, C] with 1 or 3 channels, of uint8 or uint16, or of floats in
[0, 1], as scikit-image has them; what comes back has the same shape and type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import auto, holes, impulses, models, operators, own, tasks
from .errors import UserError, nearest
from .fit import State, choose, fit
from .flags import convert
from .options import Options
from .prepare import prepare, resolve
from .problem import Problem
from .tiling import Layout, Tiles
from .tiling.layout import InMemory, Tile, blend
from .tiling.tiles import fit_tile

# options of the experiments that have no say here
ELSEWHERE = (
    "folder_path", "imsize", "crop", "in_size", "out_chns", "task", "noise_sigma", "noise_seed",
    "poisson_scale", "runs", "mask_type", "mask_path", "zero_fraction",
    "mask_seed", "sr_factor", "save_folder", "special", "iters_print_acc", "eval_every",
    "snapshots", "checkpoint_every", "verbose", "batch_size", "recipe",
)  # fmt: skip


@dataclass
class Step:
    """What a progress callback is given after every iteration; ``picture`` is made when asked for.

    iteration: from 1, in this tile. iterations: how many there will be at most. run: of ``runs``,
    from 1. tile: from 1 to ``tiles``; a small picture is one tile, and far holes are one each.
    """

    iteration: int
    iterations: int
    run: int
    tile: int
    tiles: int
    _picture: Callable[[], np.ndarray]

    @property
    def picture(self) -> np.ndarray:
        """The restored picture as it is now, in the shape and type of the one that comes back."""
        return self._picture()


Progress = Callable[[Step], Any]
Back = Callable[[np.ndarray], np.ndarray]


def denoise(
    picture: np.ndarray,
    *,
    sigma: float | None = None,
    draft: bool = False,
    runs: int = 1,
    uncertainty: bool = False,
    declipping: bool = True,
    progress: Progress | None = None,
    **options,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Take the noise out of ``picture``; noise level, network and stop are chosen from it.

    Args:
        sigma: noise level on the 0–255 scale, where it is known.
        draft: a coarser picture in a fraction of the time.
        runs: the mean of so many runs is a little better, and costs as many times as much.
        uncertainty: return as well how far the runs disagree, a deviation at each pixel on the
            picture's own scale, [H, W] float32; needs ``runs`` of at least 2.
        declipping: where noise was clipped at black or white, put its shifted mean right.
        progress: called with a ``Step`` after every iteration.
        options: an option of ``denoising.py`` that has to do with the fit, such as ``seed``,
            ``dim``, ``num_iters``, ``stopping`` or ``device``; what is given is not chosen.

    Raises:
        UserError: a picture or an option that will not do.
    """
    picture = np.asarray(picture)
    data, back = _read(picture)
    runs = _whole("runs", runs, 1)
    if uncertainty and runs < 2:
        raise UserError("uncertainty=True: give runs=2 or more")
    given = _options(options | ({} if sigma is None else {"sigma": sigma}), auto.DENOISING)
    most = 1.0  # what is fitted is divided by it
    if progress:
        most = tasks.span(tasks.brightest(impulses.without(data)[0]))
    fit_one = _fitter(progress, lambda x: back(x * most), data.shape[1:])

    def fit_all(job: tasks.Job, seeds: list[Options]) -> list[np.ndarray]:
        return [fit_one(job, o, n) for n, o in enumerate(seeds, 1)]

    how = {"runs": runs, "draft": draft, "declipping": declipping}
    done = own.denoise(own.job_of_array(data), given, fit_all, **how)
    restored = picture.copy() if done.unchanged else back(done.picture)
    if not uncertainty:
        return restored
    spread = np.zeros(data.shape[1:]) if done.choice.clean else done.disagreement
    return restored, (spread * _top(picture)).astype(np.float32)


def inpaint(
    picture: np.ndarray, mask: np.ndarray, *, progress: Progress | None = None, **options
) -> np.ndarray:
    """Fill in what ``mask`` [H, W] says is missing: 1, True or 255 is known. Known pixels stay.

    Of the known pixels a few are held out, and end the run when they get worse. A large picture is
    fitted around its holes alone.

    What ``picture`` holds where it is missing does not matter: NaN will do.

    ``progress``, ``options`` and errors as in ``denoise``.
    """
    picture = np.asarray(picture)
    _check_shape(picture)
    known = _known(mask, picture.shape[:2])
    kept = known if picture.ndim == 2 else known[..., None]
    data, back = _read(np.where(kept, picture, 0).astype(picture.dtype))

    if known.all():
        raise UserError("mask: no pixel is missing; 0 or False is what is to be filled in")
    A = operators.Mask(known)
    job = tasks.Job("picture", Problem(A(tasks.tensor(data)), A, data.shape[1:]), data, "")
    choice = auto.filling(job.problem, auto.INPAINTING, _options(options, auto.INPAINTING))
    job, settings, unstretched = own.stretched(job, choice.options)
    parts = holes.parts(job, settings)
    shown, done = job.problem.y[0].numpy(), []

    def filled(x: np.ndarray) -> np.ndarray:
        return np.where(kept, picture, back(unstretched(x)))

    for part in parts:
        own.check(part.job, settings)
    for number, part in enumerate(parts, 1):

        def now(x: np.ndarray, part: holes.Part = part, shown: np.ndarray = shown) -> np.ndarray:
            return filled(part.paste(shown, x))

        fit_one = _fitter(progress, now, part.job.problem.size)
        done.append(fit_one(part.job, settings, place=(number, len(parts))))
        shown = part.paste(shown, done[-1])
    return filled(holes.joined(job, parts, done))


def enlarge(
    picture: np.ndarray, factor: int = 4, *, progress: Progress | None = None, **options
) -> np.ndarray:
    """``picture`` at ``factor`` (2 to 16) times the size, stopped as in ``inpaint``.

    ``progress``, ``options`` and errors as in ``denoise``.
    """
    factor = _whole("factor", factor, 2, 16)
    data, back = _read(picture)
    given = {"sr_factor": factor} | _options(options, auto.SUPER_RESOLUTION)
    A = operators.Downsample(factor, replace(auto.SUPER_RESOLUTION, **given).sr_kernel_type)
    size = tuple(factor * n for n in data.shape[1:])
    job = tasks.Job("picture", Problem(tasks.tensor(data), A, size), data, "")
    choice = auto.filling(job.problem, auto.SUPER_RESOLUTION, given)
    job, settings, unstretched = own.stretched(job, choice.options)

    def enlarged(x: np.ndarray) -> np.ndarray:
        return back(unstretched(x))

    return enlarged(_fitter(progress, enlarged, size)(job, settings))


def restore(
    y: np.ndarray | Tensor,
    A: Callable[[Tensor], Tensor],
    size: tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    progress: Progress | None = None,
    **options,
) -> np.ndarray:
    """Invert any differentiable operator: the picture x in [0, 1] with A(x) near ``y``.

    Args:
        y: the measurement, real, of whatever shape A gives; sides of 1 in front may be left out.
        A: takes [1, C, H, W] float32 in [0, 1] to the shape of ``y``; another library's operator
            will do, such as ``physics.A`` of deepinv (``physics`` itself adds noise). A module is
            moved to the device of the fit; for anything else that works on the CPU alone, the fit
            is made there.
        size: (H, W) of the picture sought; by default the last two sides of ``y``.
        channels: of the picture sought; by default those of ``y`` if it has three sides, else 1.
        options: as in ``denoise``: 2000 iterations of a 5-scale network unless told otherwise, of
            fewer scales where a side has fewer than 33 pixels. The rules SMNS (with ``sigma``),
            ES-WMV and ES-EMV stop earlier.

    Returns:
        [C, H, W] float32 in [0, 1].

    Raises:
        UserError: an option that will not do; A fails, is not differentiable, or does not give the
            shape of ``y``.
    """
    base = replace(auto.INPAINTING, stopping="fixed")
    given = _options(options, base)
    settings = replace(base, **given)
    y = _measurement(y)
    if channels is None:
        channels = y.shape[-3] if y.ndim >= 3 else 1
    channels = _whole("channels", channels, 1)
    size = tuple(y.shape[-2:]) if size is None else tuple(np.atleast_1d(size))
    if len(size) != 2:
        raise UserError(f"size={size}: give the (H, W) of the picture sought")
    size = tuple(_whole("size", n, 1) for n in size)
    settings = auto.fewer_scales(settings, given, size)
    shape, device = _tried(A, (1, channels, *size), settings.device)
    short = shape[len(shape) - y.ndim :]
    if y.ndim > len(shape) or tuple(y.shape) != short or y.numel() != shape.numel():
        raise UserError(
            f"A gives the shape {tuple(shape)}, y has {tuple(y.shape)}; say size and channels"
        )
    problem = _AnyProblem(y.reshape(shape), A, size, picture_channels=channels)
    job = tasks.Job("picture", problem, None, "")
    fit_one = _fitter(progress, np.copy, size)
    return fit_one(job, replace(settings, device=device))


@dataclass
class _AnyProblem(Problem):
    """A problem whose measurement need not have the channels of the picture."""

    picture_channels: int = 1

    @property
    def channels(self) -> int:
        return self.picture_channels


def _measurement(y: np.ndarray | Tensor) -> Tensor:
    """``y`` as a float32 tensor on the CPU."""
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        is_complex, floats = y.is_complex(), y.is_floating_point()
    else:
        y = np.asarray(y)
        is_complex, floats = y.dtype.kind == "c", y.dtype.kind == "f"
    if is_complex:
        raise UserError("y is complex: give real and imaginary parts, by torch.view_as_real")
    if not floats:
        raise UserError(f"y is of {y.dtype}: give floats, what A makes of a picture in [0, 1]")
    if isinstance(y, np.ndarray):  # of any byte order, as FITS files have it
        y = torch.tensor(np.ascontiguousarray(y, np.float32))
    y = y.float()
    if not y.numel() or not torch.isfinite(y).all():
        raise UserError("y must be finite, and hold something")
    return y


def _tried(
    A: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: str
) -> tuple[torch.Size, str]:
    """The shape of what A gives for a picture of ``shape``, and the device on which it does."""
    chosen = choose(device)[0].type
    for place in dict.fromkeys((chosen, "cpu") if device == "auto" else (chosen,)):
        x = torch.full(shape, 0.5, device=place, requires_grad=True)
        try:
            measured = Problem(x, A, shape[-2:]).to(place).A(x)
        except Exception as error:  # whatever another's code raises
            why = (str(error).splitlines() or [type(error).__name__])[0]
            failed = UserError(f"A fails on a picture of shape {shape}: {why}")
            failed.__cause__ = error
            continue
        if not isinstance(measured, Tensor) or measured.is_complex():
            kind = "complex numbers" if isinstance(measured, Tensor) else type(measured).__name__
            raise UserError(f"A gives {kind}: a tensor of real numbers is wanted")
        if not measured.requires_grad:
            raise UserError("A is not differentiable: it must be made of torch's operations")
        return measured.shape, place
    raise failed


def _fitter(progress: Progress | None, back: Back, size: tuple[int, int]) -> Callable:
    """Fits without a run folder, of pictures to be shown at ``size``: job, options, which run, and
    which part of how many."""

    def fit_one(
        job: tasks.Job, o: Options, run: int = 1, place: tuple[int, int] = (1, 1)
    ) -> np.ndarray:
        o, _ = resolve(o)
        o.validate()
        if getattr(o, "tile", 0):
            return fit_tiles(job, o, run)

        def tell(state: State) -> None:
            def picture() -> np.ndarray:
                return back(_at(_now(state), size))

            progress(Step(state.iteration, o.num_iters, run, *place, picture))

        own.check(job, o)
        state = prepare(job, o, *choose(o.device, o.precision))
        result = fit(state, o.num_iters, [tell] if progress else [])
        if state.guard.gave_up:
            warnings.warn(state.guard.told(), stacklevel=3)
        return result.restored[0].cpu().numpy()

    def fit_tiles(job: tasks.Job, o: Options, run: int) -> np.ndarray:
        y = job.problem.y[0].numpy()
        layout = Layout(y.shape[1:], o.tile, o.overlap)
        tiles = Tiles(InMemory(y), layout, Path(), o, name=job.name)
        tiles.check()
        shown, done, lost = y.copy(), {}, 0
        for tile in layout:

            def tell(state: State, tile=tile) -> None:
                def picture() -> np.ndarray:
                    _paste(shown, tile, _now(state))
                    return back(_at(shown, size))

                counts = state.iteration, o.num_iters, run, tile.index + 1, len(layout)
                progress(Step(*counts, picture))

            fitted = fit_tile(tiles.task(tile), watch=[tell] if progress else [])
            done[tile] = fitted.picture
            lost += fitted.gave_up
            _paste(shown, tile, done[tile])
        if lost:
            told = f"{lost} of {len(layout)} tiles: the fit was lost again and again, and given up"
            warnings.warn(told, stacklevel=4)
        return blend(layout, (0, y.shape[1], 0, y.shape[2]), done.__getitem__)

    return fit_one


def _now(state: State) -> np.ndarray:
    """The result as it is now, [C, H, W] in [0, 1]."""
    return state.full_size(state.smoothed)[0].clamp(0, 1).cpu().numpy()


def _paste(shown: np.ndarray, tile: Tile, restored: np.ndarray) -> None:
    """Put a tile's own region of ``restored`` [C, h, w] into the picture that is shown."""
    top, bottom, left, right = tile.region
    down, across = top - tile.grown[0], left - tile.grown[2]
    part = restored[:, down : down + bottom - top, across : across + right - left]
    shown[:, top:bottom, left:right] = part


def _at(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``picture`` at ``size``: that of a draft has half of it."""
    return picture if picture.shape[1:] == tuple(size) else own.doubled(picture, size)


def _check_shape(picture: np.ndarray) -> None:
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 3)):
        raise UserError(f"an array of shape {picture.shape}: give [H, W], [H, W, 1] or [H, W, 3]")
    if not picture.size:
        raise UserError("the picture has no pixels")


def _top(picture: np.ndarray) -> int:
    """What white is: the largest number of whole ones, 1 of floats."""
    if picture.dtype.kind == "u" and picture.dtype.itemsize <= 2:
        return np.iinfo(picture.dtype).max
    if picture.dtype.kind != "f":
        raise UserError(f"an array of {picture.dtype}: give uint8, uint16 or floats in [0, 1]")
    return 1


def _read(picture: np.ndarray) -> tuple[np.ndarray, Back]:
    """[C, H, W] float32 in [0, 1] of an array, and what turns such a one back into its kind."""
    picture = np.asarray(picture)
    _check_shape(picture)
    top = _top(picture)
    if not np.isfinite(picture).all() or picture.min() < 0 or picture.max() > top:
        raise UserError("floats must be finite and in [0, 1]; divide by the largest possible value")
    data = picture.astype(np.float32) / np.float32(top)
    data = data[None] if picture.ndim == 2 else np.moveaxis(data, -1, 0)

    def back(x: np.ndarray) -> np.ndarray:
        x = x[0] if picture.ndim == 2 else np.moveaxis(x, 0, -1)
        return (x if top == 1 else x * top + 0.5).astype(picture.dtype)

    return np.ascontiguousarray(data), back


def _known(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where ``mask`` says that pixels are known, [H, W] bool."""
    mask = np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise UserError(f"a mask of shape {mask.shape} and {mask.dtype}: give numbers [H, W]")
    if mask.dtype.kind == "u" and (mask > 1).any():
        mask = mask / np.iinfo(mask.dtype).max
    return operators.mask_from_picture(mask.astype(np.float32), size)[0] > 0


def _whole(name: str, value: int, least: int, most: float = float("inf")) -> int:
    """``value`` as an int; UserError unless it is a whole number in this range."""
    if not np.isscalar(value) or isinstance(value, str) or value != value // 1:
        raise UserError(f"{name}={value}: give a whole number")
    if not least <= value <= most:
        bounds = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
        raise UserError(f"{name}={value}: give a whole number {bounds}")
    return int(value)


def _options(options: dict, like: Options) -> dict:
    """What was given, each as its option wants it; UserError for a name or value that is not."""
    known = {f.name: f for f in fields(like) if f.name not in ELSEWHERE}
    for name in options:
        if name not in known:
            raise UserError(f"{name}: no such option; {nearest(name, known)}")
    found = {name: convert(known[name], value) for name, value in options.items()}
    if "model_type" in found:
        found = models.get(found["model_type"]).recipe | found
    replace(like, **found).validate()
    return found
