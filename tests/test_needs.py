"""Memory: what a fit takes is told beforehand, and running out of it loses nothing."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dip_recon import auto, batch, cli, experiment, images, memory, models, needs, own
from dip_recon.errors import exit_status
from dip_recon.experiment import main
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import resolve
from dip_recon.problem import Problem
from dip_recon.runs import Run
from dip_recon.tasks import Job

MEASURE = """
import ctypes, gc, json, statistics, sys
import torch
torch.set_num_threads(1)
from dip_recon import needs
from dip_recon.fit import fit
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job

def resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def job(side):
    y = torch.rand(1, 3, side, side)
    return Job("a", Problem.denoising(y, y.clone(), sigma=25.0), None, "")

def steps(side, o):
    state = prepare(job(side), o, torch.device("cpu"), "fp32")
    state.guard.every = 1  # so that its copy is there, and replaced
    fit(state, 2)

name, dim, sides = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
o, _ = resolve(DenoisingOptions(model_type=name, dim=dim, device="cpu", precision="fp32"))
steps(64, o)  # what is made once
found = []
for side in sides:
    told, peaks = needs.needed(job(side), o), []
    for _ in range(5):  # what an allocator keeps, and need not ask for again, varies by a fifth
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS")
        steps(side, o)
        peaks.append(resident("VmHWM") - before)
    found.append((side, told, statistics.median(peaks)))
print(json.dumps(found))
"""
NETWORKS = [
    ("DIP_2_scaled", [32], [128, 192]),
    ("DD", [64], [96, 128]),
    ("ConvDecoder", [32], [96, 160]),
    ("PG_DIP", [32], [128, 192]),
    ("DIP_2_scaled", [512], [32]),
]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux alone tells it")
@pytest.mark.parametrize("name, dim, sides", NETWORKS)
def test_the_estimate_is_what_is_measured(name, dim, sides):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", MEASURE, name, json.dumps(dim), json.dumps(sides)]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(name, found, [round(told / measured, 2) for _, told, measured in found])
    for side, told, measured in found:
        assert told == pytest.approx(measured, rel=0.25), (name, side)


def big(side, **more):
    y = torch.zeros(1, 3, 1, 1).expand(1, 3, side, side)
    o, _ = resolve(DenoisingOptions(**{"device": "cpu", "precision": "fp32", **more}))
    return Job("big", Problem.denoising(y), None, ""), o


def test_memory_is_weighed_without_using_any(monkeypatch):
    small, large = (needs.needed(*big(side, dim=[64])) for side in (500, 2000))
    assert large > 12 * small > 10**9
    assert needs.needed(*big(500, dim=[64], precision="bf16")) < 0.8 * small
    assert needs.needed(*big(500, dim=[64], average_last=1000)) > 2 * small
    monkeypatch.setattr(memory, "free", lambda device=None: 10**10)
    assert needs.too_large(*big(2000, dim=[64])) and not needs.too_large(*big(500, dim=[64]))


def test_what_does_not_fit_is_told_with_what_can_be_done(folder, tmp_path, capsys, monkeypatch):
    flags = f"--folder_path {folder / 'grey.png'} --save_folder {tmp_path / 'runs'} --device cpu "
    flags += "--precision fp32 --task real_denoising --model_type DIP_2_scaled --dim 65536"
    monkeypatch.setattr(memory, "free", lambda device=None: 2 * 10**10)
    assert main(DenoisingOptions, flags.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "smaller --dim" in said and "20.0 GB are free" in said
    assert re.search(r"takes about \d{3,}\.\d GB", said)
    assert not (tmp_path / "runs").exists()


def test_a_picture_that_does_not_fit_is_tiled(tmp_path, picture, monkeypatch):
    images.save_png(tmp_path / "a.png", picture(1, (96, 96)))
    monkeypatch.setattr(memory, "free", lambda device=None: 20 * 10**6)
    monkeypatch.setattr(experiment, "TILE", 32)
    flags = f"--folder_path {tmp_path / 'a.png'} --save_folder {tmp_path / 'runs'} --device cpu "
    flags += "--precision fp32 --dim 32 --num_iters 1 --overlap 2"
    assert main(DenoisingOptions, flags.split()) == 0
    (result,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(result.read_text())["tiles"] > 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
     RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")],
)  # fmt: skip
@pytest.mark.parametrize("kept", [False, True])
def test_out_of_memory_in_the_middle_tiles_take_over(
    tmp_path, picture, capsys, monkeypatch, error, kept
):
    rng = np.random.default_rng(0)
    noisy = (picture(1, (64, 64)) + 0.1 * rng.standard_normal((1, 64, 64))).clip(0, 1)
    images.save_png(tmp_path / "a.png", noisy)
    run_one, tried = own.run_one, []

    def fails(job, run, o, *more, **rest):
        tried.append(o.tile)
        if not o.tile:
            run.begin({"tile": 0}, overwrite=False)
            raise error
        return run_one(job, run, o, *more, **rest)

    monkeypatch.setattr(own, "run_one", fails)
    words = ["denoise", str(tmp_path / "a.png"), "--iterations", "2", "--width", "4"]
    words += ["--device", "cpu"] + ["--keep", str(tmp_path / "keep")] * kept
    assert cli.main(words) == 0
    assert tried == [0, 32]
    assert "not enough memory: goes on by tiles of 32 pixels" in capsys.readouterr().out
    assert images.read(tmp_path / "a_denoised.png").size == (64, 64)


@pytest.mark.parametrize(("large", "tile"), [(False, 40), (True, 64)])
def test_tiles_that_do_not_fit_are_halved(tmp_path, picture, capsys, monkeypatch, large, tile):
    rng = np.random.default_rng(0)
    noisy = (picture(1, (160, 160)) + 0.1 * rng.standard_normal((1, 160, 160))).clip(0, 1)
    images.save_png(tmp_path / "a.png", noisy)
    words = ["denoise", str(tmp_path / "a.png"), "--iterations", "1", "--width", "8"]
    words += ["--device", "cpu", "--keep", str(tmp_path / "keep")]
    if large:
        monkeypatch.setattr(batch, "LONG", 0)
    job = own.job_of_array(np.zeros((1, 84, 84), np.float32))
    o, _ = resolve(replace(auto.denoising(noisy, {"dim": [8], "device": "cpu"}).options, tile=0))
    monkeypatch.setattr(memory, "free", lambda device=None: needs.needed(job, o) / 0.75)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "not enough memory" in said and f"by tiles of {tile} pixels" in said
    assert Run(tmp_path / "keep").config()["tile"] == tile
    # with other memory it goes on as it was begun
    monkeypatch.setattr(memory, "free", lambda device=None: 10**12)
    (tmp_path / "a_denoised.png").unlink()
    assert cli.main(words) == 0
    assert "not enough memory" not in capsys.readouterr().out


def test_another_error_is_no_want_of_memory(picture, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(own, "restore", fails)
    job = own.job_of_array(picture(1, (64, 64)) * 0.9)
    monkeypatch.setattr(auto, "CLEAN", 0)
    with pytest.raises(RuntimeError, match="shapes"):
        batch._restored(job, batch.Wishes({"dim": [4], "num_iters": 1}), lambda line: None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_an_experiment_that_runs_out_says_so_in_one_line(capsys, error):
    def work():
        raise error

    assert exit_status(work, "python denoising.py --resume") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--tile" in said and "denoising.py --resume" in said


LIMITED = """
import resource, sys
from dip_recon import batch, cli, memory, needs  # what is imported later counts
import torch
torch.set_num_threads(1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
assert memory.free() <= int(sys.argv[1])
if sys.argv[2] == "unwarned":
    needs.too_large = lambda job, o: False
    batch.too_large = needs.too_large
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("warned", ["warned", "unwarned"])
def test_under_a_limit_of_memory_a_picture_is_restored_by_tiles(tmp_path, picture, warned):
    rng = np.random.default_rng(0)
    noisy = (picture(1, (192, 192)) + 0.1 * rng.standard_normal((1, 192, 192))).clip(0, 1)
    images.save_png(tmp_path / "a.png", noisy)
    words = ["denoise", str(tmp_path / "a.png"), "--iterations", "1", "--width", "128"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    words += ["--device", "cpu", "--precision", "fp32"]  # bfloat16 takes less
    command = [sys.executable, "-c", LIMITED, str(380 * 10**6), warned, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "not enough memory: goes on by tiles" in done.stdout
    if warned == "warned" or done.returncode == 0:
        assert done.returncode == 0, done.stderr
        assert images.read(tmp_path / "a_denoised.png").size == (192, 192)
    else:  # where oneDNN once got no memory for its code, it makes no more in that process
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: not enough memory: --tile")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


FAULTS = """
import resource, sys
import torch
from dip_recon import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(2**24).fill_(1.0)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with memory.kept():
    with memory.kept():
        for _ in range(5):  # until the heap is as large as it gets
            faults()
    print(faults())
print(faults())
"""


@pytest.mark.skipif(not memory._glibc(), reason="glibc alone is told to")
def test_what_is_freed_stays_while_a_fit_lasts():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, within, after = map(int, done.stdout.split())
    assert within < before / 20 and within < after / 20


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch):
    def none(_):
        raise TypeError

    monkeypatch.setattr(memory.ctypes, "CDLL", none)
    with memory.kept():
        memory.keep(True)


def test_a_card_is_reckoned_by_the_way_that_it_takes(monkeypatch):
    job, o = big(256, model_type="DIP_orig")
    here = needs.needed(job, o)
    monkeypatch.setattr(needs, "choose", lambda *_: (torch.device("cuda"), "fp32"))
    assert needs.needed(job, o) * needs.WASTE["cpu"] > 1.1 * here * needs.WASTE["cuda"]


def test_what_is_free_heeds_a_container(tmp_path, monkeypatch):
    for name, text in {
        "max": 5000,
        "now": 3000,
        "memory.stat": "anon 1\ninactive_file 500",
    }.items():
        (tmp_path / name).write_text(str(text))
    monkeypatch.setattr(memory, "_CGROUPS", [(tmp_path / "max", tmp_path / "now", "inactive_file")])
    assert memory.free() == 2500
    (tmp_path / "max").write_text("max")
    assert memory.free() > 10**6
    assert memory.words(3.21e9) == "3.2 GB" and memory.words(2.5e6) == "2.5 MB"


@pytest.mark.parametrize("name", models.names())
def test_every_network_can_be_reckoned(name):
    job, o = big(128, model_type=name, progressive=name == "ConvDecoder_LPF")
    assert 10**6 < needs.needed(job, o) < needs._most(job, o)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", ["Swin_upsample", "DIP_2_scaled", "DD"])
def test_what_it_is_far_below_is_so_on_a_card(monkeypatch, name, size):
    """Of a small picture most are copies of weights, and pictures to decide on."""
    monkeypatch.setattr(needs, "choose", lambda *_: (torch.device("cuda"), "fp32"))
    job, o = big(size, model_type=name)
    assert 1.5 * needs.needed(job, o) < needs._most(job, o)


@pytest.mark.parametrize(
    ("said", "status"), [("DefaultCPUAllocator: can't allocate memory", 2), ("CUDA error", None)]
)
def test_of_many_pictures_the_one_that_memory_has_no_room_for_is_left_out(
    tmp_path, picture, capsys, monkeypatch, said, status
):
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 24, 24))
    noisy = (picture(1, (24, 24)) + noise).clip(0, 1)
    (tmp_path / "in").mkdir()
    for name in "ab":
        images.save_png(tmp_path / f"in/{name}.png", noisy)
    restore = own.restore

    def short(job, *more):
        if job.name == "a":
            raise RuntimeError(said)
        return restore(job, *more)

    monkeypatch.setattr(own, "restore", short)
    words = [
        "denoise",
        str(tmp_path / "in"),
        "--iterations",
        "2",
        "--width",
        "4",
        "--device",
        "cpu",
    ]
    if status is None:
        with pytest.raises(RuntimeError):
            cli.main(words)
        return
    assert cli.main(words) == status
    assert "left out: " in capsys.readouterr().out
    assert (tmp_path / "in_denoised/b.png").exists()


def test_a_kept_run_is_not_given_up_for_want_of_memory(tmp_path, picture, monkeypatch):
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 80, 80))
    noisy = (picture(1, (80, 80)) + noise).clip(0, 1)
    images.save_png(tmp_path / "a.png", noisy)
    keep = tmp_path / "keep"
    (keep / "snapshots").mkdir(parents=True)
    (keep / "config.yaml").write_text("tile: 0")
    (keep / "checkpoint.pt").write_text("hours")

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(own, "restore", short)
    words = ["denoise", str(tmp_path / "a.png"), "--keep", str(keep), "--device", "cpu"]
    assert cli.main(words) == 1
    assert (keep / "checkpoint.pt").read_text() == "hours"
