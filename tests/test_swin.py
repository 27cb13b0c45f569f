"""Swin U-Nets: attention against a dense formulation, any size, both ways up, bfloat16."""

import math

import pytest
import torch
from conftest import refused

from dip_recon import models
from dip_recon.models import swin

SIZES = [  # with windows of 4: what is cut into an odd number, what is padded, what is smaller
    (8, 8), (12, 20), (4, 12), (11, 7), (5, 16), (3, 9), (3, 2), (1, 6), (1, 1)
]  # fmt: skip


def attention(size, shifted, window=4, heads=2, channels=6, dtype=torch.float64):
    torch.manual_seed(0)
    layer = swin.WindowAttention(channels, heads, size, window, shifted).to(dtype)
    torch.nn.init.normal_(layer.bias)
    return layer


def windows_of(length, window, shifted):
    """Which window each token along an axis is in: they begin half a window earlier if shifted."""
    window, whole = min(window, length), window
    shift = whole // 2 if shifted and length > window else 0
    return (torch.arange(length) + window - shift) // window


def dense(layer, x, window, shifted):
    """The same, with every token against every other of the map, and what is no pair masked."""
    n, h, w, _ = x.shape
    y, x_at = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x_at = y.flatten(), x_at.flatten()
    row, column = windows_of(h, window, shifted)[y], windows_of(w, window, shifted)[x_at]
    together = (row[:, None] == row) & (column[:, None] == column)
    dy, dx = y[:, None] - y, x_at[:, None] - x_at
    table = layer.bias.view(layer.heads, 2 * window - 1, 2 * window - 1)
    near = (dy.abs() < window) & (dx.abs() < window)  # all pairs of a window are
    assert near[together].all()
    bias = table[:, (dy + window - 1).clamp(0, 2 * window - 2), :]
    bias = bias.gather(-1, (dx + window - 1).clamp(0, 2 * window - 2).expand(layer.heads, -1, -1)
                       [..., None]).squeeze(-1)  # fmt: skip
    q, k, v = layer.qkv(x.flatten(1, 2)).view(n, h * w, 3, layer.heads, -1).unbind(2)
    logits = torch.einsum("nihd,njhd->nhij", q, k) / math.sqrt(q.shape[-1]) + bias
    weights = logits.masked_fill(~together, -math.inf).softmax(-1)
    out = torch.einsum("nhij,njhd->nihd", weights, v)
    return layer.project(out.reshape(n, h, w, -1))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_shift_mask_and_bias_are_those_of_dense_attention(size, shifted, dtype):
    layer = attention(size, shifted, dtype=dtype)
    x = torch.randn(2, *size, 6, dtype=dtype, requires_grad=True)
    tolerance = {"atol": 1e-5, "rtol": 1e-5}
    found, expected = layer(x), dense(layer, x, 4, shifted)
    torch.testing.assert_close(found, expected, **tolerance)
    inputs = [x, *layer.parameters()]
    weight = torch.randn_like(found)
    grads = torch.autograd.grad((found * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_odd_windows_and_a_shift_that_is_no_half():
    for size in ((10, 15), (7, 5), (13, 4)):
        layer = attention(size, True, window=5)
        x = torch.randn(1, *size, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(x), dense(layer, x, 5, True), atol=1e-9, rtol=1e-9)


def test_gradient_of_attention_is_that_of_its_values():
    for batch in (1, 3):
        qkv = torch.randn(batch, 4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
        for lead in {1, batch}:
            bias = torch.randn(lead, 2, 4, 4, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(swin.attend, (qkv, bias))


def test_attention_keeps_no_logits():
    kept = []
    qkv = torch.randn(1, 64, 3, 2, 4, requires_grad=True)
    bias = torch.zeros(1, 2, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swin.attend(qkv, bias)
    own = {t.untyped_storage().data_ptr() for t in kept}
    assert own <= {t.untyped_storage().data_ptr() for t in (qkv, bias)}


def network(name="Swin_upsample", size=(32, 48), channels=3, seed=0, **options):
    sizes = {"in_size": size, "out_size": size}
    given = {"in_channels": 8, "out_channels": channels, "dim": 12, **options}
    return models.build(name, **given, **sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["Swin_upsample", "Swin_expand"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 31), (64, 65)])
def test_any_size(name, size):
    net = network(name, size, depth=2, window_size=3)
    out = net(torch.rand(2, 8, *size))
    assert out.shape == (2, 3, *size) and out.isfinite().all()


def test_weights_do_not_depend_on_the_size():
    shapes = [{k: v.shape for k, v in network(size=s).state_dict().items()}
              for s in ((16, 16), (40, 300))]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_the_two_differ_in_how_they_go_up_and_in_nothing_else():
    def parts(net):
        return {
            k: v.shape for k, v in net.state_dict().items() if "grow" not in k and "last" not in k
        }

    options = {"num_heads": [1, 2, 3, 4], "depth": [2, 1, 1, 2]}
    up, expand = network(**options), network("Swin_expand", **options)
    assert parts(up) == parts(expand)
    learnt = [m for m in up.modules() if isinstance(m, swin.Expand)]
    assert not learnt and sum(isinstance(m, swin.Expand) for m in expand.modules()) == 4


def test_every_second_block_is_shifted():
    net = network(size=(64, 64), depth=3, window_size=4)
    shifts = [block.attention.rows.shift for block in net.down[0]]
    assert shifts == [0, 2, 0]
    assert net.down[0][0].attention.mask is None and net.down[0][1].attention.mask is not None
    assert not any(key.endswith(("mask", "index")) for key in net.state_dict())


def test_bf16_is_close_to_fp32():
    z = torch.rand(1, 8, 45, 70)
    outs, grads = [], []
    for bf16 in (False, True):
        net = network(size=(45, 70), depth=2, window_size=4, seed=3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(z)
        (out.float() - z[:, :3]).square().mean().backward()
        outs.append(out.float())
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    # 0.06: as for the skip-UNet, whose normalisations enlarge what is rounded off as well
    assert (outs[0] - outs[1]).square().mean().sqrt() < 0.1 * outs[0].std()
    assert torch.cosine_similarity(*grads, dim=0) > 0.98


@pytest.mark.parametrize("size", [(8, 12), (11, 7)])
def test_attention_in_bf16_rounds_and_no_more(size):
    layer = attention(size, True, dtype=torch.float32)
    x = torch.randn(1, *size, 6, requires_grad=True)
    found = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = layer(x)
        grads = torch.autograd.grad(out.float().square().sum(), [x, layer.bias])
        found.append([out.float(), *grads])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 0.03 * a.norm()


@pytest.mark.parametrize("tokens, exact", [(16, True), (256, False)])
def test_few_tokens_are_multiplied_in_float32(tokens, exact):
    torch.manual_seed(0)
    layer, x = swin.Linear(24, 40), torch.randn(1, tokens, 24).bfloat16()
    outs, grads = [], []
    for autocast in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(x if autocast else x.float())
        out.float().sum().backward()
        outs.append(out)
        grads.append(layer.weight.grad.clone())
    assert outs[1].dtype == torch.bfloat16
    assert torch.allclose(outs[1].float(), outs[0], atol=0.03)
    assert torch.equal(*grads) is exact, "the cast of the weights' gradient is spared"


def test_mistakes():
    refused(lambda: network(num_heads=[4, 4]), "--num_heads has 2 values", "4")
    refused(lambda: network(depth=0), "--depth 0")
    refused(lambda: network(window_size=0), "--window_size 0")
    refused(lambda: network(upsample_mode="None"), "--upsample_mode None", "only decoders")
    refused(lambda: network(upsample_mode="bilinea"), "did you mean 'bilinear'")
    refused(lambda: network("Swin_expand", upsample_mode="bilinear"), "pins it at expand")
    small = {"in_channels": 8, "out_channels": 3, "in_size": (4, 4), "out_size": (8, 8)}
    refused(lambda: models.build("Swin_expand", **small), "8×8", "4×4")
