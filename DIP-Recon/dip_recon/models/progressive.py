"""The network of PG-DIP: skip-UNet whose outermost scales can be added while it is being fitted.

Sidorenko, "Progressively Grown Deep Image Prior" (master's thesis, EPFL 2018) after Karras et al.,
"Progressive Growing of GANs" (ICLR 2018). At its last level it is a network like any other; the
schedule in ``growing`` sets ``level`` and ``alpha`` on the way there.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Size, activation, conv, join, norm, output_range, per_scale, whole
from .registry import register


class Level(nn.Module):
    """What one level adds: an encoder, a skip branch, a decoder, and its way in and out.

    ``inner`` and ``outer`` are the channels inside and at this level; maps at this level are
    [N, outer, h, w], those inside [N, inner, ⌈h/2⌉, ⌈w/2⌉].
    """

    def __init__(
        self, in_channels: int, out_channels: int, inner: int, outer: int, skip: int, output
    ):
        super().__init__()

        def block(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
            convolution = conv(cin, cout, kernel, stride=stride, pad="reflection")
            return [convolution, norm("bn", cout), activation("LeakyReLU")]

        self.from_rgb = nn.Sequential(*block(in_channels, outer, 1))
        self.encoder = nn.Sequential(*block(outer, inner, stride=2), *block(inner, inner))
        self.skip = nn.Sequential(*block(inner, skip, 1)) if skip else None
        self.norm = norm("bn", inner + skip)
        self.decoder = nn.Sequential(
            *block(inner + skip, outer), *block(outer, outer), *block(outer, outer, 1)
        )
        self.to_rgb = nn.Sequential(conv(outer, out_channels, 1), output)

    def decode(self, encoded: Tensor, inside: Tensor, size: Size) -> Tensor:
        """The level's features at ``size`` from what came out of its encoder and out of inside."""
        if self.skip is not None:
            inside = join(inside, self.skip(encoded))
        return self.decoder(self.norm(_resize(inside, size)))


def _resize(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class ProgressiveSkip(nn.Module):
    """[N, in_channels, H, W] to [N, out_channels, H, W] at the present ``level`` and ``alpha``.

    Levels count from 1, the coarsest, to ``len(levels)``; the body of level l halves the map l
    times. While ``alpha`` is below 1 the way in and the way out of the level are blended with those
    of the level below, on pooled input and enlarged output.
    """

    def __init__(self, levels: list[Level]):
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.level, self.alpha = len(levels), 1.0

    def _body(self, level: int, x: Tensor) -> Tensor:
        """Features at x's size, [N, outer, h, w] -> the same; nothing at level 0."""
        if level == 0:
            return x
        this = self.levels[level - 1]
        encoded = this.encoder(x)
        return this.decode(encoded, self._body(level - 1, encoded), x.shape[-2:])

    def forward(self, z: Tensor) -> Tensor:
        top = self.levels[self.level - 1]
        h = top.from_rgb(z)
        if self.alpha >= 1 or self.level == 1:
            return top.to_rgb(self._body(self.level, h))
        below = self.levels[self.level - 2]
        encoded = top.encoder(h)
        pooled = below.from_rgb(F.avg_pool2d(z, 2, ceil_mode=True))
        encoded = self.alpha * encoded + (1 - self.alpha) * pooled
        inside = self._body(self.level - 1, encoded)
        new = top.to_rgb(top.decode(encoded, inside, z.shape[-2:]))
        old = _resize(below.to_rgb(inside), z.shape[-2:])
        return self.alpha * new + (1 - self.alpha) * old


@register(
    "PG_DIP",
    summary="skip-UNet that can be grown level by level (--growing True)",
    source="Sidorenko: Progressively Grown Deep Image Prior, master's thesis, EPFL 2018",
)
def pg_dip(
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    num_scales: int | None = None,
    dim: int | list[int] = 128,
    skip_dim: int | list[int] = 4,
    need_sigmoid: bool = True,
) -> nn.Module:
    """``num_scales`` levels, by default 5 or as many as leave 4 pixels a side at the bottom.

    Widths are given outermost first, as for the skip-UNet.
    """
    fit = max(min(5, int(math.log2(max(min(out_size), 8) / 4))), 1)
    scales = fit if num_scales is None else whole("num_scales", num_scales, 1)
    widths = per_scale("dim", dim, scales, 1)[::-1]
    skips = per_scale("skip_dim", skip_dim, scales, 0)[::-1]
    inner = [widths[0], *widths[:-1]]
    levels = [
        Level(in_channels, out_channels, a, b, s, output_range(need_sigmoid))
        for a, b, s in zip(inner, widths, skips, strict=True)
    ]
    return ProgressiveSkip(levels)
