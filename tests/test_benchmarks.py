"""The benchmarks run through, small."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_suite_quick(tmp_path, monkeypatch):
    import suite

    for peer in ("deepinv", "bm3d"):
        monkeypatch.setitem(sys.modules, peer, None)
    csv_file, figure = tmp_path / "suite.csv", tmp_path / "scaling.png"
    what = ["--networks", "DIP_2_scaled", "--pictures", "chelsea"]
    suite.main(["--quick", *what, "--csv", str(csv_file), "--figure", str(figure)])
    rows = rows_of(csv_file)
    assert {row["part"] for row in rows} == {*suite.PARTS, "machine", "suite"}
    assert [r["network"] for r in rows if r["part"] == "steps"] == ["DIP_2_scaled"]
    peers = [r for r in rows if r["part"] == "peers"]
    assert [bool(r["psnr"]) for r in peers] == [True, True, False, False]
    assert all("pip install" in r["left_out"] for r in peers[2:])
    assert figure.stat().st_size > 1000


def test_suite_heeds_the_time(capsys):
    import suite

    suite.main(["--quick", "--minutes", "0"])
    said = capsys.readouterr().out
    measured = [line for line in said.splitlines()[1:] if not line.startswith("suite")]
    assert all("no time left" in line or "a copy" in line for line in measured)
    assert {line.split()[0] for line in measured} == set(suite.PARTS)


def test_deepinv_where_it_is_installed(tmp_path):
    pytest.importorskip("deepinv")
    import suite

    suite.main(["--quick", "--parts", "peers", "--csv", str(tmp_path / "peers.csv")])
    assert any(r["method"] == "deepinv DeepImagePrior" for r in rows_of(tmp_path / "peers.csv"))


def test_plain_dip_is_kept(tmp_path, monkeypatch):
    import peers

    monkeypatch.setattr(peers, "KNOWN", tmp_path / "plain.csv")
    monkeypatch.setattr(peers, "ITERATIONS", 1)
    asked = SimpleNamespace(quick=False, full=True)
    for name in ("chelsea", "coffee", "chelsea"):
        found = peers.plain_end(name, asked, 64)
    assert [r["picture"] for r in peers.known()] == ["coffee", "chelsea"]
    asked.full = False
    assert peers.plain_end("chelsea", asked, 64) == found
    assert peers.plain_end("astronaut", asked, 64) is None


def test_bytes_that_operations_move():
    import suite

    a, b = torch.ones(1000), torch.ones(1000)
    with suite.Bytes() as traffic:
        c = a + b
    assert traffic.count == 12000
    with suite.Bytes() as traffic:
        c.view(10, 100).t()
    assert traffic.count == 0
    with suite.Bytes() as traffic:
        c.add_(b)
    assert traffic.count == 12000


def test_the_plain_step_takes_plain_layers():
    import suite

    s = suite.plain(suite.state("DIP_2_scaled", 64, "fp32", dim=[4])[0])
    with mock.patch("torch.native_group_norm", side_effect=AssertionError):
        suite.plain_step(s)


def test_gpu_small_on_any_machine(tmp_path):
    import gpu

    assert gpu.main([str(tmp_path / "new"), "--smoke"]) == 0
    rows = rows_of(tmp_path / "new/gpu.csv")
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
