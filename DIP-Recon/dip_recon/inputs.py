"""What the network is fed: z [1, C, h, w] float32, by name."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, nearest

METHODS = ("noise", "meshgrid", "fourier", "image", "noisy_image")
NOISE_TYPES = ("u", "n")


def make_input(
    method: str,
    *,
    channels: int,
    size: tuple[int, int],
    generator: torch.Generator | None,
    noise_type: str = "u",
    scale: float = 0.1,
    picture: np.ndarray | None = None,
    n_freqs: int = 8,
    base: float = 2 ** (8 / 7),
    cosine_only: bool = False,
) -> Tensor:
    """The network input z, [1, channels_of(...), h, w] float32 on the CPU, with ``size`` = (h, w).

    method:
        ``noise``: ``channels`` channels of scale · U(0, 1) (``noise_type`` u) or scale · N(0, 1)
        (n), drawn from ``generator``, a CPU one, so that every device is given the same;
        ``meshgrid``: x, then y, each from 0 at the first pixel to 1 at the last;
        ``fourier``: for x and then y, cos(f·x) and, unless ``cosine_only``, sin(f·x) at ``n_freqs``
        frequencies f = base^0 … base^(n_freqs - 1), in radians across the picture;
        ``image``, ``noisy_image``: ``picture``, [C, H, W] in [0, 1], as it is (noise is for the
        caller to add); if its size is another it is resized (bilinear, anti-aliased) to ``size``.
    All but the first ignore ``channels`` and draw nothing.
    Methods and frequencies are those of Liu et al., "The Devil is in the Upsampling", ICCV 2023.
    Raises UserError for an unknown method or noise type, or if a picture is asked for and missing.
    """
    depth = channels_of(method, channels, picture=picture, n_freqs=n_freqs, cosine_only=cosine_only)
    if method == "noise":
        if noise_type not in NOISE_TYPES:
            hint = nearest(noise_type, NOISE_TYPES)
            raise UserError(f"--noise_type {noise_type}: no such noise; {hint}")
        draw = torch.rand if noise_type == "u" else torch.randn
        return scale * draw((1, depth, *size), generator=generator, dtype=torch.float32)
    if method == "meshgrid":
        return _coordinates(size)[None]
    if method == "fourier":
        freqs = base ** torch.arange(n_freqs, dtype=torch.float32)
        angles = _coordinates(size)[:, None] * freqs[:, None, None]  # [2, n_freqs, h, w]
        waves = [angles.cos()] if cosine_only else [angles.cos(), angles.sin()]
        return torch.cat(waves, dim=1).reshape(1, depth, *size)
    picture = np.asarray(picture, dtype=np.float32)
    if picture.shape[-2:] != tuple(size):
        from skimage.transform import resize  # takes a while to import

        picture = np.stack([resize(plane, size, anti_aliasing=True) for plane in picture])
    return torch.tensor(picture, dtype=torch.float32)[None]


def channels_of(
    method: str,
    channels: int,
    *,
    picture: np.ndarray | None = None,
    n_freqs: int = 8,
    cosine_only: bool = False,
) -> int:
    """How many channels ``make_input`` gives for these arguments, ``channels`` being the wish.

    noise: the wish; meshgrid: 2; fourier: 4·n_freqs, or 2·n_freqs of cosines only; image and
    noisy_image: those of ``picture`` [C, H, W]. Raises UserError as ``make_input`` does.
    """
    if method not in METHODS:
        raise UserError(f"--noise_method {method}: no such input; {nearest(method, METHODS)}")
    if method == "noise":
        return channels
    if method == "meshgrid":
        return 2
    if method == "fourier":
        return n_freqs * (2 if cosine_only else 4)
    if picture is None:
        raise UserError(f"--noise_method {method}: needs --input_image_name")
    return picture.shape[0]


def _coordinates(size: tuple[int, int]) -> Tensor:
    """x (columns) and y (rows) from 0 to 1, [2, h, w]; 0 along a side of one pixel."""
    y, x = (torch.arange(n, dtype=torch.float32) / max(n - 1, 1) for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
