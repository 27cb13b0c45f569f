"""What is computed another way for speed is what it stands for: outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dip_recon.models import build, upsamplers
from dip_recon.models.decoders import Block, NearestBlock
from dip_recon.models.layers import BatchNorm, ReflectPad


def answers(work, x, *parameters):
    """``work``'s output, and the gradients of a weighted sum of it."""
    x = x.clone().requires_grad_()
    y = work(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return y.detach(), *torch.autograd.grad((weights * y).sum(), (x, *parameters))


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        most = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=max(1e-5 * most, 1e-6))


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 5, 12, 9), (1, 5, 2, 3), (2, 5, 6, 6)])
def test_batch_norm(shape):
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    for norm in (ours, theirs):
        norm.weight.data, norm.bias.data = rand(5) + 0.5, rand(5)
    for n in range(3):
        x = rand(*shape) * (n + 1)
        assert_alike(answers(ours, x, *ours.parameters()), answers(theirs, x, *theirs.parameters()))
    assert_alike(ours.buffers(), theirs.buffers())
    x = rand(1, 5, 4, 4)
    assert_alike([ours.eval()(x)], [theirs.eval()(x)])


def test_batch_norm_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(3)(torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("width", [1, 3])
def test_reflection(width):
    x = rand(1, 16, 72, 64)  # large enough to go the other way
    expected = answers(lambda x: F.pad(x, (width,) * 4, mode="reflect"), x)
    assert_alike(answers(ReflectPad(width), x), expected)


@pytest.mark.parametrize("shape", [(1, 8, 64, 65), (2, 32, 32, 32), (1, 2, 5, 4)])
def test_bilinear_doubling(shape):
    x = rand(*shape)
    expected = answers(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), x)
    assert_alike(answers(upsamplers.make("bilinear", shape[1]), x), expected)


@pytest.mark.parametrize("size", [(14, 10), (13, 10)])
def test_convolution_after_nearest_upsampling(size):
    parts = (
        nn.Identity(),
        upsamplers.make("nearest", 3),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
        size,
    )
    ours, plain = NearestBlock(*parts), Block(*parts)
    x = rand(1, 3, 7, 5)
    assert_alike(answers(ours, x, *ours.parameters()), answers(plain, x, *plain.parameters()))


def test_a_progressive_decoder_takes_it():
    sizes = {"in_size": (1, 1), "out_size": (32, 32)}
    network = build("ConvDecoder", in_channels=4, out_channels=3, dim=4, **sizes)
    assert isinstance(network[0], NearestBlock)
