"""How close two pictures are. Data range 1; both are clipped to [0, 1] first.

Pictures are tensors or arrays [..., C, H, W] of floating point; leading dimensions are a batch.
ValueError if C, H, W differ or the values are integers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

Picture = Tensor | np.ndarray


def psnr(x: Picture, y: Picture) -> float:
    """Peak signal-to-noise ratio in dB over all channels and pixels; inf if the same.

    10 log10(1 / MSE), computed where the tensors are: cheap enough for every iteration.
    """
    x, y = _pair(x, y)
    mse = (x - y).square().mean().item()
    return -10 * math.log10(mse) if mse != 0 else math.inf


def psnr_luma(x: Picture, y: Picture, border: int = 4) -> float:
    """PSNR in dB of the luma alone, ``border`` pixels cut from each side: super-resolution's PSNR.

    The luma is ITU-R BT.601's in studio range, Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255;
    its span of 219 makes the figure 1.32 dB higher than on a full-range luma. A grey picture is
    taken as it is. Nan if the cut leaves nothing; ValueError unless C is 1 or 3.
    """
    x, y = _pair(x, y)
    channels, height, width = x.shape[-3:]
    if channels not in (1, 3):
        raise ValueError(f"luma needs 1 or 3 channels, not {channels}")
    if min(height, width) <= 2 * border:
        return math.nan
    inner = (..., slice(border, height - border), slice(border, width - border))
    if channels == 1:
        return psnr(x[inner], y[inner])
    return psnr(_luma(x[inner]), _luma(y[inner]))


def _luma(x: Tensor) -> Tensor:
    r, g, b = x.split(1, dim=-3)
    return (65.481 * r + 128.553 * g + 24.966 * b + 16) / 255


def ssim(x: Picture, y: Picture) -> float:
    """Structural similarity, at most 1: scikit-image's, mean over channels (and over a batch).

    Its defaults: a uniform window of 7×7 pixels and sample covariance (Wang et al. 2004 used a
    Gaussian one). Nan for pictures with a side below 7 pixels. Runs on the CPU in float64: not for
    every iteration.
    """
    x, y = _pair(x, y)
    if min(x.shape[-2:]) < 7:
        return math.nan
    x, y = torch.broadcast_tensors(x, y)
    x, y = (t.cpu().double().numpy().reshape(-1, *t.shape[-3:]) for t in (x, y))
    pairs = zip(x, y, strict=True)
    return float(
        np.mean([structural_similarity(a, b, data_range=1, channel_axis=0) for a, b in pairs])
    )


def _pair(x: Picture, y: Picture) -> tuple[Tensor, Tensor]:
    """Both as clipped tensors of at least single precision, on the device of ``x``."""
    x, y = torch.as_tensor(x).detach(), torch.as_tensor(y).detach()
    if x.shape[-3:] != y.shape[-3:]:
        raise ValueError(f"pictures of different shapes: {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"pictures must be floats in [0, 1], not {x.dtype} and {y.dtype}")
    x, y = (t.float() if t.element_size() < 4 else t for t in (x, y.to(x.device)))
    return x.clamp(0, 1), y.clamp(0, 1)
