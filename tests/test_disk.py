"""Full disks, folders that are read-only or go away, clocks that jump: a line, and nothing lost."""

import errno
import os
import random
import shutil
import time

import pytest

from dip_recon import files
from dip_recon.callbacks import Checkpoints
from dip_recon.experiment import main
from dip_recon.options import DenoisingOptions
from dip_recon.runs import Run

SMALL = ["--dim", "4", "--num_scales", "1", "--num_iters", "12", "--eval_every", "4"]
SMALL += ["--checkpoint_every", "4", "--snapshots", "0", "6", "--device", "cpu"]
METHOD = "denoising/DIP_2_scaled"


@pytest.fixture
def go(folder, tmp_path, capsys):
    """A function that runs a small experiment under a name; its status and what it said.

    An error is one line on stderr, and no temporary file is left.
    """

    def call(name, *more):
        words = ["--folder_path", str(folder / "grey.png"), "--save_folder", str(tmp_path / name)]
        capsys.readouterr()
        status = main(DenoisingOptions, [*words, *SMALL, *more])
        err = "\n".join(
            line for line in capsys.readouterr().err.splitlines() if line.startswith("error")
        )
        assert (status == 0) == (err == "") and "\n" not in err
        assert not list(tmp_path.rglob(".part-*")) and not list(tmp_path.rglob(files.LOCK))
        return status, err

    return call


def same(a, b):
    for name in ("restored.png", "noisy.png", "snapshots/00006.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    columns = [[{**row, "seconds": 0} for row in Run(f).history()] for f in (a, b)]
    assert columns[0] == columns[1]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES]
)
def test_whichever_file_cannot_be_written_the_run_goes_on_from_there(
    go, tmp_path, monkeypatch, number
):
    assert go("whole")[0] == 0
    make, calls = files.tempfile.mkstemp, []

    def failing(at):
        def mkstemp(*args, **more):
            calls.append(1)
            if len(calls) > at:
                raise OSError(number, os.strerror(number))
            return make(*args, **more)

        return mkstemp

    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    places = (0, 1, 3, 5, 8) if number == errno.ENOSPC else (4,)
    for at in places:
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(files.tempfile, "mkstemp", failing(at))
            status, err = go(f"broken{at}")
        assert status == 2 and str(tmp_path / f"broken{at}") in err
        assert ("no space left" if full else "cannot be written") in err
        assert go(f"broken{at}", "--resume")[0] == 0
        same(tmp_path / "whole" / METHOD / "grey", tmp_path / f"broken{at}" / METHOD / "grey")


def test_a_limit_on_the_size_of_files(go, tmp_path, monkeypatch):
    """RLIMIT_FSIZE, as batch systems set it: the checkpoint that was there stays."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert go("whole")[0] == 0
    save = Checkpoints.save

    def limited(self, state):
        save(self, state)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", limited)
        try:
            status, err = go("broken")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2 and "no space left" in err
    run = Run(tmp_path / "broken" / METHOD / "grey")
    assert run.load_checkpoint()["state"]["iteration"] == 4
    assert go("broken", "--resume")[0] == 0
    same(tmp_path / "whole" / METHOD / "grey", run.folder)


def test_a_folder_that_is_gone_is_told(go, tmp_path, monkeypatch):
    save = Checkpoints.save
    folder = tmp_path / "broken" / METHOD / "grey"

    def gone(self, state):
        save(self, state)
        shutil.rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", gone)
        status, err = go("broken")
    assert status == 2 and f"{folder}/" in err and "no longer" in err
    assert go("broken")[0] == 0


@pytest.mark.parametrize("name", ["checkpoint.pt", "history.csv", "noisy.png", "config.yaml"])
def test_a_file_deleted_under_the_run(go, tmp_path, monkeypatch, name):
    """All is there at the end."""
    assert go("whole")[0] == 0
    save = Checkpoints.save
    folder = tmp_path / "broken" / METHOD / "grey"

    def deleted(self, state):
        save(self, state)
        (folder / name).unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", deleted)
        assert go("broken")[0] == 0
    whole = tmp_path / "whole" / METHOD / "grey"
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    same(whole, folder)


def test_a_clock_that_jumps_is_not_noticed(go, tmp_path, monkeypatch):
    assert go("whole")[0] == 0
    hands = random.Random(0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + hands.uniform(-1e8, 1e8))
    assert go("jumping")[0] == 0
    whole, run = (Run(tmp_path / n / METHOD / "grey") for n in ("whole", "jumping"))
    same(whole.folder, run.folder)
    seconds = [row["seconds"] for row in run.history()]
    assert seconds == sorted(seconds) and 0 <= run.result()["seconds"] < 1000
