"""Pictures into problems, a function a task: read, degrade or take as it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import data, images, memory, noise, operators
from .errors import UserError
from .options import Options, words
from .problem import Problem

RESIZING = 16  # bytes a sample that resizing takes at most


@dataclass
class Job:
    """One picture of an experiment: the problem, what it looked like, and where it goes.

    ``seen`` is the measurement at the size of the result, [C, H, W]: the noisy picture, the one
    with holes, or the bicubic enlargement; ``digest`` is the SHA-256 of the files it was made of.
    ``like`` is the stored picture that the result is to come back like; with ``keep_known`` the
    known pixels of an inpainting come back as they were.
    """

    name: str
    problem: Problem
    seen: np.ndarray
    digest: str
    like: images.Picture | None = None
    keep_known: bool = False


def load(path: Path, options: Options) -> np.ndarray:
    """The picture [C, H, W] after ``--crop`` and ``--imsize``."""
    x = images.read(path).data
    if options.crop:
        size = tuple(options.crop) * (1 if len(options.crop) == 2 else 2)
        if size[0] > x.shape[1] or size[1] > x.shape[2]:
            wanted, is_ = "×".join(map(str, size)), "×".join(map(str, x.shape[1:]))
            raise UserError(f"--crop {words(options.crop)}: {path} is {is_}, less than {wanted}")
        top, left = ((n - m) // 2 for n, m in zip(x.shape[1:], size, strict=True))
        x = x[:, top : top + size[0], left : left + size[1]]
    if options.imsize != [-1]:
        size = tuple(options.imsize) * (1 if len(options.imsize) == 2 else 2)
        needed, free = RESIZING * len(x) * math.prod(size), memory.free()
        if needed > free:
            raise UserError(
                f"--imsize {words(options.imsize)}: takes {memory.words(needed)}, and "
                f"{memory.words(free)} are free; choose a smaller one"
            )
        x = enlarge(x, size)
    return np.ascontiguousarray(x)


def enlarge(x: np.ndarray, size: tuple[int, int], clip: bool = True) -> np.ndarray:
    """Resize [C, h, w] to [C, *size], bicubic, anti-aliased when shrinking, clipped to [0, 1]."""
    from skimage.transform import resize  # takes a while to import

    moved = np.moveaxis(x, 0, -1)
    resized = resize(moved, size, order=3, mode="symmetric", anti_aliasing=True, clip=clip)
    resized = np.moveaxis(resized, -1, 0)
    return (resized.clip(0, 1) if clip else resized).astype(np.float32)


def bicubic(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge [C, h, w] to [C, *size] by cubic convolution (Keys 1981, a = -0.5), in [0, 1].

    The baseline of published super-resolution; the spline of ``enlarge`` is 0.2 to 0.3 dB better.
    """
    planes = [Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC) for p in x]
    return np.stack([np.asarray(p) for p in planes]).clip(0, 1)


def span(most: float) -> float:
    """What a picture is divided by while it is fitted: ``most``, its largest value, where that is
    less than half of its range, else 1.

    12 bits in 16, or a dark picture: stretched by it the noise is as strong as it looks.
    """
    return float(most) if 0 < most < 0.5 else 1.0


class Brightest:
    """The largest value in a picture, but for a few that tower above all others.

    A hot pixel, a cosmic ray or a saturated star says nothing of the range that a dark picture
    uses. Told window by window, values in [0, 1]; ``total``: how many there will be.
    """

    RARE, TOWER = 0.001, 4.0  # share of the values; times the largest of the rest
    BINS = 65536

    def __init__(self, total: int) -> None:
        self.total, self.most = total, 0.0
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, y: np.ndarray) -> None:
        """Count in a window of any shape."""
        places = np.rint(np.clip(y, 0, 1) * (self.BINS - 1)).astype(np.int64).ravel()
        self.counts += np.bincount(places, minlength=self.BINS)
        self.most = max(self.most, float(y.max(initial=0)))

    @property
    def certain(self) -> bool:
        """Whether more than a few are in the upper half, whatever is still to come."""
        return self.counts[self.BINS // 2 :].sum() > self.RARE * self.total

    def value(self) -> float:
        """It, of all that was counted in; 0 of nothing."""
        there = np.flatnonzero(self.counts)
        rest = np.searchsorted(np.cumsum(self.counts), (1 - self.RARE) * self.counts.sum())
        if rest > 0 and self.TOWER * rest < there[-1]:
            most = there[there <= self.TOWER * rest][-1]
            return float(np.float32(most) / np.float32(self.BINS - 1))
        return self.most


def brightest(y: np.ndarray) -> float:
    """``Brightest`` of a whole picture."""
    found = Brightest(y.size)
    found.add(y)
    return found.value()


def as_grey(restored: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``restored`` [C, H, W], or the mean of its channels where those of ``y`` are all the same: a
    grey picture stored as RGB stays grey."""
    if len(y) == 1 or (y != y[:1]).any():
        return restored
    first = restored[:1]  # the mean about it: equal channels are kept to the last bit
    return np.repeat(first + (restored - first).mean(0, keepdims=True), len(y), axis=0)


def tensor(x: np.ndarray) -> torch.Tensor:
    """[C, H, W] array to [1, C, H, W] float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None]


def denoising_job(item: data.Item, o: Options) -> Job:
    """Noise is added to a clean picture; a noisy one, alone or in a pair, is taken as it is."""
    if item.noisy is not None:
        y, x, sigma = load(item.noisy, o), load(item.clean, o), None
    elif o.task == "real_denoising":
        y, x, sigma = load(item.path, o), None, None
    else:
        x, sigma = load(item.path, o), None if o.poisson_scale else o.noise_sigma
        rng = np.random.RandomState(o.seed if o.noise_seed is None else o.noise_seed)
        if o.poisson_scale:
            y = noise.add_poisson(x, o.poisson_scale, rng)
        else:
            y = noise.add_gaussian(x, o.noise_sigma, rng)
    clean = None if x is None else tensor(x)
    problem = Problem.denoising(tensor(y), clean, sigma=sigma, name=item.name)
    return Job(item.name, problem, y, _digest(item), _like(item.path, o))


def inpainting_job(item: data.Item, o: Options) -> Job:
    """Pixels are taken away by a mask, 1 = known, the same for all channels."""
    x = load(item.path, o)
    files = []
    size = x.shape[1:]
    if o.mask_type == "bernoulli":
        mask = operators.bernoulli_mask(size, o.zero_fraction, o.mask_seed)
    elif o.mask_type == "text":
        mask = operators.text_mask(size)
    else:
        path = Path(o.mask_path) if o.mask_path else item.mask
        if path is None:
            raise UserError(f"--mask_type file: {item.path} has no mask; give --mask_path")
        files = [path]
        try:
            mask = _mask(path, item.path, o, size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    A = operators.Mask(mask)
    y = A(tensor(x))
    problem = Problem(y, A, size, tensor(x), name=item.name)
    return Job(item.name, problem, y[0].numpy(), _digest(item, *files), _like(item.path, o))


def opaque(mask: images.Picture) -> np.ndarray:
    """The ``data`` of a mask's picture; UserError if it is transparent somewhere."""
    if mask.alpha is not None:
        top = 1 if mask.alpha.dtype.kind == "f" else np.iinfo(mask.alpha.dtype).max
        if mask.alpha.min() < top:
            raise UserError(
                "is transparent in places: flatten it, to black (missing) and white (known)"
            )
    return mask.data


def _mask(path: Path, picture: Path, o: Options, size: tuple[int, int]) -> np.ndarray:
    """The mask [1, H, W] of a file, cut and resized as its ``picture`` was, to ``size``.

    Known is what next to nothing of a missing pixel has gone into.
    """
    stored = opaque(images.read(path))
    if not o.crop and o.imsize == [-1]:
        return operators.mask_from_picture(stored, size)
    operators.mask_from_picture(stored, images.read(picture).size)
    mask = load(path, replace(o, imsize=[-1]))
    if o.imsize == [-1]:
        return operators.mask_from_picture(mask, size)
    mask = enlarge(operators.mask_from_picture(mask), size)
    return operators.mask_from_picture((mask > 0.9).astype(np.float32), size)


def super_resolution_job(item: data.Item, o: Options) -> Job:
    """The low-resolution picture of a pair, or the picture itself reduced by the kernel."""
    A = operators.Downsample(o.sr_factor, o.sr_kernel_type)
    x = load(item.path, o)
    if item.low and item.high and not o.crop and o.imsize == [-1]:
        low = images.read(item.low).data
        if tuple(low.shape[1:]) != tuple(n // o.sr_factor for n in x.shape[1:]):
            raise UserError(
                f"--sr_factor {o.sr_factor}: not the ratio of {item.path} and {item.low}"
            )
        if len(low) != len(x):
            raise UserError(f"{item.low}: one of it and {item.path} is grey, the other in colour")
        y = tensor(low)
    else:
        y = A(tensor(x)).clamp(0, 1)
    size = tuple(x.shape[1:])
    problem = Problem(y, A, size, tensor(x), name=item.name)
    baseline = bicubic(y[0].numpy(), tuple(o.sr_factor * n for n in y.shape[2:]))
    beyond = [(0, n - m) for n, m in zip(x.shape, baseline.shape, strict=True)]  # of whole blocks
    baseline = np.pad(baseline, beyond, mode="edge")
    return Job(item.name, problem, baseline, _digest(item), _like(item.path, o))


def _like(path: Path, o: Options) -> images.Picture | None:
    """The stored picture, for the result to come back in kind; None if it was cut or resized.

    None also where the kind would change what was measured: one bit, and a palette.
    """
    if o.crop or o.imsize != [-1]:
        return None
    picture = images.read(path)
    return None if picture.kind.bits == 1 or picture.kind.space == "palette" else picture


def _digest(item: data.Item, *more: Path) -> str:
    paths = [p for p in (item.path, item.clean, item.mask, item.low, *more) if p is not None]
    return hashlib.sha256(b"".join(Path(p).read_bytes() for p in paths)).hexdigest()


JOBS: dict[str, Callable[[data.Item, Options], Job]] = {
    "denoising": denoising_job,
    "real_denoising": denoising_job,
    "inpainting": inpainting_job,
    "sr": super_resolution_job,
}
