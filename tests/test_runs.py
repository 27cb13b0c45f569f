"""Entry scripts and run folders, as processes and in miniature."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dip_recon import callbacks, data, experiment, images, runs, stopping
from dip_recon.errors import SIGNALS, UserError
from dip_recon.experiment import main
from dip_recon.files import atomic
from dip_recon.fit import fit
from dip_recon.flags import parse
from dip_recon.metrics import psnr
from dip_recon.options import DenoisingOptions, InpaintingOptions, SuperResolutionOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.runs import HISTORY, Run, find
from dip_recon.tasks import denoising_job, inpainting_job

HERE = Path(__file__).parents[1] / "DIP-Recon"
SMALL = "--dim 8 --num_iters 12 --iters_print_acc 5 --eval_every 5 --snapshots 0 5 --device cpu"


def call(cls, text, capsys=None):
    status = main(cls, text.split())
    return (status, capsys.readouterr()) if capsys else status


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_the_oracle_is_a_moment_of_the_run(folder, tmp_path, monkeypatch):
    """held-out returns a mean, which may be better than any moment."""
    better = 0.99 * images.read(folder / "colour.png").data[None]
    monkeypatch.setattr(
        stopping.HeldOut, "_with_held", lambda self, candidate, error: torch.from_numpy(better)
    )
    words = f"{SMALL} --folder_path {folder}/colour.png --save_folder {tmp_path} --noise_sigma 25"
    assert call(DenoisingOptions, f"{words} --stopping held-out") == 0
    (file,) = tmp_path.rglob("result.json")
    told = json.loads(file.read_text())
    rows = list(csv.DictReader((file.parent / "history.csv").open()))
    assert told["psnr_stopped"] > 40 > told["psnr_oracle"]
    best = max(float(row["psnr_gt_sm"]) for row in rows)
    assert told["psnr_oracle"] == pytest.approx(best, abs=0.01)


@pytest.mark.drawn
@pytest.mark.parametrize(
    "cls, task, flags",
    [
        (DenoisingOptions, "denoising", "--noise_sigma 25"),
        (DenoisingOptions, "denoising", "--poisson_scale 0.05 --special poisson"),
        (DenoisingOptions, "real_denoising", "--task real_denoising --stopping ES-EMV"),
        (InpaintingOptions, "inpainting", "--zero_fraction 0.3"),
        (InpaintingOptions, "inpainting", "--mask_type text"),
        (SuperResolutionOptions, "sr", "--sr_factor 2"),
    ],
)
def test_an_experiment_leaves_the_run_folder(folder, tmp_path, cls, task, flags, capsys):
    status, said = call(
        cls, f"{SMALL} --folder_path {folder} --save_folder {tmp_path} {flags}", capsys
    )
    assert status == 0, said.err
    special = "_poisson" if "special" in flags else ""
    method = tmp_path / task / f"DIP_2_scaled{special}"
    truth = task != "real_denoising"
    expected = {"config.yaml", "history.csv", "result.json", "restored.png", "noisy.png"}
    expected |= {"comparison.png", "curves.png", "snapshots/00000.png", "snapshots/00005.png"}
    expected |= {"clean.png"} if truth else set()
    for name in ("colour", "grey"):
        assert set(files(method / name)) == expected
        result = json.loads((method / name / "result.json").read_text())
        keys = "image model_type task parameters iterations stop_iteration stopping seconds "
        keys += "peak_memory_bytes sigma seed device precision"
        assert set(keys.split()) <= set(result)
        measured = (
            "psnr_noisy psnr_out psnr_ema psnr_stopped psnr_oracle oracle_iteration ssim_stopped"
        )
        assert (set(measured.split()) <= set(result)) == truth
        assert result["iterations"] == 12 and result["image"] == name
        rows = Run(method / name).history()
        assert [row["iteration"] for row in rows] == [0, 5, 10, 11]
        assert set(rows[0]) == set(HISTORY) and all(row["loss"] > 0 for row in rows)
    assert images.read(method / "grey" / "restored.png").data.shape == (1, 32, 32)
    assert images.read(method / "colour" / "restored.png").data.shape == (3, 40, 36)
    with (method / "results.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["ID", "PSNR", "SSIM", "Noisy_Baseline"]
    assert [row[0] for row in table[1:]] == ["colour", "grey"]
    log = (method / "log.txt").read_text()
    assert log in said.out.replace("\r", "")
    if truth:
        published = (
            r"Iteration 00005   PSNR_noisy_baseline: [\d.]+   PSNR_noisy: [\d.]+   PSRN_gt: "
        )
        assert re.search(published + r"[\d.]+ PSNR_gt_sm: [\d.]+\n", log)
    assert len(find(tmp_path)) == 2


def test_published_flags_run_every_kind_of_network(folder, tmp_path, capsys):
    (folder / "grey.png").unlink()
    common = f"--folder_path {folder} --save_folder {tmp_path} --num_iters 2 --exp_weight 0"
    common += " --in_size 16 16 --out_chns 3 --norm_func bn --num_skips 0 --num_scales 2"
    common += " --filter_size_down 3 --filter_size_up 3 --act_func ReLU --pad zero --num_layers 3"
    for flags in (
        "--model_type DD --progressive True --upsample_mode bilinear --dim 8",
        "--model_type DD --progressive False --upsample_mode None --dim 8 --special none",
        "--model_type ConvDecoder --progressive True --upsample_mode transposed --dim 8",
        "--model_type ConvDecoder_LPF --progressive True --upsample_mode LPF5 --dim 8",
        "--model_type DIP_LPF --upsample_mode LPF6 --dim 8",
        "--model_type DIP_scaled_transposed --upsample_mode bilinear --dim 8",
        "--model_type DIP_2_scaled --dim 8 --noise_method meshgrid",
        "--model_type DIP_2_scaled --dim 8 --noise_method fourier --special fourier",
        "--model_type DIP_2_scaled --dim 8 --noise_method noisy_image "
        "--input_image_name colour.png --special input",
    ):
        status, said = call(DenoisingOptions, f"{common} {flags}", capsys)
        assert status == 0, said.err
        assert (
            "does not use --in_size 16 16 --out_chns 3" in said.out or "does not use --" in said.out
        )


def test_config_of_a_run_repeats_it(folder, tmp_path):
    flags = f"{SMALL} --folder_path {folder} --upsample_mode LPF2"
    assert call(DenoisingOptions, f"{flags} --save_folder {tmp_path / 'a'}") == 0
    first = tmp_path / "a/denoising/DIP_2_scaled/grey"
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["upsample_mode"] == "LPF2" and config["num_scales"] == 2
    again = f"--config {first / 'config.yaml'} --save_folder {tmp_path / 'b'}"
    assert call(DenoisingOptions, again) == 0
    second = tmp_path / "b/denoising/DIP_2_scaled/grey"
    assert (first / "restored.png").read_bytes() == (second / "restored.png").read_bytes()


def test_looking_more_often_changes_no_number(folder, tmp_path):
    for n, more in enumerate(
        ("", "--verbose True --eval_every 1 --checkpoint_every 1 --snapshots 3")
    ):
        assert (
            call(
                DenoisingOptions,
                f"{SMALL} --folder_path {folder} --save_folder {tmp_path / str(n)} {more}",
            )
            == 0
        )
    pictures = [tmp_path / n / "denoising/DIP_2_scaled/colour/restored.png" for n in "01"]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_slow_iterations_are_saved_by_the_clock(folder, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Run, "save_checkpoint", lambda run, held: saved.append(held["state"]))
    monkeypatch.setattr(callbacks.Checkpoints, "LONGEST", 3600.0)
    words = f"{SMALL} --folder_path {folder / 'grey.png'} --num_iters 6 --save_folder"
    assert call(DenoisingOptions, f"{words} {tmp_path / 'a'}") == 0 and not saved
    monkeypatch.setattr(callbacks.Checkpoints, "LONGEST", 0.0)
    assert call(DenoisingOptions, f"{words} {tmp_path / 'b'}") == 0
    assert [state["iteration"] for state in saved] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_holds_a_run_is_not_overwritten_by_mistake(folder, tmp_path, capsys):
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    run = tmp_path / "runs/denoising/DIP_2_scaled/colour"
    before = (run / "result.json").read_bytes()
    capsys.readouterr()
    status, said = call(DenoisingOptions, flags, capsys)
    assert status == 2 and "holds a finished run" in said.err and "--resume" in said.err
    status, said = call(DenoisingOptions, f"{flags} --resume --lr 0.02", capsys)
    assert status == 2 and "lr 0.01, not 0.02" in said.err
    status, said = call(DenoisingOptions, f"{flags} --resume", capsys)
    assert status == 0 and "finished before, kept" in said.out
    assert (run / "result.json").read_bytes() == before
    status, said = call(DenoisingOptions, f"{flags} --overwrite --lr 0.02", capsys)
    assert status == 0 and Run(run).config()["lr"] == 0.02


def test_another_picture_of_the_same_name_is_noticed(folder, tmp_path, picture, capsys):
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'} --resume"
    assert call(DenoisingOptions, flags) == 0
    images.save_png(folder / "grey.png", 1 - picture(1))
    status, said = call(DenoisingOptions, flags, capsys)
    assert status == 2 and "picture_sha256" in said.err


def script(name, *flags, **more):
    command = [sys.executable, str(HERE / name), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=more.pop("cwd", None), env=environment, text=True, **more,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_transformer_dip_runs_from_anywhere_and_saves_its_recipe(folder, tmp_path):
    flags = f"--epochs 3 --input_dir {folder} --img_dir out --display_epoch 1 --dim 8 --device cpu"
    process = script("transformer-DIP/train.py", *flags.split(), cwd=tmp_path)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert "lr: 0.0008" in out and "exp_start: 100" in out and "Iteration 00002" in out
    config = Run(tmp_path / "out/denoising/Swin_upsample/grey").config()
    assert config["seed"] == 12345 and config["num_heads"] == [4, 8, 8, 6]
    assert {k: config[k] for k in ("lr", "num_iters", "exp_start", "input_dim")} == {
        "lr": 8e-4, "num_iters": 3, "exp_start": 100, "input_dim": 32,
    }  # fmt: skip


def test_a_run_stopped_over_its_figures_has_its_closing_line(folder, tmp_path, monkeypatch):
    def stop(run):
        raise KeyboardInterrupt

    flags = f"{SMALL} --folder_path {folder / 'grey.png'} --save_folder {tmp_path / 'runs'}"
    monkeypatch.setattr(experiment.figures, "draw_run", stop)
    assert call(DenoisingOptions, flags) == 130
    method = tmp_path / "runs/denoising/DIP_2_scaled"
    assert (method / "grey/result.json").is_file()
    assert (method / "log.txt").read_text().count("--- grey ---") == 1


def test_so_has_one_that_is_asked_to_leave_while_its_result_is_written(
    folder, tmp_path, monkeypatch
):
    write = Run.write_result

    def asked(run, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        write(run, *given)

    monkeypatch.setattr(Run, "write_result", asked)
    flags = f"{SMALL} --folder_path {folder / 'grey.png'} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 130
    method = tmp_path / "runs/denoising/DIP_2_scaled"
    assert (method / "grey/result.json").is_file()
    assert (method / "log.txt").read_text().count("--- grey ---") == 1


@pytest.mark.long
@pytest.mark.parametrize("stopping", ["fixed", "ES-WMV"])
def test_killed_three_times_and_resumed_is_identical(folder, tmp_path, stopping):
    (folder / "grey.png").unlink()
    flags = f"--folder_path {folder} --dim 8 --num_iters 300 --checkpoint_every 20 --device cpu"
    flags = f"{flags} --stopping {stopping} --window 20 --patience 60 --save_folder".split()
    whole = script("denoising.py", *flags, tmp_path / "whole")
    assert whole.wait(120) == 0, whole.stderr.read()
    method = tmp_path / "broken/denoising/DIP_2_scaled"
    for n in range(3):
        process = script("denoising.py", *flags, tmp_path / "broken", "--resume")
        seen = _iteration(method / "colour")
        deadline = time.time() + 60
        while _iteration(method / "colour") < seen + 20 * (n + 1) and time.time() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (method / "colour/result.json").exists()
    last = script("denoising.py", *flags, tmp_path / "broken", "--resume")
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert "goes on from iteration" in out
    expected = tmp_path / "whole/denoising/DIP_2_scaled/colour"
    for name in ("restored.png", "snapshots/00200.png"):
        assert (method / "colour" / name).read_bytes() == (expected / name).read_bytes()
    columns = [
        [{**row, "seconds": 0} for row in Run(f).history()] for f in (expected, method / "colour")
    ]
    assert columns[0] == columns[1]


def _iteration(run):
    """The iteration of the last line of history.csv, which is written with every checkpoint."""
    try:
        return int(Run(run).history()[-1]["iteration"])
    except UserError:
        return 0


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_says_how_to_go_on(folder, tmp_path, number):
    flags = f"--folder_path {folder} --dim 8 --num_iters 100000 --save_folder {tmp_path}".split()
    process = script("denoising.py", *flags, "--checkpoint_every", 10)
    run = tmp_path / "denoising/DIP_2_scaled/colour"
    deadline = time.time() + 60
    while _iteration(run) < 10 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "to go on: python " in err and "denoising.py --folder_path" in err
    assert err.rstrip().endswith("--resume")
    assert (run / "checkpoint.pt").is_file() and "Traceback" not in err


def test_runs_from_the_folder_as_published(folder, tmp_path):
    process = script(
        "denoising.py", "--folder_path", folder, "--num_iters", 2, "--dim", 8, cwd=tmp_path
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "runs/denoising/DIP_2_scaled/results.csv").is_file()


def test_dry_run_writes_nothing(folder, tmp_path, capsys):
    flags = f"--folder_path {folder} --save_folder {tmp_path / 'runs'} --dry-run"
    status, said = call(DenoisingOptions, flags, capsys)
    assert status == 0 and "num_scales: 2" in said.out and "2 pictures: colour, grey" in said.out
    assert not (tmp_path / "runs").exists()


def test_mask_file_and_its_mistakes(folder, tmp_path, capsys):
    (folder / "grey.png").unlink()
    mask = np.ones((1, 40, 36), np.float32)
    mask[:, 10:20, 10:20] = 0
    images.save_png(tmp_path / "mask.png", mask)
    images.save_png(tmp_path / "black.png", 0 * mask)
    images.save_png(tmp_path / "small.png", mask[:, :30])
    common = f"{SMALL} --folder_path {folder} --mask_type file --save_folder {tmp_path / 'runs'}"
    for name, message in (("small", "40"), ("black", "black.png"), ("none", "none.png")):
        status, said = call(
            InpaintingOptions, f"{common} --mask_path {tmp_path / name}.png", capsys
        )
        assert status == 2 and message in said.err and said.err.count("\n") == 1
        assert not (tmp_path / "runs").exists()
    status, said = call(InpaintingOptions, f"{common} --mask_path {tmp_path / 'mask.png'}", capsys)
    assert status == 0, said.err
    noisy = images.read(tmp_path / "runs/inpainting/DIP_2_scaled/colour/noisy.png").data
    assert (noisy[:, 10:20, 10:20] == 0).all()


def test_a_mask_is_resized_with_its_picture(tmp_path, picture):
    mask = np.ones((1, 64, 48), np.float32)
    mask[:, 8:32, 8:24] = 0
    mask[:, 50, 40] = 0  # finer than the small picture, but no pixel of it is missing
    images.save_png(tmp_path / "a_mask.png", mask)
    images.save_png(tmp_path / "a.png", picture(3, (64, 48)) / 2 + 0.4)
    common = f"--folder_path {tmp_path} --mask_type file --imsize 32 24"
    options, _, _ = parse(InpaintingOptions, common.split(), "test")
    job = inpainting_job(data.resolve(tmp_path)[0], options)
    known = job.problem.A.mask[0, 0].numpy()
    assert known.shape == (32, 24) and set(np.unique(known)) == {0, 1}
    assert not known[4:16, 4:12].any() and (known[18:24].all() and known[:, 14:19].all())
    assert not known[25, 20], "what a missing pixel has gone into is not known"


@pytest.mark.parametrize("name", [*InpaintingOptions.RECIPES, *DenoisingOptions.RECIPES])
def test_a_recipe_runs_on_any_picture(name, tmp_path, picture):
    """End to end, narrow and short; the pictures of the recipes take a download."""
    cls = InpaintingOptions if name in InpaintingOptions.RECIPES else DenoisingOptions
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    images.save_png(pictures / "own.png", picture(3, (40, 33)) / 2 + 0.4)
    mask = np.ones((1, 40, 33), np.float32)
    mask[:, 10:20, 10:20] = 0
    images.save_png(pictures / "own_mask.png", mask)
    images.save_png(tmp_path / "flash.png", picture(3, (40, 33)))
    flags = f"--recipe {name} --folder_path {pictures} --dim 4 --skip_dim 0 --num_scales 2"
    flags += " --input_image_name {}".format(tmp_path / "flash.png") * (name == "flash")
    # the mask is a picture like any other where there is nothing to fill in
    if cls is DenoisingOptions:
        (pictures / "own_mask.png").unlink()
    flags += f" --num_iters 4 --eval_every 2 --device cpu --save_folder {tmp_path / 'runs'}"
    assert call(cls, flags) == 0
    [run] = find(tmp_path / "runs")
    config, result = run.config(), run.result()
    assert config["recipe"] == name and config["model_type"] == "skip" and config["dim"] == [4]
    assert result["iterations"] == 4 and ("psnr_stopped" in result) == (cls is InpaintingOptions)
    measured = images.read(run.folder / "noisy.png").data
    if cls is InpaintingOptions:
        assert (measured[:, 10:20, 10:20] == 0).all() and measured[:, :10].min() > 0
    else:
        assert np.array_equal(measured, images.read(pictures / "own.png").data)
    # run again by the file it left, to the same numbers
    again = f"--config {run.folder / 'config.yaml'} --save_folder {tmp_path / 'again'}"
    assert call(cls, again) == 0
    [other] = find(tmp_path / "again")
    assert other.history()[-1]["loss"] == run.history()[-1]["loss"]


def test_pairs_are_used_as_they_are(tmp_path, picture):
    sets = {name: tmp_path / name for name in ("sr", "polyu")}
    for path in sets.values():
        path.mkdir()
    images.save_png(sets["sr"] / "img_001_SRF_2_HR.png", picture(3))
    images.save_png(sets["sr"] / "img_001_SRF_2_LR.png", picture(3, (16, 16)) * 0.5)
    images.save_png(sets["polyu"] / "a_real.png", picture(3) * 0.9)
    images.save_png(sets["polyu"] / "a_mean.png", picture(3))
    common = f"{SMALL} --save_folder {tmp_path / 'runs'}"
    assert call(SuperResolutionOptions, f"{common} --sr_factor 2 --folder_path {sets['sr']}") == 0
    run = Run(tmp_path / "runs/sr/DIP_2_scaled/img_001")
    low = images.read(run.folder / "noisy.png").data
    assert np.allclose(low, images.read(sets["sr"] / "img_001_SRF_2_LR.png").data)
    keys = {"psnr_luma_out", "psnr_luma_stopped", "psnr_luma_bicubic"}
    assert keys <= set(run.result())
    assert call(SuperResolutionOptions, f"{common} --sr_factor 4 --folder_path {sets['sr']}") == 2
    assert call(DenoisingOptions, f"{common} --folder_path {sets['polyu']}") == 0
    run = Run(tmp_path / "runs/denoising/DIP_2_scaled/a")
    noisy = images.read(run.folder / "noisy.png").data
    assert np.allclose(noisy, images.read(sets["polyu"] / "a_real.png").data)
    assert "no noise is added" in (run.folder.parent / "log.txt").read_text()
    flags = f"{common} --folder_path {sets['polyu']} --tile 16 --overlap 4 --special t --sigma 9"
    assert call(DenoisingOptions, f"{flags} --stopping AMNS") == 0
    assert Run(tmp_path / "runs/denoising/DIP_2_scaled_t/a").result()["sigma"] is None
    images.save_png(sets["sr"] / "img_001_SRF_2_LR.png", picture(1, (16, 16)))
    flags = f"{common} --sr_factor 2 --special grey --folder_path {sets['sr']}"
    assert call(SuperResolutionOptions, flags) == 2


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--folder_path {tmp}/none", "neither a folder nor a data set"),
        ("--folder_path bundeld", "did you mean 'bundled'"),
        ("--folder_path {tmp}/empty", "no picture"),
        ("--folder_path {tmp}/bad/text.png", "text.png"),
        ("--folder_path {tmp}/bad/zero.png", "zero.png"),
        ("--folder_path {tmp}/bad/cut.png", "cut.png"),
        ("--model_type DIP_org", "did you mean 'DIP_orig'"),
        ("--upsample_mode biliner", "did you mean 'bilinear'"),
        ("--upsample_mode None", "--upsample_mode None"),
        ("--model_type DIP_orig --crop 16", "at least"),
        ("--crop 1", "at least"),
        ("--num_scales 9", "at least"),
        ("--crop 300", "less than 300"),
        ("--save_folder {tmp}/bad/text.png", "is a file"),
        ("--model_type DIP_2_scaled --progressive True", "--progressive"),
        ("--noise_method image --input_image_name none.png", "none.png"),
        ("--device cuda", "--device cuda"),
        ("--num_skips 3", "--num_skips 3"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, flags, message, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bad/text.png", b"not a picture")
    write(tmp_path / "bad/zero.png", b"")
    write(tmp_path / "bad/cut.png", (folder / "grey.png").read_bytes()[:-40])
    before = files(tmp_path)
    start = f"--folder_path {folder} --num_iters 2 --save_folder {tmp_path / 'runs'} "
    status, said = call(DenoisingOptions, start + flags.format(tmp=tmp_path), capsys)
    assert status == 2
    assert message in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert files(tmp_path) == before and not (tmp_path / "runs").exists()


def test_a_checkpoint_that_is_none(folder, tmp_path, capsys):
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    run = Run(tmp_path / "runs/denoising/DIP_2_scaled/colour")
    (run.folder / "result.json").unlink()
    capsys.readouterr()
    for content in (b"", b"nonsense", b"\x80\x04cos\nsystem\n(S'true'\ntR."):
        (run.folder / "checkpoint.pt").write_bytes(content)
        status, said = call(DenoisingOptions, f"{flags} --resume", capsys)
        assert status == 2 and "checkpoint.pt: not a checkpoint" in said.err


def test_atomic_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(UserError, match="no space left"), atomic(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "before" and files(tmp_path) == ["file.txt"]


def test_an_interrupted_overwrite_goes_on_by_resume(folder, tmp_path, monkeypatch):
    flags = f"--folder_path {folder} --save_folder {tmp_path / 'out'} --device cpu --dim 8"
    assert call(DenoisingOptions, f"{flags} --num_iters 3") == 0
    stopped = experiment.run_one

    def run_one(job, *args, **how):
        if job.name == "grey":
            raise KeyboardInterrupt
        return stopped(job, *args, **how)

    monkeypatch.setattr(experiment, "run_one", run_one)
    assert call(DenoisingOptions, f"{flags} --num_iters 5 --overwrite") == 130
    monkeypatch.setattr(experiment, "run_one", stopped)
    assert call(DenoisingOptions, f"{flags} --num_iters 5 --resume") == 0
    assert [run.result()["iterations"] for run in runs.find(tmp_path / "out")] == [5, 5]


def test_overwrite_touches_nothing_but_its_own(folder, tmp_path):
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    run = tmp_path / "runs/denoising/DIP_2_scaled/colour"
    (run / "notes.txt").write_text("mine")
    (run / "snapshots/mine.d").mkdir()
    assert call(DenoisingOptions, f"{flags} --overwrite") == 0
    assert (run / "notes.txt").read_text() == "mine" and (run / "snapshots/mine.d").is_dir()
    assert call(DenoisingOptions, f"{flags} --overwrite --resume") == 2


def test_names_that_look_alike_get_a_folder_each(folder, tmp_path, picture):
    for name in ("a b", "a:b", "a_b", "GREY"):
        images.save_png(folder / f"{name}.png", picture(1))
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    assert call(DenoisingOptions, f"{flags} --resume") == 0
    method = tmp_path / "runs/denoising/DIP_2_scaled"
    assert len(find(method)) == 6
    with (method / "results.csv").open() as file:
        names = {row["ID"] for row in csv.DictReader(file)}
    assert names == {"a b", "a:b", "a_b", "GREY", "grey", "colour"}


@pytest.mark.parametrize("name", ["result.json", "history.csv", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"a: 2001-99-99"])
def test_damaged_run_files_are_named(folder, tmp_path, name, content, capsys):
    (folder / "grey.png").unlink()
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    run = tmp_path / "runs/denoising/DIP_2_scaled/colour"
    (run / name).write_bytes(content)
    log = (run.parent / "log.txt").read_bytes()
    capsys.readouterr()
    status, said = call(DenoisingOptions, f"{flags} --resume", capsys)
    assert status == 2 and said.err.count("\n") == 1 and str(run) in said.err
    assert (run.parent / "log.txt").read_bytes() == log, "nothing is written before the checks"


@pytest.mark.parametrize("more", ["", "--resume"])
def test_a_finished_run_without_its_settings_is_not_deleted(folder, tmp_path, more, capsys):
    flags = f"{SMALL} --folder_path {folder}/grey.png --save_folder {tmp_path}"
    assert call(DenoisingOptions, flags) == 0
    run = tmp_path / "denoising/DIP_2_scaled/grey"
    (run / "config.yaml").unlink()
    before = files(run)
    status, said = call(DenoisingOptions, f"{flags} {more}", capsys)
    assert status == 2 and "config.yaml: damaged" in said.err and files(run) == before


def test_a_checkpoint_of_another_network_is_refused(folder, tmp_path, capsys):
    (folder / "grey.png").unlink()
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path}"
    assert call(DenoisingOptions, flags) == 0
    options, _ = resolve(DenoisingOptions(dim=[16]))
    job = denoising_job(data.resolve(folder / "colour.png")[0], options)
    state = prepare(job, options, torch.device("cpu"), "fp32")
    fit(state, 1)
    run = Run(tmp_path / "denoising/DIP_2_scaled/colour")
    run.save_checkpoint({"state": state.state_dict(), "rows": []})
    (run.folder / "result.json").unlink()
    capsys.readouterr()
    status, said = call(DenoisingOptions, f"{flags} --resume", capsys)
    assert status == 2 and "not a checkpoint of this run" in said.err


def test_another_mask_is_noticed(folder, tmp_path, capsys):
    (folder / "grey.png").unlink()
    mask = np.ones((1, 40, 36), np.float32)
    flags = f"{SMALL} --folder_path {folder} --mask_type file --mask_path {tmp_path / 'm.png'}"
    flags += f" --save_folder {tmp_path / 'runs'} --resume"
    for known in (20, 10):
        mask[:, known:] = 0
        images.save_png(tmp_path / "m.png", mask)
        status, said = call(InpaintingOptions, flags, capsys)
        assert (status, "picture_sha256" in said.err) == ((0, False) if known == 20 else (2, True))


def test_a_closed_pipe_does_not_end_the_run(folder, tmp_path):
    (folder / "grey.png").unlink()
    flags = f"--folder_path {folder} --dim 8 --num_iters 60 --iters_print_acc 1 --device cpu"
    process = script("denoising.py", *flags.split(), "--save_folder", tmp_path)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(120) == 0, err
    method = tmp_path / "denoising/DIP_2_scaled"
    assert (method / "colour/result.json").is_file() and "Traceback" not in err
    assert "Iteration 00059" in (method / "log.txt").read_text()


def test_a_fit_that_leaves_the_numbers_is_said_to(folder, tmp_path, capsys):
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'} --input_scale 1000"
    flags += " --lr 1000 --need_sigmoid False --optimizer sgd --exp_weight 0"
    status, said = call(DenoisingOptions, flags, capsys)
    assert status == 1 and "no finite number" in said.err and "Traceback" not in said.err
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_input_picture_may_be_one_of_a_data_set(tmp_path, capsys):
    flags = f"{SMALL} --folder_path bundled/camera --crop 40 --noise_method noisy_image "
    flags += f"--input_image_name camera --save_folder {tmp_path}"
    status, said = call(DenoisingOptions, flags, capsys)
    assert status == 0, said.err


def test_restored_png_is_the_picture_that_was_measured(folder, tmp_path, picture):
    for path in folder.iterdir():
        path.unlink()
    Image.fromarray(picture(1)[0] > 0.5).save(folder / "bits.png")
    images.save_png(folder / "colour.png", picture(3))
    Image.open(folder / "colour.png").quantize(8).save(folder / "palette.png")
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    assert call(DenoisingOptions, flags) == 0
    for run in find(tmp_path):
        clean, restored = (images.read(run.folder / f"{n}.png").data for n in ("clean", "restored"))
        assert psnr(clean, restored) == pytest.approx(run.result()["psnr_stopped"], abs=0.02)


def test_tensorboard_gets_the_history_and_the_snapshots(folder, tmp_path, monkeypatch, capsys):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    text = f"{SMALL} --folder_path {folder / 'grey.png'} --save_folder {tmp_path} --tensorboard"
    assert call(DenoisingOptions, text) == 0
    [run] = find(tmp_path)
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    written = {e.step: e.value for e in events.Scalars("psnr_gt_sm")}
    history = {int(row["iteration"]): row["psnr_gt_sm"] for row in run.history()}
    assert written == pytest.approx({i: history[i] for i in (0, 5, 10)}, abs=1e-3)
    assert [e.step for e in events.Images("restored")] == [0, 5]
    # the numbers are those of a run without it
    assert call(DenoisingOptions, text.replace("--tensorboard", "--special plain")) == 0
    plain = next(r for r in find(tmp_path) if "plain" in str(r.folder))
    assert (plain.folder / "restored.png").read_bytes() == (
        run.folder / "restored.png"
    ).read_bytes()
    # started again, it holds the new run alone
    assert call(DenoisingOptions, text + " --overwrite") == 0
    assert len(list((run.folder / "tensorboard").iterdir())) == 1
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert call(DenoisingOptions, text + " --overwrite --special x") == 2
    assert "dip-recon[tensorboard]" in capsys.readouterr().err
