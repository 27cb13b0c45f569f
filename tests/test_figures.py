"""Figures from run folders that were made up, so that every number can be checked by hand."""

import csv
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from dip_recon import images
from dip_recon.cli import main
from dip_recon.figures import FIGURES, draw, thesis
from dip_recon.figures.curves import response, stop_band_gain
from dip_recon.figures.methods import methods
from dip_recon.figures.records import fair, group, load, over_seeds
from dip_recon.figures.run import comparison, curves
from dip_recon.figures.spectra import BANDS, density
from dip_recon.runs import Run

PACKAGE = Path(__file__).parents[1] / "DIP-Recon"


def made(
    root, picture="a", seed=7, psnr=30.0, oracle=None, at=(0, 5, 10), truth=True,
    parameters=1000, **config,
):  # fmt: skip
    """A finished run of a picture: PSNR 10, ``psnr`` - 1, ``psnr`` (smoothed 1 less) along ``at``.

    The noisy picture has 20 dB, the oracle 0.5 dB more than what was stopped.
    """
    run = Run(root / f"{len(list(root.glob('*'))):03d}")
    network = config.get("model_type", "DIP_2_scaled")
    whole = {
        "model_type": network, "dim": [64], "num_scales": 2, "num_skips": 0,
        "upsample_mode": "bilinear", "noise_method": "noise", "input_image_name": None,
        "noise_sigma": 25.0, "num_iters": 11, "seed": seed, "image": picture,
        "picture_sha256": picture * 64, "snapshots": [0, 5, 10], "folder_path": "x",
    }  # fmt: skip
    run.begin({**whole, **config}, overwrite=False)
    levels = np.interp(at, at[:2] + at[-1:], [10, psnr - 1, psnr]) if len(at) > 2 else [10, psnr]
    rows = [
        {"iteration": i, "seconds": 0.1, "loss": 0.01, "psnr_noisy": 20.0}
        | ({"psnr_gt": float(v), "psnr_gt_sm": float(v) - 1} if truth else {})
        for i, v in zip(at, levels, strict=True)
    ]
    run.write_history(rows)
    known = {
        "psnr_noisy": 20.0, "psnr_stopped": psnr, "oracle_iteration": 8, "ssim_stopped": 0.9,
        "psnr_oracle": psnr + 0.5 if oracle is None else oracle,
    }  # fmt: skip
    result = {"image": picture, "model_type": network, "task": "denoising", "seed": seed}
    result |= {"parameters": parameters, "seconds": 10.0}
    run.write_result(result | (known if truth else {}))
    return run


def with_pictures(run, clean, candidates, noisy=None):
    """Put clean.png, noisy.png and snapshots (iteration → picture) into a run folder."""
    images.save_png(run.folder / "clean.png", clean)
    images.save_png(run.folder / "noisy.png", clean if noisy is None else noisy)
    for i, picture in candidates.items():
        images.save_png(run.folder / "snapshots" / f"{i:05d}.png", picture)


def noise(seed, side=64):
    """[1, side, side]: all frequencies alike."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, (1, side, side)).astype(np.float32)


def smoothed(picture, cutoff):
    """What lies below ``cutoff`` (×π) along each axis."""
    spectrum = np.fft.fft2(picture)
    keep = [2 * np.abs(np.fft.fftfreq(n)) < cutoff for n in picture.shape[1:]]
    return np.fft.ifft2(spectrum * np.outer(*keep)).real.astype(np.float32)


def drawn(name, root, out):
    """Draw a figure; returns its CSV's rows and the notes, after a look at the three files."""
    notes = []
    paths = draw(name, [root], out, notes.append)
    assert [p.name for p in paths] == [f"{name}.png", f"{name}.pdf", f"{name}.csv"]
    assert [p.read_bytes()[:4] for p in paths[:2]] == [b"\x89PNG", b"%PDF"]
    assert images.read(paths[0]).data.std() > 0.01
    with paths[2].open(newline="") as file:
        return list(csv.DictReader(file)), notes


def one(rows, **wanted):
    """The single row with these cells."""
    found = [r for r in rows if all(r[k] == str(v) for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def numbers(row, *names):
    return [float(row[name]) for name in names]


def test_a_mean_picture_is_of_every_noisy_picture_or_none_is_told_of(tmp_path):
    def add(picture, seed, size=16, **more):
        run = made(tmp_path, picture, seed, noise_seed=7, **more)
        level = np.full((1, size, size), 0.5, np.float32)
        with_pictures(run, level, {})
        images.save_png(run.folder / "restored.png", level + 0.1 * (-1) ** seed)

    for picture, seed in (("a", 7), ("a", 8), ("b", 7)):
        add(picture, seed)
    assert thesis._means(load([tmp_path])) is None
    add("b", 8)
    assert thesis._means(load([tmp_path])) > 40
    for seed in (7, 8):  # another picture, by what is cut out of it
        add("a", seed, 8, crop=[8])
    assert thesis._means(load([tmp_path])) > 40


# ---------------------------------------------------------------- reading


def test_runs_are_read_once_and_history_late(tmp_path):
    run = made(tmp_path)
    (run.folder / "history.csv").write_text("broken")
    records = load([tmp_path, str(run.folder), tmp_path / "." / run.folder.name])
    assert len(records) == 1 and records[0].labels == {}
    refused(lambda: records[0].history, "history.csv")


def test_folders_that_will_not_do(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    refused(lambda: load([tmp_path / "none"]), tmp_path / "none", "no such folder")
    refused(lambda: load([tmp_path / "file"]), tmp_path / "file", "not a folder")
    refused(lambda: load([tmp_path / "empty"]), tmp_path / "empty", "no finished run")


def test_only_common_pictures_and_seeds_are_compared(tmp_path):
    for mode, pictures in (("bilinear", "ab"), ("nearest", "a")):
        for picture in pictures:
            made(tmp_path, picture, upsample_mode=mode)
    series = group(load([tmp_path]), lambda r: r.config["upsample_mode"])
    kept, notes = fair(series)
    assert {k: [r.picture[0] for r in v] for k, v in kept.items()} == {
        "bilinear": ["a"], "nearest": ["a"],
    }  # fmt: skip
    assert notes == ["1 of 3 runs left out: not every variant has them yet"]
    made(tmp_path, "c", upsample_mode="LPF2")
    kept, notes = fair(group(load([tmp_path]), lambda r: r.config["upsample_mode"]))
    assert sum(map(len, kept.values())) == 4
    assert len(notes) == 1 and "no picture and seed is in every variant" in notes[0]


def test_mean_and_deviation_over_seeds(tmp_path):
    for picture, seed, psnr in (("a", 7, 30), ("b", 7, 20), ("a", 8, 32), ("b", 8, 24)):
        made(tmp_path, picture, seed, psnr)
    mean, deviation = over_seeds(load([tmp_path]), "psnr_stopped")
    assert mean == pytest.approx(26.5) and deviation == pytest.approx(3 / math.sqrt(2))
    made(tmp_path, "a", 9, 34)  # this seed lacks a picture: it moves the mean alone
    mean, deviation = over_seeds(load([tmp_path]), "psnr_stopped")
    assert mean == pytest.approx((32 + 22) / 2) and deviation == pytest.approx(3 / math.sqrt(2))


def test_methods_are_the_options_that_differ(tmp_path):
    for picture, width in (("a", 32), ("b", 64)):
        made(tmp_path, picture, dim=[width], up_dim=[width], seed=7)
        made(tmp_path, picture, dim=[width], up_dim=[width], seed=8, folder_path="y")
        made(tmp_path, picture, model_type="DIP_orig", dim=[], up_dim=[], num_scales=None)
    names, groups = methods(load([tmp_path]))
    assert names == ["model_type"], "a width that goes by the picture is no method"
    assert {k: len(v) for k, v in groups.items()} == {("DIP_2_scaled",): 4, ("DIP_orig",): 2}
    made(tmp_path, "a", dim=[128], up_dim=[128])
    names, groups = methods(load([tmp_path]))
    assert names == ["model_type", "dim"] and len(groups) == 4


def test_what_was_measured_tells_runs_apart_before_how_it_was_fitted(tmp_path):
    for sigma, jitter in ((25, 1 / 30), (50, 1 / 20)):
        made(tmp_path, "a", reg_noise_std=jitter, noise_sigma=sigma)
    names, groups = methods(load([tmp_path]))
    assert names == ["model_type", "noise_sigma"] and len(groups) == 2


# ---------------------------------------------------------------- each figure


def test_upsampling(tmp_path):
    for mode, psnr in (("bilinear", 30), ("None", 22)):
        for picture, seed, shift in (("a", 7, 0), ("a", 8, 1), ("b", 7, 5)):
            for network in ("DD", "ConvDecoder"):
                made(
                    tmp_path / "runs", picture, seed, psnr + shift,
                    upsample_mode=mode, model_type=network,
                )  # fmt: skip
    rows, notes = drawn("upsampling", tmp_path / "runs", tmp_path / "out")
    assert notes == []
    last = one(rows, panel="DD", series="no upsampling", iteration=10)
    assert numbers(last, "mean", "deviation", "n") == pytest.approx(
        [24, statistics.stdev([22, 23, 27]), 3], abs=1e-4
    )
    noisy = one(rows, panel="ConvDecoder", series="noisy picture")
    assert numbers(noisy, "mean", "n") == [20, 6] and noisy["iteration"] == ""


def test_networks(tmp_path):
    for picture, seed, shift in (("a", 7, 0), ("a", 8, 1), ("b", 7, 5), ("b", 8, 6)):
        made(tmp_path, picture, seed, 27 + shift, model_type="Swin_upsample")
        made(
            tmp_path, picture, seed, 25 + shift, oracle=26 + shift, model_type="Swin_expand",
            upsample_mode=None,
        )  # fmt: skip
    rows, notes = drawn("networks", tmp_path, tmp_path / "out")
    assert notes == []
    last = one(rows, panel="PSNR", series="Swin_upsample, bilinear", iteration=10)
    assert numbers(last, "mean", "n") == [29, 4], "of the moving average"
    mean = one(rows, panel="pictures", series="Swin_expand", picture="mean")
    assert numbers(mean, "oracle", "stopped", "n") == [29, 28, 4]
    assert float(mean["stopped deviation"]) == pytest.approx(math.sqrt(0.5), abs=1e-5)
    b = one(rows, panel="pictures", series="Swin_upsample, bilinear", picture="b")
    assert numbers(b, "oracle", "stopped", "n") == [33, 32.5, 2]
    assert numbers(one(rows, series="noisy picture"), "mean", "n") == [20, 8]


def test_networks_of_two_pictures_with_one_name(tmp_path):
    for sha, psnr in (("1", 20), ("2", 30)):
        for name in ("Swin_upsample", "Swin_expand"):
            made(tmp_path, "mean", 7, psnr, model_type=name, picture_sha256=sha * 64)
    rows, _ = drawn("networks", tmp_path, tmp_path / "out")
    found = [row for row in rows if row["panel"] == "pictures" and "upsample" in row["series"]]
    assert [float(row["stopped"]) for row in found] == [25, 20, 30]


def test_an_unfinished_sweep_is_noted(tmp_path, capsys):
    for mode in ("bilinear", "nearest"):
        made(tmp_path, "a", psnr=30, upsample_mode=mode)
    made(tmp_path, "b", psnr=40, upsample_mode="bilinear")
    rows, notes = drawn("upsampling", tmp_path, tmp_path / "out")
    assert numbers(one(rows, series="bilinear", iteration=10), "mean", "n") == [30, 1]
    assert notes == ["note: 1 of 3 runs left out: not every variant has them yet"]


@pytest.mark.parametrize("name", ["upsampling", "networks", "input"])
def test_pictures_without_noise_have_no_line_of_it(tmp_path, name):
    for mode in ("bilinear", "nearest"):
        run = made(tmp_path / "runs", upsample_mode=mode, noise_sigma=0.0)
        run.write_result({**run.result(), "psnr_noisy": None})  # infinite
    rows, _ = drawn(name, tmp_path / "runs", tmp_path / "out")
    assert rows and not [row for row in rows if "noisy" in row["series"]]


@pytest.mark.parametrize("name", ["table2", "width", "architecture"])
def test_runs_by_tiles_have_no_oracle(tmp_path, name):
    for width in (32, 64):
        for tile in (0, 64):
            run = made(tmp_path / "runs", "ab"[tile > 0], dim=[width], tile=tile)
            if tile:
                result = {k: v for k, v in run.result().items() if "oracle" not in k}
                run.write_result(result)
    rows, _ = drawn(name, tmp_path / "runs", tmp_path / "out")
    assert rows
    shutil.rmtree(tmp_path / "runs" / "000"), shutil.rmtree(tmp_path / "runs" / "002")
    assert drawn(name, tmp_path / "runs", tmp_path / "out")[0]


def test_curves_of_different_lengths_and_settings(tmp_path):
    made(tmp_path, "a", at=(0, 5, 10))
    made(tmp_path, "b", at=(0, 2, 4, 6, 8, 10, 12))
    rows, notes = drawn("upsampling", tmp_path, tmp_path / "out")
    assert [r["iteration"] for r in rows if r["series"] == "bilinear"] == ["0", "10"]
    assert len(notes) == 1 and "differ in length" in notes[0]
    made(tmp_path, "a", noise_sigma=50.0)
    _, notes = drawn("upsampling", tmp_path, tmp_path / "out")
    assert "note: averaged over runs that differ in noise_sigma (25, 50)" in notes


def test_low_pass_filters(tmp_path):
    taps = {"LPF2": [0.25, 0.5, 0.25], "LPF1": [0.5, 0.5], "bilinear": None}
    for mode, kernel in taps.items():
        for picture in "ab":
            made(tmp_path, picture, upsample_mode=mode, upsample_taps=kernel)
    rows, _ = drawn("lpf", tmp_path, tmp_path / "out")
    assert list(dict.fromkeys(r["series"] for r in rows if r["panel"] == "response")) == [
        "LPF1", "LPF2",
    ]  # fmt: skip
    half = one(rows, panel="response", series="LPF2", frequency=0.5)
    assert float(half["dB"]) == pytest.approx(20 * math.log10(0.5), abs=1e-3)
    peak = one(rows, panel="peak", series="bilinear")
    assert numbers(peak, "iteration", "mean", "n") == [10, 29, 2], "of the moving average"
    refused(lambda: draw("lpf", [tmp_path / "004"], tmp_path), "fixed filter")


def test_responses():
    frequency, magnitude = response([0.25, 0.5, 0.25])
    expected = 20 * np.log10(np.maximum(np.cos(np.pi * frequency / 2) ** 2, 1e-15))
    assert np.allclose(magnitude[:-1], expected[:-1], atol=1e-6)
    gains = [stop_band_gain(t) for t in ([1.0], [0.5, 0.5], [0.25, 0.5, 0.25])]
    assert gains[0] == pytest.approx(0) and gains == sorted(gains, reverse=True)


def test_width(tmp_path):
    psnr = {("a", 32): 30, ("b", 32): 20, ("a", 64): 31, ("b", 64): 23, ("c", 32): 25}
    for (picture, width), value in psnr.items():
        labels = {"texture": "coarse" if picture == "c" else "fine"}
        made(tmp_path, picture, psnr=value, dim=[width], labels=labels)
    rows, notes = drawn("width", tmp_path, tmp_path / "out")
    assert notes == [] and rows[0]["series"] == "coarse", "classes are compared within themselves"
    row = one(rows, panel="PSNR", series="fine", result="stopped", width=64)
    assert numbers(row, "mean", "deviation", "n") == pytest.approx([27, math.sqrt(32), 2], abs=1e-4)
    row = one(rows, panel="gain", series="fine", result="oracle", width=64)
    assert numbers(row, "mean", "deviation", "n") == pytest.approx([2, math.sqrt(2), 2], abs=1e-4)
    made(tmp_path, model_type="DIP_orig", dim=[])
    refused(lambda: draw("width", [tmp_path], tmp_path), "DIP_orig", "no width")


def test_architecture(tmp_path):
    for scales, skips, width, psnr in ((2, 0, 32, 30), (2, 1, 32, 29), (3, 0, 64, 31)):
        for picture, shift in (("a", 0), ("b", 2)):
            options = {"num_scales": scales, "num_skips": skips, "dim": [width]}
            made(tmp_path, picture, psnr=psnr + shift, **options)
    for picture in "abc":
        made(tmp_path, picture, psnr=28, model_type="DIP_orig", dim=[], parameters=2217831)
    rows, notes = drawn("architecture", tmp_path, tmp_path / "out")
    cell = one(rows, width=64, num_scales=3, num_skips=0)
    assert numbers(cell, "stopped", "oracle", "n") == [32, 32.5, 2]
    reference = one(rows, network="DIP_orig")
    assert numbers(reference, "stopped", "parameters", "n") == [28, 2217831, 2]
    assert notes == ["note: 1 of 9 runs left out: not every variant has them yet"]
    refused(lambda: draw("architecture", [tmp_path / "008"], tmp_path), "DIP_2_scaled")


def test_network_input(tmp_path):
    made(tmp_path, psnr=30)
    made(tmp_path, psnr=31, noise_method="noisy_image", input_image_name="set9/kodim01.png")
    made(tmp_path, psnr=32, noise_method="image", labels={"input": "its_own"})
    rows, _ = drawn("input", tmp_path, tmp_path / "out")
    names = ["its own", "noise", "noisy image kodim01", "noisy picture"]
    assert list(dict.fromkeys(row["series"] for row in rows)) == names
    assert numbers(one(rows, series="noise", iteration=10), "mean") == [29]


def test_table2(tmp_path):
    for place in ("Set9", "Set12"):
        for seed, shift in ((7, 0), (8, 1)):
            for picture, width in (("a", 32), ("b", 64)):
                common = {"seed": seed, "labels": {"set": place}}
                made(tmp_path, picture, psnr=30 + shift, dim=[width], parameters=width, **common)
                made(tmp_path, picture, psnr=28, model_type="DIP_orig", dim=[], **common)
    rows, notes = drawn("table2", tmp_path, tmp_path / "out")
    assert [r["panel"] for r in rows] == ["Set9"] * 2 + ["Set12"] * 2 and notes == []
    row = one(rows, panel="Set9", series="DIP_2_scaled")
    names = ("parameters", "least", "most", "stopped", "stopped deviation", "pictures", "seeds")
    expected = [48, 32, 64, 30.5, math.sqrt(0.5), 2, 2]
    assert numbers(row, *names) == pytest.approx(expected, abs=1e-4)
    for sigma in (25.0, 50.0):
        made(tmp_path / "sigma", "a", noise_sigma=sigma, labels={"network": "ours"})
    rows, _ = drawn("table2", tmp_path / "sigma", tmp_path / "out")
    assert [(r["panel"], r["series"]) for r in rows] == [("σ = 25", "ours"), ("σ = 50", "ours")]


def test_spectra(tmp_path):
    for n, picture in enumerate("ab"):
        clean = noise(n)
        run = made(tmp_path / "runs", picture)
        noisy = np.clip(clean + np.random.default_rng(9).normal(0, 0.1, clean.shape), 0, 1)
        candidates = {0: smoothed(clean, 0.2), 5: smoothed(clean, 0.5), 10: clean}
        with_pictures(run, clean, candidates, noisy)
    rows, notes = drawn("spectra", tmp_path / "runs", tmp_path / "out")
    assert notes == []
    bands = {
        (r["series"], r["iteration"]): float(r["dB"])
        for r in rows
        if r["panel"] == "band" and r["to"] == "1"
    }
    assert bands["bilinear", "10"] == 0, "the same picture"
    assert bands["bilinear", "0"] < -20 and bands["bilinear", "5"] < -20
    assert bands["noisy picture", ""] > 0.5
    low = one(rows, panel="band", series="bilinear", iteration=5, **{"from": "0"})
    assert abs(float(low["dB"])) < 0.5 and low["n"] == "2"
    refused(lambda: _lack_snapshots(tmp_path), "snapshots")


def _lack_snapshots(tmp_path):
    run = made(tmp_path / "short")
    with_pictures(run, noise(0), {0: noise(1)})
    draw("spectra", [run.folder], tmp_path / "out")


def test_density():
    columns = np.mgrid[:64, :64][1]
    wave = 0.5 + 0.4 * np.cos(np.pi * 9 / 16 * columns)[None]
    power = density(wave.astype(np.float32), 8)
    assert power.argmax() == 4 and power[4] > 0.99 * power.sum()
    flat = density(np.full((3, 20, 30), 0.5, np.float32), BANDS)
    assert (flat > 0).all() and np.isfinite(flat).all()


def test_every_figure_is_drawn_of_a_plain_pair_of_runs(tmp_path):
    for n, picture in enumerate("ab"):
        run = made(
            tmp_path / "runs", picture, upsample_mode="LPF2", upsample_taps=[0.25, 0.5, 0.25]
        )
        with_pictures(run, noise(n, 32), {0: noise(n + 2, 32), 10: noise(n, 32)})
    for name in FIGURES:
        rows, notes = drawn(name, tmp_path / "runs", tmp_path / "out")
        assert rows and notes == []
    before = [(tmp_path / "out" / f"width.{s}").read_bytes() for s in ("png", "pdf", "csv")]
    drawn("width", tmp_path / "runs", tmp_path / "out")
    assert before == [(tmp_path / "out" / f"width.{s}").read_bytes() for s in ("png", "pdf", "csv")]


# ---------------------------------------------------------------- mistakes, and the command


@pytest.mark.parametrize("name", FIGURES)
def test_runs_without_ground_truth_are_named(tmp_path, name):
    run = made(tmp_path / "runs", truth=False, upsample_taps=[0.5, 0.5])
    refused(lambda: draw(name, [tmp_path], tmp_path / "out"), run.folder, "ground truth")
    assert not (tmp_path / "out").exists()


def test_mistakes(tmp_path):
    made(tmp_path / "runs")
    refused(lambda: draw("widht", [tmp_path], tmp_path), "widht", "did you mean 'width'?")
    (tmp_path / "file").write_text("")
    refused(lambda: draw("width", [tmp_path], tmp_path / "file"), tmp_path / "file")


def test_the_command(tmp_path, capsys):
    for mode in ("bilinear", "nearest"):
        made(tmp_path / "runs", "a", upsample_mode=mode)
    made(tmp_path / "runs", "b")
    assert main(["figure", "upsampling", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out.splitlines()
    folder = tmp_path / "runs" / "figures"
    assert said[0].startswith("note: 1 of 3 runs left out")
    assert said[1:] == [str(folder / f"upsampling.{s}") for s in ("png", "pdf", "csv")]
    assert main(["figure", "input", str(tmp_path / "runs"), "-o", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "input.pdf").is_file()
    with pytest.raises(SystemExit) as ended:
        main(["figure", "--list"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said and entry.summary in said for name, entry in FIGURES.items())
    assert main(["figure", "upsamplng", str(tmp_path / "runs")]) == 2
    assert "did you mean 'upsampling'?" in capsys.readouterr().err


def test_figures_and_tables_need_no_network():
    code = (
        "import sys, dip_recon.figures, dip_recon.tables; "
        "sys.exit(any(f'dip_recon.{m}' in sys.modules for m in ('fit', 'models')))"
    )
    env = os.environ | {"PYTHONPATH": str(PACKAGE)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


@pytest.mark.parametrize(("weight", "lines"), [(0.99, 3), (0, 2)])
def test_without_a_moving_average_there_is_one_line_against_the_clean_picture(
    tmp_path, weight, lines
):
    axes = curves(made(tmp_path, exp_weight=weight)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sum("against" in label for label in labels) == lines
    assert any("average" in label for label in labels) == (weight > 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 36)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_shape_stand_beside_each_other(tmp_path, size, channels):
    run = made(tmp_path, picture="a $x_2")
    for name in ("noisy", "restored", "clean"):
        images.save_png(run.folder / f"{name}.png", np.full((channels, *size), 0.5, np.float32))
    figure = comparison(run)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[::2]] == [
        "measured, 20.00 dB", "restored, 30.00 dB", "clean",
    ]  # fmt: skip
