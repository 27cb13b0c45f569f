"""PG-DIP: the network at every level, the schedule, and the scripts that use it."""

import csv
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import refused

from dip_recon import images, models
from dip_recon.experiment import main
from dip_recon.fit import State, fit, make_optimizer
from dip_recon.growing import Growing, phases
from dip_recon.options import BaselineOptions, DenoisingOptions, GrowingOptions, InpaintingOptions
from dip_recon.problem import Problem
from dip_recon.runs import Run, find


def network(size=(37, 31), levels=3, dim=6, **more):
    return models.build(
        "PG_DIP", in_channels=4, out_channels=3, in_size=size, out_size=size,
        num_scales=levels, dim=dim, generator=torch.Generator().manual_seed(0), **more,
    )  # fmt: skip


def state(plan, size=(37, 31), levels=3, **more):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    net = network(size, levels)
    return State(
        problem=Problem.denoising(x, x),
        network=net,
        z=0.1 * torch.rand(1, 4, *size, generator=torch.Generator().manual_seed(2)),
        optimizer=make_optimizer("adam", net.parameters(), 0.01),
        generator=torch.Generator().manual_seed(3),
        lr=0.01,
        jitter=0.1,
        schedule=Growing(plan),
        **more,
    )


def test_the_phases_of_the_thesis():
    plan = phases(5)
    assert len(plan) == 9 and sum(p.length for p in plan) == 50 + 3 * 120 + 750
    assert plan[0].level == 1 and not plan[0].fading
    assert [(p.level, p.fading, p.length) for p in plan[-2:]] == [(5, True, 100), (5, False, 650)]
    for before, after in itertools.pairwise(plan):
        assert after.start == before.start + before.length


def test_the_length_of_each_level_can_be_given():
    plan = phases(3, [1, 2, 3, 4], [5, 6, 7, 8])
    assert [(p.level, p.fading, p.length) for p in plan] == [
        (1, False, 6), (2, True, 3), (2, False, 7), (3, True, 4), (3, False, 8),
    ]  # fmt: skip


def test_every_level_takes_any_size_and_teaches_what_it_uses():
    net = network()
    for level in (1, 2, 3):
        for alpha in (0.4, 1.0):
            net.level, net.alpha = level, alpha
            net.zero_grad()
            out = net(torch.rand(1, 4, 37, 31))
            assert out.shape == (1, 3, 37, 31) and out.min() >= 0 and out.max() <= 1
            out.mean().backward()
            taught = {n.split(".")[1] for n, p in net.named_parameters() if p.grad is not None}
            assert taught == {str(n) for n in range(level)}


def test_fading_in_goes_from_the_level_below_to_the_new_one():
    net = network().eval()
    z = torch.rand(1, 4, 32, 32)
    net.level, net.alpha = 2, 1.0
    below = net(torch.nn.functional.avg_pool2d(z, 2))
    net.level, net.alpha = 3, 0.0
    enlarged = torch.nn.functional.interpolate(
        below, size=(32, 32), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(net(z), enlarged)
    net.alpha = 1.0
    whole = net(z)
    net.alpha = 1 - 1e-7
    torch.testing.assert_close(net(z), whole, atol=1e-4, rtol=0)


def test_the_number_of_levels_follows_the_size():
    for side, levels in ((256, 5), (128, 5), (64, 4), (20, 2), (5, 1)):
        net = models.build("PG_DIP", in_channels=2, out_channels=1, in_size=(side, side),
                           out_size=(side, side), dim=2)  # fmt: skip
        assert len(net.levels) == levels


def test_the_schedule_sets_each_level_up():
    plan = phases(3, (4, 6), (3, 20))
    s = state(plan)
    seen = []

    def watch(s):
        [group] = s.optimizer.param_groups
        seen.append((s.iteration - 1, s.out.shape[-2:], s.jitter, s.ema, group["lr"]))

    result = fit(s, 40, [watch])
    assert result.restored.shape == (1, 3, 37, 31)
    starts = {p.start: p for p in plan}
    for i, size, jitter, ema, lr in seen:
        phase = [p for p in plan if p.start <= i][-1]
        below = 3 - phase.level
        assert tuple(size) == (math.ceil(37 / 2**below), math.ceil(31 / 2**below))
        assert jitter == pytest.approx(0.1 * 10**-below)
        assert ema == (0 if below else 0.99)
        assert lr == pytest.approx(0.01 * (1 - math.cos(math.pi * (i - phase.start) / 70)) / 2)
        assert (lr == 0) == (i in starts)
    # a run that ends below the top still gives a picture of the right size
    assert fit(state(plan), 5).restored.shape == (1, 3, 37, 31)


def test_the_target_is_faded_like_the_network():
    s = state(phases(2, (4, 4), (2, 10)), levels=2)
    targets = {}
    fit(s, 8, [lambda s: targets.update({s.iteration - 1: s.problem.y.clone()})])
    clean = s.whole.y
    errors = [float((targets[i] - clean).square().mean()) for i in range(2, 7)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 < errors[-2]


def test_nothing_stops_a_run_below_the_top():
    plan = phases(3, (4, 6), (3, 20))
    from dip_recon import stopping

    s = state(plan)
    s.stopping = stopping.make("AMNS", problem=s.problem, sigma=200, mns_hold=1)
    s.stopping.target = lambda: 9.0  # always below it
    result = fit(s, 100)
    top = next(p for p in plan if p.level == 3)
    assert result.stopped_by_rule and result.iterations == top.start + 1


FLAGS = "--dim 6 --crop 40 36 --device cpu --precision fp32 --transition 3 4 --stabilisation 3 30"


def call(cls, tmp_path, text, *more):
    words = f"{text} --save_folder {tmp_path} --eval_every 5 --snapshots 0 20".split()
    return main(cls, [*words, *more])


def test_a_resumed_growing_run_is_the_unbroken_one(tmp_path, folder, monkeypatch, capsys):
    text = f"{FLAGS} --stopping none --folder_path {folder / 'colour.png'} --crop 40 36"
    assert call(GrowingOptions, tmp_path / "whole", text) == 0
    for stop in (2, 8, 14, 25):  # in several phases, at several levels
        broken = tmp_path / f"broken{stop}"
        step = models.progressive.ProgressiveSkip.forward
        count = [0]

        def dying(self, z, stop=stop, count=count, step=step):
            count[0] += 1
            if count[0] > stop:
                raise KeyboardInterrupt
            return step(self, z)

        monkeypatch.setattr(models.progressive.ProgressiveSkip, "forward", dying)
        assert call(GrowingOptions, broken, text, "--checkpoint_every", "1") == 130
        monkeypatch.undo()
        assert call(GrowingOptions, broken, text, "--resume") == 0
        [a], [b] = find(tmp_path / "whole"), find(broken)
        assert (a.folder / "restored.png").read_bytes() == (b.folder / "restored.png").read_bytes()
        rows = [[{**row, "seconds": 0} for row in run.history()] for run in (a, b)]
        assert rows[0] == rows[1]


def test_growing_is_for_its_network_and_for_noise(tmp_path, folder, capsys):
    for cls, text in (
        (DenoisingOptions, "--model_type DIP_2_scaled --growing True"),
        (InpaintingOptions, "--model_type PG_DIP --growing True"),
        (GrowingOptions, "--num_scales 4 --transition 1 2 3"),
        (InpaintingOptions, "--model_type DIP_2_scaled --stopping AMNS"),
    ):
        assert call(cls, tmp_path / "x", f"--folder_path {folder} {text}") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "--" in said
    assert not (tmp_path / "x").exists()


def test_the_baseline_measures_two_runs_and_their_mean(tmp_path, folder, capsys):
    text = f"--folder_path {folder} --model_type DIP_2_scaled --dim 8 --num_iters 9 --device cpu"
    assert call(BaselineOptions, tmp_path, text) == 0
    method = tmp_path / "denoising" / "DIP_2_scaled"
    first, second = (Run(method / f"grey_run{n}") for n in (1, 2))
    noisy = [(run.folder / "noisy.png").read_bytes() for run in (first, second)]
    assert noisy[0] == noisy[1]  # one noisy picture, two networks
    pictures = [images.read(run.folder / "restored.png").data for run in (first, second)]
    assert not np.array_equal(*pictures)
    clean = images.read(first.folder / "clean.png").data
    mean = -10 * math.log10(((np.mean(pictures, axis=0) - clean) ** 2).mean())
    rows = {row["ID"]: row for row in csv.DictReader((method / "means.csv").open())}
    assert float(rows["grey"]["PSNR_mean"]) == pytest.approx(mean, abs=1e-3)
    alone = second.result()["psnr_stopped"]
    assert float(rows["grey"]["PSNR_run2"]) == pytest.approx(alone, abs=1e-3)
    assert set(rows) == {"colour", "grey", "mean"}


def test_pgdip_chooses_its_noise_and_length(capsys):
    options = GrowingOptions(noise_sigma=50, stopping="none")
    options.validate()
    assert options.reg_noise_std == pytest.approx(1 / 20) and options.num_iters == 1160
    options = GrowingOptions()
    options.validate()
    assert options.reg_noise_std == pytest.approx(1 / 30) and options.num_iters == 4000
    refused(lambda: GrowingOptions(stopping="never").validate(), "--stopping never")
