"""What is computed another way for speed is what it stands for: outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dip_recon.models import build, doubling, layers, upsamplers
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


@pytest.fixture
def any_size(monkeypatch):
    """Small maps are doubled as large ones are, in float64 too; which is noted."""
    seen = []
    monkeypatch.setattr(doubling, "plain_float32", lambda x: True)
    shorter = doubling.decoded
    monkeypatch.setattr(doubling, "LEAST", dict.fromkeys(doubling.TAPS, 0))
    monkeypatch.setattr(doubling, "decoded", lambda *a: seen.append(a) or shorter(*a))
    return seen


@pytest.mark.parametrize("mode", doubling.TAPS)
@pytest.mark.parametrize("pad", ["zero", "reflection"])
@pytest.mark.parametrize(("size", "skip"), [((9, 12), 0), ((9, 12), 3), ((2, 7), 3), ((8, 3), 0)])
def test_convolution_after_doubling(any_size, mode, pad, size, skip):
    doubled = (2 * size[0], 2 * size[1])
    upsample, mix = upsamplers.make(mode, 5), layers.conv(5 + skip, 4, 3, pad=pad).double()
    x = 3 * rand(1, 5, *size).double() + 1
    beside = rand(1, skip, *doubled).double() if skip else None
    found = []
    for shorter in (True, False):
        norm = BatchNorm(5 + skip).double()
        norm.weight.data, norm.bias.data = rand(2, 5 + skip).double() + 0.5

        def work(x, norm=norm, shorter=shorter):
            if shorter:
                assert doubling.possible(x, doubled, upsample, norm, mix)
                return doubling.decoded(x, mode, norm, mix, beside)
            y = upsample(x)
            return mix(norm(layers.join(beside, y) if skip else y))

        found.append((*answers(work, x, *norm.parameters(), *mix.parameters()), *norm.buffers()))
    assert_alike(*found)


@pytest.mark.parametrize("of", [(19, 24), (18, 25)], ids=["odd height", "odd width"])
def test_only_what_is_doubled_exactly_goes_the_shorter_way(any_size, of):
    x, upsample = rand(1, 5, 9, 12), upsamplers.make("bilinear", 5)
    norm, mix = BatchNorm(5), layers.conv(5, 4, 3)
    assert doubling.possible(x, (18, 24), upsample, norm, mix)
    assert not doubling.possible(x, of, upsample, norm, mix)
    assert not doubling.possible(x, (18, 24), upsample, norm.eval(), mix)
    assert not doubling.possible(x, (18, 24), upsample, None, layers.conv(5, 4, 5))
    for other in (upsamplers.make("bicubic", 5), upsamplers.make("bilinear", 5, True)):
        assert not doubling.possible(x, (18, 24), other, None, mix)


def _settings(name):
    """Two networks of this name with the same weights, and an input."""
    sizes = {"in_size": (64, 96), "out_size": (64, 96)}
    pair = [
        build(
            name, in_channels=4, out_channels=3, **sizes, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    return *pair, rand(1, 4, 64, 96)


@pytest.mark.parametrize("name", ["DIP_orig", "skip", "DIP_2_scaled", "reproduction_unet"])
def test_networks_take_it_and_are_what_they_were(any_size, monkeypatch, name):
    ours, plain, z = _settings(name)
    found = answers(ours, z)
    assert any_size
    monkeypatch.setattr(doubling, "possible", lambda *_: False)
    assert_alike(found[:1], answers(plain, z)[:1])


def test_a_progressive_decoder_takes_it(any_size):
    sizes = {"in_size": (2, 2), "out_size": (64, 64)}
    network = build("ConvDecoder", in_channels=4, out_channels=3, dim=4, **sizes)
    network(rand(1, 4, 2, 2))
    assert len(any_size) == 5
