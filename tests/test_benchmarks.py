"""The benchmarks run through, small."""

import csv
import sys
from pathlib import Path
from unittest import mock

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
