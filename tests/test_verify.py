"""``dip-recon verify``: a stored run comes out again, or it is said where it does not."""

import csv

import pytest
import torch
import yaml

from dip_recon import guard, images
from dip_recon.cli import main as command
from dip_recon.experiment import main
from dip_recon.fit import fit
from dip_recon.options import (
    DenoisingOptions,
    GrowingOptions,
    InpaintingOptions,
    SuperResolutionOptions,
    TiledOptions,
)
from dip_recon.runs import find

SMALL = ["--dim", "4", "--num_scales", "1", "--num_iters", "12", "--eval_every", "5"]
SMALL += ["--iters_print_acc", "4", "--device", "cpu"]


@pytest.fixture
def stored(folder, tmp_path):
    """A function that makes a finished run of the grey picture; returns it."""

    def make(cls=DenoisingOptions, *more):
        words = ["--folder_path", str(folder / "grey.png"), "--save_folder", str(tmp_path / "runs")]
        assert main(cls, [*words, *SMALL, *more]) == 0
        return find(tmp_path / "runs")[-1]

    return make


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "cls, more",
    [
        (DenoisingOptions, ["--stopping", "ES-WMV", "--tv_weight", "0.001", "--precision", "bf16"]),
        (InpaintingOptions, ["--zero_fraction", "0.3"]),
        (SuperResolutionOptions, ["--sr_factor", "2"]),
        (GrowingOptions, ["--transition", "2", "2", "--stabilisation", "3", "9"]),
    ],
)
def test_a_run_comes_out_again(stored, cls, more, capsys):
    run = stored(cls, *more)
    before = contents(run.folder)
    assert command(["verify", str(run.folder)]) == 0
    rows = len(run.history())
    said = capsys.readouterr().out
    assert f"same to the last digit stored, {rows} rows of the first 12 iterations" in said
    assert command(["verify", str(run.folder), "--iterations", "6"]) == 0
    assert "rows of the first 6 iterations" in capsys.readouterr().out
    assert contents(run.folder) == before, "it only reads"


def test_a_trouble_after_what_is_stored_is_gone_through_again(stored, capsys):
    """It was gone back from, to before the trouble in which the run was given up."""
    run = stored()
    told = {"noticed": 8, "back_to": 5, "what": "", "lr": 0.1, "precision": "fp32"}
    run.write_result({**run.result(), "troubles": [told], "gave_up": True})
    assert command(["verify", str(run.folder), "--iterations", "6"]) == 0
    said = capsys.readouterr().out
    assert "put back at iteration 8: the first 9 are compared" in said
    assert "4 rows of the first 9 iterations" in said  # 0, 4, 5 and 8


def test_where_it_ends_is_not_where_the_run_ended(stored, monkeypatch):
    """A single look at a large error is no collapse there."""
    monkeypatch.setattr(guard.Guard.__init__, "__defaults__", (1, 10, 3))
    error = guard._error
    monkeypatch.setattr(guard, "_error", lambda s: error(s) * (1000 if s.iteration == 6 else 1))
    run = stored()
    assert not run.result().get("troubles")
    for count in ("6", "12"):
        assert command(["verify", str(run.folder), "--iterations", count]) == 0


def test_the_first_row_that_differs_is_named(stored, capsys):
    run = stored()
    path = run.folder / "history.csv"
    rows = list(csv.reader(path.open()))
    value = rows[3][2]
    rows[3][2] = value[:-1] + ("1" if value[-1] != "1" else "2")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert command(["verify", str(run.folder)]) == 1
    said = capsys.readouterr().out
    assert f"iteration {rows[3][0]}: loss {rows[3][2]} stored, {value} now" in said
    earlier = str(int(rows[3][0]))
    assert command(["verify", str(run.folder), "--iterations", earlier]) == 0


def test_of_a_run_on_a_gpu_only_the_beginning_is_compared(stored, capsys):
    run = stored()
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    rows = list(csv.reader((run.folder / "history.csv").open(newline="")))
    loss = rows[0].index("loss")

    def after(factor, row):
        changed = [list(cells) for cells in rows]
        changed[row][loss] = f"{factor * float(rows[row][loss]):.6g}"
        with (run.folder / "history.csv").open("w", newline="") as file:
            csv.writer(file).writerows(changed)
        return command(["verify", str(run.folder)]), capsys.readouterr().out

    for factor, row in ((1.001, 1), (2, 2)):  # the first iteration, and the next that is stored
        status, said = after(factor, row)
        assert (
            status == 0 and "no fixed order" in said and "the first iteration is the same" in said
        )
    status, said = after(2, 1)
    assert status == 1 and "iteration 0: loss" in said


def test_what_this_machine_does_otherwise_is_said(stored, capsys):
    run = stored()
    config = run.config()
    assert config["versions"]["threads"] == torch.get_num_threads()
    config["versions"] |= {"torch": "1.0", "threads": 99}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert command(["verify", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert "note: torch 1.0 then" in said and "note: threads 99 then, 1 now" in said
    del config["versions"]["threads"]  # as runs had it before
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert command(["verify", str(run.folder)]) == 0
    assert "threads" not in capsys.readouterr().out


def test_an_older_run_without_the_number_of_threads_is_resumed(stored, folder, tmp_path):
    run = stored()
    config = run.config()
    del config["versions"]["threads"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--folder_path", str(folder / "grey.png"), "--save_folder", str(tmp_path / "runs")]
    assert main(DenoisingOptions, [*words, *SMALL, "--resume"]) == 0


def test_what_cannot_be_verified_is_refused(stored, folder, tmp_path, picture, capsys):
    def refused(path, *words):
        capsys.readouterr()
        assert command(["verify", str(path), *words[1:]]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words[0] in err, err

    run = stored()
    refused(tmp_path, "no run folder")
    refused(run.folder, "--iterations 0", "--iterations", "0")
    result = (run.folder / "result.json").read_bytes()
    (run.folder / "result.json").unlink()
    refused(run.folder, "not finished")
    (run.folder / "result.json").write_bytes(result)
    kept = (folder / "grey.png").read_bytes()
    images.save_png(folder / "grey.png", 1 - picture(1))
    refused(run.folder, "not the picture of")
    (folder / "grey.png").unlink()
    refused(run.folder, "grey is not in")
    (folder / "grey.png").write_bytes(kept)
    (run.folder / "config.yaml").write_text("a: 1\n")
    refused(run.folder, "its picture None")
    stored(TiledOptions, "--tile", "24", "--overlap", "4", "--growing", "False", "--special", "t")
    refused(tmp_path / "runs/denoising/PG_DIP_t/grey", "tiles")


def test_threads_change_no_more_than_rounding(fresh):
    """What is promised: the same bits with as many threads, and with others the same but for the
    last digits, which part further on."""
    before = torch.get_num_threads()
    one = fit(fresh(), 3).out
    try:
        torch.set_num_threads(2)
        two, again = fit(fresh(), 3).out, fit(fresh(), 3).out
    finally:
        torch.set_num_threads(before)
    assert torch.equal(two, again)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=0)
    assert torch.equal(one, fit(fresh(), 3).out)
