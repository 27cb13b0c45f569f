"""Networks with no encoder: Deep Decoder, ConvDecoder and ConvDecoder with low-pass filters.

Heckel and Hand, "Deep Decoder" (ICLR 2019); Darestani and Heckel, "Accelerated MRI with Un-trained
Neural Networks" (IEEE TCI 2021); with chosen upsamplers: Liu et al., "The Devil is in the
Upsampling" (ICCV 2023), Figs. 3 and 4.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..errors import UserError
from . import doubling, upsamplers
from .layers import (
    BatchNorm,
    Convolution,
    ReLU,
    Size,
    activation,
    conv,
    norm,
    output_range,
    whole,
)
from .registry import register

REDUCTION = 32  # a progressive input is the picture's size over 32


def small_input(out_size: Size, *, num_layers: int, upsample_mode: str | None, **_: object) -> Size:
    """Input size of a progressive decoder for a picture of ``out_size``: ceil(out / 32) a side.

    Where every layer doubles, the divisor is 2^(num_layers - 1) (32 at the published 6 layers).
    """
    layers = whole("num_layers", num_layers, 2)
    if str(upsample_mode) == "None":
        raise UserError("--upsample_mode None keeps the input's size: use --progressive False")
    divisor = 2 ** (layers - 1) if upsamplers.doubles(upsample_mode) else REDUCTION
    return (math.ceil(out_size[0] / divisor), math.ceil(out_size[1] / divisor))


def layer_sizes(in_size: Size, out_size: Size, num_layers: int) -> list[Size]:
    """Size after each of the ``num_layers`` - 1 upsamplings: ceil((out/in)^(n/(L-1)) · in).

    Sizes grow geometrically from ``in_size`` and end at ``out_size``.
    """
    steps = num_layers - 1

    def side(n: int, start: int, end: int) -> int:
        # the small number keeps a power that is whole but for rounding from going up by one
        return math.ceil((end / start) ** (n / steps) * start - 1e-9)

    between = [
        tuple(side(n, a, b) for a, b in zip(in_size, out_size, strict=True))
        for n in range(1, steps)
    ]
    return [*between, tuple(out_size)]


def _sizes(in_size: Size, out_size: Size, num_layers: int, upsample_mode: str | None) -> list[Size]:
    """``layer_sizes`` after checking that the upsampler can go from ``in_size`` to ``out_size``."""
    layers = whole("num_layers", num_layers, 2)
    into, out = f"{in_size[0]}×{in_size[1]}", f"{out_size[0]}×{out_size[1]}"
    if str(upsample_mode) == "None" and tuple(in_size) != tuple(out_size):
        raise UserError(
            f"--upsample_mode None keeps the input's size, but the input is {into} and the "
            f"picture {out}: use --progressive False"
        )
    if upsamplers.doubles(upsample_mode):
        start = small_input(out_size, num_layers=layers, upsample_mode=upsample_mode)
        if tuple(in_size) != start:
            raise UserError(
                f"--upsample_mode {upsample_mode} doubles {layers - 1} times, so a picture of "
                f"{out} takes an input of {start[0]}×{start[1]}, not {into}: "
                "use --progressive True"
            )
    return layer_sizes(in_size, out_size, layers)


class Block(nn.Module):
    """One decoder layer: ``before``, upsample to ``size``, ``after``."""

    def __init__(self, before: nn.Module, upsample: nn.Module, after: nn.Module, size: Size):
        super().__init__()
        self.before, self.upsample, self.after = before, upsample, after
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.upsample(self.before(x), self.size))


class ConvBlock(Block):
    """The same where ``after`` begins with a convolution: together, where they can be had so."""

    def forward(self, x: Tensor) -> Tensor:
        mix = self.after[0]
        if doubling.possible(x, self.size, self.upsample, None, mix):
            return self.after[1:](doubling.decoded(x, self.upsample.mode, None, mix))
        return super().forward(x)


# Noise on a full-size input of 0 to 0.1 drowns it: with the 1/30 of the skip networks the Deep
# Decoder stays at 12 dB on a 96² crop where it reaches 23 without.
RECIPE = {"reg_noise_std": 0.0}


@register(
    "DD",
    summary="Deep Decoder: 1×1 convolutions and upsampling",
    source="Heckel, Hand: Deep Decoder, ICLR 2019, eq. (2); run in Liu et al. 2023, Fig. 3(a)",
    small_input=small_input,
    recipe=RECIPE,
)
def deep_decoder(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_layers: int = 6,
    dim: int = 128,
    upsample_mode: str = "bilinear",
    need_sigmoid: bool = True,
) -> nn.Module:
    """``num_layers`` - 1 of [1×1 conv → upsample → ReLU → BN], then 1×1 conv → ReLU → BN → 1×1.

    No biases; interpolation with aligned corners, as published. 100,224 parameters at 6 × 128
    with 3 outputs.
    """
    width = whole("dim", dim, 1)
    layers = []
    channels = in_channels
    for size in _sizes(in_size, out_size, num_layers, upsample_mode):
        mix = Convolution(channels, width, 1, bias=False)
        grow = upsamplers.make(upsample_mode, width, align_corners=True)
        after = nn.Sequential(ReLU(), BatchNorm(width))
        layers.append(Block(mix, grow, after, size))
        channels = width
    return nn.Sequential(
        *layers,
        Convolution(width, width, 1, bias=False),
        ReLU(),
        BatchNorm(width),
        Convolution(width, out_channels, 1, bias=False),
        output_range(need_sigmoid),
    )


def _conv_decoder(
    *,
    upsample_first: bool,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_layers: int,
    dim: int,
    upsample_mode: str,
    act_func: str,
    norm_func: str,
    need_sigmoid: bool,
    need_tanh: bool,
    need_relu: bool,
) -> nn.Module:
    width = whole("dim", dim, 1)

    def finish() -> list[nn.Module]:
        return [activation(act_func), norm(norm_func, width)]

    layers = []
    channels = in_channels
    for size in _sizes(in_size, out_size, num_layers, upsample_mode):
        mix = conv(channels, width, 3)
        if upsample_first:
            grow = upsamplers.make(upsample_mode, channels)
            layers.append(ConvBlock(nn.Identity(), grow, nn.Sequential(mix, *finish()), size))
        else:
            grow = upsamplers.make(upsample_mode, width)
            layers.append(Block(mix, grow, nn.Sequential(*finish()), size))
        channels = width
    return nn.Sequential(
        *layers,
        conv(width, width, 3),
        *finish(),
        conv(width, out_channels, 1),
        output_range(need_sigmoid, need_tanh, need_relu),
    )


@register(
    "ConvDecoder",
    summary="3×3 convolutions, each after an upsampling",
    source="Darestani, Heckel: Accelerated MRI with Un-trained Neural Networks, IEEE TCI 2021, "
    "§III; run in Liu et al. 2023, Fig. 3(b)",
    small_input=small_input,
    recipe=RECIPE,
)
def conv_decoder(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_layers: int = 6,
    dim: int = 128,
    upsample_mode: str = "nearest",
    act_func: str = "ReLU",
    norm_func: str = "bn",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
) -> nn.Module:
    """``num_layers`` - 1 of [upsample → 3×3 conv → act → BN], then 3×3 conv → act → BN → 1×1.

    887,427 parameters at 6 × 128 with 3 outputs.
    """
    return _conv_decoder(upsample_first=True, **locals())


@register(
    "ConvDecoder_LPF",
    summary="3×3 convolutions, each before an upsampling by a chosen low-pass filter",
    source="Liu et al.: The Devil is in the Upsampling, ICCV 2023, §4 and Fig. 4",
    small_input=small_input,
    recipe=RECIPE,
)
def conv_decoder_lpf(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_layers: int = 6,
    dim: int = 128,
    upsample_mode: str = "LPF5",
    act_func: str = "ReLU",
    norm_func: str = "bn",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
) -> nn.Module:
    """``num_layers`` - 1 of [3×3 conv → upsample → act → BN], then 3×3 conv → act → BN → 1×1."""
    return _conv_decoder(upsample_first=False, **locals())
