"""The benchmarks run through, small."""

import csv
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def test_step_quick(tmp_path):
    import step

    csv_file, figure = tmp_path / "step.csv", tmp_path / "scaling.png"
    networks = ["--networks", "DIP_2_scaled", "ConvDecoder"]
    step.main(["--quick", *networks, "--csv", str(csv_file), "--figure", str(figure)])
    with csv_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == set(step.PARTS)
    assert [r["network"] for r in rows if r["part"] == "steps"] == networks[1:]
    assert figure.stat().st_size > 1000


def test_the_plain_step_takes_plain_layers():
    import step

    s = step.plain(step.state("DIP_2_scaled", 64, "fp32", dim=[4])[0])
    with mock.patch("torch.native_group_norm", side_effect=AssertionError):
        step.plain_step(s)


def test_gpu_small_on_any_machine(tmp_path):
    import gpu

    assert gpu.main([str(tmp_path / "new"), "--smoke"]) == 0
    with (tmp_path / "new/gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"machine", *gpu.PARTS}
    variants = [r["variant"] for r in rows if r["part"] == "together"]
    assert variants == ["in turn", "together", "both"] and not any(r.get("left_out") for r in rows)
    for row in rows:
        if row["part"] == "quality":
            assert abs(float(row["in_turn"]) - float(row["together"])) < 0.5


def test_gpu_needs_a_card_and_heeds_the_time(tmp_path, capsys, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "choose", lambda: (torch.device("cpu"), "fp32"))
    assert gpu.main([str(tmp_path)]) == 2
    assert "needs a card" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert gpu.main([str(tmp_path), "--smoke", "--minutes", "0"]) == 0
    assert capsys.readouterr().out.count("no time left") == len(gpu.PARTS)
