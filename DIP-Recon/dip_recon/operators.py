"""What happened to the picture: the operators A of y = A(x) + noise.

All take and give tensors [N, C, H, W] of float32 or float64 (cast a half-precision network output
before), are linear, differentiable and free of trainable parameters, and keep noise apart (see
``noise.py``). Wherever an operator is asked for, any other callable on such tensors will do,
another library's included; the only thing it lacks is the method ``adjoint``, and ``adjoint(A, y,
x_shape)`` below stands in for it.

Masks: 1 = known, 0 = missing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError, nearest

RIM = 2.9  # pixels that a brush's soft edge reaches: two, across corners too
KERNELS = ("lanczos2", "lanczos3", "box", "gauss12", "gauss1sq2", "gaussian")


def adjoint(A: Callable[[Tensor], Tensor], y: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """Apply the adjoint of any linear, differentiable callable: <A x, y> = <x, adjoint(A, y)>.

    ``y`` has the shape of A's output and ``x_shape`` is the shape of its input; the result has
    ``x_shape``. It is the vector-Jacobian product of A, which for a linear A does not depend on x.
    """
    with torch.enable_grad():
        x = torch.zeros(x_shape, dtype=y.dtype, device=y.device, requires_grad=True)
        return torch.autograd.grad(A(x), x, y, create_graph=y.requires_grad)[0]


class Identity(nn.Module):
    """A x = x, the operator of denoising. [N, C, H, W] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Mask(nn.Module):
    """A x = mask · x, the operator of inpainting. [N, C, H, W] -> the same, 0 where missing.

    ``mask`` is an array or tensor [1 or N, 1 or C, H, W] ([C, H, W] and [H, W] are read as one
    such), 1 = known. Raises UserError if nothing is known, or if the picture has another size.
    """

    def __init__(self, mask: np.ndarray | Tensor):
        super().__init__()
        mask = _copied(mask)
        mask = mask[(None,) * (4 - mask.ndim)]
        if not mask.any():
            raise UserError("the mask is all zero: no pixel is known (white, or 1, means known)")
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _check_size("mask", self.mask, x)
        return x * self.mask.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)


class Kept(nn.Module):
    """A's measurement where ``mask`` is 1, and 0 elsewhere: ``mask`` · A x.

    ``mask`` is a tensor that broadcasts against the measurement. Part of a measurement is held out
    of a fit by it.
    """

    def __init__(self, A, mask: Tensor):
        super().__init__()
        self.A = A
        if isinstance(A, Mask | FourierSampling):
            mask = mask * A.mask
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * self.A(x)


class Downsample(nn.Module):
    """Low-pass filter and keep one pixel in ``factor``, the operator of super-resolution.

    [N, C, H, W] -> [N, C, H // factor, W // factor]; a rest of H % factor rows still reaches the
    outputs whose filter covers it. The picture is continued beyond its edge by its edge pixels,
    and the filter sums to 1, so that a constant stays what it is.

    factor: an integer >= 2.
    kernel: with d the distance to the output pixel's centre, in input pixels,
        ``lanczos2``, ``lanczos3``: sinc(d/factor) · sinc(d/(n·factor)) for d < n·factor;
        ``box``: the mean over factor × factor pixels;
        ``gauss12``, ``gauss1sq2``: Gaussians of 1 and sqrt(2) pixels, cut at 3.5 and 4.5, whatever
        the factor;
        ``gaussian``: a Gaussian of factor/2 pixels, cut at 2·factor.
    phase: 0.5 puts the output pixel at the centre of its factor × factor block, 0 on the block's
        first pixel. The box has phase 0.5 only.

    ``lanczos2`` at phase 0.5 and an even factor is the operator of Ulyanov et al., "Deep Image
    Prior", CVPR 2018 (4·factor taps); at an odd factor theirs lies half a pixel off the centre of
    the block, this one does not. Raises UserError for anything else, and for a picture smaller
    than the factor.
    """

    def __init__(self, factor: int, kernel: str = "lanczos2", phase: float = 0.5):
        super().__init__()
        if factor != int(factor) or factor < 2:
            raise UserError(f"--sr_factor {factor}: must be an integer of at least 2")
        if kernel not in KERNELS:
            hint = nearest(kernel, KERNELS)
            raise UserError(f"--sr_kernel_type {kernel}: no such kernel; {hint}")
        if phase not in (0, 0.5) or (kernel == "box" and phase == 0):
            raise UserError(f"phase {phase} of kernel {kernel}: must be 0.5 (or 0, but for box)")
        self.factor = int(factor)
        taps, first = _downsampling_taps(self.factor, kernel, phase)
        # What the first and the last block need beyond the edge.
        self.before, self.after = -first, max(0, first + len(taps) - self.factor)
        self.register_buffer("taps", torch.tensor(taps, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h, w = height // self.factor, width // self.factor
        if min(h, w) < 1:
            raise UserError(f"a {height}×{width} picture is too small for ×{self.factor}")
        x = x.reshape(n * c, 1, height, width)
        x = F.pad(x, (self.before, self.after, self.before, self.after), mode="replicate")
        taps = self.taps.to(x.dtype)
        x = F.conv2d(x, taps.view(1, 1, -1, 1), stride=(self.factor, 1))
        x = F.conv2d(x, taps.view(1, 1, 1, -1), stride=(1, self.factor))
        return x[..., :h, :w].reshape(n, c, h, w)

    def adjoint(self, y: Tensor, x_shape: tuple[int, ...] | None = None) -> Tensor:
        """[N, C, h, w] -> ``x_shape``, by default [N, C, h·factor, w·factor]."""
        n, c, h, w = y.shape
        return adjoint(self, y, x_shape or (n, c, h * self.factor, w * self.factor))


def _downsampling_taps(factor: int, kernel: str, phase: float) -> tuple[np.ndarray, int]:
    """The 1-D taps, of sum 1, and the position of the first against the block's first pixel."""
    half_width = {
        "lanczos2": 2 * factor,
        "lanczos3": 3 * factor,
        "box": factor / 2,
        "gauss12": 3.5,
        "gauss1sq2": 4.5,
        "gaussian": 2 * factor,
    }[kernel]
    centre = (factor - 1) / 2 if phase == 0.5 else 0.0
    reach = math.ceil(half_width + centre)
    position = np.arange(-reach, reach + 1)
    position = position[np.abs(position - centre) < half_width]
    d = position - centre
    if kernel.startswith("lanczos"):
        taps = np.sinc(d / factor) * np.sinc(d / half_width)
    elif kernel == "box":
        taps = np.ones(len(d))
    else:
        sigma = {"gauss12": 1.0, "gauss1sq2": math.sqrt(2), "gaussian": factor / 2}[kernel]
        taps = np.exp(-(d**2) / (2 * sigma**2))
    return taps / taps.sum(), int(position[0])


class Blur(nn.Module):
    """Convolve every channel with one kernel, the operator of deblurring. Keeps [N, C, H, W].

    ``kernel`` is an array or tensor [kh, kw], the picture of a single bright point (it is a true
    convolution), used as given: a sum of 1 keeps the brightness. Its centre is at [kh//2, kw//2].
    The picture is continued beyond its edge by reflection (without repeating the edge pixel), so
    that it must be larger than half the kernel: UserError if not, or if the kernel is not 2-D.
    """

    def __init__(self, kernel: np.ndarray | Tensor):
        super().__init__()
        kernel = _copied(kernel)
        if kernel.ndim != 2 or not kernel.any():
            raise UserError(
                f"a blur kernel must be [height, width] and not all zero, not {tuple(kernel.shape)}"
            )
        self.register_buffer("flipped", kernel.flip(0, 1)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[-3:]
        kh, kw = self.flipped.shape[-2:]
        if kh // 2 >= height or kw // 2 >= width:
            raise UserError(f"a {kh}×{kw} kernel is too large for a {height}×{width} picture")
        x = F.pad(x, ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2), mode="reflect")
        return F.conv2d(x, self.flipped.to(x.dtype).expand(channels, -1, -1, -1), groups=channels)

    def adjoint(self, y: Tensor) -> Tensor:
        return adjoint(self, y, tuple(y.shape))


def gaussian_kernel(sigma_px: float, size: int | None = None) -> np.ndarray:
    """A Gaussian blur kernel [size, size], float32 of sum 1.

    ``sigma_px`` is its deviation in pixels, ``size`` an odd number of pixels, by default reaching
    4 sigma to either side. UserError if sigma is not above 0 or the size is not odd.
    """
    if not 0 < sigma_px < math.inf:
        raise UserError(f"blur sigma {sigma_px}: must be above 0 pixels")
    size = 2 * int(4 * sigma_px + 0.5) + 1 if size is None else size
    if size < 1 or size % 2 == 0:
        raise UserError(f"blur kernel size {size}: must be an odd number of pixels")
    d = np.arange(size) - size // 2
    taps = np.exp(-(d**2) / (2 * sigma_px**2))
    taps /= taps.sum()
    return np.outer(taps, taps).astype(np.float32)


def motion_kernel(length: float, angle: float = 0.0) -> np.ndarray:
    """The kernel [kh, kw] of a camera moved in a straight line, float32 of sum 1, kh and kw odd.

    ``length`` in pixels, at least 1; ``angle`` in degrees, counter-clockwise from horizontal. A
    pixel's weight falls from 1 on the line to 0 at a distance of one pixel. UserError if the
    length is below 1.
    """
    if not 1 <= length < math.inf:
        raise UserError(f"motion length {length}: must be at least 1 pixel")
    half = (length - 1) / 2
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rx, ry = (math.ceil(round(half * abs(t), 6)) for t in (cos, sin))
    y, x = np.mgrid[-ry : ry + 1, -rx : rx + 1]
    along, across = x * cos - y * sin, x * sin + y * cos  # rows count downwards
    distance = np.hypot(np.maximum(np.abs(along) - half, 0), across)
    kernel = np.maximum(1 - distance, 0)
    return (kernel / kernel.sum()).astype(np.float32)


class FourierSampling(nn.Module):
    """A x = mask · FFT2(x), orthonormal, the operator of accelerated MRI.

    [N, C, H, W] -> [N, 2·C, H, W], real: the real parts of the C channels, then their imaginary
    parts, so that a mean squared error compares spectra as it does pictures.
    ``mask`` is an array or tensor [H, W], 1 = measured, with the zero frequency at [0, 0] (shift a
    centred one by ``np.fft.ifftshift``). Raises UserError if it is all zero or not 2-D, or if the
    picture has another size.
    """

    def __init__(self, mask: np.ndarray | Tensor):
        super().__init__()
        mask = _copied(mask)
        if mask.ndim != 2 or not mask.any():
            raise UserError("a Fourier mask must be [height, width] and not all zero")
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _check_size("Fourier mask", self.mask, x)
        spectrum = torch.fft.fft2(x, norm="ortho") * self.mask
        return torch.cat((spectrum.real, spectrum.imag), dim=1)  # [N, 2C, H, W]

    def adjoint(self, y: Tensor) -> Tensor:
        """[N, 2·C, H, W] -> [N, C, H, W]: the real part of the inverse transform."""
        real, imag = y.chunk(2, dim=1)
        return torch.fft.ifft2(torch.complex(real, imag) * self.mask, norm="ortho").real


OPERATORS = (Identity, Mask, Kept, Downsample, Blur, FourierSampling)


def bernoulli_mask(
    size: tuple[int, int], zero_fraction: float = 0.5, seed: int = 100
) -> np.ndarray:
    """Random missing pixels: a mask [1, H, W], float32, 1 = known.

    ``size`` is (H, W); each pixel is missing with probability ``zero_fraction``, in [0, 1)
    (UserError outside). Seed 100 and 0.5 give the masks of the published inpainting figures.
    """
    if not 0 <= zero_fraction < 1:
        raise UserError(f"--zero_fraction {zero_fraction}: must lie in [0, 1)")
    draws = np.random.RandomState(seed).random_sample((1, *size))
    return (draws > zero_fraction).astype(np.float32)


def text_mask(
    size: tuple[int, int],
    text: str = "the quick brown fox jumps over the lazy dog ",
    font_size: int | None = None,
) -> np.ndarray:
    """Text written all over the picture: a mask [1, H, W], float32, 0 where a letter covers.

    ``size`` is (H, W); ``font_size`` in pixels, by default H/16 and at least 10. The font is the
    one inside Pillow: the letters may differ by a pixel between versions of it. UserError if the
    text is blank or the font size is below 1.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not text.strip():
        raise UserError("the text of a text mask must not be blank")
    text = " ".join(text.splitlines())
    height, width = size
    font_size = max(10, height // 16) if font_size is None else font_size
    if font_size < 1:
        raise UserError(f"text mask font size {font_size}: must be at least 1 pixel")
    picture = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=font_size)
    length = max(1.0, draw.textlength(text, font=font))
    line = text * (math.ceil(width / length) + 1)
    for row, top in enumerate(range(0, height, math.ceil(1.5 * font_size))):
        draw.text((-(row * length / 3) % length - length, top), line, fill=0, font=font)
    return (np.asarray(picture) == 255)[None].astype(np.float32)


def mask_from_picture(array: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask [1, H, W], float32, from its picture [C, H, W] or [H, W] in [0, 1]: white = known.

    Known is what lies above 0.9 in the mean over channels: what a soft brush has touched has some
    of the damage in it. ``size`` is the (H, W) of the picture it goes with. Raises UserError if
    that differs, if nothing is known, or if more than a twentieth of it is neither black nor white.
    """
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    if size is not None and array.shape[-2:] != tuple(size):
        raise UserError(
            f"the mask is {array.shape[-2]}×{array.shape[-1]} but the picture {size[0]}×{size[1]}: "
            "give one of the same size"
        )
    grey = array.mean(axis=0, keepdims=True)
    if np.mean((grey > 0.1) & (grey < 0.9)) > 0.05:  # JPEG blurs the edges of a mask, no more
        raise UserError("not a mask: it must be black (missing) and white (known)")
    mask = (grey > 0.9).astype(np.float32)
    if not mask.any():
        raise UserError("the mask picture is all black: no pixel is known (white means known)")
    return mask


def mask_from_alpha(alpha: np.ndarray) -> np.ndarray:
    """A mask [1, H, W], float32, from an alpha channel [H, W]: missing is what is transparent.

    ``alpha`` is in [0, 1], or unsigned integers up to their maximum, as ``Picture.alpha`` has them.
    Known is what is at least half opaque: the soft rim of an eraser is cut in its middle, and what
    is only slightly see-through is kept. Raises UserError if everything or nothing is missing.
    """
    alpha = np.asarray(alpha)
    half = np.iinfo(alpha.dtype).max / 2 if alpha.dtype.kind == "u" else 0.5
    known = alpha >= half
    if known.all():
        raise UserError("no pixel is transparent, so that none is missing: erase what to fill")
    if not known.any():
        raise UserError("all pixels are transparent: none is known (opaque means known)")
    return known[None].astype(np.float32)


def mask_from_colour(data: np.ndarray, colour: str, tolerance: float = 0.02) -> np.ndarray:
    """A mask [1, H, W], float32, from a picture [C, H, W] in [0, 1]: a colour marks the missing.

    ``colour`` is "#rrggbb", "#rgb" or a CSS name ("magenta"; "lime" is the full green). Missing is
    what differs from it by at most ``tolerance`` in each of red, green and blue, where a grey
    picture, C = 1, has all three equal: 0.02 is 5 steps of 255, too little for a JPEG. Missing as
    well are the soft rims that a brush leaves: what is within two pixels and mixed with the colour.
    Raises UserError if there is no such colour, the tolerance is not in [0, 1), or everything or
    nothing is missing.
    """
    if not 0 <= tolerance < 1:
        raise UserError(f"colour tolerance {tolerance}: must lie in [0, 1)")
    rgb = np.reshape(_rgb(colour), (3, 1, 1))
    difference = np.abs(np.asarray(data, np.float64) - rgb).max(axis=0, keepdims=True)
    known = difference > tolerance + 1e-6  # float32 is not exact
    if known.all():
        raise UserError(
            f"no pixel is {colour}, so that none is missing: the nearest is off by "
            f"{difference.min():.3f} of 1, more than the tolerance of {tolerance:g}"
        )
    if not known.any():
        raise UserError(f"all pixels are {colour} to within {tolerance:g}: none is known")
    known[0] &= ~_soft_rims(data, ~known[0], rgb[: len(data)])
    return known.astype(np.float32)


def _soft_rims(data: np.ndarray, marked: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Where a picture [C, H, W] is mixed with the colour ``rgb`` [C, 1, 1] of what is ``marked``
    [H, W] beside it.

    A pixel is held against the nearest that is out of a brush's reach: it is mixed where it lies
    from that one towards the colour. So do some by chance, many where the colour is black or white;
    a mark has a soft rim where more than half of the pixels around it are mixed.
    """
    from scipy import ndimage

    away = ndimage.distance_transform_edt(~marked)
    outside = away > RIM
    if not outside.any():
        return np.zeros_like(marked)
    off, nearest_one = ndimage.distance_transform_edt(~outside, return_indices=True)
    beyond = data[(slice(None), *nearest_one)].astype(np.float64)
    towards = rgb - beyond
    length = np.maximum(np.square(towards).sum(0), 1e-9)
    share = ((data - beyond) * towards).sum(0) / length
    beside = np.square(data - beyond - share * towards).sum(0) / length
    mixed = ~marked & ~outside & (off <= 2 * RIM) & (share > 0.1) & (beside < 0.3**2)
    marks, count = ndimage.label(away <= RIM, np.ones((3, 3)))
    around = ~marked & (away < 1.5)
    neighbours, soft_ones = (
        np.bincount(marks[where], minlength=count + 1) for where in (around, around & mixed)
    )
    return mixed & (2 * soft_ones > neighbours)[marks]


def _rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of "#rrggbb", "#rgb" or a CSS name; UserError for others."""
    from matplotlib.colors import CSS4_COLORS, to_rgb

    name = colour.strip().lower()
    if name not in CSS4_COLORS and not re.fullmatch("#([0-9a-f]{3}|[0-9a-f]{6})", name):
        match = difflib.get_close_matches(name, CSS4_COLORS, n=1)
        hint = f"; did you mean {match[0]!r}?" if match else ""
        raise UserError(f"{colour!r} is no colour: give #rrggbb, in quotes, or a CSS name{hint}")
    return to_rgb(name)


def _copied(values: np.ndarray | Tensor) -> Tensor:
    """As float32, in memory of its own: what is given may be a view, and may be changed later."""
    if isinstance(values, Tensor):
        return values.to(torch.float32, copy=True)
    return torch.from_numpy(np.array(values, np.float32, order="C"))


def _check_size(name: str, mask: Tensor, x: Tensor) -> None:
    """UserError unless ``mask`` [H, W] or [1 or N, 1 or C, H, W] goes with ``x`` [N, C, H, W]."""
    planes = zip(mask.shape[:-2], x.shape[:2], strict=False)
    if mask.shape[-2:] != x.shape[-2:] or not all(m in (1, n) for m, n in planes):
        mask_shape, shape = ("×".join(map(str, t.shape)) for t in (mask, x))
        raise UserError(f"the {name} is {mask_shape} but the picture {shape}: give one of its size")
