"""The encoder-decoder with skip connections of Deep Image Prior, and the presets made from it.

Ulyanov, Vedaldi and Lempitsky, "Deep Image Prior" (CVPR 2018), supplementary material, Fig. 21;
the two-scale and filtered variants: Liu et al., "The Devil is in the Upsampling" (ICCV 2023).
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UserError
from . import doubling, upsamplers
from .layers import (
    Size,
    activation,
    centre_crop,
    conv,
    join,
    norm,
    one_of,
    output_range,
    per_scale,
    whole,
)
from .registry import register

ULYANOV = "Ulyanov, Vedaldi, Lempitsky: Deep Image Prior, CVPR 2018, supplementary material"
LIU = "Liu et al.: The Devil is in the Upsampling, ICCV 2023"
SKIP_CHANNELS = 4
POOLS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class Scale(nn.Module):
    """One scale: halve, encode, go deeper, upsample, join the skip branch, decode.

    [N, in_channels, H, W] -> [N, up, H, W]; with ``size`` the upsampling goes to exactly ``size``
    instead, and with ``trim`` False a map with no skip branch keeps the odd row that doubling adds.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        down: int,
        up: int,
        skip: int,
        deeper: Scale | None,
        kernel_down: int,
        kernel_up: int,
        kernel_skip: int,
        need1x1: bool,
        pad: str,
        act_func: str,
        norm_func: str,
        upsample_mode: str,
        downsample_mode: str,
        size: Size | None,
        trim: bool,
    ):
        super().__init__()
        self.out_channels = up
        self.size, self.trim = size, trim
        inner = down if deeper is None else deeper.out_channels

        def block(cin: int, cout: int, kernel: int, halve: bool = False) -> list[nn.Module]:
            strided = halve and downsample_mode == "stride"
            layers = [conv(cin, cout, kernel, stride=2 if strided else 1, pad=pad)]
            if halve and not strided:
                layers.append(POOLS[downsample_mode](2, ceil_mode=True))
            return [*layers, norm(norm_func, cout), activation(act_func)]

        self.skip = nn.Sequential(*block(in_channels, skip, kernel_skip)) if skip else None
        self.encoder = nn.Sequential(
            *block(in_channels, down, kernel_down, halve=True),
            *block(down, down, kernel_down),
        )
        self.deeper = nn.Identity() if deeper is None else deeper
        self.upsample = upsamplers.make(upsample_mode, inner)
        self.norm = norm(norm_func, skip + inner)
        self.decoder = nn.Sequential(
            *block(skip + inner, up, kernel_up),
            *(block(up, up, 1) if need1x1 else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.deeper(self.encoder(x))
        skip = None if self.skip is None else self.skip(x)
        mix, *rest = self.decoder
        size = tuple(x.shape[-2:])
        fits = self.size in (None, size)
        if fits and doubling.possible(y, size, self.upsample, self.norm, mix):
            y = doubling.decoded(y, self.upsample.mode, self.norm, mix, skip)
        else:
            y = self.upsample(y, self.size)
            if self.trim and self.size is None:
                y = centre_crop(y, x.shape[-2:])
            y = mix(self.norm(y if skip is None else join(skip, y)))
        for layer in rest:
            y = layer(y)
        return y


class SkipUNet(nn.Module):
    """Nested scales, then a 1×1 convolution and the output range; same size in and out."""

    def __init__(self, scales: Scale, out_channels: int, output: nn.Module):
        super().__init__()
        self.scales = scales
        self.last = conv(scales.out_channels, out_channels, 1)
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.last(self.scales(z)))


def _check_upsampler(mode: str | None) -> str:
    if str(mode) == "None":
        raise UserError("--upsample_mode None: only decoders can leave it out; choose an upsampler")
    return upsamplers.get(mode).name


@register(
    "skip",
    summary="skip-UNet with every width, kernel and skip of choice, one a scale",
    source=ULYANOV,
)
def skip(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int = 5,
    dim: int | list[int] = 128,
    up_dim: int | list[int] | None = None,
    skip_dim: int | list[int] = SKIP_CHANNELS,
    filter_size_down: int | list[int] = 3,
    filter_size_up: int | list[int] = 3,
    filter_skip_size: int = 1,
    need1x1: bool = True,
    pad: str = "reflection",
    act_func: str = "LeakyReLU",
    norm_func: str = "bn",
    upsample_mode: str = "bilinear",
    downsample_mode: str = "stride",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
    exact_last: bool = False,
) -> nn.Module:
    """The general skip-UNet; lists give one value a scale, outermost first.

    dim, up_dim
        Channels of the encoder and of the decoder (``None``: the encoder's).
    skip_dim
        Channels of the skip branches; 0 leaves a branch out.
    need1x1
        A second, 1×1, convolution at the end of every scale.
    exact_last
        False: every scale returns the size it was given, by cutting the middle out of the doubled
        map (Ulyanov et al.). True: maps are cut only where a skip branch asks for it, and the last
        upsampling interpolates to the exact output size (Liu et al.); with upsamplers that only
        double this is the same as False.
    """
    if tuple(in_size) != tuple(out_size):
        raise UserError(
            f"skip networks take an input of the picture's size {out_size[0]}×{out_size[1]}, "
            f"not {in_size[0]}×{in_size[1]}"
        )
    scales = whole("num_scales", num_scales, 1)
    down = per_scale("dim", dim, scales, 1)
    up = down if up_dim is None else per_scale("up_dim", up_dim, scales, 1)
    skips = per_scale("skip_dim", skip_dim, scales, 0)
    kernels_down = per_scale("filter_size_down", filter_size_down, scales, 1, odd=True)
    kernels_up = per_scale("filter_size_up", filter_size_up, scales, 1, odd=True)
    mode = _check_upsampler(upsample_mode)
    exact = exact_last and not upsamplers.doubles(mode)

    scale = None
    for i in reversed(range(scales)):
        scale = Scale(
            in_channels if i == 0 else down[i - 1],
            down=down[i],
            up=up[i],
            skip=skips[i],
            deeper=scale,
            kernel_down=kernels_down[i],
            kernel_up=kernels_up[i],
            kernel_skip=whole("filter_skip_size", filter_skip_size, 1, odd=True),
            need1x1=need1x1,
            pad=pad,
            act_func=act_func,
            norm_func=norm_func,
            upsample_mode=mode,
            downsample_mode=one_of("downsample_mode", downsample_mode, ("stride", *POOLS)),
            size=tuple(out_size) if exact and i == 0 else None,
            trim=not exact,
        )
    return SkipUNet(scale, out_channels, output_range(need_sigmoid, need_tanh, need_relu))


_DIP_ORIG = {
    "num_scales": 5,
    "dim": 128,
    "skip_dim": SKIP_CHANNELS,
    "filter_size_down": 3,
    "filter_size_up": 3,
    "pad": "reflection",
    "act_func": "LeakyReLU",
    "norm_func": "bn",
    "upsample_mode": "bilinear",
    "downsample_mode": "stride",
}


@register(
    "DIP_orig",
    summary="the network of Deep Image Prior: 5 scales of 128 channels, 4 skip channels",
    source=ULYANOV,
    fixed=_DIP_ORIG,
)
def dip_orig(
    *, in_channels: int, out_channels: int, in_size: Size, out_size: Size, need_sigmoid: bool = True
) -> nn.Module:
    """2,217,831 parameters with 32 input and 3 output channels."""
    return skip(
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=in_size,
        out_size=out_size,
        need_sigmoid=need_sigmoid,
        **_DIP_ORIG,
    )


@register(
    "DIP_2_scaled",
    summary="shallow skip-UNet of num_scales scales; the last upsampling hits the exact size",
    source=f"{LIU}, Table 2",
)
def dip_2_scaled(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int = 2,
    num_skips: int = 0,
    dim: int = 64,
    filter_size_down: int = 3,
    filter_size_up: int = 3,
    pad: str = "zero",
    act_func: str = "ReLU",
    norm_func: str = "bn",
    upsample_mode: str = "bilinear",
    downsample_mode: str = "stride",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
) -> nn.Module:
    """``num_scales`` scales of ``dim`` channels, the deepest ``num_skips`` with a skip branch."""
    scales, skips = whole("num_scales", num_scales, 1), whole("num_skips", num_skips, 0)
    if skips > scales:
        raise UserError(
            f"--num_skips {skips} with --num_scales {scales}: there is at most one skip a scale"
        )
    return skip(
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=in_size,
        out_size=out_size,
        num_scales=scales,
        dim=whole("dim", dim, 1),
        skip_dim=[0] * (scales - skips) + [SKIP_CHANNELS] * skips,
        filter_size_down=whole("filter_size_down", filter_size_down, 1, odd=True),
        filter_size_up=whole("filter_size_up", filter_size_up, 1, odd=True),
        pad=pad,
        act_func=act_func,
        norm_func=norm_func,
        upsample_mode=upsample_mode,
        downsample_mode=downsample_mode,
        need_sigmoid=need_sigmoid,
        need_tanh=need_tanh,
        need_relu=need_relu,
        exact_last=True,
    )


@register(
    "DIP_scaled_transposed",
    summary="DIP_2_scaled with learnt upsampling by transposed convolution",
    source=f"{LIU}, §3",
    fixed={"upsample_mode": "transposed"},
)
def dip_scaled_transposed(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int = 2,
    num_skips: int = 0,
    dim: int = 64,
    filter_size_down: int = 3,
    filter_size_up: int = 3,
    pad: str = "zero",
    act_func: str = "ReLU",
    norm_func: str = "bn",
    downsample_mode: str = "stride",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
) -> nn.Module:
    """As ``DIP_2_scaled``; every upsampling is a learnt 2×2 transposed convolution of stride 2."""
    return dip_2_scaled(**locals(), upsample_mode="transposed")


@register(
    "DIP_LPF",
    summary="DIP_2_scaled with upsampling by zero insertion and a fixed low-pass filter",
    source=f"{LIU}, §4",
)
def dip_lpf(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int = 2,
    num_skips: int = 0,
    dim: int = 64,
    filter_size_down: int = 3,
    filter_size_up: int = 3,
    pad: str = "zero",
    act_func: str = "ReLU",
    norm_func: str = "bn",
    upsample_mode: str = "LPF4",
    downsample_mode: str = "stride",
    need_sigmoid: bool = True,
    need_tanh: bool = False,
    need_relu: bool = False,
) -> nn.Module:
    """As ``DIP_2_scaled``; ``upsample_mode`` must be a filter: LPF1 … LPF6, taps:…, kaiser:…"""
    given = dict(locals())
    if upsamplers.get(upsample_mode).taps is None:
        filters = [n for n in upsamplers.names() if upsamplers.get(n).taps is not None]
        raise UserError(
            f"--upsample_mode {upsample_mode}: DIP_LPF takes a low-pass filter: "
            f"{', '.join(filters)}, taps:… or kaiser:…"
        )
    return dip_2_scaled(**given)
