"""The Python interface: arrays in, arrays of the same kind out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from torch import nn
from torch.nn import functional

import dip_recon
from dip_recon import api, auto, holes, needs, operators, own, tasks
from dip_recon.api import _measurement
from dip_recon.operators import Blur, gaussian_kernel
from dip_recon.problem import Problem
from dip_recon.tiling import tiles

FEW = {"num_iters": 3, "dim": 8, "device": "cpu"}
SMALL = {**FEW, "num_scales": 2}  # for the hourglass, whose five scales take their time


@pytest.fixture
def noisy(picture):
    """A noisy picture of a shape and type, as a caller has it."""

    def make(shape=(36, 32, 3), dtype=np.uint8):
        channels = shape[2] if len(shape) == 3 else 1
        x = np.moveaxis(picture(channels, shape[:2]), 0, -1).reshape(shape)
        x = np.clip(x + np.random.RandomState(7).normal(scale=0.1, size=shape), 0, 1)
        top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
        return (x * top).astype(dtype)

    return make


def same_kind(before, after):
    return before.shape == after.shape and before.dtype == after.dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, ">u2"])
def test_denoise_keeps_the_type(noisy, dtype):
    y = noisy((36, 32), dtype)
    before = y.copy()
    restored = dip_recon.denoise(y, **FEW)
    assert same_kind(y, restored) and not np.array_equal(y, restored)
    assert np.array_equal(y, before), "what was given stays as it was"


@pytest.mark.parametrize("shape", [(37, 32, 1), (36, 33, 3)])
def test_denoise_keeps_the_shape(noisy, shape):
    y = noisy(shape)
    assert same_kind(y, dip_recon.denoise(y, sigma=25, **FEW))
    assert same_kind(y, dip_recon.denoise(y, draft=True, sigma=25, **FEW))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_without_noise_nothing_changes(dtype):
    top = 1 if dtype == np.float64 else np.iinfo(dtype).max
    blocks = np.kron(np.random.RandomState(7).random((3, 2)), np.ones((16, 20)))
    for y in (blocks, np.full((32, 32, 3), 1 / 3)):
        y = (y * top).astype(dtype)
        same = dip_recon.denoise(y)
        assert np.array_equal(same, y) and same is not y and same.dtype == y.dtype
    assert not dip_recon.denoise(y, runs=2, uncertainty=True)[1].any()


def test_runs_and_how_far_they_disagree(noisy):
    y = noisy()
    mean, spread = dip_recon.denoise(y, runs=2, uncertainty=True, **FEW)
    assert same_kind(y, mean)
    assert spread.shape == y.shape[:2] and spread.dtype == np.float32 and spread.max() > 0
    ones = dip_recon.denoise(y / np.float32(255), runs=2, uncertainty=True, **FEW)[1]
    assert np.allclose(255 * ones, spread, atol=0.5), "on the picture's own scale"


def test_same_seed_same_picture_watched_or_not(noisy):
    y = noisy((40, 36), np.float32)
    steps, pictures = [], []

    def watch(step):
        steps.append((step.run, step.iteration, step.iterations))
        pictures.append(step.picture)
        step.picture[:] = 0

    watched = dip_recon.denoise(y, progress=watch, runs=2, **FEW)
    assert steps == [(run, i, 3) for run in (1, 2) for i in (1, 2, 3)]
    assert all(same_kind(y, p) for p in pictures)
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(watched, dip_recon.denoise(y, runs=2, **FEW))
    assert not np.array_equal(watched, dip_recon.denoise(y, runs=2, seed=8, **FEW))


def test_a_draft_is_shown_at_full_size(noisy):
    y, seen = noisy((41, 36, 3)), []
    dip_recon.denoise(y, draft=True, progress=lambda step: seen.append(step.picture), **FEW)
    assert len(seen) == 3 and same_kind(y, seen[-1])


@pytest.mark.parametrize("size", [(128, 127), (129, 128)])
def test_a_draft_lies_where_its_picture_does(size):
    """Halved and enlarged, a wave is where it was, to the last pixel of an odd side."""
    wave = sum(np.sin(np.indices(size) / 2)) / 4 + 0.5
    again = own.doubled(own._halved(wave[None].astype(np.float32)), size)[0]
    assert np.abs(again - wave)[8:-8, 8:-8].max() < 0.02


def test_tiles_are_watched_in_the_whole_picture(noisy):
    y, steps, seen = noisy((48, 33, 3)), [], []

    def watch(step):
        steps.append((step.tile, step.tiles, step.iteration))
        seen.append(step.picture)

    restored = dip_recon.denoise(y, tile=24, overlap=4, progress=watch, **FEW)
    assert same_kind(y, restored) and all(same_kind(y, picture) for picture in seen)
    assert steps == [(tile, 2, i) for tile in (1, 2) for i in (1, 2, 3)]
    assert np.array_equal(restored, dip_recon.denoise(y, tile=24, overlap=4, **FEW))


def test_tiles_that_are_given_up_are_told_once(noisy, monkeypatch):
    def fit_tile(task, watch=()):
        return tiles.Fitted(task.y, 3, 2, False, 0.1, gave_up=task.tile.index != 1)

    monkeypatch.setattr(api, "fit_tile", fit_tile)
    with pytest.warns(UserWarning, match="^2 of 3 tiles: .* given up$") as told:
        dip_recon.denoise(noisy((72, 33, 3)), tile=24, overlap=4, **FEW)
    assert len(told) == 1


@pytest.mark.parametrize("kind", ["bool", "uint8", "ones", "float", "column"])
def test_inpaint_keeps_known_pixels(noisy, kind):
    y = noisy((36, 32, 3), np.float64)
    known = np.ones((36, 32), bool)
    known[8:16, 4:20] = False
    masks = {
        "bool": known,
        "uint8": known.astype(np.uint8) * 255,
        "ones": known.astype(np.uint8),
        "float": known.astype(np.float64),
        "column": known[..., None],
    }
    y[~known] = np.nan
    seen = []
    filled = dip_recon.inpaint(
        y, masks[kind], progress=lambda step: seen.append(step.picture), **SMALL
    )
    assert same_kind(y, filled) and np.isfinite(filled).all()
    for picture in (filled, seen[-1]):
        assert np.array_equal(picture[known], y[known]), "to the last digit"


def test_a_large_picture_is_filled_around_its_holes_alone(picture, monkeypatch):
    monkeypatch.setattr(holes, "LARGE", 64)
    monkeypatch.setattr(holes, "CONTEXT", 8)
    y = np.moveaxis(picture(3, (80, 90)), 0, -1)
    known = np.ones((80, 90), bool)
    known[10:14, 20:30] = known[18:20, 31:33] = known[70:80, 85:90] = False
    y[~known] = np.nan
    seen = []
    filled = dip_recon.inpaint(y, known, progress=seen.append, **SMALL)
    assert filled.shape == y.shape and np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[known], y[known])
    assert {(step.tile, step.tiles) for step in seen} == {(1, 2), (2, 2)}, "two are near"
    np.testing.assert_array_equal(seen[-1].picture, filled)
    # what is far away plays no part in it
    y[30:60, :70] = 0.5
    other = dip_recon.inpaint(y, known, **SMALL)
    np.testing.assert_array_equal(other[~known], filled[~known])
    known[:, ::2] = False
    dip_recon.inpaint(y, known, progress=seen.append, **SMALL)
    assert (seen[-1].tile, seen[-1].tiles) == (1, 1), "it has holes all over"


@pytest.mark.parametrize("scratch", ["slanting", "all over"])
def test_long_holes_are_filled_piece_by_piece(picture, monkeypatch, scratch):
    for name, value in (("LARGE", 64), ("CONTEXT", 12), ("CELL", 32), ("FADE", 4)):
        monkeypatch.setattr(holes, name, value)
    monkeypatch.setattr(needs, "too_large", lambda job, o: True)
    monkeypatch.setattr(needs, "check", lambda job, o: None)
    x = picture(1, (100, 140))
    known = np.ones((100, 140), bool)
    if scratch == "slanting":
        known[np.arange(100), np.arange(100) + 20] = False
    else:
        known[::3, ::3] = False
    A = operators.Mask(known)
    job = tasks.Job("a", Problem(A(tasks.tensor(x)), A, (100, 140)), x * known, "")
    found = holes.parts(job, auto.INPAINTING)
    assert len(found) > 4 and max(max(part.job.problem.size) for part in found) <= 32 + 2 * 12
    for part in found:
        np.testing.assert_array_equal(part.job.problem.y[0], (x * known)[(..., *part.place)])
    # each pixel from parts that agree: as it was
    perfect = [x[(..., *part.place)] for part in found]
    np.testing.assert_allclose(holes.joined(job, found, perfect), x, atol=1e-6)
    # and no step where one part ends and the next begins
    levels = [np.full_like(p, n % 2) for n, p in enumerate(perfect)]
    steps = np.abs(np.diff(holes.joined(job, found, levels)[0][~known]))
    if scratch == "slanting":
        assert 0 < steps.max() <= 0.3


@pytest.mark.parametrize("rows", [slice(0, 70), slice(80, 150)])
def test_every_part_of_a_large_hole_has_enough_around_it(picture, monkeypatch, rows):
    for name, value in (("LARGE", 64), ("CONTEXT", 8), ("CELL", 32), ("FADE", 4)):
        monkeypatch.setattr(holes, name, value)
    monkeypatch.setattr(needs, "too_large", lambda job, o: True)
    x, known = picture(1, (240, 200)), np.ones((240, 200), bool)
    known[rows, 20:150] = False
    A = operators.Mask(known)
    job = tasks.Job("a", Problem(A(tasks.tensor(x)), A, (240, 200)), x * known, "")
    found = holes.parts(job, auto.INPAINTING)
    assert len(found) > 4
    for part in found:
        assert part.job.problem.A.mask.mean() >= holes.KNOWN
    perfect = [x[(..., *part.place)] for part in found]
    np.testing.assert_allclose(holes.joined(job, found, perfect), x, atol=1e-6)
    known[:, :190] = False  # next to nothing is known
    A = operators.Mask(known)
    job = tasks.Job("a", Problem(A(tasks.tensor(x)), A, (240, 200)), x * known, "")
    assert all(part.job.problem.A.mask.any() for part in holes.parts(job, auto.INPAINTING))


def test_a_noise_level_is_stretched_with_its_picture():
    y = torch.rand(1, 1, 32, 32) * 0.3
    y[..., 0, 0] = 0.3
    options = replace(auto.SUPER_RESOLUTION, stopping="SMNS", sigma=5.0)
    job = tasks.Job("a", Problem.denoising(y), y[0].numpy(), "")
    job, options, _ = own.stretched(job, options)
    assert job.problem.y.max() == pytest.approx(1) and options.sigma == pytest.approx(5 / 0.3)
    dark = (0.06 * y[0, 0].numpy() / 0.3).astype(np.float32)
    settings = {**FEW, "stopping": "SMNS", "sigma": 20}
    refused(lambda: dip_recon.enlarge(dark, 2, **settings), "sigma 20", "only 15.3 of 255")


def test_inpaint_and_enlarge_keep_whole_numbers(noisy):
    y = noisy((32, 33), np.uint16)
    mask = np.tri(32, 33)
    filled = dip_recon.inpaint(y, mask, **SMALL)
    assert same_kind(y, filled) and np.array_equal(filled[mask > 0], y[mask > 0])
    larger = dip_recon.enlarge(y, 2, **SMALL)
    assert larger.shape == (64, 66) and larger.dtype == np.uint16
    other = dip_recon.enlarge(y, 2, sr_kernel_type="box", **SMALL)
    assert not np.array_equal(larger, other)
    refused(lambda: dip_recon.inpaint(y, mask[3:], **SMALL), "mask", "29×33")
    refused(lambda: dip_recon.inpaint(y, np.zeros((32, 33)), **SMALL), "no pixel is known")
    refused(lambda: dip_recon.inpaint(y, np.ones((32, 33)), **SMALL), "no pixel is missing")
    refused(lambda: dip_recon.inpaint(y, np.ones((32, 33, 2)), **SMALL), "[H, W]")


class Physics:
    """As another library has its operators: ``A`` measures, a call adds noise."""

    kernel = torch.ones(3, 1, 3, 3) / 9

    def A(self, x):
        return functional.conv2d(x, self.kernel, groups=3)

    def __call__(self, x):
        return self.A(x) + 0.1 * torch.randn(x.shape)


class Averaged(nn.Module):
    """A module with a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("taps", torch.ones(2, 3) / 3)

    def forward(self, x):
        return torch.einsum("kc,nchw->nkhw", self.taps, x)


OPERATORS = {
    "a lambda": (lambda x: x[..., ::2, :], {}),
    "a blur": (Blur(gaussian_kernel(1.0)), {}),
    "another library's": (Physics().A, {}),
    "fewer channels": (lambda x: x.mean(dim=1, keepdim=True), {"channels": 3}),
    "a module, fewer channels": (Averaged(), {"channels": 3}),
    "one number a row": (lambda x: x.mean(dim=(1, 3)), {"channels": 3}),
    "pixels held out": (lambda x: x.mean(dim=(1, 3)), {"channels": 3, "stopping": "held-out"}),
    "noise level given": (
        lambda x: x.abs().sum(1),
        {"channels": 3, "stopping": "SMNS", "sigma": 9},
    ),
}


@pytest.mark.parametrize("which", OPERATORS)
def test_restore_inverts_any_operator(picture, which):
    A, more = OPERATORS[which]
    y = A(torch.from_numpy(picture())[None])
    x = dip_recon.restore(y, A, (32, 32), **more, **SMALL)
    assert x.shape == (3, 32, 32) and x.dtype == np.float32
    assert 0 <= x.min() < x.max() <= 1
    if which != "pixels held out":
        assert np.array_equal(x, dip_recon.restore(y[0].numpy(), A, (32, 32), **more, **SMALL))


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, np.float16])
def test_restore_takes_floats_of_any_kind(dtype):
    y = np.linspace(0, 1, 12).reshape(3, 4)
    given = y.astype(dtype)[::-1]
    np.testing.assert_allclose(_measurement(given), y[::-1], atol=1e-3)
    assert _measurement(given).dtype == torch.float32
    refused(lambda: _measurement(np.array([None, 1.0])), "object", "floats")
    refused(lambda: _measurement(y + 1j), "complex")


def test_restore_comes_nearer_and_can_be_watched(picture):
    A, grey, seen = Blur(gaussian_kernel(1.0)), picture(1), []
    y = A(torch.from_numpy(grey)[None])[0, 0].numpy()[::-1, ::-1]  # [H, W], read backwards
    x = dip_recon.restore(
        y, A, progress=lambda step: seen.append(step.picture), **SMALL | {"num_iters": 40}
    )
    assert x.shape == (1, 32, 32)
    errors = [np.square(p[0] - grey[0, ::-1, ::-1]).mean() for p in (seen[0], seen[-1])]
    assert errors[1] < errors[0]


def test_grey_stored_as_rgb_stays_grey_and_a_small_picture_will_do(noisy):
    y = np.repeat(noisy((12, 15, 1)), 3, 2)
    mask = np.tri(12, 15)
    for x in (dip_recon.inpaint(y, mask, **FEW), dip_recon.enlarge(y, 2, **FEW)):
        assert x.shape[2] == 3 and (x == x[..., :1]).all()
    assert dip_recon.restore(y[..., 0] / 255, torch.Tensor.abs, **FEW).shape == (1, 12, 15)


def test_restore_says_what_is_wrong_with_the_operator(picture):
    y = torch.from_numpy(picture())

    def restore(A, y=y, **more):
        return lambda: dip_recon.restore(y, A, **more, **SMALL)

    refused(restore(lambda x: x[..., 1:]), "(1, 3, 32, 31)", "(3, 32, 32)")
    refused(restore(lambda x: x, y=y[None].expand(2, -1, -1, -1)), "(2, 3, 32, 32)")
    refused(restore(Averaged(), y=y[:2]), "A fails", "(1, 2, 32, 32)")
    refused(restore(lambda x: torch.from_numpy(x.numpy())), "A fails", "numpy")
    refused(restore(lambda x: x.detach()), "not differentiable")
    refused(restore(lambda x: x, y=(255 * y).to(torch.uint8)), "uint8", "floats")
    refused(restore(lambda x: x, size=32), "size")
    refused(restore(lambda x: [x]), "list")
    refused(restore(torch.fft.fft2), "complex")
    refused(restore(lambda x: x, y=torch.fft.fft2(y)), "complex")
    refused(restore(lambda x: x, y=y * torch.nan), "finite")
    refused(restore(lambda x: x.mean(dim=(1, 2, 3)), y=y[0, 0]), "size")
    refused(restore(lambda x: x, stopping="AMNS", sigma=9), "AMNS")


def test_pictures_that_will_not_do(noisy):
    for bad, *words in (
        (np.zeros((32, 32, 4), np.uint8), "(32, 32, 4)"),
        (np.zeros(32), "(32,)"),
        (np.zeros((0, 32)), "no pixels"),
        (np.zeros((32, 32), np.int64), "int64"),
        (np.zeros((32, 32), bool), "bool"),
        (np.full((32, 32), np.nan), "finite"),
        (np.full((32, 32), 255.0), "[0, 1]"),
        (np.full((32, 32), 1e300), "[0, 1]"),
        (np.full((5, 32), 0.5), "5×32"),
    ):
        refused(lambda bad=bad: dip_recon.denoise(bad), *words)
    refused(lambda: dip_recon.enlarge(noisy((4, 4)), 2, num_scales=5, **FEW), "8×8", "33×33")


def test_options_that_will_not_do(noisy):
    y, flat = noisy(), np.full((32, 32), 0.5)

    def denoise(**options):
        return lambda: dip_recon.denoise(y, **options)

    refused(denoise(uncertainty=True), "runs=2")
    refused(denoise(runs=0), "runs=0")
    refused(denoise(runs=1.5), "runs=1.5")
    refused(denoise(num_iter=9), "num_iter:", "'num_iters'")
    refused(denoise(sigma=-1), "sigma")
    refused(denoise(num_iters="many"), "num_iters", "whole number")
    refused(denoise(crop=[8, 8]), "crop: no such option")
    refused(denoise(stopping="held_out"), "'held-out'")
    refused(lambda: dip_recon.denoise(flat, num_iters=0), "num_iters")
    for factor in (1, 17, 2.5, "2"):
        refused(lambda factor=factor: dip_recon.enlarge(y, factor), f"factor={factor}")
    refused(lambda: dip_recon.enlarge(y, sr_factor=2), "sr_factor")


def test_importing_the_package_is_quick():
    root = Path(dip_recon.__file__).parents[1]
    code = "import sys, dip_recon; print(dir(dip_recon)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'denoise'" in done.stdout and "'UserError'" in done.stdout
    with pytest.raises(AttributeError):
        _ = dip_recon.denose
