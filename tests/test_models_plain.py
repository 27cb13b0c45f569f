"""The networks once more, as plain calls straight from the descriptions, compared with the package.

The plain formulations read the weights in the order in which they are used.
"""

import math
from itertools import pairwise

import pytest
import torch
from test_models import make
from torch.nn import functional as F

from dip_recon import models


class Plain:
    def __init__(self, network, slope=0.0):
        self.weights = iter(network.parameters())
        self.slope = slope

    def conv(self, x, kernel, stride=1, bias=True, pad="constant"):
        w, b = next(self.weights), next(self.weights) if bias else None
        assert w.shape[-1] == kernel
        return F.conv2d(F.pad(x, (kernel // 2,) * 4, mode=pad), w, b, stride=stride)

    def bn(self, x):
        return F.batch_norm(x, None, None, next(self.weights), next(self.weights), training=True)

    def act(self, x):
        return F.leaky_relu(x, self.slope)

    def done(self, x):
        assert next(self.weights, None) is None
        return torch.sigmoid(x)


def plain_skip_unet(network, z, scales, skips, slope, pad, size=None):
    """With ``size`` the last upsampling goes there; without, every scale cuts to its own size."""
    p = Plain(network, slope)

    def scale(x, i):
        if skips[i]:
            s = p.act(p.bn(p.conv(x, 1)))
        y = p.act(p.bn(p.conv(x, 3, stride=2, pad=pad)))
        y = p.act(p.bn(p.conv(y, 3, pad=pad)))
        if i + 1 < scales:
            y = scale(y, i + 1)
        target = size if i == 0 and size else (2 * y.shape[2], 2 * y.shape[3])
        y = F.interpolate(y, size=target, mode="bilinear")
        if skips[i]:
            y = torch.cat([s, y[..., : s.shape[2], : s.shape[3]]], 1)
        elif not size:
            y = y[..., : x.shape[2], : x.shape[3]]
        y = p.act(p.bn(p.conv(p.bn(y), 3, pad=pad)))
        return p.act(p.bn(p.conv(y, 1)))

    return p.done(p.conv(scale(z, 0), 1))


def plain_decoder(network, z, sizes, kind, mode, taps=None):
    p = Plain(network)

    def grow(x, size):
        if mode == "None":
            return x
        if mode == "transposed":
            w, b = next(p.weights), next(p.weights)
            return F.conv_transpose2d(x, w, b, stride=2)[..., : size[0], : size[1]]
        if taps is not None:
            c, k = x.shape[1], len(taps)
            grid = x.new_zeros(1, c, 2 * x.shape[2], 2 * x.shape[3])
            grid[..., ::2, ::2] = x
            before, after = (k - 1) // 2, k - 1 - (k - 1) // 2
            grid = F.pad(grid, (before, after, before, after), mode="reflect")
            kernel = 4 * torch.outer(taps, taps).expand(c, 1, k, k)
            return F.conv2d(grid, kernel, groups=c)[..., : size[0], : size[1]]
        aligned = None if mode == "nearest" else kind == "DD"
        return F.interpolate(x, size=size, mode=mode, align_corners=aligned)

    x = z
    for size in sizes:
        if kind == "DD":
            x = p.bn(torch.relu(grow(p.conv(x, 1, bias=False), size)))
        elif kind == "ConvDecoder":
            x = p.bn(torch.relu(p.conv(grow(x, size), 3)))
        else:
            x = p.bn(torch.relu(grow(p.conv(x, 3), size)))
    kernel, bias = (1, False) if kind == "DD" else (3, True)
    x = p.bn(torch.relu(p.conv(x, kernel, bias=bias)))
    return p.done(p.conv(x, 1, bias=bias))


def perturb(network):
    """Move the normalisations off weight 1 and bias 0, or an exchange of them would not show."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 1:
                p.add_(0.4 * torch.rand(p.shape, generator=generator) - 0.2)


@pytest.mark.parametrize("size", [(64, 48), (100, 75)])
def test_dip_orig_against_the_plain_formulation(size):
    network, z = make("DIP_orig", 3, size)
    perturb(network)
    plain = plain_skip_unet(network, z, 5, [4] * 5, 0.2, "reflect")
    # in five scales rounding grows: either is up to 1.7e-5 away from the same in float64
    assert (network(z) - plain).abs().max() < 4e-5
    network, z = network.double(), z.double()
    plain = plain_skip_unet(network, z, 5, [4] * 5, 0.2, "reflect")
    assert (network(z) - plain).abs().max() < 1e-12


@pytest.mark.parametrize("skips", [[0, 0, 0], [0, 4, 4], [4, 4, 4]])
def test_skip_against_the_plain_formulation(skips):
    network, z = make("skip", 1, (43, 36), num_scales=3, dim=12, skip_dim=skips)
    perturb(network)
    plain = plain_skip_unet(network, z, 3, skips, 0.2, "reflect")
    assert (network(z) - plain).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(64, 96), (77, 51)])
@pytest.mark.parametrize("skips", [0, 1, 2])
def test_dip_2_scaled_against_the_plain_formulation(size, skips):
    network, z = make("DIP_2_scaled", 3, size, dim=32, num_skips=skips)
    perturb(network)
    have = [0] * (2 - skips) + [4] * skips
    plain = plain_skip_unet(network, z, 2, have, 0.0, "constant", size=size)
    assert (network(z) - plain).abs().max() < 1e-5


def sizes_between(in_size, out_size, layers):
    steps = layers - 1
    return [
        tuple(
            math.ceil(round((b / a) ** (n / steps) * a, 6))
            for a, b in zip(in_size, out_size, strict=True)
        )
        for n in range(1, steps)
    ] + [out_size]


@pytest.mark.parametrize("name", ["DD", "ConvDecoder", "ConvDecoder_LPF"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "transposed", "None", "LPF1", "LPF5"])
@pytest.mark.parametrize("size", [(96, 160), (100, 75)])
def test_decoders_against_the_plain_formulation(name, mode, size):
    if mode == "LPF5":
        size = (size[0] + 160, size[1] + 224)  # plain reflection needs the room
    network, z = make(name, 3, size, mode != "None", dim=16, upsample_mode=mode)
    perturb(network)
    sizes = sizes_between(tuple(z.shape[2:]), size, 6)
    plain = plain_decoder(network, z, sizes, name, mode, models.upsamplers.taps(mode))
    assert (network(z) - plain).abs().max() < 1e-5


def test_layer_sizes():
    sizes = models.decoders.layer_sizes
    assert sizes((8, 16), (256, 512), 6) == [(16, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    assert sizes((4, 3), (100, 75), 6) == sizes_between((4, 3), (100, 75), 6)
    for height in range(1, 400):
        start = -(-height // 32)
        sides = [start, *(h for h, _ in sizes((start, 1), (height, 1), 6))]
        assert sides[-1] == height and all(b <= 2 * a for a, b in pairwise(sides))
