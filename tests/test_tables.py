"""Tables of made-up runs, against means and deviations by hand."""

import csv
import io
import math

import pytest
from conftest import refused
from test_figures import made

from dip_recon import tables
from dip_recon.cli import main
from dip_recon.figures.records import load
from dip_recon.runs import write_results


@pytest.fixture
def sweep(tmp_path):
    """Two upsamplers on two pictures with two seeds."""
    for mode, psnr in (("LPF2", 30), ("bilinear", 28)):
        for picture, seed, shift in (("a", 7, 0), ("a", 8, 2), ("b", 7, -4), ("b", 8, 0)):
            made(tmp_path / "runs", picture, seed, psnr + shift, upsample_mode=mode, device="cpu")
    return tmp_path / "runs"


def test_summary(sweep):
    rows = tables.summary(load([sweep]))
    assert [row["upsampling"] for row in rows] == ["bilinear", "LPF2"]
    expected = {
        "network": "DIP_2_scaled", "upsampling": "LPF2", "parameters": 1000, "pictures": 2,
        "seeds": 2, "noisy": 20, "stopped": 29.5, "stopped deviation": 3 / math.sqrt(2),
        "oracle": 30, "oracle deviation": 3 / math.sqrt(2), "oracle iteration": 8, "SSIM": 0.9,
        "seconds": 10,
    }  # fmt: skip
    assert list(rows[1]) == list(expected) and rows[1] == pytest.approx(expected)
    assert tables.notes(load([sweep])) == []


def test_the_noise_there_is_and_the_noise_that_is_told_have_a_column_each(tmp_path):
    for there in (15.0, 25.0):
        for told in (10.0, 40.0):
            made(tmp_path, noise_sigma=there, sigma=told)
    rows = tables.summary(load([tmp_path]))
    assert {(row["sigma"], row["sigma told"]) for row in rows} == {
        ("15", "10"), ("15", "40"), ("25", "10"), ("25", "40"),
    }  # fmt: skip


def test_lost_fits_are_noted(sweep):
    run = load([sweep])[0].run
    run.write_result({**run.result(), "gave_up": True})
    assert tables.notes(load([sweep])) == ["1 of the runs was given up: its fit was lost"]


def test_lost_tiles_are_counted_as_tiles(tmp_path):
    for lost in (1, 3):
        run = made(tmp_path, seed=lost)
        run.write_result({**run.result(), "tiles": 40, "gave_up": lost})
    assert tables.notes(load([tmp_path])) == ["4 of the tiles were given up: their fit was lost"]


def test_names_that_are_no_text_and_digits_that_are_no_number(tmp_path):
    """A name from an old disk; a superscript is a digit to Python, and no integer."""
    run = made(tmp_path / "DIP", "caf\udce9")
    made(tmp_path / "DIP", "b_256²")
    write_results(run.folder.parent)
    assert "caf?" in (run.folder.parent / "results.csv").read_text(encoding="utf-8")
    tables.markdown(tables.per_picture(load([tmp_path]))).encode()
    assert [row["picture"] for row in tables.per_picture(load([tmp_path]))] == ["b_256²", "caf?"]


def test_per_picture(sweep):
    rows = tables.per_picture(load([sweep]))
    assert [(r["upsampling"], r["picture"]) for r in rows] == [
        ("bilinear", "a"), ("bilinear", "b"), ("LPF2", "a"), ("LPF2", "b"),
    ]  # fmt: skip
    assert rows[3]["stopped"] == 28 and "pictures" not in rows[3]
    assert rows[3]["stopped deviation"] == pytest.approx(4 / math.sqrt(2))


def test_one_seed_sets_and_a_width_by_the_picture(tmp_path):
    for place in ("Set9", "Set12"):
        for picture, width in (("a", 32), ("b", 64)):
            labels = {"set": place, "texture": width}
            made(tmp_path, picture, dim=[width], parameters=1000 * width, labels=labels)
    made(tmp_path, "c", model_type="DIP_orig", dim=[], labels={"set": "Set9"})
    rows = tables.summary(load([tmp_path]))
    assert [(r["set"], r["network"]) for r in rows] == [
        ("Set9", "DIP_2_scaled"), ("Set9", "DIP_orig"), ("Set12", "DIP_2_scaled"),
    ]  # fmt: skip
    assert rows[0]["parameters"] == "32,000–64,000" and "width" not in rows[0]
    assert rows[0]["stopped deviation"] is None
    assert len(tables.notes(load([tmp_path]))) == 1


def test_markdown_and_csv(sweep):
    rows = tables.summary(load([sweep]))
    lines = tables.markdown(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1, "aligned"
    assert "| 29.50 ± 2.12 |" in lines[3] and "deviation" not in lines[0]
    assert lines[1].startswith("| ---") and "---: |" in lines[1] and "1,000" in lines[2]
    read = list(csv.DictReader(io.StringIO(tables.to_csv(rows))))
    assert read[1]["stopped"] == "29.5" and read[1]["stopped deviation"] == "2.12132"
    assert read[1]["parameters"] == "1000"


def test_without_ground_truth(tmp_path):
    made(tmp_path, truth=False)
    rows = tables.summary(load([tmp_path]))
    empty = ("noisy", "stopped", "stopped deviation", "oracle", "oracle iteration", "SSIM")
    assert all(rows[0][name] is None for name in empty) and rows[0]["seconds"] == 10
    assert tables.markdown(rows).splitlines()[2].count(" – ") == 5
    assert next(csv.DictReader(io.StringIO(tables.to_csv(rows))))["stopped"] == ""


def test_the_command(sweep, tmp_path, capsys):
    assert main(["table", str(sweep)]) == 0
    assert capsys.readouterr().out == tables.markdown(tables.summary(load([sweep])))
    for suffix, write in (("md", tables.markdown), ("csv", tables.to_csv)):
        out = tmp_path / f"table.{suffix}"
        assert main(["table", str(sweep), str(sweep), "--pictures", "-o", str(out)]) == 0
        assert out.read_text() == write(tables.per_picture(load([sweep])))
    capsys.readouterr()
    assert main(["table", str(sweep), "-o", str(tmp_path / "table.txt")]) == 2
    assert ".md or .csv" in capsys.readouterr().err
    assert main(["table", str(sweep), "-o", str(tmp_path / "none" / "t.md")]) == 2
    assert "none" in capsys.readouterr().err
    made(sweep, "c", upsample_mode="nearest")
    assert main(["table", str(sweep)]) == 0
    assert "not all rows are over the same" in capsys.readouterr().err
    refused(lambda: load([tmp_path / "none"]), "none")
