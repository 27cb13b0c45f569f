"""The U-Net of the Deep Image Prior reproducibility project (TU Delft, blog post).

Written from the text of Ulyanov et al. 2018 alone, without its code. It differs from the original
in max pooling, a LeakyReLU slope of 0.01, zero padding, skip branches taken *after* halving, and
one more halving at the bottom, so the deepest map is 1/64 of the picture with 5 scales.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UserError
from . import doubling, upsamplers
from .layers import BatchNorm, LeakyReLU, Size, centre_crop, conv, join, one_of, output_range, whole
from .registry import register


def _block(in_channels: int, out_channels: int, kernel: int, halve: bool = False) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels, out_channels, kernel),
        *([nn.MaxPool2d(2, ceil_mode=True)] if halve else []),
        BatchNorm(out_channels),
        LeakyReLU(0.01),
    )


class ReproductionUNet(nn.Module):
    """[N, in_channels, H, W] -> [N, out_channels, H, W] for any H×W that survives the halvings."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        scales: int,
        width: int,
        skip: int,
        kernel_down: int,
        kernel_up: int,
        upsample_mode: str,
        output: nn.Module,
    ):
        super().__init__()
        entry = [in_channels] + [width] * (scales - 1)
        self.down = nn.ModuleList(
            nn.Sequential(
                _block(channels, width, kernel_down, halve=True), _block(width, width, kernel_down)
            )
            for channels in entry
        )
        self.skip = nn.ModuleList(_block(width, skip, 1) for _ in range(scales))
        self.connect = nn.Sequential(
            nn.MaxPool2d(2, ceil_mode=True),
            _block(width, width, kernel_down),
            _block(width, width, kernel_down),
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                BatchNorm(skip + width),
                _block(skip + width, width, kernel_up),
                _block(width, width, 1),
            )
            for _ in range(scales)
        )
        self.upsample = upsamplers.make(upsample_mode, width)
        self.last = conv(width, out_channels, 1)
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        maps = [z]
        for down in self.down:
            maps.append(down(maps[-1]))
        y = self.connect(maps[-1])
        for i in reversed(range(len(self.up))):
            y = self._decoded(i, self.skip[i](maps[i + 1]), y)
        # the 1×1 convolution is the same before interpolation, and of a quarter of the pixels
        y = centre_crop(self.upsample(self.last(y)), z.shape[-2:])
        return self.output(y)

    def _decoded(self, i: int, skip: Tensor, y: Tensor) -> Tensor:
        norm, (mix, *rest), last = self.up[i]
        size = skip.shape[-2:]
        if doubling.possible(y, size, self.upsample, norm, mix):
            y = doubling.decoded(y, self.upsample.mode, norm, mix, skip)
        else:
            y = mix(norm(join(skip, self.upsample(y))))
        for layer in rest:
            y = layer(y)
        return last(y)


@register(
    "reproduction_unet",
    summary="U-Net written from the Deep Image Prior paper without its code (TU Delft)",
    source="Deep Image Prior Reproducibility Project, TU Delft Deep Learning course, blog post",
)
def reproduction_unet(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int = 5,
    dim: int = 128,
    skip_dim: int = 4,
    filter_size_down: int = 3,
    filter_size_up: int = 3,
    upsample_mode: str = "bilinear",
    need_sigmoid: bool = True,
) -> nn.Module:
    """``num_scales`` + 1 halvings; ``upsample_mode`` is nearest, bilinear or bicubic."""
    if tuple(in_size) != tuple(out_size):
        raise UserError(
            f"reproduction_unet takes an input of the picture's size {out_size[0]}×{out_size[1]}, "
            f"not {in_size[0]}×{in_size[1]}"
        )
    return ReproductionUNet(
        in_channels,
        out_channels,
        scales=whole("num_scales", num_scales, 1),
        width=whole("dim", dim, 1),
        skip=whole("skip_dim", skip_dim, 1),
        kernel_down=whole("filter_size_down", filter_size_down, 1, odd=True),
        kernel_up=whole("filter_size_up", filter_size_up, 1, odd=True),
        upsample_mode=one_of("upsample_mode", upsample_mode, upsamplers.INTERPOLATIONS),
        output=output_range(need_sigmoid),
    )
