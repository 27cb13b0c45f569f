"""A 3×3 convolution after an unlearnt doubling of the map, in a quarter of its products.

Unlearnt upsampling is zero insertion and a low-pass filter (Liu et al. 2023, §4). The filter is the
same for every channel, so that it may as well come after the convolution; and a convolution after
zero insertion is a transposed one, which leaves the products with zeros out. Batch normalisation in
between is done on the small map, by the mean and variance of the doubled one. All of it is what it
stands for but for rounding.

Maps are [N, C, H, W], doubled ones [N, C, 2H, 2W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .layers import BatchNorm, Size, plain_float32
from .upsamplers import Interpolate

# The filter after zero insertion, along one axis.
TAPS = {"nearest": (1.0, 1.0), "bilinear": (0.25, 0.75, 0.75, 0.25)}
# Products of a map with one tap; with fewer the small steps around it cost more than is saved.
LEAST = {"nearest": 2**20, "bilinear": 2**22}


def possible(
    x: Tensor, size: Size, upsample: nn.Module, norm: nn.Module | None, mix: nn.Module
) -> bool:
    """Whether ``decoded`` can do it: in float32 on the CPU, for an even ``size``.

    mix: a convolution that keeps the size, as ``layers.conv`` makes it.
    """
    fixed = isinstance(upsample, Interpolate) and not upsample.align_corners
    conv = mix[-1] if isinstance(mix, nn.Sequential) else mix
    return (
        fixed
        and upsample.mode in TAPS
        and conv.kernel_size == (3, 3)
        and tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1])
        and min(x.shape[-2:]) > 1
        and x.numel() * conv.out_channels >= LEAST[upsample.mode]
        and (norm is None or (isinstance(norm, BatchNorm) and norm.training))
        and len(x) == 1
        and plain_float32(x)
    )


def decoded(
    x: Tensor, mode: str, norm: BatchNorm | None, mix: nn.Module, beside: Tensor | None = None
) -> Tensor:
    """``mix(norm(join(beside, doubled x)))`` without the doubled x.

    mode: how to double, of ``TAPS``. beside: [1, S, 2H, 2W] or None.
    """
    if norm is not None:
        x, beside = normalised(norm, x, mode, beside)
    return convolved(x, mode, mix, beside)


def normalised(
    norm: BatchNorm, x: Tensor, mode: str, beside: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """x so that its doubled map is what ``norm`` makes of that; and ``beside`` [1, S, 2H, 2W].

    norm: in training, of S + C channels, those of ``beside`` first.
    """
    parts = [norm.num_features - x.shape[1], x.shape[1]]
    weights, biases = norm.weight.split(parts), norm.bias.split(parts)
    x, *moments = _Normalised.apply(x, weights[1], biases[1], norm.eps, mode)
    if beside is not None:
        beside, *first = norm.of_one(beside, weights[0], biases[0])
        moments = [torch.cat(pair) for pair in zip(first, moments, strict=True)]
    norm.remember(*moments, 4 * x.shape[2] * x.shape[3])
    return x, beside


def convolved(x: Tensor, mode: str, mix: nn.Module, beside: Tensor | None = None) -> Tensor:
    """``mix`` of the doubled x, or of ``beside`` [1, S, 2H, 2W] and the doubled x, joined."""
    pad, conv = mix if isinstance(mix, nn.Sequential) else (None, mix)
    count = conv.in_channels - x.shape[1]
    of_beside, weight = conv.weight.split([count, x.shape[1]], dim=1)
    kernel = weight.transpose(0, 1).flip(2, 3)
    if mode == "nearest":  # goes on beyond the edge as the padding does
        around = F.pad(x, (1, 1, 1, 1), "replicate" if pad else "constant")
        edges = ()
    else:  # goes on as the map ends, and what the padding has else comes by itself
        around, rows, columns = _Around.apply(x)
        edges = (
            _edges(rows, weight, "replicate", reflect=bool(pad)),
            _edges(columns, weight.mT, "reflect" if pad else "constant", reflect=bool(pad)),
        )
    spread = F.conv_transpose2d(around, kernel, stride=2, padding=3 - len(TAPS[mode]) // 2)
    y = _Filtered.apply(spread, conv.bias, mode, *edges)
    if beside is None:
        return y
    return y + F.conv2d(pad(beside) if pad else beside, of_beside, padding=conv.padding)


def _edges(ends: Tensor, weight: Tensor, around: str, reflect: bool) -> Tensor:
    """What the first and the last row have from one pixel beyond the bilinearly doubled map.

    ends: [1, 4, C, W], the rows 0, 1, -2 and -1 of the map. around: how the line of pixels beyond
    goes on at its ends. reflect: whether it reflects, else it is zero. Returns [1, 2·O, 2W], less
    what the rows have from a map that goes on as it ends: of the first row, and of the last.
    """
    outer = ends[:, ::3]
    beyond = (ends[:, 1:3] - outer) / 4 if reflect else -outer
    line = F.interpolate(beyond[0], scale_factor=2, mode="linear")
    line = F.pad(line, (1, 1), around).flatten(0, 1)[None]
    return F.conv1d(line, torch.cat((weight[:, :, 0], weight[:, :, 2])), groups=2)


class _Normalised(torch.autograd.Function):
    """Batch normalisation of a map by the moments of the doubled one.

    The mean is the map's own. The mean square is the mean of the map times itself filtered: by the
    doubling's filter to and fro, which for the bilinear one is 3/16, 10/16, 3/16 along each axis.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, mode: str):
        mean = x.mean((0, 2, 3))
        centred = x - mean[:, None, None]
        filtered = centred if mode == "nearest" else _to_and_fro(centred)
        variance = (centred * filtered).mean((0, 2, 3))
        scale = weight * (variance + eps).rsqrt()
        y = torch.addcmul(bias[:, None, None], centred, scale[:, None, None])
        return y, mean, variance

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, _, ctx.eps, ctx.mode = inputs
        _, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(x, weight, mean, variance)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, variance = ctx.saved_tensors
        centred = x - mean[:, None, None]
        filtered = centred if ctx.mode == "nearest" else _to_and_fro(centred)
        rstd = (variance + ctx.eps).rsqrt()
        total, correlated = grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))
        count = x.numel() // len(mean)
        scale = weight * rstd
        turn = -scale * rstd.square() * correlated / count
        shift = -scale * total / count
        inner = torch.addcmul(shift[:, None, None], filtered, turn[:, None, None])
        inner = torch.addcmul(inner, grad, scale[:, None, None])
        return inner, rstd * correlated, total, None, None


def _to_and_fro(x: Tensor) -> Tensor:
    """x filtered by 3/16, 10/16, 3/16 along both axes; beyond the edge it goes on as it ends."""
    channels = x.shape[1]
    line = x.new_tensor([3 / 16, 10 / 16, 3 / 16])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), kernel, groups=channels)


class _Around(torch.autograd.Function):
    """x with a pixel more on all sides, as it ends; and its rows and columns 0, 1, -2, -1.

    [1, C, H, W] -> [1, C, H + 2, W + 2], [1, 4, C, W], [1, 4, C, H].
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor):
        rows = [x.select(2, n) for n in (0, 1, -2, -1)]
        columns = [x.select(3, n) for n in (0, 1, -2, -1)]
        around = F.pad(x, (1, 1, 1, 1), "replicate")
        return around, torch.stack(rows, 1), torch.stack(columns, 1)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Nothing is needed."""

    @staticmethod
    def backward(ctx, grad: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        def folded(lines: Tensor) -> Tensor:
            inner = lines[..., 1:-1].clone()
            inner[..., 0] += lines[..., 0]
            inner[..., -1] += lines[..., -1]
            return inner

        inner = folded(grad[:, :, 1:-1])
        inner[:, :, 0] += folded(grad[:, :, 0])
        inner[:, :, -1] += folded(grad[:, :, -1])
        for k, n in enumerate((0, 1, -2, -1)):
            inner[:, :, n] += rows[:, k]
            inner[..., n] += columns[:, k]
        return inner


class _Filtered(torch.autograd.Function):
    """The doubling's filter over what the transposed convolution has spread, and the edges' share.

    [1, O, 2H + k - 1, 2W + k - 1] -> [1, O, 2H, 2W] with k taps.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(spread: Tensor, bias: Tensor, mode: str, rows=None, columns=None) -> Tensor:
        y = F.conv2d(spread, _kernel(spread, mode), bias, groups=len(bias))
        if rows is not None:
            for n, row, column in zip((0, -1), rows.chunk(2, 1), columns.chunk(2, 1), strict=True):
                y[:, :, n] += row
                y[..., n] += column
        return y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mode, ctx.edges = inputs[2], len(inputs) > 3 and inputs[3] is not None

    @staticmethod
    def backward(ctx, grad: Tensor):
        kernel = _kernel(grad, ctx.mode)  # symmetric
        spread = F.conv2d(grad, kernel, padding=kernel.shape[-1] - 1, groups=grad.shape[1])
        edges = (None, None)
        if ctx.edges:
            edges = (
                torch.cat((grad[:, :, 0], grad[:, :, -1]), 1),
                torch.cat((grad[..., 0], grad[..., -1]), 1),
            )
        return spread, grad.sum((0, 2, 3)), None, *edges


def _kernel(like: Tensor, mode: str) -> Tensor:
    """The filter as a depthwise kernel [O, 1, k, k]."""
    line = like.new_tensor(TAPS[mode])
    return torch.outer(line, line).expand(like.shape[1], 1, len(line), len(line))
