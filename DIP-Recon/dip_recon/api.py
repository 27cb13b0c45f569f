"""``import dip_recon``: restore arrays, as the command restores files.

    restored = dip_recon.denoise(picture)

Pictures are arrays [H, W] or [H, W, C] with 1 or 3 channels, of uint8 or uint16, or of floats in
[0, 1], as scikit-image has them; what comes back has the same shape and type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import auto, operators, own
from .errors import UserError
from .fit import State, choose, fit
from .options import Options
from .prepare import prepare, resolve
from .problem import Problem
from .tasks import Job, tensor


@dataclass
class Step:
    """What a progress callback is given after every iteration; ``picture`` is made when asked for.

    iteration: from 1. iterations: how many there will be at most. run: of ``runs``, from 1.
    """

    iteration: int
    iterations: int
    run: int
    _state: State
    _back: Callable[[np.ndarray], np.ndarray]

    @property
    def picture(self) -> np.ndarray:
        """The restored picture as it is now, in the shape and type of the one that was given."""
        smoothed = self._state.full_size(self._state.smoothed)
        return self._back(smoothed[0].clamp(0, 1).cpu().numpy())


Progress = Callable[[Step], Any]


def denoise(
    picture: np.ndarray,
    *,
    sigma: float | None = None,
    draft: bool = False,
    runs: int = 1,
    uncertainty: bool = False,
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
        progress: called with a ``Step`` after every iteration.
        options: any option of ``denoising.py``, such as ``seed``, ``dim``, ``num_iters``,
            ``stopping`` or ``device``; what is given is not chosen.

    Raises:
        UserError: a picture or an option that will not do.
    """
    data, back = _read(picture)
    if uncertainty and runs < 2:
        raise UserError("uncertainty=True: give runs=2 or more")
    job = Job("picture", Problem.denoising(tensor(data)), data, "")
    given = options | ({"sigma": sigma} if sigma is not None else {})
    _check(given, auto.DENOISING)
    small = own.halved(job) if draft else job
    choice = auto.denoising(small.problem.y[0].numpy(), given)
    done = own.denoise(job, choice, _fitter(progress, back), runs, draft)
    restored = back(done.picture)
    if not uncertainty:
        return restored
    spread = done.disagreement if done.disagreement is not None else np.zeros(data.shape[1:])
    top = np.iinfo(picture.dtype).max if np.asarray(picture).dtype.kind in "iu" else 1
    return restored, (spread * top).astype(np.float32)


def inpaint(
    picture: np.ndarray, mask: np.ndarray, *, progress: Progress | None = None, **options
) -> np.ndarray:
    """Fill in what ``mask`` [H, W] says is missing: 1, True or 255 is known. Known pixels stay.

    ``progress``, ``options`` and errors as in ``denoise``.
    """
    data, back = _read(picture)
    mask = np.asarray(mask)
    mask = mask / 255 if mask.dtype == np.uint8 and mask.max() > 1 else mask
    known = operators.mask_from_picture(mask.astype(np.float32)[None], data.shape[1:])
    A = operators.Mask(known)
    y = A(tensor(data))
    job = Job("picture", Problem(y, A, data.shape[1:]), y[0].numpy(), "")
    _check(options, own.INPAINTING)
    found = _fitter(progress, back)(job, replace(own.INPAINTING, **options), "")
    keep = A.mask[0].numpy()
    return back(keep * data + (1 - keep) * found)


def enlarge(
    picture: np.ndarray, factor: int = 4, *, progress: Progress | None = None, **options
) -> np.ndarray:
    """``picture`` at ``factor`` (2 to 16) times the size.

    ``progress``, ``options`` and errors as in ``denoise``.
    """
    if not 2 <= factor <= 16:
        raise UserError(f"factor={factor}: give a whole number from 2 to 16")
    data, back = _read(picture)
    size = tuple(factor * n for n in data.shape[1:])
    job = Job("picture", Problem(tensor(data), operators.Downsample(factor), size), data, "")
    _check(options, own.SUPER_RESOLUTION)
    settings = replace(own.SUPER_RESOLUTION, sr_factor=factor, **options)
    return back(_fitter(progress, back)(job, settings, ""))


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
        y: the measurement, of whatever shape A gives, without or with a batch of one in front.
        A: takes [1, C, H, W] float32 in [0, 1] to the shape of ``y`` with a batch of one; another
            library's operator will do, such as a physics of deepinv.
        size: (H, W) of the picture sought; by default the last two sides of ``y``.
        channels: of the picture sought; by default those of ``y`` if it has three sides, else 1.
        options: as in ``denoise``: 2000 iterations of a 5-scale network unless told otherwise. The
            rules SMNS (with ``sigma``), ES-WMV and ES-EMV stop earlier.

    Returns:
        [C, H, W] float32 in [0, 1].

    Raises:
        UserError: an option that will not do, or A does not give the shape of ``y``.
    """
    y = torch.as_tensor(y, dtype=torch.float32)
    if channels is None:
        channels = y.shape[-3] if y.ndim >= 3 else 1
    size = tuple(y.shape[-2:]) if size is None else tuple(size)
    with torch.no_grad():
        shape = tuple(A(torch.zeros(1, channels, *size)).shape)
    if tuple(y.shape) == shape[1:]:
        y = y[None]
    if tuple(y.shape) != shape:
        raise UserError(f"A gives the shape {shape}, y has {tuple(y.shape)}; say size and channels")
    problem = _AnyProblem(y, A, size)
    problem.picture_channels = channels
    _check(options, own.INPAINTING)
    settings = replace(own.INPAINTING, **options)
    return _fitter(progress, lambda x: x)(Job("picture", problem, None, ""), settings, "")


class _AnyProblem(Problem):
    """A problem whose measurement need not have the channels of the picture."""

    picture_channels = 1

    @property
    def channels(self) -> int:
        return self.picture_channels


def _fitter(progress: Progress | None, back) -> own.FitOne:
    """Fits without a run folder: ``own.FitOne`` for arrays."""

    def fit_one(job: Job, o: Options, where: str) -> np.ndarray:
        o, _ = resolve(o)
        o.validate()
        state = prepare(job, o, *choose(o.device, o.precision))
        run = int(where.removeprefix("run") or 1)

        def tell(state: State) -> None:
            progress(Step(state.iteration, o.num_iters, run, state, back))

        result = fit(state, o.num_iters, [tell] if progress else [])
        return result.restored[0].cpu().numpy()

    return fit_one


def _read(picture: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """[C, H, W] float32 in [0, 1] of an array, and what turns such a one back into its kind."""
    picture = np.asarray(picture)
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 3)):
        raise UserError(f"an array of shape {picture.shape}: give [H, W], [H, W, 1] or [H, W, 3]")
    if not picture.size:
        raise UserError("the picture has no pixels")
    whole = picture.dtype in (np.uint8, np.uint16)
    if not whole and picture.dtype.kind != "f":
        raise UserError(f"an array of {picture.dtype}: give uint8, uint16 or floats in [0, 1]")
    top = np.iinfo(picture.dtype).max if whole else 1
    data = picture.astype(np.float32) / np.float32(top)
    if not np.isfinite(data).all() or data.min() < 0 or data.max() > 1:
        raise UserError("floats must be finite and in [0, 1]; divide by the largest possible value")
    data = data[None] if picture.ndim == 2 else np.moveaxis(data, -1, 0)

    def back(x: np.ndarray) -> np.ndarray:
        x = x[0] if picture.ndim == 2 else np.moveaxis(x, 0, -1)
        return (x * top + 0.5).astype(picture.dtype) if whole else x.astype(picture.dtype)

    return np.ascontiguousarray(data), back


def _check(options: dict, like: Options) -> None:
    """Raise UserError for an option that there is not."""
    from .errors import nearest

    known = set(vars(like))
    for name in options:
        if name not in known:
            raise UserError(f"{name}: no such option; {nearest(name, known)}")
