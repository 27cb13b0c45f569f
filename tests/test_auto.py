"""What is chosen from a noisy picture, in numbers and in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused

from dip_recon import auto, images, models, operators, stopping
from dip_recon.data import resolve
from dip_recon.noise import add_gaussian
from dip_recon.problem import Problem


def crop(name: str, size: int = 128, at: int = 60) -> np.ndarray:
    [item] = resolve(f"bundled/{name}")
    return images.read(item.path).data[:, at : at + size, at : at + size]


def noisy(name: str, sigma: float, **more) -> np.ndarray:
    return add_gaussian(crop(name, **more), sigma, np.random.RandomState(7))


def test_noise_level_and_network_are_chosen_and_said():
    choice = auto.denoising(noisy("chelsea", 25))
    assert choice.sigma == pytest.approx(25, rel=0.1) and not choice.clean
    o = choice.options
    assert (o.dim, o.stopping, o.tile) == ([32], "held-out", 0)
    [said] = choice.reasons
    for words in (f"noise level about {choice.sigma:.1f} of 255", "of width 32", "held out"):
        assert words in said
    textured = auto.denoising(noisy("coffee", 3))
    assert textured.options.dim == [64] and "much texture above it" in textured.reasons[0]
    assert auto.denoising(noisy("chelsea", 50)).options.reg_noise_std > o.reg_noise_std
    assert auto.denoising(noisy("chelsea", 25, size=200)).options.tile == auto.TILE


def test_what_is_given_is_not_chosen():
    y = noisy("coffee", 6)
    given = {"dim": [16], "sigma": 30.0, "stopping": "ES-EMV", "reg_noise_std": 0.01, "seed": 3}
    o = auto.denoising(y, given).options
    assert {k: getattr(o, k) for k in given} == given
    assert auto.denoising(y, {"sigma": 30.0}).reasons[0].startswith("noise level 30 as given")
    assert (
        auto.denoising(y, {"stopping": "none", "num_iters": 77})
        .reasons[0]
        .endswith("77 iterations")
    )
    refused(lambda: auto.denoising(y, {"sigma": -5.0}), "--sigma")


def test_another_network_comes_with_its_recipe():
    y = noisy("chelsea", 25)
    assert auto.denoising(y, {"model_type": "DD"}).options.reg_noise_std == 0
    given = {"model_type": "DD", "reg_noise_std": 0.1}
    assert auto.denoising(y, given).options.reg_noise_std == 0.1
    assert auto.denoising(y, {"model_type": "Swin_upsample"}).options.lr == 8e-4


def test_every_rule_has_its_words():
    said = {auto.describe(replace(auto.DENOISING, stopping=name)) for name in stopping.RULES}
    assert all(", until " in words or words.endswith("iterations") for words in said)
    assert len(said) > 3


def test_pictures_without_noise_and_without_a_picture():
    blocks = np.kron(np.random.RandomState(7).random((1, 4, 4)), np.ones((1, 16, 16)))
    choice = auto.denoising(blocks.astype(np.float32))
    assert choice.clean and "no noise" in choice.reasons[0]
    alone = add_gaussian(np.full((3, 64, 64), 0.5, np.float32), 25, np.random.RandomState(7))
    assert any("nothing but noise" in reason for reason in auto.denoising(alone).reasons)
    assert not any("nothing but" in r for r in auto.denoising(noisy("chelsea", 25)).reasons)


def test_noise_that_neighbours_share_goes_by_method_noise():
    from scipy.ndimage import gaussian_filter

    rough = np.random.RandomState(7).normal(0, 40 / 255, (3, 128, 128))
    ramp = np.linspace(0.2, 0.8, 128, dtype=np.float32)[None, None]
    y = (ramp + gaussian_filter(rough, (0, 1.2, 1.2))).clip(0, 1).astype(np.float32)
    choice = auto.denoising(y)
    assert choice.options.stopping == "AMNS" and "shared" in choice.reasons[0]
    assert auto.denoising(y, used=0.1).sigma > choice.sigma == auto.FAITHFUL, "of what it uses"


def test_levels_are_told_and_taken_on_the_scale_of_the_picture():
    y = noisy("chelsea", 25)
    level = auto.denoising(y).sigma
    dark = auto.denoising(y, used=0.2)  # stretched from a fifth of the range
    assert f"about {level / 5:.1f} of 255" in dark.reasons[0] and dark.sigma == level
    assert dark.measured["noise level"].startswith(f"{level / 5:.2f}")
    given = auto.denoising(y, {"sigma": 5, "stopping": "AMNS"}, used=0.2, halved=True)
    assert "noise level 5 as given" in given.reasons[0] and given.options.sigma == 5 / 0.4
    refused(lambda: auto.denoising(y, {"sigma": 70}, used=0.2), "--sigma 70", "51 of 255")
    refused(lambda: auto.denoising(y, {"sigma": 300}), "--sigma 300")


def test_a_picture_with_holes_stops_by_pixels_held_out_while_there_are_enough():
    def choice(side, **given):
        mask = np.ones((side, side))
        mask[3:8, 4:12] = 0
        A = operators.Mask(mask)
        y = A(torch.rand(1, 3, side, side))
        return auto.filling(Problem(y, A, (side, side)), auto.INPAINTING, given)

    large, small = choice(40), choice(20)
    assert large.options.stopping == "held-out" and small.options.stopping == "fixed"
    assert "held out" in large.reasons[0] and "2000 iterations at most" in large.reasons[0]
    assert "10.0% of the pixels are missing, at most 3 from" in small.reasons[0]
    assert choice(20, stopping="ES-WMV").options.stopping == "ES-WMV"
    assert choice(40, num_iters=7, dim=[8]).options.dim == [8]
    refused(lambda: choice(40, stopping="SMNS"), "is for denoising")


@pytest.mark.parametrize(("side", "scales"), [(3, 1), (16, 3), (17, 4), (32, 4), (33, 5), (90, 5)])
def test_a_small_picture_gets_as_many_scales_as_it_has_room_for(side, scales):
    A = operators.Mask(np.tri(side, side + 9, dtype=np.float32))
    problem = Problem(A(torch.full((1, 1, side, side + 9), 0.5)), A, (side, side + 9))
    choice = auto.filling(problem, auto.INPAINTING)
    assert choice.options.num_scales == scales
    assert (f"{scales} scale" in choice.reasons[0]) == (scales < 5)
    sizes = {"in_size": problem.size, "out_size": problem.size}
    sizes |= choice.options.network_options()
    models.check_size("skip", in_channels=2, out_channels=1, **sizes)
    assert auto.filling(problem, auto.INPAINTING, {"num_scales": 2}).options.num_scales == 2
    assert auto.filling(problem, auto.INPAINTING, {"model_type": "DD"}).options.num_scales == 5


def test_a_small_picture_is_told_its_noise():
    y = noisy("chelsea", 15, size=48)
    problem = Problem(torch.from_numpy(y)[None], operators.Downsample(2), (96, 96))
    choice = auto.filling(problem, auto.SUPER_RESOLUTION)
    assert float(choice.measured["noise level"].split()[0]) == pytest.approx(15, rel=0.25)
    assert "48×48 to 96×96 pixels, noise level about 1" in choice.reasons[0]
    assert choice.options.stopping == "held-out"
