"""Swin U-Net: attention in windows, going down by merging patches and up by a chosen upsampler.

Windows, their shift and the bias by relative position: Liu et al., "Swin Transformer" (ICCV 2021),
§3. The U around them: Cao et al., "Swin-Unet" (arXiv 2105.05537, 2021). As an untrained network,
with learnt and with unlearnt upsampling: Liu et al., "The Devil is in the Upsampling" (ICCV 2023).

Maps are tokens [N, H, W, C], which is what a channels_last [N, C, H, W] is in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from . import upsamplers
from .layers import BatchNorm, Size, output_range, per_scale, reflect_pad, whole
from .registry import register

EXPAND = "expand"  # the learnt upsampling of Swin-Unet, beside those of ``upsamplers``
SCALES = 4
PATCH = 4  # pixels a side of what becomes one token
MLP_RATIO = 4
APART = -1e4  # added to the logits of tokens that must not see each other: their weight is 0

SOURCE = (
    "Liu et al.: Swin Transformer, ICCV 2021; Cao et al.: Swin-Unet, 2021; run in Liu et al.: "
    "The Devil is in the Upsampling, ICCV 2023"
)
# lr, iterations, input and average of the transformer experiment of Liu et al. 2023
RECIPE = {
    "lr": 8e-4,
    "num_iters": 3000,
    "noise_type": "u",
    "input_scale": 0.2,
    "reg_noise_std": 1 / 50,
    "exp_weight": 0.99,
    "exp_start": 100,
    "loss_func": "mse",
}


class _Attend(torch.autograd.Function):
    """``attend`` on the CPU: keeps nothing of the size of the logits for its gradient.

    PyTorch's fused kernel for the CPU takes no bias that is learnt and falls back to a slower one.
    Here it is given the bias as a constant, and the backward pass computes the weights again from q
    and k, in float32 at least.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        return _fused(qkv, bias.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        batch, tokens, _, heads, width = qkv.shape
        wide = torch.promote_types(qkv.dtype, torch.float32)
        packed = qkv.permute(2, 0, 3, 1, 4).to(wide).reshape(3, batch * heads, tokens, width)
        q, k, v = packed
        grad = grad.transpose(1, 2).to(wide).reshape(v.shape)
        scale = width**-0.5
        logits = torch.empty(batch, *bias.shape[1:], dtype=wide, device=q.device).copy_(bias)
        logits = logits.flatten(0, 1).baddbmm_(q, k.transpose(1, 2), alpha=scale)
        weights = logits.softmax(-1)
        del logits
        grads = torch.empty_like(packed)
        torch.bmm(weights.transpose(1, 2), grad, out=grads[2])
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, wide)
        del weights, grad_weights
        # β = 0: scale · grad_logits k in one pass; what the first argument holds does not count
        torch.baddbmm(q, grad_logits, k, beta=0, alpha=scale, out=grads[0])
        torch.baddbmm(k, grad_logits.transpose(1, 2), q, beta=0, alpha=scale, out=grads[1])
        grads = grads.view(3, batch, heads, tokens, width).permute(1, 3, 0, 2, 4)
        grad_bias = grad_logits.view(batch, *bias.shape[1:]).sum_to_size(bias.shape)
        return grads.to(qkv.dtype), grad_bias.to(bias.dtype)


def _fused(qkv: Tensor, bias: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, width] each
    bias = bias.to(qkv.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √width + bias) v (Liu et al. 2021, equation 4), within each of B windows.

    qkv [B, T, 3, heads, width], bias [B or 1, heads, T, T] -> [B, T, heads, width].
    """
    return _Attend.apply(qkv, bias) if qkv.device.type == "cpu" else _fused(qkv, bias)


class Linear(nn.Linear):
    """[…, in_features] -> […, out_features]; of few tokens in float32 under the CPU's autocast.

    With few it is the weights that take the time, and half of that is casting them and their
    gradients at every step.
    """

    FEW = 32

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= self.FEW * x.shape[-1]
        if not (few and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class Axis:
    """How one axis of ``length`` tokens is cut into windows.

    ``window`` is at most the length. ``shift`` is half a window, or 0 where there is one window
    only, as in Swin. ``padded`` is the length that a whole number of windows has.
    """

    def __init__(self, length: int, window: int, shifted: bool):
        self.length = length
        self.window = min(window, length)
        self.count = math.ceil(length / self.window)
        self.padded = self.count * self.window
        self.shift = window // 2 if shifted and self.count > 1 else 0

    def regions(self) -> Tensor:
        """What each token belongs to after the cyclic shift, [count, window] whole numbers.

        Tokens of one window see each other if these are the same: 1 for those that the shift has
        carried over the edge, 2 for padding, 0 for all others.
        """
        at = torch.arange(self.padded).roll(-self.shift)
        carried = torch.arange(self.padded) >= self.padded - self.shift
        regions = torch.where(at >= self.length, 2, carried.long())
        return regions.view(self.count, self.window)


class WindowAttention(nn.Module):
    """Multi-head self-attention among the tokens of each window, [N, H, W, C] -> the same.

    Liu et al. 2021, §3.2: softmax(q kᵀ / √d + B) v with a learnt bias B for each head and relative
    position; ``shifted`` moves the windows by half a window. A map that is no whole number of
    windows is padded, and the padding masked. Where ``heads`` does not divide the channels, heads
    are ⌊channels / heads⌋ wide.
    """

    def __init__(self, channels: int, heads: int, size: Size, window: int, shifted: bool):
        super().__init__()
        self.heads = heads
        self.width = max(channels // heads, 1)
        self.rows, self.columns = (Axis(n, window, shifted) for n in size)
        self.qkv = Linear(channels, 3 * heads * self.width)
        self.project = Linear(heads * self.width, channels)
        # one column for each of the (2w - 1)² relative positions, whatever the map's size
        self.bias = nn.Parameter(torch.empty(heads, (2 * window - 1) ** 2))
        nn.init.normal_(self.bias, std=0.02)  # Swin cuts it off at ±2, a hundred deviations away
        self.register_buffer("index", self._index(window), persistent=False)
        self.register_buffer("mask", self._mask(), persistent=False)

    def _index(self, window: int) -> Tensor:
        """Which column of ``bias`` each pair of tokens of a window has, [T · T]."""
        y, x = (
            axis[:, None] - axis + window - 1
            for axis in (torch.arange(self.rows.window), torch.arange(self.columns.window))
        )
        return (y[:, None, :, None] * (2 * window - 1) + x[None, :, None, :]).flatten()

    def _mask(self) -> Tensor | None:
        """0 for pairs of tokens that see each other, else ``APART``: [windows, 1, T, T]."""
        axes = (self.rows, self.columns)
        if not any(axis.shift or axis.padded > axis.length for axis in axes):
            return None
        y, x = (axis.regions() for axis in axes)
        regions = 3 * y[:, None, :, None] + x[None, :, None, :]  # [ny, nx, wy, wx]
        regions = regions.flatten(2).flatten(0, 1)  # [windows, T]
        return ((regions[:, None, :, None] != regions[:, None, None, :]) * APART).float()

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, _ = x.shape
        rows, columns = self.rows, self.columns
        shift = (rows.shift, columns.shift)
        if rows.padded > h or columns.padded > w:
            x = F.pad(x, (0, 0, 0, columns.padded - w, 0, rows.padded - h))
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        tokens = rows.window * columns.window
        x = x.view(n, rows.count, rows.window, columns.count, columns.window, -1)
        x = x.transpose(2, 3).reshape(-1, tokens, x.shape[-1])  # [N·windows, T, C]
        bias = self.bias.index_select(1, self.index).view(1, self.heads, tokens, tokens)
        if self.mask is not None:
            bias = (bias + self.mask).repeat(n, 1, 1, 1)
        x = attend(self.qkv(x).unflatten(-1, (3, self.heads, self.width)), bias)
        x = self.project(x.flatten(2))
        x = x.view(n, rows.count, columns.count, rows.window, columns.window, -1)
        x = x.transpose(2, 3).reshape(n, rows.padded, columns.padded, -1)
        if any(shift):
            x = x.roll(shift, (1, 2))
        return x[:, :h, :w]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); [N, H, W, C] -> the same."""

    def __init__(self, channels: int, heads: int, size: Size, window: int, shifted: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, size, window, shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            Linear(channels, MLP_RATIO * channels),
            nn.GELU(),
            Linear(MLP_RATIO * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Patch merging, Liu et al. 2021, §3.1: 2×2 tokens become one of twice the channels.

    [N, H, W, C] -> [N, H/2, W/2, 2C].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)
        return self.reduce(self.norm(x))


def shuffle(x: Tensor, factor: int) -> Tensor:
    """Spread channels over pixels, [N, H, W, factor²·C] -> [N, factor·H, factor·W, C]."""
    n, h, w, _ = x.shape
    x = x.view(n, h, w, factor, factor, -1).transpose(2, 3)
    return x.reshape(n, factor * h, factor * w, -1)


class Expand(nn.Module):
    """Patch expanding, Cao et al. 2021, §3: [N, H, W, C] -> [N, factor·H, factor·W, out]."""

    def __init__(self, channels: int, out: int, factor: int):
        super().__init__()
        self.factor = factor
        self.expand = Linear(channels, factor**2 * out, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(shuffle(self.expand(x), self.factor))


class Upsample(nn.Module):
    """``mix``, then an upsampler by name and BN: [N, H, W, C] -> [N, 2H, 2W, out].

    Liu et al. 2023: what expanding learns is left to a fixed filter. With ``factor`` 4 the channels
    are shuffled into a map of twice the size before.
    """

    def __init__(self, channels: int, out: int, factor: int, mode: str):
        super().__init__()
        self.before = factor // 2
        # a bias before batch normalisation does nothing, unless each pixel of a patch has its own
        self.mix = Linear(channels, self.before**2 * out, bias=self.before > 1)
        self.upsample = upsamplers.make(mode, out, align_corners=True)
        self.norm = BatchNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        if self.before > 1:
            x = shuffle(x, self.before)
        return self.norm(self.upsample(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def grow(channels: int, out: int, factor: int, mode: str) -> nn.Module:
    """What enlarges a map by ``factor``, 2 or 4: expanding, or an upsampler by name."""
    if mode == EXPAND:
        return Expand(channels, out, factor)
    return Upsample(channels, out, factor, mode)


class SwinUNet(nn.Module):
    """[N, in_channels, H, W] -> [N, out_channels, H, W], any H and W.

    The input is padded by reflection to whole patches at every scale, and the output cut back.
    Scale i has 2^i · ``width`` channels. What goes into a scale on the way down is joined to what
    comes back to its size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Size,
        *,
        width: int,
        depths: list[int],
        heads: list[int],
        window: int,
        mode: str,
        output: nn.Module,
    ):
        super().__init__()
        step = PATCH * 2 ** (SCALES - 1)
        self.padding = tuple(-n % step for n in size)
        sizes = [
            tuple((n + p) // (PATCH * 2**i) for n, p in zip(size, self.padding, strict=True))
            for i in range(SCALES)
        ]

        def blocks(i: int) -> nn.Module:
            made = [Block(width << i, heads[i], sizes[i], window, bool(j % 2))
                    for j in range(depths[i])]  # fmt: skip
            return nn.Sequential(*made)

        self.embed = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)
        self.embed_norm = nn.LayerNorm(width)
        self.down = nn.ModuleList(blocks(i) for i in range(SCALES))
        self.merge = nn.ModuleList(Merge(width << i) for i in range(SCALES - 1))
        self.bottom_norm = nn.LayerNorm(width << (SCALES - 1))
        self.grow = nn.ModuleList(
            grow(2 * width << i, width << i, 2, mode) for i in range(SCALES - 1)
        )
        self.join = nn.ModuleList(Linear(2 * width << i, width << i) for i in range(SCALES - 1))
        self.up = nn.ModuleList(blocks(i) for i in range(SCALES - 1))
        self.top_norm = nn.LayerNorm(width)
        self.last = nn.Sequential(
            grow(width, width, PATCH, mode), Linear(width, out_channels, bias=False)
        )
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        height, width = z.shape[-2:]
        bottom, right = self.padding
        z = reflect_pad(z, 0, right, 0, bottom)
        x = self.embed_norm(self.embed(z).permute(0, 2, 3, 1))
        joined = []
        for blocks, merge in zip(self.down, self.merge, strict=False):
            joined.append(x)
            x = merge(blocks(x))
        x = self.bottom_norm(self.down[-1](x))
        for i in reversed(range(len(joined))):
            x = self.join[i](torch.cat([self.grow[i](x), joined[i]], dim=-1))
            x = self.up[i](x)
        x = self.last(self.top_norm(x)).permute(0, 3, 1, 2)
        return self.output(x[..., :height, :width])


def _per_scale(flag: str, value: int | list[int]) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * SCALES
    if len(values) != SCALES:
        raise UserError(f"--{flag} has {len(values)} values: give one, or {SCALES}, finest first")
    return per_scale(flag, values, SCALES, 1)


def swin(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    dim: int,
    depth: int | list[int],
    num_heads: int | list[int],
    window_size: int,
    upsample_mode: str,
    need_sigmoid: bool,
) -> nn.Module:
    """The network of both names; ``upsample_mode`` may be ``expand`` or any upsampler."""
    if tuple(in_size) != tuple(out_size):
        raise UserError(
            f"a Swin U-Net takes an input of the picture's size {out_size[0]}×{out_size[1]}, "
            f"not {in_size[0]}×{in_size[1]}"
        )
    if upsample_mode != EXPAND:
        upsample_mode = upsamplers.get(upsample_mode).name
    if upsample_mode == "None":
        raise UserError("--upsample_mode None: only decoders can leave it out; choose an upsampler")
    return SwinUNet(
        in_channels,
        out_channels,
        tuple(out_size),
        width=whole("dim", dim, 1),
        depths=_per_scale("depth", depth),
        heads=_per_scale("num_heads", num_heads),
        window=whole("window_size", window_size, 1),
        mode=upsample_mode,
        output=output_range(need_sigmoid),
    )


@register(
    "Swin_upsample",
    summary="Swin U-Net that goes up by an unlearnt upsampler, as transformer-DIP",
    source=SOURCE,
    recipe=RECIPE,
)
def swin_upsample(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    dim: int = 108,
    depth: int | list[int] = 1,
    num_heads: int | list[int] = (4, 8, 8, 6),
    window_size: int = 8,
    upsample_mode: str = "bilinear",
    need_sigmoid: bool = True,
) -> nn.Module:
    """Each way up halves the channels by a linear layer, then doubles the map, then BN.

    depth, num_heads
        Blocks a scale, every second one with shifted windows, and heads of each; lists give one
        value a scale, finest first, the same going down and up.
    """
    return swin(**locals())


@register(
    "Swin_expand",
    summary="Swin U-Net that goes up by learnt patch expanding, as Swin-Unet",
    source=SOURCE,
    fixed={"upsample_mode": EXPAND},
    recipe=RECIPE,
)
def swin_expand(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    dim: int = 96,
    depth: int | list[int] = 1,
    num_heads: int | list[int] = 4,
    window_size: int = 8,
    need_sigmoid: bool = True,
) -> nn.Module:
    """As ``Swin_upsample``, but a linear layer to four times the channels is spread over pixels."""
    return swin(**locals(), upsample_mode=EXPAND)
