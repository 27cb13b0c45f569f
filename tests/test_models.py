"""Networks: shapes on odd sizes, gradients, parameter counts, seeds, refusals."""

import re

import pytest
import torch

from dip_recon import models
from dip_recon.errors import UserError
from dip_recon.fit import fit
from dip_recon.flags import fill
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job

PICTURES = [(3, 37, 31), (1, 40, 56)]


def small_options(name):
    options = models.get(name).options
    small = {"dim": 16} if "dim" in options else {}
    return small | ({"num_scales": 3} if name == "reproduction_unet" else {})


def make(name, channels, size, progressive=None, seed=0, **options):
    """A network and an input for it."""
    entry = models.get(name)
    progressive = entry.progressive if progressive is None else progressive
    in_channels = entry.input_dim(options)
    in_size = models.input_size(name, size, progressive, **options)
    generator = torch.Generator().manual_seed(seed)
    network = models.build(
        name,
        in_channels=in_channels,
        out_channels=channels,
        in_size=in_size,
        out_size=size,
        generator=generator,
        **options,
    )
    return network, 0.1 * torch.rand(1, in_channels, *in_size, generator=generator)


def idle(name, network):
    """Whether a parameter is for growing only: the ways in and out of the levels below the top."""
    found = re.match(r"levels\.(\d+)\.(from|to)_rgb", name)
    return found is not None and int(found[1]) < len(network.levels) - 1


def assert_sound(network, z, channels, size):
    out = network(z)
    assert out.shape == (1, channels, *size)
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1 and out.std() > 0
    target = torch.linspace(0, 1, out.numel()).reshape(out.shape)
    (out.float() - target).square().mean().backward()
    for name, parameter in network.named_parameters():
        if idle(name, network):
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.ndim == 4:  # biases before a normalisation have a zero gradient by right
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", models.names())
def test_every_network_on_odd_and_grey_pictures(name, picture):
    channels, *size = picture
    network, z = make(name, channels, tuple(size), **small_options(name))
    assert_sound(network, z, channels, size)


@pytest.mark.parametrize("name", models.names())
def test_every_network_in_bf16_channels_last(name):
    network, z = make(name, 3, (40, 48), **small_options(name))
    network = network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(z.to(memory_format=torch.channels_last))
        loss = (out.float() - 0.3).square().mean()
    loss.backward()
    assert loss.isfinite() and out.shape == (1, 3, 40, 48)
    taught = [p for n, p in network.named_parameters() if not idle(n, network)]
    assert all(p.grad.isfinite().all() for p in taught)


@pytest.mark.parametrize("name", models.names())
def test_every_network_resumed_goes_on_to_the_same_bits(name, picture, tmp_path):
    x = picture(3, (40, 48))
    given = {"model_type": name, **small_options(name), "num_iters": 4, "exp_start": 1}
    given |= {"progressive": models.get(name).progressive}
    options, _ = resolve(fill(DenoisingOptions, given)[0])
    y = torch.from_numpy(x)[None]
    job = Job("picture", Problem.denoising(y, y), x, "")

    def fresh():
        return prepare(job, options, torch.device("cpu"), "fp32")

    expected = fit(fresh(), 4)
    begun = fresh()
    fit(begun, 2)
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    resumed = fresh()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = fit(resumed, 4)
    assert torch.equal(found.out, expected.out) and torch.equal(found.ema, expected.ema)


@pytest.mark.parametrize("mode", models.upsamplers.names())
@pytest.mark.parametrize(
    "name", ["DIP_2_scaled", "DD", "ConvDecoder", "ConvDecoder_LPF", "Swin_upsample"]
)
def test_every_upsampler_in_every_kind_of_network(name, mode):
    if not models.get(name).progressive and mode == "None":
        pytest.skip("only decoders can leave the upsampling out")
    progressive = models.get(name).progressive and mode != "None"
    network, z = make(name, 3, (21, 34), progressive, dim=8, upsample_mode=mode)
    assert_sound(network, z, 3, (21, 34))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("skip", {"dim": [8, 16, 24], "skip_dim": [0, 0, 4], "num_scales": 3}),
        ("skip", {"dim": 8, "up_dim": [16, 8], "skip_dim": 0, "num_scales": 2, "need1x1": False}),
        (
            "skip",
            {"dim": 8, "num_scales": 3, "downsample_mode": "avg", "filter_size_down": [5, 3, 1]},
        ),
        ("skip", {"dim": 8, "num_scales": 3, "downsample_mode": "max", "skip_dim": 0}),
        ("skip", {"dim": 8, "num_scales": 3, "upsample_mode": "transposed", "skip_dim": 0}),
        ("DIP_2_scaled", {"dim": 8, "num_scales": 4, "num_skips": 2, "pad": "reflection"}),
        ("DIP_2_scaled", {"dim": 8, "num_scales": 4, "filter_size_down": 7, "filter_size_up": 5}),
        ("DIP_2_scaled", {"dim": 8, "norm_func": "instance", "act_func": "Swish"}),
        ("DIP_2_scaled", {"dim": 8, "act_func": "GELU"}),
        ("DIP_LPF", {"dim": 8, "num_scales": 3, "upsample_mode": "kaiser:40,0.4"}),
        ("ConvDecoder", {"dim": 8, "num_layers": 4, "act_func": "ELU"}),
        ("ConvDecoder", {"dim": 8, "num_layers": 4, "upsample_mode": "transposed"}),
        ("ConvDecoder_LPF", {"dim": 8, "num_layers": 7, "act_func": "none"}),
    ],
)
def test_options_work_on_odd_sizes(name, options):
    network, z = make(name, 2, (37, 50), **options)
    assert_sound(network, z, 2, (37, 50))


def test_output_range_follows_the_flags():
    for flag, low, high in [("need_tanh", -1, 1), ("need_relu", 0, 1e9)]:
        network, z = make("DIP_2_scaled", 3, (20, 20), dim=8, need_sigmoid=False, **{flag: True})
        assert low <= network(z).min() <= network(z).max() <= high
    network, z = make("DIP_2_scaled", 3, (20, 20), dim=8, need_sigmoid=False)
    assert network(z).min() < 0


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("DIP_orig", 2_217_831, {}),
        ("skip", 2_217_831, {}),
        ("DIP_2_scaled", 58_339, {"dim": 32}),
        ("DIP_2_scaled", 212_931, {"dim": 64}),
        ("DIP_2_scaled", 810_883, {"dim": 128}),
        ("DIP_2_scaled", 231_363, {"dim": 64, "in_channels": 64}),
        ("DIP_2_scaled", 921_475, {"dim": 128, "in_channels": 128}),
        ("DIP_LPF", 212_931, {}),
        ("DD", 100_224, {"dim": 128, "num_layers": 6}),
        ("DD", 100_224, {"upsample_mode": "None"}),
        ("ConvDecoder", 887_427, {"dim": 128, "num_layers": 6}),
        ("ConvDecoder_LPF", 887_427, {}),
    ],
)
def test_parameter_counts(name, count, options):
    assert models.count_parameters(name, **options) == count


def test_counting_agrees_with_a_built_network():
    network, _ = make("DIP_scaled_transposed", 1, (16, 16), dim=8)
    built = sum(p.numel() for p in network.parameters())
    assert models.count_parameters("DIP_scaled_transposed", dim=8, out_channels=1) == built


# Seeds


@pytest.mark.parametrize("name", models.names())
def test_weights_follow_from_the_generator_alone(name):
    before = torch.get_rng_state()
    a, _ = make(name, 3, (40, 56), seed=5, **small_options(name))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    b, _ = make(name, 3, (40, 56), seed=5, **small_options(name))
    c, _ = make(name, 3, (40, 56), seed=6, **small_options(name))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_weights_have_the_default_distribution_of_pytorch():
    torch.manual_seed(0)
    network, _ = make("ConvDecoder", 3, (64, 64), dim=64)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = (layer.weight[0].numel()) ** -0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


# Entries and refusals


def test_entries_describe_themselves():
    assert {"DIP_orig", "skip", "DIP_2_scaled", "DIP_scaled_transposed", "DIP_LPF"} < set(
        models.names()
    )
    for name in models.names():
        entry = models.get(name)
        assert entry.name == name and entry.summary and entry.source
        assert "\n" not in entry.summary and "in_channels" not in entry.options
        assert not set(entry.fixed) & set(entry.options)
    assert models.get("DIP_orig").options == {"need_sigmoid": True}
    assert models.get("DIP_scaled_transposed").fixed == {"upsample_mode": "transposed"}
    assert models.get("DIP_orig").input_dim({}) == 32
    assert models.get("DD").input_dim({"dim": 48}) == 48
    assert models.get("ConvDecoder").input_dim({}) == 128


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already"):
        models.register("DD", summary="", source="")(lambda: None)


def test_input_size():
    assert models.input_size("DIP_orig", (100, 75), False) == (100, 75)
    assert models.input_size("DD", (100, 75), False) == (100, 75)
    assert models.input_size("DD", (100, 75), True) == (4, 3)
    assert models.input_size("ConvDecoder_LPF", (256, 512), True) == (8, 16)
    assert models.input_size("ConvDecoder_LPF", (256, 512), True, num_layers=4) == (32, 64)
    assert models.input_size("ConvDecoder", (256, 512), True, num_layers=4) == (8, 16)


def build(name, size=(32, 32), in_size=None, **options):
    return models.build(
        name,
        in_channels=8,
        out_channels=3,
        in_size=in_size or size,
        out_size=size,
        device="meta",
        **options,
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: models.get("DIP_2scaled"),
            "--model_type DIP_2scaled: did you mean 'DIP_2_scaled'",
        ),
        (lambda: build("DD", dims=3), "DD has no option 'dims': did you mean 'dim'"),
        (lambda: build("DIP_orig", num_scales=3), "--num_scales 3: DIP_orig pins it at 5"),
        (lambda: build("DIP_orig", num_layers=6), "no option 'num_layers'"),
        (lambda: build("DIP_2_scaled", num_skips=3), "--num_skips 3 with --num_scales 2"),
        (lambda: build("DIP_2_scaled", num_scales=0), "--num_scales 0"),
        (lambda: build("DIP_2_scaled", dim=0), "--dim 0"),
        (lambda: build("DIP_2_scaled", dim="64"), "--dim 64"),
        (lambda: build("DIP_2_scaled", filter_size_down=4), "--filter_size_down 4: takes an odd"),
        (lambda: build("DIP_2_scaled", upsample_mode="None"), "only decoders"),
        (lambda: build("DIP_2_scaled", act_func="Relu"), "--act_func Relu: did you mean 'ReLU'"),
        (lambda: build("DIP_2_scaled", pad="zeros"), "--pad zeros: did you mean 'zero'"),
        (lambda: build("DIP_2_scaled", norm_func="group"), "--norm_func group"),
        (lambda: build("DIP_2_scaled", downsample_mode="avgpool"), "--downsample_mode avgpool"),
        (
            lambda: build("DIP_2_scaled", need_tanh=True),
            "--need_tanh True with --need_sigmoid True",
        ),
        (lambda: build("DIP_2_scaled", in_size=(1, 1)), "take an input of the picture's size"),
        (lambda: build("skip", dim=[8, 8]), "--dim has 2 values but --num_scales is 5"),
        (lambda: build("DIP_LPF", upsample_mode="bilinear"), "DIP_LPF takes a low-pass filter"),
        (lambda: build("DD", num_layers=1), "--num_layers 1: takes a whole number of at least 2"),
        (lambda: build("DD", in_size=(1, 1), upsample_mode="None"), "--progressive False"),
        (lambda: build("ConvDecoder", upsample_mode="transposed"), "--progressive True"),
        (lambda: build("reproduction_unet", upsample_mode="LPF4"), "--upsample_mode LPF4"),
        (lambda: models.input_size("DIP_2_scaled", (64, 64), True), "--progressive True: DIP_2_sc"),
        (lambda: models.input_size("DD", (64, 64), True, upsample_mode="None"), "--progressive F"),
    ],
)
def test_mistakes_are_named_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def check(name, size, **options):
    models.check_size(name, in_channels=8, out_channels=3, in_size=size, out_size=size, **options)


@pytest.mark.parametrize(
    ("name", "side", "least", "options"),
    [
        ("DIP_orig", 16, 33, {}),
        ("DIP_2_scaled", 64, 513, {"num_scales": 9, "dim": 8}),
        ("reproduction_unet", 37, 65, {}),
        ("DIP_2_scaled", 3, 5, {"norm_func": "instance"}),
    ],
)
def test_too_small_pictures_are_refused_with_the_least_size(name, side, least, options):
    with pytest.raises(UserError, match=f"{side}×{side} but {name}.* at least {least}×{least}:"):
        check(name, (side, side), **options)
    check(name, (least, least), **options)
    if least < 100:
        network, z = make(name, 3, (least, least), **options)
        assert network(z).isfinite().all()


def test_size_check_passes_what_works_and_raises_what_is_not_about_size():
    check("DIP_orig", (2000, 3000))
    models.check_size("DD", in_channels=8, out_channels=3, in_size=(1, 1), out_size=(16, 16))
    with pytest.raises(UserError, match="no option"):
        check("DIP_orig", (64, 64), num_layers=3)


def test_pinned_options_may_be_repeated_at_their_value():
    build("DIP_scaled_transposed", upsample_mode="transposed")
