"""What is computed another way for speed is what it stands for: outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_batch_norms_of_several_networks_at_once(dtype):
    """torch refuses them for 16 bits in the default layout."""
    norms = [BatchNorm(4) for _ in range(2)]
    for n, norm in enumerate(norms):
        nn.init.constant_(norm.weight, 1.0 + n)
    parameters, buffers = stack_module_state(norms)
    call = lambda p, b, x: functional_call(norms[0], (p, b), (x,))  # noqa: E731
    x = torch.rand(2, 1, 4, 8, 8).to(dtype)
    found = vmap(call)(parameters, buffers, x)
    found.float().square().mean().backward()
    for norm, one, y in zip(norms, x, found, strict=True):
        torch.testing.assert_close(y, norm(one.float()).to(dtype))


def test_batch_norm_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(3)(torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("width", [1, 3])
def test_reflection(width):
    x = rand(1, 16, 72, 64)  # large enough to go the other way
    expected = answers(lambda x: F.pad(x, (width,) * 4, mode="reflect"), x)
    assert_alike(answers(ReflectPad(width), x), expected)


@pytest.mark.parametrize("side", [72, 5, 1])
def test_reflection_in_bfloat16_is_not_cast(side):
    """autocast would have it done in float32, in twice the memory."""
    x = rand(1, 16, side, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = ReflectPad(1)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layers.reflect_pad(x.float(), 1, 1, 1, 1).bfloat16())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_joined_maps_have_whole_gradients(order):
    a, b = (rand(1, n, 6, 8).to(memory_format=order).requires_grad_() for n in (3, 5))
    y = layers.join(a[..., 1:], b)
    weights = rand(*y.shape).to(memory_format=order)
    found = torch.autograd.grad((weights * y).sum(), (a, b))
    cut = torch.cat([a[..., 1:], b[..., :-1]], dim=1)
    assert torch.equal(y, cut) and y.is_contiguous(memory_format=order)
    for ours, theirs in zip(found, torch.autograd.grad((weights * cut).sum(), (a, b)), strict=True):
        assert torch.equal(ours, theirs)
    seen, b = [], rand(1, 5, 6, 7).to(memory_format=order).requires_grad_()
    b.register_hook(seen.append)
    layers.join(a[..., 1:], b).backward(weights)
    assert seen[-1].is_contiguous(memory_format=order)


def test_cuts_are_dense_in_the_order_of_the_map_and_so_are_their_gradients():
    """Of slices neither is, and normalisation and interpolation take ten times as long."""
    x = rand(1, 4, 6, 9).to(memory_format=torch.channels_last).requires_grad_()
    seen = []
    x.register_hook(seen.append)
    for size in ((5, 7), (6, 8), (3, 9)):
        top, left = (6 - size[0]) // 2, (9 - size[1]) // 2
        y = layers.centre_crop(x, size)
        assert torch.equal(y, x[..., top : top + size[0], left : left + size[1]])
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.backward(torch.ones_like(y))
        assert seen[-1].is_contiguous(memory_format=torch.channels_last)
        assert float(seen[-1].sum()) == y.numel()
    assert layers.centre_crop(x, (6, 20)) is x
    assert upsamplers.make("transposed", 4)(x, (12, 18)).shape[2:] == (12, 18)
    filtered = upsamplers.make("LPF4", 4)(x, (11, 18))
    assert filtered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(filtered, upsamplers.make("LPF4", 4)(x)[..., :11, :])


@pytest.mark.parametrize("shape", [(1, 5, 12, 9), (2, 5, 6, 6)])
def test_instance_norm(shape):
    x = rand(*shape).to(memory_format=torch.channels_last)
    ours = layers.norm("instance", 5)
    assert_alike(answers(ours, x), answers(nn.InstanceNorm2d(5), x))
    if len(x) == 1:
        assert ours(x).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="more than 1"):
        ours(rand(1, 5, 1, 1))


@pytest.mark.parametrize(
    "name", ["DIP_2_scaled", "DD", "PG_DIP", "Swin_expand", "reproduction_unet"]
)
def test_the_last_step_to_a_picture_is_in_float32(name):
    """In bfloat16 a picture would have 8 bits in its bright half."""
    size = {"in_size": (64, 128), "out_size": (64, 128)}
    network = build(name, in_channels=8, out_channels=3, **size)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(rand(1, 8, 64, 128))
    assert y.dtype == torch.float32 and len(y.unique()) > 2 * len(y.bfloat16().unique())


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


def test_what_does_not_go_the_shorter_way():
    upsample, norm, mix = upsamplers.make("bilinear", 64), BatchNorm(64), layers.conv(64, 64, 3)
    x, doubled = rand(1, 64, 24, 64), (48, 128)

    def possible(x=x, size=doubled, upsample=upsample, norm=norm, mix=mix):
        return doubling.possible(x, size, upsample, norm, mix)

    assert possible() and possible(norm=None)
    assert not possible(size=(47, 128)) and not possible(size=(48, 127))
    assert not possible(mix=layers.conv(64, 64, 5))
    assert not possible(norm=nn.InstanceNorm2d(64)) and not possible(norm=BatchNorm(64).eval())
    assert not possible(upsample=upsamplers.make("bicubic", 64))
    assert not possible(upsample=upsamplers.make("bilinear", 64, True))
    assert not possible(upsample=upsamplers.make("LPF4", 64))
    assert not possible(x.expand(2, -1, -1, -1).contiguous())
    assert not possible(x.to(memory_format=torch.channels_last)) and not possible(x.double())
    assert not possible(rand(1, 64, 1, 2000), (2, 4000))
    assert not possible(rand(1, 64, 8, 8), (16, 16))  # too small to be worth it
    with torch.autocast("cpu", torch.bfloat16):
        assert not possible()


def _pair(name):
    """Two networks of this name with the same weights, and an input."""
    small = (2, 3) if name == "ConvDecoder" else (64, 96)
    sizes = {"in_size": small, "out_size": (64, 96)}
    pair = [
        build(
            name, in_channels=4, out_channels=3, **sizes, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    return *pair, rand(1, 4, *small)


@pytest.mark.parametrize(
    "name", ["DIP_orig", "skip", "DIP_2_scaled", "reproduction_unet", "ConvDecoder"]
)
def test_networks_take_it_and_are_what_they_were(any_size, monkeypatch, name):
    ours, plain, z = _pair(name)
    found = answers(ours, z)
    assert any_size
    monkeypatch.setattr(doubling, "possible", lambda *_: False)
    assert_alike(found[:1], answers(plain, z)[:1])


def test_one_by_one_convolutions_are_what_they_were():
    mix, x = layers.conv(64, 64, 1), rand(1, 64, 9, 7)
    plain = nn.Conv2d(64, 64, 1)
    plain.load_state_dict(mix.state_dict())
    assert_alike(answers(mix, x, *mix.parameters()), answers(plain, x, *plain.parameters()))
