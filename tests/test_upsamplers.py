"""Upsamplers: gains, alignment, frequency responses, designs and refusals."""

import numpy as np
import pytest
import torch

from dip_recon.errors import UserError
from dip_recon.models import upsamplers

FILTERS = [n for n in upsamplers.names() if upsamplers.get(n).taps is not None]
SPECS = ["taps:0.25,0.5,0.25", "taps:1,2,3,4", "kaiser:60,0.4", "kaiser:30,0.3,0.1"]


def direct_filter(x, taps):
    """Zero insertion, reflection and the outer-product kernel, one output pixel at a time."""
    channels, height, width = x.shape
    grid = np.zeros((channels, 2 * height, 2 * width))
    grid[:, ::2, ::2] = x
    count = len(taps)
    before, after = (count - 1) // 2, count - 1 - (count - 1) // 2
    grid = np.pad(grid, ((0, 0), (before, after), (before, after)), mode="reflect")
    kernel = 4 * np.outer(taps, taps)
    out = np.empty((channels, 2 * height, 2 * width))
    for i in range(2 * height):
        for j in range(2 * width):
            out[:, i, j] = (grid[:, i : i + count, j : j + count] * kernel).sum((1, 2))
    return out


@pytest.mark.parametrize("spec", upsamplers.names() + SPECS)
def test_every_upsampler_doubles_reaches_a_size_and_passes_gradients(spec):
    module = upsamplers.make(spec, 3)
    x = torch.rand(2, 3, 5, 4, requires_grad=True)
    grown = (5, 4) if spec == "None" else (10, 8)
    assert module(x).shape == (2, 3, *grown)
    if spec != "None":
        assert module(x, size=(9, 7)).shape == (2, 3, 9, 7)
    module(x).sum().backward()
    assert x.grad.abs().min() > 0
    info = upsamplers.get(spec)
    assert info.learnt == bool(list(module.parameters()))


@pytest.mark.parametrize("spec", FILTERS + SPECS + ["nearest", "bilinear", "bicubic"])
def test_dc_gain_is_one_where_two_phases_agree(spec):
    """A constant stays constant on average: each filter's taps sum to 1, gain 2 an axis."""
    out = upsamplers.make(spec, 2)(torch.full((1, 2, 40, 40), 0.7))
    middle = out[..., 20:60, 20:60]  # as many even as odd pixels, far from the edges
    assert middle.mean().item() == pytest.approx(0.7, abs=1e-5)


@pytest.mark.parametrize("spec", FILTERS + SPECS)
def test_filters_are_normalised_buffers_outside_the_state_dict(spec):
    module = upsamplers.make(spec, 2)
    assert not list(module.parameters()) and not module.state_dict()
    assert [name for name, _ in module.named_buffers()] == ["taps"]
    taps = upsamplers.taps(spec)
    assert taps.ndim == 1 and taps.dtype == torch.float32
    assert taps.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("spec", [*FILTERS, "taps:1,2,3,4", "kaiser:60,0.4"])
@pytest.mark.parametrize("size", [(1, 2), (3, 7)])
def test_filter_equals_the_direct_formulation(spec, size):
    x = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(1))
    expected = direct_filter(x[0].double().numpy(), upsamplers.taps(spec).double().numpy())
    assert np.abs(upsamplers.make(spec, 2)(x)[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("spec", ["LPF5", "kaiser:60,0.4"])
def test_filter_is_exact_under_bf16_autocast_and_channels_last(spec):
    """bfloat16 taps would spoil the stop band; the layout must not matter."""
    x = torch.rand(1, 16, 22, 26, generator=torch.Generator().manual_seed(1)).bfloat16()
    module = upsamplers.make(spec, 16)
    exact = module(x.float())
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(x.to(memory_format=layout))
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, exact.bfloat16())


def test_published_taps():
    assert upsamplers.taps("LPF2").tolist() == [0.25, 0.5, 0.25]
    assert [len(upsamplers.taps(n)) for n in FILTERS] == [2, 3, 7, 17, 17, 7, 9, 17, 17]
    assert upsamplers.taps("bilinear") is None and upsamplers.taps("None") is None
    for name in FILTERS:
        taps = upsamplers.taps(name)
        assert torch.equal(taps, taps.flip(0))


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ("LPF1", 0.50),
        ("LPF2", 0.36),
        ("LPF3", 0.46),
        ("LPF4", 0.32),
        ("LPF41", 0.32),
        ("LPF14", 0.50),
        ("LPF15", 0.50),
        ("LPF5", 0.41),
        ("LPF6", 0.12),
    ],
)
def test_half_power_frequency(spec, where):
    w, gain = upsamplers.frequency_response(spec, 4096)
    assert gain[0] == pytest.approx(0, abs=1e-6)
    assert w[np.argmax(gain < -3.0103)] == pytest.approx(where, abs=0.008)


@pytest.mark.parametrize(
    ("spec", "edge", "attenuation"), [("LPF3", 0.83, 18), ("LPF4", 0.5, 39), ("LPF5", 0.75, 55)]
)
def test_stop_band(spec, edge, attenuation):
    w, gain = upsamplers.frequency_response(spec)
    assert gain[w >= edge].max() < -attenuation


@pytest.mark.parametrize(
    ("db", "cutoff", "width"), [(60, 0.4, 0.2), (30, 0.3, 0.1), (80, 0.6, 0.3)]
)
def test_designed_filter_meets_its_attenuation(db, cutoff, width):
    w, gain = upsamplers.frequency_response(f"kaiser:{db},{cutoff},{width}", 2048)
    # Kaiser's formula for the length is good to about 2 dB
    assert gain[w >= cutoff + width / 2].max() < -(db - 2)
    assert np.abs(gain[w <= cutoff - width / 2]).max() < 0.5
    assert len(upsamplers.taps(f"kaiser:{db},{cutoff},{width}")) % 2 == 1


def test_interpolation_has_a_response_too():
    w, nearest = upsamplers.frequency_response("nearest")
    assert np.allclose(nearest[:-1], upsamplers.frequency_response("LPF1")[1][:-1])
    bilinear = upsamplers.frequency_response("bilinear")[1]
    assert bilinear[w > 0.5].mean() < nearest[w > 0.5].mean()
    for spec in ("transposed", "None"):
        with pytest.raises(UserError, match="no fixed frequency response"):
            upsamplers.frequency_response(spec)


def test_aligned_corners_keep_the_corners():
    x = torch.rand(1, 1, 3, 4)
    out = upsamplers.make("bilinear", 1, align_corners=True)(x, size=(8, 9))
    assert torch.allclose(
        out[..., [0, 0, -1, -1], [0, -1, 0, -1]], x[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bilinaer", "did you mean 'bilinear'"),
        ("LPF7", "Choices: nearest"),
        ("taps:", "numbers with commas"),
        ("taps:a,b", "numbers with commas"),
        ("taps:1,nan", "numbers with commas"),
        ("taps:1,-1", "sum to zero"),
        ("taps:" + ",".join(["1"] * 300), "at most 255"),
        ("kaiser:60", "two or three numbers"),
        ("kaiser:60,0.4,0.2,1", "two or three numbers"),
        ("kaiser:5,0.4", "8 to 200 dB"),
        ("kaiser:60,1.2", "must lie in 0 to 1"),
        ("kaiser:60,0.05", "must lie in 0 to 1"),
        ("kaiser:60,0.4,0", "must lie in 0 to 1"),
        ("kaiser:60,0.4,0.001", "widen the transition"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        upsamplers.make(spec, 3)
    assert str(caught.value).startswith("--upsample_mode") and "\n" not in str(caught.value)
