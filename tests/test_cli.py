"""The command: one's own picture in, a restored one out, and the listings."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import refused
from PIL import Image

from dip_recon import auto, batch, data, holes, images, memory, needs, own, tasks
from dip_recon.cli import main
from dip_recon.errors import Kept
from dip_recon.flags import parse
from dip_recon.models import names
from dip_recon.noise import add_gaussian
from dip_recon.options import InpaintingOptions


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same settings with narrow networks and few iterations."""
    for name in ("INPAINTING", "SUPER_RESOLUTION"):
        options = getattr(auto, name)
        monkeypatch.setattr(auto, name, own.replace(options, dim=[8], num_iters=4))
    monkeypatch.setattr(auto, "DENOISING", own.replace(auto.DENOISING, num_iters=4))


def run(*argv):
    return main([str(a) for a in argv])


def test_denoise_gives_the_picture_back_in_kind(tmp_path, picture):
    noisy = add_gaussian(picture(3, (40, 36)), 25, np.random.RandomState(7))
    grey16 = (noisy[0] * 65535).astype(np.uint16)
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    alpha = np.full((40, 36), 128, np.uint8)
    rgba = np.dstack([(np.moveaxis(noisy, 0, -1) * 255).astype(np.uint8), alpha])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(noisy[0] > 0.5).save(tmp_path / "bits.png")
    for name in ("deep", "alpha", "bits"):
        assert run("denoise", tmp_path / f"{name}.png", "-o", tmp_path / f"{name}_out.png") == 0
        before, after = (images.read(tmp_path / f"{name}{end}.png") for end in ("", "_out"))
        assert before.kind == after.kind and before.size == after.size
        assert name == "bits" or not np.array_equal(before.data, after.data)
    assert (images.read(tmp_path / "alpha_out.png").alpha == 128).all()


def test_inpaint_and_sr(tmp_path, picture, capsys):
    images.save_png(tmp_path / "x.png", picture(3, (40, 36)))
    mask = np.ones((1, 40, 36), np.float32)
    mask[:, :10] = 0
    images.save_png(tmp_path / "mask.png", mask)
    images.save_png(tmp_path / "other.png", mask[:, 3:])
    out = tmp_path / "out.png"
    assert run("inpaint", tmp_path / "x.png", "--mask", tmp_path / "mask.png", "-o", out) == 0
    before, after = (images.read(p).data for p in (tmp_path / "x.png", out))
    assert np.array_equal(before[:, 10:], after[:, 10:]), "known pixels stay as they were"
    assert not np.array_equal(before[:, :10], after[:, :10])
    said = capsys.readouterr().out
    assert "x: 25.0% of the pixels are missing, at most 10 from one that is known" in said
    assert run("sr", tmp_path / "x.png", "--factor", 2, "-o", out, "--explain", "--width", 4) == 0
    assert images.read(out).data.shape == (3, 80, 72)
    said = capsys.readouterr().out
    assert "40×36 to 80×72 pixels" in said and "skip of width 4" in said
    assert "pixels known: 1440" in said
    assert run("inpaint", tmp_path / "x.png", "--mask", tmp_path / "other.png", "-o", out) == 2


def test_holes_may_be_transparent_or_of_a_colour(tmp_path, picture, capsys):
    rgb = (np.moveaxis(picture(3, (40, 36)), 0, -1) * 200).astype(np.uint8)
    alpha = np.full((40, 36), 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    painted = rgb.copy()
    painted[:10] = (255, 0, 255)
    Image.fromarray(painted).save(tmp_path / "magenta.png")
    out = tmp_path / "out.png"
    for name, flags in (("alpha", []), ("magenta", ["--missing", "#ff00ff"])):
        assert run("inpaint", tmp_path / f"{name}.png", *flags, "-o", out) == 0
        after = images.read(out)
        assert after.alpha is None
        stored = (np.moveaxis(after.data, 0, -1) * 255).round().astype(np.uint8)
        assert np.array_equal(stored[10:], rgb[10:]) and not np.array_equal(
            stored[:10], painted[:10]
        )
    assert run("inpaint", tmp_path / "magenta.png", "-o", out) == 2
    assert "--missing" in capsys.readouterr().err


@pytest.mark.drawn
def test_keep_leaves_a_run_folder_and_refuses_another_picture(tmp_path, picture, capsys):
    images.save_png(tmp_path / "a.png", picture(3))
    images.save_png(tmp_path / "b.png", 1 - picture(3))
    out, kept = tmp_path / "out.png", tmp_path / "kept"
    assert run("denoise", tmp_path / "a.png", "-o", out, "--keep", kept) == 0
    assert (kept / "history.csv").is_file() and (kept / "comparison.png").is_file()
    before = out.read_bytes()
    assert run("denoise", tmp_path / "b.png", "-o", out, "--keep", kept) == 2
    assert "--keep" in capsys.readouterr().err and out.read_bytes() == before


@pytest.mark.parametrize("more", [[], ["--tile", "24", "--overlap", "4"], ["sr"]])
def test_a_folder_with_a_file_of_ones_own_is_not_kept_in(tmp_path, picture, capsys, more):
    images.save_png(tmp_path / "a.png", picture(1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "result.json").write_text("{}")
    command, *more = more if more == ["sr"] else ["denoise", *more]
    words = [command, tmp_path / "a.png", "-o", tmp_path / "o.png", "--keep", tmp_path / "mine"]
    assert run(*words, *more) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "mine" / "result.json").read_text() == "{}"


@pytest.mark.drawn
def test_what_is_kept_is_not_done_again(tmp_path, picture, capsys, monkeypatch):
    images.save_png(tmp_path / "a.png", picture(3))
    words = [tmp_path / "a.png", "-o", tmp_path / "out.png", "--keep", tmp_path / "kept"]
    assert run("denoise", *words, "--runs", 2) == 0
    first = (tmp_path / "out.png").read_bytes()
    for n in (1, 2):
        assert (tmp_path / f"kept/run{n}/comparison.png").is_file()
    (tmp_path / "kept/run2/result.json").unlink()
    again = []
    run_one = own.run_one
    monkeypatch.setattr(own, "run_one", lambda *a, **k: again.append(a[1]) or run_one(*a, **k))
    assert run("denoise", *words, "--runs", 2, "--overwrite") == 0
    assert [r.folder.name for r in again] == ["run2"]
    assert (tmp_path / "out.png").read_bytes() == first
    (tmp_path / "kept/run1/restored.npy").write_bytes(b"no")
    assert run("denoise", *words, "--runs", 2) == 2
    assert "--keep" in capsys.readouterr().err


def test_without_a_folder_to_keep_nothing_is_drawn(tmp_path, picture, monkeypatch):
    from dip_recon import figures

    images.save_png(tmp_path / "a.png", picture(3))
    monkeypatch.setattr(figures, "draw_run", lambda run: pytest.fail("drawn for nobody"))
    assert run("denoise", tmp_path / "a.png", "-o", tmp_path / "out.png") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "out.png"]


def test_a_bad_option_is_refused_before_anything_is_said(tmp_path, picture, capsys):
    images.save_png(tmp_path / "a.png", picture(3))
    assert run("denoise", tmp_path / "a.png", "--sigma", -5) == 2
    told = capsys.readouterr()
    assert "--sigma" in told.err and not told.out


def test_a_draft_says_that_its_levels_are_halved(tmp_path, picture, capsys):
    noisy = add_gaussian(picture(3, (64, 64)), 25, np.random.RandomState(7))
    images.save_png(tmp_path / "a.png", noisy)
    assert run("denoise", tmp_path / "a.png", "--draft", "--sigma", 25) == 0
    said = capsys.readouterr().out
    assert "halves the noise" in said and "noise level 25 as given" in said
    assert "a draft" in said.splitlines()[0] and "restored in" in said


@pytest.mark.drawn
def test_demo(tmp_path, capsys):
    assert run("demo", "-o", tmp_path / "demo") == 0
    said = capsys.readouterr().out
    for word in (
        "noise level about 2",
        "noisy PSNR",
        "restored PSNR",
        "SSIM",
        "4 tiles",
        "seconds",
    ):
        assert word in said
    assert str(tmp_path / "demo/comparison.png") in said
    assert (tmp_path / "demo/comparison.png").is_file()
    assert run("demo", "-o", tmp_path / "demo") == 0, "a second demo replaces the first"


def test_folders_stacks_and_more(tmp_path, picture, capsys):
    noisy = add_gaussian(picture(3, (40, 36)), 25, np.random.RandomState(7))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        images.save_png(tmp_path / "in" / f"{name}.png", noisy)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    assert run("denoise", tmp_path / "in", "-o", tmp_path / "out") == 2, "the others are done"
    said = capsys.readouterr()
    assert "bad.png" in said.out and "1 of 3" in said.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert run("denoise", tmp_path / "in" / "[ab].png", "-o", tmp_path / "out") == 0
    assert "already" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    frames = (noisy.transpose(1, 2, 0)[None].repeat(2, 0) * 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", frames, photometric="rgb")
    assert run("denoise", tmp_path / "stack.tif", "-o", tmp_path / "out.tif", "--explain") == 0
    assert "in the flattest places" in capsys.readouterr().out
    assert tifffile.imread(tmp_path / "out.tif").shape == frames.shape
    words = ["-o", tmp_path / "out.tif", "--overwrite", "--runs", 2, "--iterations", 2]
    assert run("denoise", tmp_path / "stack.tif", *words) == 0
    spread = tifffile.imread(tmp_path / "out_uncertainty.tif")
    assert spread.shape == frames.shape[:3] and spread.dtype == np.float32
    assert 0 < spread.max() < 0.5
    one = tmp_path / "in" / "a.png"
    assert run("denoise", one, "-o", tmp_path / "best.png", "--runs", 2) == 0
    assert images.read(tmp_path / "best_uncertainty.png").data.max() == 1
    assert run("denoise", one, "--draft") == 0
    assert (tmp_path / "in" / "a_denoised.png").is_file()


def test_workers_share_out_the_pictures_of_a_folder(tmp_path, picture, capsys):
    pytest.importorskip("distributed")
    (tmp_path / "in").mkdir()
    for n, name in enumerate("ab"):
        noisy = add_gaussian(picture(1, (40, 36)), 25, np.random.RandomState(n))
        images.save_png(tmp_path / "in" / f"{name}.png", noisy)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    words = ["denoise", tmp_path / "in", "--iterations", 3, "--keep", tmp_path / "keep"]
    assert run(*words, "-o", tmp_path / "out", "--workers", 2) == 2, "the others are done"
    said = capsys.readouterr()
    assert "left out: " in said.out and "bad.png" in said.out and "1 of 3" in said.err
    assert f"{tmp_path / 'out' / 'b.png'}: " in said.out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    assert run(*words[:-2], "-o", tmp_path / "turn") == 2
    torch.set_num_threads(threads)
    for name in ("a.png", "b.png"):
        assert (tmp_path / "turn" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        assert (tmp_path / "keep" / name / "result.json").is_file()


def test_a_picture_on_a_worker_can_be_called_off(tmp_path, picture):
    noisy = add_gaussian(picture(1, (40, 36)), 25, np.random.RandomState(7))
    images.save_png(tmp_path / "a.png", noisy)
    for more in (
        {"keep": tmp_path / "keep"},
        {"keep": tmp_path / "tiles", "tile": 20, "overlap": 4},
    ):
        wishes = batch.Wishes({"num_iters": 10**6}, **more)
        task = batch._Task(tmp_path / "a.png", tmp_path / "out.png", wishes, True)
        with pytest.raises(KeyboardInterrupt):
            batch._on_worker(task, lambda: True)
    assert (tmp_path / "keep/checkpoint.pt").is_file() and not (tmp_path / "out.png").exists()


def test_an_overwrite_that_was_interrupted_is_gone_on_with(tmp_path, picture, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "abc":
        images.save_png(tmp_path / "in" / f"{name}.png", picture(1))
    done, stop_at = [], None

    def one(path, place, wishes, several, say):
        if path.stem == stop_at:
            raise KeyboardInterrupt
        time.sleep(0.02)  # clocks of disks tick less often than processors'
        done.append(path.stem)
        images.save_png(place, picture(1))

    monkeypatch.setattr(batch, "_one", one)
    words = ["denoise", tmp_path / "in", "-o", tmp_path / "out"]
    assert run(*words) == 0
    future = time.time() + 3600  # by another machine's clock
    os.utime(tmp_path / "out" / "a.png", (future, future))
    assert run(*words, "--overwrite") == 0 and done == [*"abcabc"]
    done, stop_at = [], "b"
    assert run(*words, "--overwrite") == 130
    assert "--overwrite" in capsys.readouterr().err.splitlines()[-1]
    stop_at = None
    assert run(*words, "--overwrite") == 0 and done == [*"abc"]
    assert "a.png: done again before" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    done, stop_at = [], "b"
    assert run(*words, "--overwrite") == 130
    stop_at = None
    assert run(*words, "--overwrite", "--sigma", 25) == 0 and done == [*"aabc"], "another wish"
    done, stop_at = [], "b"
    assert run(*words, "--overwrite") == 130
    stop_at = None
    assert run("denoise", tmp_path / "in" / "a.png", "-o", tmp_path / "out" / "a.png") == 0
    assert run(*words, "--overwrite") == 0 and done == [*"aaabc"], "another command's results"
    done, stop_at = [], "b"
    assert run(*words, "--overwrite") == 130
    (tmp_path / "in").rename(tmp_path / "other")
    words[1], stop_at = tmp_path / "other", None
    assert run(*words, "--overwrite") == 0 and done == [*"aabc"], "other pictures"


def test_so_is_that_of_a_picture_of_which_runs_are_kept(tmp_path, picture):
    images.save_png(tmp_path / "a.png", picture(1))

    def interrupted(overwrite, draft=False):
        """What was there of it before."""
        wishes = batch.Wishes({}, draft, overwrite=overwrite)
        with pytest.raises(Kept), batch._kept(tmp_path / "a.png", tmp_path / "o.png", wishes) as w:
            there = (w.keep / "run1").exists()
            (w.keep / "run1").mkdir(exist_ok=True)
            raise KeyboardInterrupt
        return there

    found = [interrupted(overwrite) for overwrite in (False, False, True, True, False, True)]
    assert found == [False, True, False, True, True, False]
    assert [interrupted(True, draft) for draft in (True, True, False)] == [False, True, False]


def test_a_draft_is_no_part_of_a_full_run(tmp_path, picture):
    noisy = add_gaussian(picture(3, (40, 36)), 25, np.random.RandomState(7))
    images.save_png(tmp_path / "x.png", noisy)
    words = ["denoise", tmp_path / "x.png", "-o", tmp_path / "out.png", "--keep", tmp_path / "keep"]
    assert run(*words, "--draft") == 0
    assert run(*words) == 2
    assert run(*words, "--draft") == 0


def test_what_uses_little_of_its_range_is_stretched(tmp_path, picture, capsys):
    """12 bits in 16, as microscopes store them."""
    noisy = add_gaussian(picture(1, (40, 36)), 25, np.random.RandomState(7))
    tifffile.imwrite(tmp_path / "x.tif", (noisy[0] * 4095).astype(np.uint16))
    assert run("denoise", tmp_path / "x.tif", "-o", tmp_path / "out.tif") == 0
    said = capsys.readouterr().out
    assert "uses 6.2% of its range" in said and "no noise" not in said
    before, after = (tifffile.imread(tmp_path / f"{name}.tif") for name in ("x", "out"))
    assert not np.array_equal(before, after) and after.max() <= 4095
    assert abs(after.mean() / before.mean() - 1) < 0.1


@pytest.mark.parametrize("more", [[], ["--tile", "24", "--overlap", "8"]])
def test_a_hot_pixel_does_not_hide_the_noise(tmp_path, picture, capsys, more):
    noisy = add_gaussian(picture(1, (40, 36)), 25, np.random.RandomState(7))
    samples = (noisy[0] * 4095).astype(np.uint16)
    samples[20, 20] = 65535
    tifffile.imwrite(tmp_path / "x.tif", samples)
    words = ["denoise", tmp_path / "x.tif", "-o", tmp_path / "out.tif", "--iterations", "20"]
    assert run(*words, *more) == 0
    said = capsys.readouterr().out
    assert "uses 6.2% of its range" in said and "no noise" not in said
    after = tifffile.imread(tmp_path / "out.tif")
    assert after[20, 20] == 65535 and np.sum(after > 4095) == 1
    assert np.sum(after == samples) < 100


def test_what_towers_above_the_rest():
    dark = np.random.RandomState(0).poisson(3, (1, 100, 100)) / 1000  # whose own peaks do not
    assert tasks.brightest(dark) == dark.max() == pytest.approx(0.013, abs=0.004)
    dark[0, 3, 4] = 0.9
    assert tasks.brightest(dark) == pytest.approx(np.sort(dark.ravel())[-2], abs=1e-5)
    dark[0, :10, :10] = 0.9  # a lamp
    assert tasks.brightest(dark) == 0.9
    assert tasks.brightest(np.zeros((1, 8, 8))) == 0


@pytest.mark.parametrize("more", [[], ["--tile", "24", "--overlap", "8"]])
def test_grey_stored_as_rgb_is_restored_and_stays_grey(tmp_path, picture, capsys, more):
    noisy = add_gaussian(picture(1, (40, 36)), 25, np.random.RandomState(7))
    images.save_png(tmp_path / "x.png", np.repeat(noisy, 3, 0))
    words = ["denoise", tmp_path / "x.png", "-o", tmp_path / "out.png", "--iterations", "20"]
    assert run(*words, *more) == 0
    said = capsys.readouterr().out
    level = float(re.search("noise level about ([0-9.]+)", said)[1])
    assert 18 < level < 32 and "shared" not in said
    after = images.read(tmp_path / "out.png").data
    assert len(after) == 3 and (after == after[:1]).all()


@pytest.mark.parametrize("command", ["inpaint", "sr"])
def test_grey_stored_as_rgb_stays_grey_however_it_is_restored(tmp_path, picture, command):
    stored = np.moveaxis(np.repeat(picture(1, (20, 24)), 3, 0), 0, -1)
    marked = stored.copy()
    marked[4:9, 5:15] = (1, 0, 0)
    stored_as = marked if command == "inpaint" else stored
    tifffile.imwrite(tmp_path / "x.tif", stored_as, photometric="rgb")
    more = ["--missing", "red"] if command == "inpaint" else ["--factor", "2"]
    out = tmp_path / "out.tif"
    assert run(command, tmp_path / "x.tif", "-o", out, *more, "--iterations", "5") == 0
    after = tifffile.imread(out)
    assert after.shape[-1] == 3 and (after == after[..., :1]).all()
    if command == "inpaint":
        known = (marked == stored).all(-1)
        assert known.sum() == 20 * 24 - 50
        np.testing.assert_array_equal(after[known], stored[known])


def test_known_pixels_of_a_palette_stay(tmp_path, picture):
    rgb = Image.fromarray((np.moveaxis(picture(3, (40, 36)), 0, -1) * 255).astype(np.uint8))
    rgb.quantize(16).save(tmp_path / "palette.png")
    mask = np.ones((1, 40, 36), np.float32)
    mask[:, :10] = 0
    images.save_png(tmp_path / "mask.png", mask)
    out = tmp_path / "out.png"
    words = ["inpaint", tmp_path / "palette.png", "--mask", tmp_path / "mask.png", "-o", out]
    assert run(*words) == 0
    before, after = (images.read(p).data for p in (tmp_path / "palette.png", out))
    assert np.array_equal(before[:, 10:], after[:, 10:])


def test_several_pictures_need_a_folder(tmp_path, picture, capsys):
    noisy = add_gaussian(picture(3, (40, 36)), 25, np.random.RandomState(7))
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        images.save_png(tmp_path / "in" / f"{name}.png", noisy)
    assert run("denoise", tmp_path / "in" / "a.png", tmp_path / "in" / "b.png") == 2
    assert "--output FOLDER" in capsys.readouterr().err
    assert run("denoise", tmp_path / "in") == 0
    assert len(list((tmp_path / "in_denoised").iterdir())) == 2


def test_the_folder_one_is_in_and_the_one_above(tmp_path, picture, monkeypatch):
    (tmp_path / "shots" / "raw").mkdir(parents=True)
    for folder in (tmp_path / "shots", tmp_path / "shots" / "raw"):
        images.save_png(folder / "a.png", picture())
    for at, word in (("shots", "."), ("shots/raw", "..")):
        monkeypatch.chdir(tmp_path / at)
        found = batch.outputs(batch.expand([word]), None, True, True)
        assert found == [tmp_path / "shots_denoised" / "a.png"]
    monkeypatch.chdir(tmp_path)
    assert batch.outputs(batch.expand(["shots"]), None, True, True) == [
        Path("shots_denoised/a.png")
    ]
    refused(lambda: batch.outputs([Path("/a.png")], None, True, True), "--output FOLDER")


def test_a_picture_that_is_left_out_is_named(tmp_path, picture, capsys):
    (tmp_path / "in").mkdir()
    for name, size in (("flat", (40, 36)), ("tiny", (5, 5))):
        images.save_png(tmp_path / "in" / f"{name}.png", np.full((1, *size), 0.4, np.float32))
    assert run("denoise", tmp_path / "in") == 2
    said = capsys.readouterr().out
    assert f"left out: {tmp_path / 'in' / 'tiny.png'}: 5×5 pixels" in said
    assert run("denoise", tmp_path / "in" / "tiny.png") == 2
    assert "tiny.png: 5×5 pixels" in capsys.readouterr().err
    assert run("denoise", tmp_path / "in" / "flat.png", "--overlap", "4") == 2
    assert capsys.readouterr().err.startswith("error: --overlap")


@pytest.mark.parametrize("wrong", ["nan", "sigma"])
def test_a_frame_that_will_not_do_is_found_before_the_first_is_fitted(
    tmp_path, picture, capsys, monkeypatch, wrong
):
    stack = np.stack([add_gaussian(picture(1), 25, np.random.RandomState(n))[0] for n in range(3)])
    stack[2] = np.nan if wrong == "nan" else 0.01 * stack[2]
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    monkeypatch.setattr(own, "restore", None)
    assert run("denoise", tmp_path / "stack.tif", "-o", tmp_path / "out.tif", "--sigma", "25") == 2
    said = capsys.readouterr()
    assert "frame 3 of " in said.err and "stack.tif" in said.err and not said.out
    assert [path.name for path in tmp_path.iterdir()] == ["stack.tif"]


def test_frames_of_a_palette_are_all_in_colour(tmp_path, picture, monkeypatch):
    noisy = add_gaussian(picture(3, (40, 36)), 25, np.random.RandomState(7))
    colour = Image.fromarray((noisy.transpose(1, 2, 0) * 255).astype(np.uint8)).quantize(64)
    grey = Image.fromarray((noisy[0] * 255).astype(np.uint8)).convert("P")
    grey.save(tmp_path / "stack.tif", save_all=True, append_images=[colour])
    assert run("denoise", tmp_path / "stack.tif", "-o", tmp_path / "out.tif") == 0
    after = tifffile.imread(tmp_path / "out.tif")
    assert after.shape == (2, 40, 36, 3)
    assert (after[0] == after[0, ..., :1]).all() and not (after[1] == after[1, ..., :1]).all()


def test_what_has_no_noise_stays(tmp_path, capsys):
    flat = np.full((3, 40, 36), 0.4, np.float32)
    images.save_png(tmp_path / "flat.png", flat)
    assert run("denoise", tmp_path / "flat.png", "-o", tmp_path / "out.png") == 0
    assert "no noise" in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes() != b"" and np.array_equal(
        images.read(tmp_path / "out.png").data, images.read(tmp_path / "flat.png").data
    )
    alone = np.random.RandomState(0).normal(0.5, 0.1, (3, 64, 64)).clip(0, 1)
    images.save_png(tmp_path / "noise.png", alone.astype(np.float32))
    assert run("denoise", tmp_path / "noise.png", "-o", tmp_path / "out.png") == 0
    assert "nothing but noise" in capsys.readouterr().out


def test_listings(capsys):
    assert run("models", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == names()
    assert (
        rows["DIP_orig"]["parameters"] == 2_217_831 and rows["DIP_2_scaled"]["options"]["dim"] == 64
    )
    recipes = {name: row["recipe"] for name, row in rows.items()}
    assert recipes["Swin_expand"]["exp_start"] == 100 and recipes["DIP_orig"] == {}
    assert rows["Swin_upsample"]["options"]["num_heads"] == [4, 8, 8, 6]
    assert run("upsamplers", "--json", "LPF2", "taps:1,2,1") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["taps"] for row in rows] == [[0.25, 0.5, 0.25]] * 2
    assert run("data", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["bundled"]["here"] and rows["set9"]["files"] == 9
    for listing in ("models", "upsamplers"):
        assert run(listing) == 0
    assert "Swin_expand is fitted with --lr 0.0008 --num_iters 3000" in capsys.readouterr().out
    assert run("data", "list") == 0


def test_plot_of_responses(tmp_path):
    assert run("upsamplers", "LPF4", "kaiser:60,0.4", "--plot", tmp_path / "r.png") == 0
    assert images.read(tmp_path / "r.png").size > (300, 300)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["denoise", "{tmp}/none.png", "-o", "{tmp}/out.png"], "none.png"),
        (["denoise", "{tmp}", "-o", "{tmp}/out.png"], "{tmp}"),
        (["denoise", "{tmp}/x.png", "-o", "{tmp}/none/out.png"], "none"),
        (["denoise", "{tmp}/x.png", "-o", "{tmp}/out.xyz"], "out.xyz"),
        (["denoise"], "PICTURE"),
        (["denoise", "{tmp}/x.png", "{tmp}/x.png/", "-o", "{tmp}/x.png"], "x.png"),
        (["denoise", "{tmp}/*.gif"], "*.gif"),
        (["denoise", "{tmp}/x.png", "--draft", "--best"], "--best"),
        (["denoise", "{tmp}/x.png", "--width", "0"], "--width 0"),
        (["denoise", "{tmp}/x.png", "--sigma", "-3"], "--sigma"),
        (["denoise", "{tmp}/x.png", "--stopping", "soon"], "--stopping soon"),
        (["denoise", "{tmp}/x.png", "--overlap", "8"], "--overlap"),
        (["denoise", "{tmp}/x.png", "-o", "{tmp}/out.png", "--iterations", "0"], "--iterations 0"),
        (["denoise", "{tmp}/x.png", "-o", "{tmp}/out.png", "--device", "tpu"], "--device tpu"),
        (["denoise", "{tmp}/tiny.png", "-o", "{tmp}/out.png"], "at least"),
        (["sr", "{tmp}/x.png", "--factor", "1", "-o", "{tmp}/out.png"], "--factor 1"),
        (["sr", "{tmp}/x.png", "-o", "{tmp}/out.png", "--stopping", "AMNS"], "is for denoising"),
        (["sr", "{tmp}/x.png", "-o", "{tmp}/out.png", "--width", "0"], "--width 0"),
        (
            ["inpaint", "{tmp}/x.png", "--mask", "{tmp}/white.png", "-o", "{tmp}/out.png"],
            "--mask {tmp}/white.png: no pixel is missing",
        ),
        (["upsamplers", "LPF7"], "LPF7"),
        (["upsamplers", "nearest", "--plot", "{tmp}/r.bmpp"], "--plot"),
        (["upsamplers", "taps:1,x"], "taps:1,x"),
        (["data", "download", "set99"], "set99"),
        (["denose"], "denose"),
    ],
)
def test_mistakes_are_one_line(tmp_path, picture, capsys, argv, message):
    images.save_png(tmp_path / "x.png", picture(3))
    images.save_png(tmp_path / "tiny.png", picture(3)[:, :1, :1])
    images.save_png(tmp_path / "white.png", np.ones_like(picture(3)))
    before = sorted(tmp_path.rglob("*"))
    assert run(*(a.format(tmp=tmp_path) for a in argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message.format(tmp=tmp_path) in said
    assert sorted(tmp_path.rglob("*")) == before


def test_as_a_process():
    folder = Path(__file__).parents[1] / "DIP-Recon"
    command = [sys.executable, "-m", "dip_recon", "upsamplers", "LPF2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "LPF2" in done.stdout, done.stderr
    done = subprocess.run([*command[:3], "denose"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_help_does_not_import_torch():
    code = "import sys; from dip_recon.cli import build_parser; build_parser().format_help(); "
    code += "sys.exit('torch' in sys.modules)"
    folder = Path(__file__).parents[1] / "DIP-Recon"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0


def test_nothing_waits_for_plots_that_are_not_drawn_nor_for_statistics():
    """Matplotlib and scipy.stats take seconds to import."""
    code = "import sys, dip_recon.experiment, dip_recon.own, dip_recon.sweeps.command; "
    code += "sys.exit('matplotlib' in sys.modules or 'scipy.stats' in sys.modules)"
    folder = Path(__file__).parents[1] / "DIP-Recon"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0


def test_files_of_others_are_left_alone(tmp_path, picture, capsys):
    images.save_png(tmp_path / "noisy.png", picture(3))
    before = (tmp_path / "noisy.png").read_bytes()
    (tmp_path / "thesis.tex").write_text("years of work")
    out = tmp_path / "out.png"
    assert run("demo", "-o", tmp_path) == 2
    assert run("denoise", tmp_path / "noisy.png", "-o", out, "--keep", tmp_path) == 2
    assert run("denoise", tmp_path / "noisy.png", "-o", tmp_path / "noisy.png") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noisy.png", "thesis.tex"]
    assert (tmp_path / "noisy.png").read_bytes() == before


def test_another_factor_is_another_run(tmp_path, picture):
    images.save_png(tmp_path / "x.png", picture(3))
    common = ["sr", tmp_path / "x.png", "-o", tmp_path / "out.png", "--keep", tmp_path / "k"]
    assert run(*common, "--factor", 2) == 0
    assert run(*common, "--factor", 4) == 2


def test_a_mask_is_flat_and_of_the_size_of_its_picture(tmp_path, picture, capsys):
    images.save_png(tmp_path / "x.png", picture(1, (40, 36)))
    layer = np.zeros((40, 36, 4), np.uint8)
    layer[5:9, 5:9, 3] = 255  # black strokes on nothing
    Image.fromarray(layer).save(tmp_path / "layer.png")
    mask = np.ones((1, 48, 44), np.float32)
    mask[:, 20:30, 10:30] = 0
    images.save_png(tmp_path / "large.png", mask)
    words = ["--mask", tmp_path / "layer.png", "-o", tmp_path / "out.png"]
    assert run("inpaint", tmp_path / "x.png", *words) == 2
    assert "layer.png: is transparent in places: flatten it" in capsys.readouterr().err
    for more in (["--crop", "36", "36"], ["--imsize", "36", "36"], []):
        flags = ["--mask_type", "file", "--mask_path", str(tmp_path / "large.png"), *more]
        options, _, _ = parse(InpaintingOptions, flags, "inpainting.py")
        job = partial(tasks.inpainting_job, data.resolve(tmp_path / "x.png")[0], options)
        refused(job, "large.png", "48×44", "40×36")


@pytest.mark.parametrize("command", ["inpaint", "sr"])
def test_what_will_not_fit_into_memory_is_not_begun(
    tmp_path, picture, capsys, monkeypatch, command
):
    rgba = np.concatenate([picture(3, (40, 36)), np.ones((1, 40, 36))])
    rgba[3, 5:9, 5:9] = 0
    stored = (np.moveaxis(rgba, 0, -1) * 255).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "x.png")
    monkeypatch.setattr(memory, "free", lambda device=None: 5 * 10**6)
    words = [command, tmp_path / "x.png", "-o", tmp_path / "out.png", "--width", "64"]
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "x: it takes about" in said and "a smaller" in said
    assert not (tmp_path / "out.png").exists()


def test_an_enlargement_beyond_memory_is_not_begun(tmp_path, picture, capsys, monkeypatch):
    images.save_png(tmp_path / "x.png", picture(3))
    monkeypatch.setattr(own.memory, "free", lambda device=None: 16 * 3 * 256**2 - 1)
    monkeypatch.setattr(own, "bicubic", None)
    assert run("sr", tmp_path / "x.png", "--factor", 8, "-o", tmp_path / "out.png") == 2
    said = capsys.readouterr().err
    assert "x.png" in said and "--factor" in said and "3.1 MB" in said


def test_what_the_format_does_not_hold_is_said(tmp_path, picture, capsys, monkeypatch):
    rgba = (np.moveaxis(picture(3, (40, 36)), 0, -1) * 65535).astype(np.uint16)
    rgba = np.dstack([rgba, np.full((40, 36), 65535, np.uint16)])
    tifffile.imwrite(
        tmp_path / "x.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], metadata=None
    )
    words = ["sr", tmp_path / "x.tif", "--factor", "2", "-o"]
    assert run(*words, tmp_path / "x.jpg") == 0
    assert "does not hold transparency or 16 bits a sample" in capsys.readouterr().out
    assert run(*words, tmp_path / "x2.png") == 0
    assert "does not hold" not in capsys.readouterr().out
    monkeypatch.setitem(images.writing.MAX_SIDE, ".webp", 70)
    monkeypatch.setattr(own, "restore", None)  # the size is known before the fit
    assert run(*words, tmp_path / "x.webp") == 2
    assert "at most 70 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inpaint", "sr"])
def test_what_uses_little_of_its_range_is_stretched_to_be_filled_or_enlarged(
    tmp_path, picture, command
):
    grey = picture(1, (40, 36))[0]
    mask = np.ones((1, 40, 36), np.float32)
    mask[:, 10:14, 10:20] = 0
    images.save_png(tmp_path / "m.png", mask)
    more = ["--mask", tmp_path / "m.png"] if command == "inpaint" else ["--factor", "2"]
    found = []
    for top in (65535, 4095):
        stored = (grey / grey.max() * top).round().astype(np.uint16)
        tifffile.imwrite(tmp_path / "x.tif", stored)
        assert run(command, tmp_path / "x.tif", *more, "-o", tmp_path / "out.tif") == 0
        found.append(tifffile.imread(tmp_path / "out.tif") / top)
        if command == "inpaint":
            known = mask[0] > 0
            np.testing.assert_array_equal(found[-1][known] * top, stored[known])
    assert np.abs(found[0] - found[1]).max() < 0.01


def test_a_large_picture_with_small_holes(tmp_path, picture, capsys, monkeypatch):
    monkeypatch.setattr(holes, "LARGE", 64)
    monkeypatch.setattr(holes, "CONTEXT", 24)
    x = picture(3, (120, 130))
    images.save_png(tmp_path / "x.png", x)
    mask = np.ones((1, 120, 130), np.float32)
    mask[:, 10:14, 20:30] = mask[:, 110:115, 120:125] = 0
    images.save_png(tmp_path / "m.png", mask)
    out, keep, places = tmp_path / "out.png", tmp_path / "keep", holes._places
    words = ["inpaint", tmp_path / "x.png", "--mask", tmp_path / "m.png", "-o", out]
    assert run(*words, "--keep", keep) == 0
    assert "around: 2 parts of it, the largest 38×54 pixels" in capsys.readouterr().out
    before, after = (images.read(tmp_path / f"{name}.png").data for name in ("x", "out"))
    known = mask[0] > 0
    np.testing.assert_array_equal(before[:, known], after[:, known])
    assert not np.allclose(before[:, ~known], after[:, ~known])
    assert sorted(p.parent.name for p in keep.rglob("result.json")) == ["part0", "part1"]
    out.unlink()
    # gone on with as it was begun, whatever memory there is now
    monkeypatch.setattr(needs, "too_large", lambda job, o: False)
    monkeypatch.setattr(holes, "_places", lambda missing: 3 * [*places(missing)])
    assert run(*words, "--keep", tmp_path / "whole") == 0
    assert (tmp_path / "whole" / "result.json").is_file()
    monkeypatch.setattr(holes, "_places", places)
    monkeypatch.setattr(own, "run_one", None)  # nothing is fitted again
    for name in ("keep", "whole"):
        assert run(*words, "--keep", tmp_path / name) == 0
        if name == "keep":
            np.testing.assert_array_equal(images.read(out).data, after)
    mask[:, 110:115, 120:125] = 1
    images.save_png(tmp_path / "m.png", mask)
    for name in ("keep", "whole"):
        assert run(*words, "--keep", tmp_path / name) == 2
    assert "holds another run" in capsys.readouterr().err


def test_a_photograph_is_no_mask(tmp_path, picture, capsys):
    images.save_png(tmp_path / "x.png", picture(3))
    argv = ["inpaint", tmp_path / "x.png", "--mask", tmp_path / "x.png"]
    assert run(*argv, "-o", tmp_path / "o.png") == 2
    assert "not a mask" in capsys.readouterr().err


def test_small_tiles_overlap_by_what_they_can(tmp_path, picture):
    images.save_png(tmp_path / "a.png", add_gaussian(picture(1), 25, np.random.RandomState(7)))
    words = ["--tile", 16, "--iterations", 2, "--width", 4, "--device", "cpu"]
    assert run("denoise", tmp_path / "a.png", *words) == 0
    assert (tmp_path / "a_denoised.png").is_file()
