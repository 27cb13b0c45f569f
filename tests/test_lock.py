"""One process at a time in a run folder: the second is told who is there, and touches nothing."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from dip_recon import experiment, figures, files, images
from dip_recon.cli import main as command
from dip_recon.errors import UserError
from dip_recon.experiment import finish_off, main
from dip_recon.files import LOCK, alone, atomic, check_alone, clean, hidden, sync
from dip_recon.options import DenoisingOptions
from dip_recon.runs import Run, check_free, read_csv, write_results

SMALL = "--dim 4 --num_scales 1 --num_iters 3 --eval_every 1 --device cpu"


@pytest.fixture
def holder():
    """A function that has another process hold a folder; it returns that process."""
    started = []

    def hold(folder):
        code = "import sys, time; from dip_recon.files import alone\n"
        code += "with alone(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code, str(folder)]
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def contents(root):
    return {str(p): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def test_the_second_is_told_who_is_there(tmp_path, holder):
    process = holder(tmp_path / "run")
    host = os.uname().nodename
    words = (tmp_path / "run", f"process {process.pid} on {host}", "wait for it", "another folder")
    refused(lambda: check_alone(tmp_path / "run"), *words)
    refused(lambda: alone(tmp_path / "run", patience=0.1).__enter__(), *words)
    with alone(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists(), "an empty folder made for it is gone"


def test_the_lock_dies_with_its_owner_and_leaves_no_file(tmp_path, holder):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).is_file()
    check_alone(tmp_path)
    began = time.monotonic()
    with alone(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert time.monotonic() - began < 1 and not any(tmp_path.iterdir())


def test_who_waits_gets_the_folder_that_is_there_then(tmp_path, holder):
    """The file is removed while it is held: who opened it before must look again."""
    process = holder(tmp_path / "run")
    handle = os.open(tmp_path / "run" / LOCK, os.O_RDWR)
    process.kill()
    process.wait()
    with alone(tmp_path / "run"):
        (tmp_path / "run" / "mine").touch()
    assert files._lock(handle) and not files._is_at(handle, tmp_path / "run" / LOCK)
    os.close(handle)


def test_a_disk_without_locks_is_no_reason(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with alone(tmp_path / "a"), alone(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    with atomic(tmp_path / "b") as path:
        path.write_text("b")
        clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(files.os, name)
    with alone(tmp_path / "a"):
        check_alone(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


def test_what_the_killed_left_is_cleaned_and_what_the_living_write_is_not(tmp_path):
    (tmp_path / ".part-abcd_123.png").write_text("half")
    (tmp_path / ".part-abcd_124").mkdir()
    (tmp_path / ".part-mine.txt").write_text("another program's")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    with atomic(tmp_path / "new.png") as path:
        path.write_text("being written")
        os.utime(path, (0, 0))
        clean(tmp_path)
        assert path.is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"new.png", ".part-mine.txt"}
    clean(tmp_path / "none")


def test_a_second_experiment_is_refused_and_touches_nothing(folder, tmp_path, holder, capsys):
    (folder / "grey.png").unlink()
    flags = f"{SMALL} --folder_path {folder} --save_folder {tmp_path / 'runs'}"
    run = tmp_path / "runs/denoising/DIP_2_scaled/colour"
    process = holder(run)
    (run / "config.yaml").write_text("a: 1\n")
    before = contents(tmp_path)
    for more in ("", "--resume", "--overwrite"):
        assert main(DenoisingOptions, f"{flags} {more}".split()) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"written by process {process.pid}" in err
        assert contents(tmp_path) == before
    # another picture of the same save_folder is nobody's business
    elsewhere = f"{SMALL} --folder_path bundled/camera --crop 32 --save_folder {tmp_path / 'runs'}"
    assert main(DenoisingOptions, elsewhere.split()) == 0
    process.kill()
    process.wait()
    assert main(DenoisingOptions, f"{flags} --overwrite".split()) == 0
    assert not list(tmp_path.rglob(LOCK))


def test_a_second_sweep_is_refused(folder, tmp_path, holder, capsys):
    sweep = tmp_path / "s.yaml"
    sweep.write_text(f"options: {{folder_path: {folder}}}\ngrid: {{seed: [7]}}\n")
    words = ["sweep", str(sweep), "--save_folder", str(tmp_path / "out"), *SMALL.split()]
    process = holder(tmp_path / "out/denoising/DIP_2_scaled_seed7/grey")
    before = contents(tmp_path)
    for more in ([], ["--overwrite"]):
        assert command([*words, *more]) == 2
        assert f"process {process.pid}" in capsys.readouterr().err
    assert contents(tmp_path) == before
    process.kill()
    process.wait()
    assert command(words) == 0
    assert not list(tmp_path.rglob(LOCK))


@pytest.mark.parametrize("tiled", [False, True])
def test_a_second_denoise_is_refused(tmp_path, holder, picture, capsys, tiled):
    noisy = picture(1) + 0.1 * np.random.RandomState(0).randn(1, 32, 32).astype(np.float32)
    images.save_png(tmp_path / "in.png", noisy.clip(0, 1))
    out = tmp_path / "out.png"
    words = ["denoise", str(tmp_path / "in.png"), "-o", str(out), "--width", "4"]
    words += ["--iterations", "3", "--stopping", "none", "--device", "cpu"]
    words += ["--tile", "32", "--overlap", "4"] if tiled else ["--keep", str(tmp_path / "keep")]
    process = holder(tmp_path / (".out.png.tiles" if tiled else "keep"))
    before = contents(tmp_path)
    assert command(words) == 2
    assert f"written by process {process.pid}" in capsys.readouterr().err
    assert contents(tmp_path) == before
    process.kill()
    process.wait()
    assert command(words) == 0 and out.is_file()
    assert not (tmp_path / ".out.png.tiles").exists() and not list(tmp_path.rglob(LOCK))


def test_a_folder_with_nothing_but_a_dead_lock_is_free(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / ".part-abcd_123.yaml").touch()
    check_free("--keep", Run(tmp_path))
    (tmp_path / "notes.txt").touch()
    refused(lambda: check_free("--keep", Run(tmp_path)), "--keep", "other files")


def test_results_hold_what_another_process_finished_meanwhile(tmp_path, monkeypatch):
    """Two processes in one method's folder, a picture each: the table ends with both."""
    from dip_recon import runs

    def finish(name):
        (tmp_path / name).mkdir()
        result = {"image": name, "model_type": "DD", "task": "denoising", "psnr_stopped": 30.0}
        Run(tmp_path / name).write_result(result)

    write, late = runs._write_results, ["b"]

    def slow(folder, found):
        if late:
            finish(late.pop())
        write(folder, found)

    finish("a")
    monkeypatch.setattr(runs, "_write_results", slow)
    runs.write_results(tmp_path)
    assert [line.split(",")[0] for line in (tmp_path / "results.csv").read_text().split()] == [
        "ID", "a", "b",
    ]  # fmt: skip


@pytest.mark.drawn
@pytest.mark.parametrize("sweep", [False, True])
def test_a_run_killed_after_its_result_is_finished_off(folder, tmp_path, sweep):
    """The figures come after result.json; a dead lock tells that somebody was killed over them."""
    (folder / "grey.png").unlink()
    words = ["--folder_path", str(folder), "--save_folder", str(tmp_path / "runs"), *SMALL.split()]
    (tmp_path / "s.yaml").write_text("grid: {seed: [7]}\n")

    def go():
        if sweep:
            return command(["sweep", str(tmp_path / "s.yaml"), *words])
        return main(DenoisingOptions, [*words, "--resume"])

    assert go() == 0
    [result] = (tmp_path / "runs").rglob("result.json")
    expected = {p.name for p in result.parent.iterdir()}
    (result.parent / "comparison.png").unlink()
    (result.parent / "tiles").mkdir()
    for name in (LOCK, "checkpoint.pt", ".part-abcd_123.png", "tiles/000003.npz"):
        (result.parent / name).touch()
        os.utime(result.parent / name, (0, 0))
    before = result.read_bytes()
    assert go() == 0
    assert {p.name for p in result.parent.iterdir()} == expected
    assert result.read_bytes() == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    elsewhere = tmp_path / "precious.txt"
    elsewhere.write_text("kept")
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / ".lock").symlink_to(elsewhere)
    with pytest.raises(UserError, match="run"), run.alone():
        pass
    assert elsewhere.read_text() == "kept"


def test_what_is_tidied_lies_in_the_folder(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "0001.npz").write_text("kept")
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "tiles").symlink_to(other)
    with pytest.raises(UserError, match="link"):
        run.tidy()
    assert (other / "0001.npz").exists()


def test_who_is_alone_cleans_what_is_of_this_very_second(tmp_path):
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    left = run.folder / ".part-abcdefgh.png"
    left.write_text("half")
    run.begin({"a": 1}, overwrite=False)
    assert left.exists(), "its owner may be about to hold it"
    with run.alone():
        run.begin({"a": 1}, overwrite=False)
    assert not left.exists()


@pytest.mark.parametrize("gone", [1, 3])
def test_what_an_interrupted_clearing_has_left_is_no_beginning(tmp_path, monkeypatch, gone):
    """Neither tiles of other settings are gone on with, nor is a result taken for these."""
    run = Run(tmp_path / "run")
    run.begin({"lr": 0.01}, overwrite=False)
    tile = run.folder / "tiles" / "000000.npz"
    tile.parent.mkdir()
    for path in (tile, run.folder / "result.json", run.folder / "checkpoint.pt"):
        path.write_text("of other settings")
    unlink, count = Path.unlink, 0

    def interrupted(path, **more):
        nonlocal count
        count += 1
        if count > gone:
            raise KeyboardInterrupt
        unlink(path, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", interrupted)
        run.clear()
    assert not run.finished
    if run.begun:  # then it is told that the settings are others
        refused(lambda: run.check({"lr": 0.5}, (), resume=True, overwrite=False), "checkpoint")
        return
    run.check({"lr": 0.5}, (), resume=True, overwrite=False)
    run.begin({"lr": 0.5}, overwrite=False)
    assert not tile.exists()


def test_a_damaged_or_vanished_result_of_another_run_is_passed_over(tmp_path):
    for name, text in (("a", '{"image": "a", "model_type": "DD", "task": "sr"}'), ("b", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    write_results(tmp_path)
    assert [row["ID"] for row in read_csv(tmp_path / "results.csv")] == ["a"]


@pytest.mark.parametrize("left", ["checkpoint.pt", "tiles/000000.npz", None])
def test_a_run_that_ended_at_its_very_end_is_finished_off(tmp_path, monkeypatch, left):
    """Interrupted, not killed: there is no lock left to tell."""
    run = Run(tmp_path / "run")
    (run.folder / "tiles").mkdir(parents=True)
    (run.folder / "result.json").touch()
    if left:
        (run.folder / left).touch()
    drawn = []
    monkeypatch.setattr(figures, "draw_run", lambda run: drawn.append(run.folder))
    finish_off(run)
    assert drawn == [run.folder] and not run.cut_off
    assert [p.name for p in run.folder.rglob("*") if p.is_file()] == ["result.json"]


def test_the_disk_has_a_file_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "sync", sync)
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        noted = lambda *given, name=name, real=real: (done.append(name), real(*given))[1]  # noqa: E731
        monkeypatch.setattr(files.os, name, noted)
    with atomic(tmp_path / "a.txt") as path:
        path.write_text("a")
    assert done == ["fsync", "replace", "fsync"]


def test_hidden_names_are_as_long_as_a_disk_allows(tmp_path):
    name = "長" * 82 + ".tif"
    found = {hidden(tmp_path / (first + name), ".", ".tiles") for first in ("", "a")}
    assert len(found) == 2
    for path in found:
        path.touch()
    assert hidden(tmp_path / "a.tif", ".half-").name == ".half-a.tif"


def test_an_experiment_keeps_what_another_process_has_just_finished(folder, tmp_path, monkeypatch):
    flags = f"--folder_path {folder / 'grey.png'} --save_folder {tmp_path} {SMALL}".split()
    assert main(DenoisingOptions, flags) == 0
    [path] = tmp_path.rglob("result.json")
    before = path.read_bytes()
    path.unlink()
    entered = Run.alone

    def meanwhile(run, *given):
        path.write_bytes(before)
        return entered(run, *given)

    monkeypatch.setattr(Run, "alone", meanwhile)
    monkeypatch.setattr(experiment, "run_one", None)
    assert main(DenoisingOptions, [*flags, "--resume"]) == 0
    assert path.read_bytes() == before
