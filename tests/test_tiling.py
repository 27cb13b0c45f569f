"""Tiled runs: joined without a seam, resumed, by workers, from file to file."""

import csv
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dip_recon import images
from dip_recon.cli import main as command
from dip_recon.cluster import Cluster
from dip_recon.experiment import main
from dip_recon.images.large import open_source
from dip_recon.metrics import psnr
from dip_recon.noise import add_gaussian
from dip_recon.options import DenoisingOptions, TiledOptions
from dip_recon.prepare import resolve
from dip_recon.runs import Run
from dip_recon.tiling import Layout, Tiles, files, tiles
from dip_recon.tiling.layout import InMemory
from dip_recon.tiling.tiles import Task, fit_tile

FLAGS = "--dim 4 --num_iters 20 --transition 2 --stabilisation 3 --device cpu --precision fp32"
TILES = ["--tile", "32", "--overlap", "4"]
FAST = ["--iterations", "8", "--device", "cpu", "--precision", "fp32"]


class Array:
    def __init__(self, data):
        self.data = data

    def read(self, top, bottom, left, right):
        return self.data[:, top:bottom, left:right]


def options(**more):
    small = {"dim": [4], "num_iters": 12, "transition": [2], "stabilisation": [3]}
    o = TiledOptions(
        **small | {"device": "cpu", "precision": "fp32", "tile": 40, "overlap": 8} | more
    )
    o.validate()
    return resolve(o)[0]


def test_a_run_was_stopped_by_its_rule_if_all_its_tiles_were(tmp_path, folder):
    common = f"{FLAGS} --tile 24 --overlap 4 --folder_path {folder / 'grey.png'} --mns_hold 2"
    for n, (more, stopped) in enumerate((("--sigma 200", True), ("--sigma 1", False))):
        text = f"{common} {more} --save_folder {tmp_path / str(n)}"
        assert main(TiledOptions, text.split()) == 0
        run = Run(tmp_path / str(n) / "denoising" / "PG_DIP" / "grey")
        assert run.result()["stopped_by_rule"] is stopped
        with (run.folder / "tiles.csv").open() as file:
            assert {row["stopped_by_rule"] for row in csv.DictReader(file)} == {str(stopped)}


def test_the_workers_choose_where_tiles_are_computed(tmp_path, folder, monkeypatch):
    """A client without a card must not settle for its own processor."""
    monkeypatch.setattr(Cluster, "check", lambda self: None)
    monkeypatch.setattr(Cluster, "ask", lambda self, function, task: ("cuda", "bf16"))
    text = f"{FLAGS} --tile 24 --overlap 4 --folder_path {folder / 'grey.png'}"
    sent = []

    def each(self, function, tasks, large=False):
        for task in tasks:
            sent.append((task.options.device, task.options.precision))
            here = replace(task.options, device="cpu", precision="fp32")
            yield task, function(replace(task, options=here), None)

    monkeypatch.setattr(Cluster, "each", each)
    chosen = ["--device", "auto", "--precision", "auto", "--scheduler", "tcp://far:1"]
    flags = [*text.split(), "--save_folder", str(tmp_path), *chosen]
    assert main(TiledOptions, flags) == 0
    assert set(sent) == {("cuda", "bf16")}
    assert Run(tmp_path / "denoising" / "PG_DIP" / "grey").result()["device"] == "cuda"


def ramp(size):
    h, w = (np.linspace(0, 1, n, dtype=np.float32) for n in size)
    return (0.3 + 0.4 * np.outer(h, w))[None]


@pytest.mark.drawn
def test_a_tiled_run_leaves_the_run_folder(tmp_path, folder, capsys):
    text = f"{FLAGS} --tile 24 --overlap 4 --folder_path {folder} --save_folder {tmp_path}"
    assert main(TiledOptions, text.split()) == 0
    run = Run(tmp_path / "denoising" / "PG_DIP" / "colour")
    result = run.result()
    rows = list(csv.DictReader((run.folder / "tiles.csv").open()))
    assert result["tiles"] == len(rows) == 4 and result["iterations"] == 20
    assert {"psnr_noisy", "psnr_stopped", "ssim_stopped"} <= set(result)
    restored = images.read(run.folder / "restored.png").data
    clean = images.read(run.folder / "clean.png").data
    assert restored.shape == (3, 40, 36)
    measured = psnr(torch.from_numpy(restored)[None], torch.from_numpy(clean)[None])
    assert measured == pytest.approx(result["psnr_stopped"], abs=0.05)
    assert (run.folder / "comparison.png").is_file() and not (run.folder / "tiles").exists()
    said = (run.folder.parent / "log.txt").read_text()
    assert f"4 tiles, noise level {result['sigma']:.2f}, as given" in said
    assert main(TiledOptions, [*text.split(), "--resume"]) == 0  # finished: kept


def test_every_experiment_that_denoises_can_be_tiled(tmp_path, folder):
    text = f"--dim 4 --num_iters 9 --tile 24 --overlap 4 --folder_path {folder} --device cpu"
    assert main(DenoisingOptions, [*text.split(), "--save_folder", str(tmp_path)]) == 0
    assert Run(tmp_path / "denoising" / "DIP_2_scaled" / "grey").result()["tiles"] == 1


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_there_is_no_seam(noise, tmp_path, monkeypatch):
    """Smooth and noisy: pixels across a tile's border differ no more than those inside tiles."""
    data = ramp((120, 90))
    data = data + noise * np.random.RandomState(0).standard_normal(data.shape).astype(np.float32)
    clipped = data.clip(0, 1)
    # each tile is off by something of its own, as separate fits are
    offset = lambda task, cancelled=None: tiles.Fitted(  # noqa: E731
        task.y + 0.05 * np.float32(np.cos(task.tile.index)), 5, 4, True, 0.1
    )
    monkeypatch.setattr(tiles, "fit_tile", offset)
    made = Tiles(Array(clipped), Layout((120, 90), 40, 8), tmp_path, options(), sigma=25)
    made.fit(Cluster(), bar=False)
    whole = np.empty_like(clipped)
    for (top, bottom, left, right), window in made.blended(side=50):
        whole[:, top:bottom, left:right] = window
    steps = np.abs(np.diff(whole - clipped, axis=1)).mean((0, 2))
    borders = [tile.region[0] - 1 for tile in made.layout if tile.region[0]]
    # all of a border's difference is spread over the 16 pixels of its fade
    assert steps[borders].max() <= 0.1 / 16 * 1.05
    full = np.abs(np.diff(whole, axis=1)).mean((0, 2))
    inside = np.delete(full, borders)
    assert full[borders].mean() <= inside.max() * 1.02


def test_tiles_that_are_finished_are_kept_and_the_result_is_the_same(tmp_path):
    data = ramp((90, 70))
    layout = Layout((90, 70), 40, 8)
    results = []
    for broken in (False, True):
        folder = tmp_path / str(broken)
        made = Tiles(Array(data), layout, folder, options(), sigma=25)
        if broken:
            count = iter(range(100))
            with pytest.raises(KeyboardInterrupt):
                made.fit(Cluster(), bar=False, cancelled=lambda count=count: next(count) > 17)
            assert 0 < len(made.missing()) < len(layout)
            before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
        made.fit(Cluster(), bar=False)
        if broken:
            assert all(p.stat().st_mtime_ns == t for p, t in before.items())
        results.append([window for _, window in made.blended()])
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    made.path(layout[0]).write_bytes(b"PK\x03\x04 half")
    with pytest.raises(Exception, match=r"000000\.npz: damaged"):
        list(made.blended())


def test_workers_give_the_same_tiles(tmp_path):
    data = ramp((90, 70))
    made = [
        Tiles(Array(data), Layout((90, 70), 40, 8), tmp_path / name, options(), sigma=25)
        for name in ("here", "there")
    ]
    made[0].fit(Cluster(threads=1), bar=False)
    made[1].fit(Cluster(workers=2, threads=1), bar=False)
    for tile in made[0].layout:
        a, b = (m.load(tile) for m in made)
        assert np.array_equal(a.picture, b.picture) and a.iterations == b.iterations


def test_a_tile_is_a_fit_of_its_own():
    tile = Layout((50, 50), 100, 8)[0]
    y = ramp((66, 66))
    first, again, other = (
        fit_tile(Task(tile, y, options(seed=seed), 25.0)).picture for seed in (1, 1, 2)
    )
    assert first.shape == (1, 66, 66) and np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_noise_level_comes_from_many_tiles(tmp_path):
    data = np.full((1, 120, 120), 0.5, np.float32)
    data[:, :, 40:] += 20 / 255 * np.random.RandomState(0).standard_normal((1, 120, 80))
    made = Tiles(Array(data.clip(0, 1)), Layout((120, 120), 40, 8), tmp_path, options())
    assert made.sigma == pytest.approx(20, rel=0.15)
    assert Tiles(Array(data), made.layout, tmp_path, options(), sigma=7).sigma == 7


def test_a_picture_is_tiled_when_it_would_not_fit(tmp_path, folder, monkeypatch):
    from dip_recon import experiment

    monkeypatch.setattr(experiment, "too_large", lambda job, o: True)
    monkeypatch.setattr(experiment, "TILE", 24)
    text = f"--dim 4 --num_iters 5 --folder_path {folder / 'grey.png'} --device cpu --overlap 2"
    assert main(DenoisingOptions, [*text.split(), "--save_folder", str(tmp_path)]) == 0
    run = Run(tmp_path / "denoising" / "DIP_2_scaled" / "grey")
    assert run.config()["tile"] == 24 and run.result()["tiles"] == 1
    monkeypatch.setattr(experiment, "too_large", lambda job, o: False)  # memory is free again
    assert main(DenoisingOptions, [*text.split(), "--save_folder", str(tmp_path), "--resume"]) == 0


def test_a_run_of_tiles_is_not_gone_on_with_as_a_whole(tmp_path, folder, capsys):
    text = f"--dim 4 --num_iters 5 --folder_path {folder / 'grey.png'} --device cpu --overlap 2"
    text += f" --save_folder {tmp_path}"
    assert main(DenoisingOptions, [*text.split(), "--tile", "24"]) == 0
    assert main(DenoisingOptions, [*text.split(), "--resume"]) == 2
    assert "holds a run with tile 24, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, words",
    [
        ("--tile 20 --overlap 10", ["--overlap 10", "--tile 20"]),
        ("--tile -1", ["--tile"]),
        ("--tile 24 --overlap 4 --num_scales 9", ["num_scales"]),
        ("--tile 24 --overlap 4 --workers 0", ["--workers 0"]),
        ("--tile 24 --noise_method noisy_image --input_image_name grey --input_dim 1", ["--tile"]),
    ],
)
def test_a_mistake_is_named(tmp_path, folder, text, words, capsys):
    text = f"{FLAGS} --folder_path {folder / 'grey.png'} --save_folder {tmp_path}/out {text}"
    assert main(TiledOptions, text.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- from file to file


def test_a_tiff_is_denoised_by_windows(tmp_path, capsys, monkeypatch):
    noisy = 65535 * (ramp((90, 70))[0] + 0.05 * np.random.RandomState(0).randn(90, 70)).clip(0, 1)
    tifffile.imwrite(tmp_path / "in.tif", noisy.astype(np.uint16), bigtiff=True, tile=(32, 32))
    words = ["denoise", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif"), "--tile", "40"]
    assert command([*words, "--overlap", "8", *FAST]) == 0
    assert "noise level" in capsys.readouterr().out
    with open_source(tmp_path / "out.tif") as source:
        assert source.size == (90, 70) and source.kind.bits == 16
        assert 0.1 < source.read(0, 90, 0, 70).mean() < 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "out.tif"]
    assert command([*words, *FAST]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_tile_stays_as_near_its_pixels_as_the_noise(tmp_path, capsys):
    noisy = ramp((90, 70))[0] + 0.05 * np.random.RandomState(0).randn(90, 70)
    tifffile.imwrite(tmp_path / "in.tif", (255 * noisy.clip(0, 1)).astype(np.uint8))
    words = ["denoise", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif"), *TILES, *FAST]
    assert command(words) == 0  # 8 iterations have hardly begun
    before, after = (tifffile.imread(tmp_path / f"{n}.tif").astype(float) for n in ("in", "out"))
    assert 0 < np.sqrt(np.square(before - after).mean()) < 1.2 * 0.05 * 255
    assert command(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert command([*words, "--overwrite"]) == 0


def test_a_clean_picture_is_copied_by_windows(tmp_path, capsys):
    clean = (ramp((90, 70))[0] * 255).astype(np.uint8)
    clean[:] = clean[40, 30]
    tifffile.imwrite(tmp_path / "in.tif", clean)
    words = ["denoise", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif"), *TILES, *FAST]
    assert command(words) == 0
    assert "unchanged" in capsys.readouterr().out
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), clean)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "out.tif"]


@pytest.mark.parametrize("blank", [0, 255])
def test_a_blank_middle_says_nothing_of_the_noise(tmp_path, capsys, monkeypatch, blank):
    monkeypatch.setattr(files, "SAMPLE", 40)
    noisy = 255 * (0.5 + 0.1 * np.random.RandomState(0).randn(40, 150)).clip(0, 1)
    noisy[:, 45:110] = blank
    tifffile.imwrite(tmp_path / "in.tif", noisy.astype(np.uint8))
    words = ["denoise", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif"), *TILES, *FAST]
    assert command(words) == 0
    said = capsys.readouterr().out
    assert 22 < float(re.search("noise level about ([0-9.]+)", said)[1]) < 29, said


def test_where_it_is_dark_a_tile_stays_nearer_to_its_pixels(monkeypatch):
    """Clipping has left less of the noise there."""
    limits = []
    back = lambda picture, y, limit: (limits.append(limit), (picture, 1.0))[1]  # noqa: E731
    monkeypatch.setattr(tiles, "drawn_back", back)
    for level in (0.0, 0.5):
        noisy = add_gaussian(np.full((1, 48, 48), level), 25, np.random.RandomState(0))
        layout = Layout((48, 48), 48, 0)
        few = replace(options(num_iters=1), tile=48)
        those = tiles.Tiles(InMemory(noisy), layout, Path("none"), few, 25.0, faithful=25.0)
        tiles.fit_tile(those.task(layout[0]))
    dark, grey = limits
    assert grey == pytest.approx(25, rel=0.01) and dark == pytest.approx(25 * 0.584, rel=0.1)


def test_a_tile_of_one_colour_is_not_fitted(monkeypatch):
    monkeypatch.setattr(tiles, "fit", None)
    flat = np.full((3, 48, 40), 0.3, np.float32)
    layout = Layout((48, 40), 48, 0)
    those = tiles.Tiles(InMemory(flat), layout, Path("none"), replace(options(), tile=48), 25.0)
    fitted = tiles.fit_tile(those.task(layout[0]))
    assert (fitted.picture == flat).all() and fitted.iterations == 0


def test_a_picture_of_one_colour_is_done_tile_by_tile(tmp_path):
    images.save_png(tmp_path / "in.png", np.zeros((1, 200, 40), np.float32))
    words = ["denoise", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--sigma", "25"]
    for _ in range(2):
        assert command([*words, "--keep", str(tmp_path / "keep"), *FAST]) == 0
        assert not images.read(tmp_path / "out.png").data.any()


def test_what_the_format_does_not_hold_is_said_of_tiles_too(tmp_path, capsys):
    samples = np.full((90, 70, 4), 100, np.uint8)
    samples[:9, :, 3] = 0
    Image.fromarray(samples).save(tmp_path / "in.png")
    for suffix, words in (("jpg", 1), ("png", 0)):
        out = tmp_path / f"out.{suffix}"
        assert command(["denoise", str(tmp_path / "in.png"), "-o", str(out), *TILES, *FAST]) == 0
        assert capsys.readouterr().out.count("transparency") == words


def test_tiles_of_what_uses_little_of_its_range_are_stretched(tmp_path, capsys, monkeypatch):
    """12 bits in 16; the brightest pixel lies outside the windows that are looked at first."""
    monkeypatch.setattr(files, "SAMPLE", 40)
    noisy = (ramp((90, 70))[0] + 0.05 * np.random.RandomState(0).randn(90, 70)).clip(0, 1)
    noisy[-1, -1] = 1.05
    tifffile.imwrite(tmp_path / "in.tif", (noisy * 4095).astype(np.uint16))
    tifffile.imwrite(tmp_path / "full.tif", (noisy / 1.05 * 65535).astype(np.uint16))
    words = [*TILES, *FAST, "--keep"]
    for name, sigma in (("in", "1"), ("full", "15.238")):  # as strong beside what is used
        more = ["-o", str(tmp_path / f"{name}_out.tif"), *words, str(tmp_path / name)]
        assert command(["denoise", str(tmp_path / f"{name}.tif"), "--sigma", sigma, *more]) == 0
    said = capsys.readouterr().out
    assert said.count("in.tif: uses 6.6% of its range") == 1 and "full.tif: uses" not in said
    assert "in.tif: noise level 1 as given" in said and "noise level 15.238 as given" in said
    after, full = (tifffile.imread(tmp_path / f"{n}_out.tif").astype(float) for n in ("in", "full"))
    assert np.abs(after - full * 1.05 * 4095 / 65535).max() < 20
    config = Run(tmp_path / "in").config()
    assert config["span"] == np.float32(4299) / np.float32(65535)
    assert Run(tmp_path / "full").config()["span"] == 1


def test_tiles_that_were_stretched_otherwise_are_not_taken(tmp_path, capsys, monkeypatch):
    noisy = (ramp((50, 50))[0] + 0.05 * np.random.RandomState(0).randn(50, 50)).clip(0, 1)
    tifffile.imwrite(tmp_path / "in.tif", (noisy * 4095).astype(np.uint16))
    words = ["denoise", str(tmp_path / "in.tif"), *TILES, *FAST, "--keep", str(tmp_path / "keep")]
    assert command([*words, "-o", str(tmp_path / "1.tif")]) == 0
    monkeypatch.setattr(files, "span", lambda most: 0.1)
    monkeypatch.setattr(files.Tiles, "fit", None)
    assert command([*words, "-o", str(tmp_path / "2.tif")]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("suffix, transparent", [("png", None), ("png", 3), ("tif", None)])
def test_tiles_of_a_palette_are_not_put_into_one(tmp_path, monkeypatch, suffix, transparent):
    noisy = ramp((50, 48))[0] + 0.05 * np.random.RandomState(0).randn(50, 48)
    rgb = np.stack([noisy, noisy[::-1], noisy[:, ::-1]], -1).clip(0, 1)
    palette = Image.fromarray((255 * rgb).astype(np.uint8)).quantize(64)
    palette.save(tmp_path / "in.png", **({"transparency": transparent} if transparent else {}))
    fitted = lambda task, cancelled=None: tiles.Fitted(0.5 * task.y + 0.2, 5, 4, True, 0.1)  # noqa: E731
    monkeypatch.setattr(tiles, "fit_tile", fitted)
    out = tmp_path / f"out.{suffix}"
    words = ["denoise", str(tmp_path / "in.png"), "-o", str(out), *TILES, "--no-declipping"]
    assert command(words) == 0
    before, after = images.read(tmp_path / "in.png"), images.read(out)
    assert before.kind.space == "palette" and after.kind.space == "rgb"
    assert np.abs(after.data - (0.5 * before.data + 0.2)).max() < 0.003
    assert (before.alpha is None) == (after.alpha is None) == (transparent is None)
    assert transparent is None or np.array_equal(before.alpha, after.alpha)


def test_a_zarr_is_denoised_by_windows(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(tmp_path / "in.zarr", shape=(60, 70), dtype="uint8", chunks=(32, 32))
    array[:] = (255 * ramp((60, 70))[0] + np.random.RandomState(0).randn(60, 70) * 12).clip(0, 255)
    words = ["denoise", str(tmp_path / "in.zarr"), "-o", str(tmp_path / "out.zarr"), *FAST]
    assert command([*words, "--sigma", "12"]) == 0
    assert zarr.open_array(tmp_path / "out.zarr", mode="r").shape == (60, 70)


def test_a_zarr_that_was_changed_in_its_place_is_another_picture(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(tmp_path / "in.zarr", shape=(60, 70), dtype="uint8", chunks=(32, 32))
    array[:] = 1
    before, again = (files.identity(tmp_path / "in.zarr") for _ in range(2))
    array[40:, 40:] = 2
    assert before == again != files.identity(tmp_path / "in.zarr")


@pytest.mark.long
def test_a_killed_job_goes_on_where_it_was(tmp_path):
    noisy = 255 * (ramp((130, 100))[0] + 0.05 * np.random.RandomState(0).randn(130, 100))
    tifffile.imwrite(tmp_path / "in.tif", noisy.clip(0, 255).astype(np.uint8))
    base = [sys.executable, "-c", "import sys; from dip_recon.cli import main; sys.exit(main())",
            "denoise", str(tmp_path / "in.tif"), *TILES, *FAST]  # fmt: skip
    env = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([*base, "-o", str(tmp_path / "whole.tif")], env=env, check=True)
    kept = tmp_path / ".broken.tif.tiles" / "tiles"
    process = subprocess.Popen([*base, "-o", str(tmp_path / "broken.tif")], env=env)
    while process.poll() is None and len(list(kept.glob("*.npz"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(list(kept.glob("*.npz")))
    assert 3 <= done < 12 and not (tmp_path / "broken.tif").exists()
    subprocess.run([*base, "-o", str(tmp_path / "broken.tif")], env=env, check=True)
    assert (tmp_path / "whole.tif").read_bytes() == (tmp_path / "broken.tif").read_bytes()
    assert not kept.exists()


def test_tiles_of_another_picture_are_not_taken(tmp_path, capsys):
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", (ramp((50, 50))[0] * 255).astype(np.uint8))
    words = [
        "--tile",
        "32",
        "--overlap",
        "4",
        "--sigma",
        "5",
        "--keep",
        str(tmp_path / "keep"),
        *FAST,
    ]
    assert command(["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "1.tif"), *words]) == 0
    assert command(["denoise", str(tmp_path / "b.tif"), "-o", str(tmp_path / "2.tif"), *words]) == 2
    assert "another picture" in capsys.readouterr().err
    assert not (tmp_path / "2.tif").exists()
