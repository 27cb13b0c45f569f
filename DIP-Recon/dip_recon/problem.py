"""Problem: what was measured, how, and, on benchmarks, the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .operators import FourierSampling, Identity, Kept, Mask


@dataclass
class Problem:
    """An inverse problem y = A(x) + noise, for one picture.

    Attributes:
        y: the measurement, [1, C, h, w] float32. For Gaussian noise it lies in [0, 1].
        A: the operator: any differentiable callable from [1, C, H, W] to the shape of ``y``.
        size: (H, W) of the picture that is sought.
        x: the clean picture [1, C, H, W] in [0, 1], where it is known; it is only ever measured
            against, never fitted.
        sigma: noise level on the 0–255 scale, where it is known.
        name: what the picture is called in logs and folders.
        estimated: whether sigma was estimated from y, and so is what clipping has left of it.
    """

    y: Tensor
    A: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    x: Tensor | None = None
    sigma: float | None = None
    name: str = "picture"
    estimated: bool = False

    @classmethod
    def denoising(cls, y: Tensor, x: Tensor | None = None, **more) -> Problem:
        """The plain case, A = identity, y [1, C, H, W]."""
        return cls(y=y, A=Identity(), size=tuple(y.shape[-2:]), x=x, **more)

    @property
    def channels(self) -> int:
        return self.y.shape[1]

    def to(self, device: torch.device | str) -> Problem:
        """The same problem with its tensors, and its operator where it is a module, on a device."""
        module = isinstance(self.A, torch.nn.Module)
        A = copy.deepcopy(self.A).to(device) if module else self.A
        x = None if self.x is None else self.x.to(device)
        return replace(self, y=self.y.to(device), A=A, x=x)

    def psnr_measured(self, x: Tensor) -> float:
        """PSNR in dB of A(x) against y (data range 1), over the values that were measured.

        With a mask only the known pixels or frequencies count, so that it means the same for every
        task.
        """
        error = (self.A(x.clamp(0, 1)) - self.y).square()
        masked = isinstance(self.A, Mask | FourierSampling | Kept)
        known = self.A.mask.expand_as(self.y).sum() if masked else error.numel()
        return float(-10 * torch.log10(error.sum() / known + 1e-20))
