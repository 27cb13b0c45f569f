"""What asks to leave: finished work is kept, status 130, and the hint only where it helps.

With real processes: test_runs.py, test_sweeps.py.
"""

import io
import os
import shlex
import signal

import numpy as np
import pytest
import tifffile

from dip_recon import batch, errors, fit, images
from dip_recon.cli import main as command
from dip_recon.cluster import _signals_held_back
from dip_recon.errors import SIGNALS
from dip_recon.fit import State
from dip_recon.tiling import files as tiling_files
from dip_recon.tiling import tiles

SMALL = ["--width", "4", "--iterations", "4", "--stopping", "none", "--sigma", "20"]
SMALL += ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def listeners():
    """The program's handlers of signals stay in here; what runs in the background has none."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def noisy(tmp_path, picture):
    path = tmp_path / "in.png"
    data = picture(1, (110, 40)) + 0.1 * np.random.RandomState(0).randn(1, 110, 40)
    images.save_png(path, data.clip(0, 1).astype(np.float32))
    return path


def interrupt_at(monkeypatch, place, name, count, number):
    """The signal comes when ``place.name`` is called for the ``count``th time."""
    work, calls = getattr(place, name), []

    def sent(*args, **more):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return work(*args, **more)

    monkeypatch.setattr(place, name, sent)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_picture_tiled_by_itself_says_how_to_go_on(tmp_path, noisy, monkeypatch, capsys, number):
    monkeypatch.setattr(batch, "LONG", 0)
    words = ["denoise", str(noisy), "-o", str(tmp_path / "out.png"), *SMALL]
    monkeypatch.setattr(batch.auto, "TILE", 40)
    with monkeypatch.context() as patch:
        interrupt_at(patch, tiles, "fit_tile", 3, number)
        assert command(words) == 130
    assert f"to go on: dip-recon {shlex.join(words)}" in capsys.readouterr().err
    kept = tmp_path / ".out.png.tiles"
    assert len(list(kept.glob("tiles/*.npz"))) == 2 and not (tmp_path / "out.png").exists()
    assert command(words) == 0
    assert (tmp_path / "out.png").is_file() and not kept.exists()


def test_where_nothing_is_kept_nothing_is_promised(tmp_path, noisy, monkeypatch, capsys):
    words = ["denoise", str(noisy), "-o", str(tmp_path / "out.png"), *SMALL]
    with monkeypatch.context() as patch:
        interrupt_at(patch, fit, "step", 2, signal.SIGTERM)
        assert command(words) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err and "to go on" not in err


@pytest.mark.parametrize("task", ["denoise", "inpaint", "sr", "several"])
def test_a_kept_run_says_how_to_go_on_and_does(tmp_path, noisy, monkeypatch, capsys, task):
    out = tmp_path / "out.png"
    words = [task, str(noisy), "-o", str(out), "--keep", str(tmp_path / "keep"), "--iterations=4"]
    if task == "several":
        images.save_png(tmp_path / "b.png", images.read(noisy).data)
        words = ["denoise", str(noisy), str(tmp_path / "b.png"), "-o", str(tmp_path / "out")]
    if task in ("denoise", "several"):
        words += SMALL
    else:
        from dip_recon import auto

        for name in ("INPAINTING", "SUPER_RESOLUTION"):
            monkeypatch.setattr(getattr(auto, name), "dim", [4])
            monkeypatch.setattr(getattr(auto, name), "num_scales", 1)
        words += ["--missing", "black"] if task == "inpaint" else ["--factor", "2"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, fit, "step", 2, signal.SIGUSR1)
        assert command(words) == 130
    assert f"to go on: dip-recon {shlex.join(words)}" in capsys.readouterr().err
    if task != "several":
        assert (tmp_path / "keep/checkpoint.pt").is_file() and not out.exists()
    assert command(words) == 0


def test_a_signal_after_the_last_iteration_is_heard_when_all_is_written(
    tmp_path, noisy, monkeypatch
):
    words = ["denoise", str(noisy), "-o", str(tmp_path / "out.png"), *SMALL]
    words += ["--keep", str(tmp_path / "keep")]
    with monkeypatch.context() as patch:
        interrupt_at(patch, State, "full_size", 3, signal.SIGTERM)
        assert command(words) == 130
    assert (tmp_path / "keep/result.json").is_file() and not (tmp_path / "out.png").exists()
    monkeypatch.setattr(fit, "step", lambda state: pytest.fail("fitted again"))
    assert command(words) == 0 and (tmp_path / "out.png").is_file()


def test_a_stack_goes_on_with_the_frames_that_are_left(tmp_path, picture, monkeypatch, capsys):
    stack = [picture(1) + 0.1 * np.random.RandomState(n).randn(1, 32, 32) for n in range(3)]
    stack = np.concatenate(stack).clip(0, 1).astype(np.float32)
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    words = ["denoise", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif"), *SMALL]
    with monkeypatch.context() as patch:
        interrupt_at(patch, fit, "step", 6, signal.SIGTERM)  # in the second frame
        assert command(words) == 130
    assert f"to go on: dip-recon {shlex.join(words)}" in capsys.readouterr().err
    kept = tmp_path / ".out.tif.runs"
    assert [p.parent.name for p in kept.rglob("result.json")] == ["0000"]
    with monkeypatch.context() as patch:  # other wishes begin anew, and are interrupted as well
        interrupt_at(patch, fit, "step", 2, signal.SIGTERM)
        assert command([*words, "--seed", "8"]) == 130
    assert not list(kept.rglob("result.json"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, fit, "step", 6, signal.SIGTERM)
        assert command(words) == 130
    steps = []
    step = fit.step
    monkeypatch.setattr(fit, "step", lambda state: (steps.append(1), step(state))[1])
    assert command(words) == 0 and len(steps) == 6
    assert tifffile.imread(tmp_path / "out.tif").shape == (3, 32, 32) and not kept.exists()


@pytest.mark.parametrize("keep", [False, True])
def test_a_picture_that_was_written_when_it_was_interrupted_is_not_done_again(
    tmp_path, noisy, monkeypatch, capsys, keep
):
    words = ["denoise", str(noisy), "-o", str(tmp_path / "out.png"), *SMALL, "--tile", "60"]
    words += ["--keep", str(tmp_path / "keep")] if keep else []
    with monkeypatch.context() as patch:
        interrupt_at(patch, tiling_files, "_tidy", 1, signal.SIGTERM)
        assert command(words) == 130
    assert "to go on" in capsys.readouterr().err and (tmp_path / "out.png").is_file()
    monkeypatch.setattr(tiles, "fit_tile", None)
    assert command(words) == 0 and "was written already" in capsys.readouterr().out
    assert not (tmp_path / ".out.png.tiles").exists()
    assert command(words) == 2 and "is there already" in capsys.readouterr().err
    (tmp_path / "out.png").unlink()


def test_where_nobody_reads_on_the_work_goes_on(tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        images.save_png(tmp_path / "in" / f"{name}.png", np.full((1, 32, 32), 0.5, np.float32))
    silenced = []

    def silence():
        silenced.append(1)
        errors.sys.stdout = io.StringIO()

    monkeypatch.setattr(errors, "silence_stdout", silence)
    monkeypatch.setattr(errors.sys, "stdout", Closed())
    assert command(["denoise", str(tmp_path / "in")]) == 0 and silenced == [1]
    assert len(list((tmp_path / "in_denoised").iterdir())) == 2


def test_a_signal_while_workers_start_comes_when_they_have():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("SIGTERM"))
    with _signals_held_back() as restore:
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        os.kill(os.getpid(), signal.SIGTERM)
        restore()
        assert seen == ["SIGTERM"]
