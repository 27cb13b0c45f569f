"""The benchmarks run through, small."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from dip_recon import models

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


@pytest.mark.parametrize("name", models.names())
def test_the_plain_step_takes_plain_layers(name):
    """No layer of ours with a gradient of its own; the noise that is asked for and no other."""
    import measuring

    s = measuring.plain(measuring.state(name, 96, "fp32")[0])
    seen = []
    backward = torch.Tensor.backward

    def looked(loss):
        found, nodes = set(), [loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is not None and node not in found:
                found.add(node)
                nodes += [n for n, _ in node.next_functions]
        seen.extend(type(node).__name__ for node in found)
        backward(loss)

    with (
        mock.patch("torch.native_group_norm", side_effect=AssertionError),
        mock.patch.object(torch.Tensor, "backward", looked),
        mock.patch(
            "torch.randn", side_effect=None if s.jitter else AssertionError, wraps=torch.randn
        ),
    ):
        measuring.plain_step(s)
    assert not [n for n in seen if n.startswith("_")], seen
    convolutions = [m for m in s.network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.dilation == (1, 1) for m in convolutions)


def test_a_turn_begins_with_an_untimed_step():
    import measuring

    calls = []
    a = SimpleNamespace(rounds=3, steps=2)
    variants = {name: (lambda s, name=name: calls.append(name), None) for name in "ab"}
    found = measuring.in_turns(variants, a)
    assert calls == 3 * (3 * ["a"] + 3 * ["b"]) and set(found) == {"a", "b"}


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
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if "no time left" in line} == set(gpu.PARTS)
