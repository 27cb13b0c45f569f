"""Small pieces that every network family shares: layers by name, cropping, checks of flags.

Tensors are [N, C, H, W]; sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, nearest

Size = tuple[int, int]


def plain_float32(x: Tensor) -> bool:
    """Whether x is float32 on the CPU in the default layout, where some kernels beat the usual."""
    float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and float32 and x.is_contiguous()


def several(x: Tensor) -> bool:
    """Whether x is that of several networks, which are run as one."""
    return torch._C._functorch.is_batchedtensor(x)


class _OfEach(torch.autograd.Function):
    """A layer of several networks as one: their channels lie side by side.

    torch's own rules add and multiply what a layer does itself, one after another, in float32
    where the maps are in bfloat16, and keep what is between for the gradient. There is ``vmap``
    alone, and no ``forward`` for one network, which has torch's layer.
    """

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def merged(in_dims: tuple, x: Tensor, *per_channel: Tensor | None) -> list[Tensor | None]:
        """x as [N, B·C, H, W], and what there is per channel as [B·C, …]."""
        x = x.movedim(in_dims[0], 1)
        rest = [
            None if t is None else t.movedim(d, 0).flatten(0, 1)
            for t, d in zip(per_channel, in_dims[1:], strict=False)
        ]
        return [x.flatten(1, 2), *rest]


class _ConvolutionOfEach(_OfEach):
    @staticmethod
    def vmap(info, in_dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None, *how) -> tuple:
        of_all = _OfEach.merged(in_dims, x, weight, bias)
        y = F.conv2d(*of_all, *how, groups=info.batch_size)
        return y.unflatten(1, (info.batch_size, -1)), 1


class _NormOfEach(_OfEach):
    @staticmethod
    def vmap(info, in_dims: tuple, x: Tensor, *more) -> tuple:
        *per_channel, momentum, eps = more
        x, weight, bias, mean, variance = _OfEach.merged(in_dims, x, *per_channel)
        y = F.batch_norm(x, mean, variance, weight, bias, True, momentum, eps)
        return y.unflatten(1, (info.batch_size, -1)), 1


class Convolution(nn.Conv2d):
    """Convolution; of several networks as one, in groups."""

    def forward(self, x: Tensor) -> Tensor:
        if not several(x):
            return super().forward(x)
        how = (self.stride, self.padding, self.dilation)
        return _ConvolutionOfEach.apply(x, self.weight, self.bias, *how)


class LeakyReLU(nn.LeakyReLU):
    """In place, but for several networks as one.

    Their maps are views, and gradients of what is done to views in place are copied to and fro.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope, inplace=not several(x))


class ReLU(nn.ReLU):
    """As ``LeakyReLU``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not several(x))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation; of one picture in half the time on the CPU.

    For a single picture it is group normalisation with a channel a group, whose kernel is the
    faster one there in float32: the same figures but for rounding, running statistics too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and several(x):
            self.num_batches_tracked.add_(1)
            per_channel = (self.weight, self.bias, self.running_mean, self.running_var)
            return _NormOfEach.apply(x, *per_channel, self.momentum, self.eps)
        pixels = x.shape[2] * x.shape[3]
        if not (self.training and plain_float32(x) and len(x) == 1 and pixels > 1):
            return super().forward(x)
        y, mean, variance = self.of_one(x, self.weight, self.bias)
        self.remember(mean, variance, pixels)
        return y

    def of_one(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [1, C, H, W] normalised, and its channels' means and variances [C]."""
        channels = x.shape[1]
        sizes = (1, channels, x.shape[2] * x.shape[3], channels)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, self.eps)
        return y, mean[0].detach(), rstd[0].detach().pow(-2) - self.eps

    def remember(self, mean: Tensor, variance: Tensor, pixels: int) -> None:
        """Take the moments of one picture into the running statistics."""
        with torch.no_grad():
            variance = variance * (pixels / (pixels - 1))
            self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
            self.running_var.mul_(1 - self.momentum).add_(self.momentum * variance)
            self.num_batches_tracked.add_(1)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation; of one picture in its own memory order.

    torch has it in the default layout, and all that comes after it. For a single picture it is
    batch normalisation without weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or x.shape[2] * x.shape[3] == 1:
            return super().forward(x)
        if several(x):
            return _NormOfEach.apply(x, None, None, None, None, 0.0, self.eps)
        return F.batch_norm(x, None, None, training=True, eps=self.eps)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": ReLU,
    "LeakyReLU": lambda: LeakyReLU(0.2),
    "Swish": nn.SiLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "none": nn.Identity,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": BatchNorm,
    "instance": InstanceNorm,
}
PADS = ("zero", "reflection")


def one_of(flag: str, value: object, choices: Sequence[str]) -> str:
    """Return ``value`` if it is among ``choices``; otherwise raise UserError naming the flag."""
    if value not in choices:
        raise UserError(f"--{flag} {value}: {nearest(str(value), choices)}")
    return str(value)


def whole(flag: str, value: object, least: int, *, odd: bool = False) -> int:
    """Return ``value`` if it is a whole number ≥ ``least`` (odd if asked); UserError otherwise."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (odd and value % 2 == 0):
        kind = "an odd number" if odd else "a whole number"
        raise UserError(f"--{flag} {value}: takes {kind} of at least {least}")
    return value


def per_scale(flag: str, value: object, scales: int, least: int, *, odd: bool = False) -> list[int]:
    """One whole number for all scales, or a list of one a scale (outermost first), as a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * scales
    if len(values) != scales:
        raise UserError(f"--{flag} has {len(values)} values but --num_scales is {scales}")
    return [whole(flag, v, least, odd=odd) for v in values]


def activation(name: str) -> nn.Module:
    """The non-linearity called ``name``; the slope of LeakyReLU is 0.2."""
    return ACTIVATIONS[one_of("act_func", name, tuple(ACTIVATIONS))]()


def norm(name: str, channels: int) -> nn.Module:
    """``bn``: batch normalisation with weight and bias; ``instance``: without either."""
    return NORMS[one_of("norm_func", name, tuple(NORMS))](channels)


def output_range(need_sigmoid: bool, need_tanh: bool = False, need_relu: bool = False) -> nn.Module:
    """The last module: sigmoid to [0, 1], tanh to [-1, 1], ReLU to [0, ∞), or nothing."""
    asked = {"need_sigmoid": need_sigmoid, "need_tanh": need_tanh, "need_relu": need_relu}
    chosen = [flag for flag, on in asked.items() if on]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[1]} True with --{chosen[0]} True: only one of them can be True")
    if not chosen:
        return nn.Identity()
    made = {"need_sigmoid": nn.Sigmoid, "need_tanh": nn.Tanh, "need_relu": nn.ReLU}[chosen[0]]()
    return nn.Sequential(_Wide(), made)


class _Wide(nn.Module):
    """bfloat16 to float32: its own steps between 1/2 and 1 are those of a picture of 8 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.bfloat16 else x


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Pad [N, C, H, W] by reflection without repeating the edge, however small the map is.

    Where the padding is wider than the map the reflection goes to and fro; a side of one pixel
    is repeated. Everywhere else this is ``F.pad(mode="reflect")``.
    """
    while left or right or top or bottom:
        height, width = x.shape[-2:]
        pads = [min(left, width - 1), min(right, width - 1)]
        pads += [min(top, height - 1), min(bottom, height - 1)]
        if width == 1 and (left or right):
            x = _padded(x, (left, right, 0, 0), "replicate")
            left = right = 0
        elif height == 1 and (top or bottom):
            x = _padded(x, (0, 0, top, bottom), "replicate")
            top = bottom = 0
        else:
            x = _padded(x, pads, "reflect")
            left, right = left - pads[0], right - pads[1]
            top, bottom = top - pads[2], bottom - pads[3]
    return x


def _padded(x: Tensor, pads: Sequence[int], mode: str) -> Tensor:
    """``F.pad`` in x's own precision; autocast has the CPU do it in float32, casting to and fro."""
    with torch.autocast("cpu", enabled=False):
        return F.pad(x, pads, mode=mode)


class _Reflect(torch.autograd.Function):
    """``F.pad(mode="reflect")`` on all four sides, whose gradient takes a third of the time."""

    generate_vmap_rule = True  # several networks are run as one

    @staticmethod
    def forward(x: Tensor, width: int) -> Tensor:
        return _padded(x, (width,) * 4, "reflect")

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.width = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        w = ctx.width

        def folded(rows: Tensor) -> Tensor:
            inner = rows[..., w:-w].clone()
            inner[..., 1 : w + 1] += rows[..., :w].flip(-1)
            inner[..., -w - 1 : -1] += rows[..., -w:].flip(-1)
            return inner

        inner = folded(grad[..., w:-w, :])
        inner[..., 1 : w + 1, :] += folded(grad[..., :w, :].flip(-2))
        inner[..., -w - 1 : -1, :] += folded(grad[..., -w:, :].flip(-2))
        return inner, None


class ReflectPad(nn.Module):
    """The same ``reflect_pad`` on all four sides."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        # below that the few large copies are more trouble than the many small ones
        if x.device.type == "cpu" and 0 < self.width < min(x.shape[-2:]) and x.numel() >= 2**16:
            return _Reflect.apply(x, self.width)
        return reflect_pad(x, self.width, self.width, self.width, self.width)

    def extra_repr(self) -> str:
        return str(self.width)


def conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, pad: str = "zero"
) -> nn.Module:
    """Convolution with bias that keeps the size (``stride`` 1) or gives ceil(size / stride)."""
    edge = kernel // 2
    if kernel == 1 and stride == 1 and min(in_channels, out_channels) >= 64:
        # Dilation is nothing to one pixel, but has torch choose the faster kernel on one thread.
        return Convolution(in_channels, out_channels, 1, dilation=2)
    if one_of("pad", pad, PADS) == "zero" or edge == 0:
        return Convolution(in_channels, out_channels, kernel, stride, padding=edge)
    return nn.Sequential(ReflectPad(edge), Convolution(in_channels, out_channels, kernel, stride))


def centre_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the middle ``size`` out of [N, C, H, W]; a side that is smaller is left as it is."""
    height, width = (max(n - kept, 0) for n, kept in zip(x.shape[-2:], size, strict=True))
    return cut(x, width // 2, (width + 1) // 2, height // 2, (height + 1) // 2)


def cut(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Cut so many columns and rows off [N, C, H, W]; x itself where that is none.

    Padding by less than nothing, unlike a slice and its gradient, is dense and keeps channels_last,
    without which normalisation and interpolation take ten times as long.
    """
    pads = (-left, -right, -top, -bottom)
    return F.pad(x, pads) if any(pads) else x


def join(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two maps over channels, both cut to the smaller size about their middle."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return _Join.apply(centre_crop(a, size), centre_crop(b, size))


class _Join(torch.autograd.Function):
    """``torch.cat`` over channels whose gradients are whole maps, not slices of the joint one.

    In channels_last torch's gradient of interpolation takes twenty times as long for a slice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.channels = inputs[0].shape[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        # clones are dense, in the memory order of the whole
        return grad[:, : ctx.channels].clone(), grad[:, ctx.channels :].clone()
