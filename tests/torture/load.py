"""Many pictures in one command, many runs in one sweep: nothing may grow with their number."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import processes  # isort: skip  # first: it sets the number of threads

import numpy as np
import yaml

from dip_recon import batch, images
from dip_recon.cli import main as command
from dip_recon.sweeps import command as sweep_command

PICTURES, RUNS, FROM = 200, 1000, 100
DRAWN = 25  # of so many runs one has its figures drawn, which cost ten times a tiny run
GROWTH = 0.05


def run(budget_s: float, say: Callable[[str], None]) -> dict[str, object]:
    """200 pictures through ``dip-recon denoise`` and 1,000 runs through ``dip-recon sweep``.

    The seconds are for orientation: neither number is made smaller for them. Failed is what grows
    by more than 5 % in memory, or at all in open files, from the 100th on; and what is missing.
    """
    figures: dict[str, object] = {"failed": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pictures").mkdir()
        rng = np.random.RandomState(0)
        for n in range(PICTURES):
            x = 0.3 + 0.4 * np.outer(np.linspace(0, 1, 24), np.linspace(0, 1, 24) > 0.5)
            noisy = x[None] + 0.1 * rng.randn(1, 24, 24)
            images.save_png(root / f"pictures/p{n:03d}.png", noisy.clip(0, 1).astype(np.float32))
        for what, work in (("pictures", _denoise), ("runs", _sweep)):
            began = time.monotonic()
            log, measured = root / f"{what}.log", root / f"{what}.json"
            problems = []
            if processes.wait(processes.start(lambda w=work, m=measured: w(root, m), log)):
                problems.append(log.read_text()[-2000:])
            else:
                problems += _growth(what, json.loads(measured.read_text()), figures)
            problems += _complete(root) if what == "runs" and not problems else []
            figures[f"{what}: seconds"] = round(time.monotonic() - began)
            figures["failed"] += len(problems)
            for problem in problems:
                say(f"{what}: {problem}")
    return figures


def _growth(what: str, measured: list[list[int]], figures: dict) -> list[str]:
    """What has grown; ``measured``: bytes in use and open files after each."""
    memory, opened = np.array(measured).T
    early, late = memory[FROM - 1 : FROM + 9].mean(), memory[-10:].mean()
    figures[f"{what}: number"] = len(measured)
    figures[f"{what}: MB at the {FROM}th"] = round(early / 1e6, 1)
    figures[f"{what}: MB at the last"] = round(late / 1e6, 1)
    figures[f"{what}: growth of memory"] = f"{late / early - 1:.2%}"
    figures[f"{what}: open files"] = f"{opened[FROM:].min()} to {opened[FROM:].max()}"
    found = [f"memory grew by {late / early - 1:.1%}"] if late > (1 + GROWTH) * early else []
    return found + ["open files grow"] * bool(opened[-1] > opened[FROM - 1])


def _measure() -> list[int]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [pages * 4096, len(list(Path("/proc/self/fd").iterdir()))]


def _denoise(root: Path, measured: Path) -> int:
    found = []
    told = batch._tell

    def tell(*args) -> None:
        told(*args)
        found.append(_measure())

    batch._tell = tell
    words = "--iterations 3 --width 4 --sigma 25 --stopping none --device cpu --precision fp32"
    out = root / "denoised"
    status = command(["denoise", str(root / "pictures"), "-o", str(out), *words.split()])
    measured.write_text(json.dumps(found))
    assert len(list(out.glob("*.png"))) == PICTURES == len(found)
    return status


def _sweep(root: Path, measured: Path) -> int:
    from dip_recon import figures

    found, draw = [], figures.draw_run
    line = sweep_command._line

    def told(*args) -> str:
        found.append(_measure())
        return line(*args)

    def drawn(run) -> None:
        if len(found) % DRAWN == 0:
            draw(run)

    sweep_command._line, figures.draw_run = told, drawn
    pictures = root / "ten"
    pictures.mkdir()
    for path in sorted((root / "pictures").iterdir())[:10]:
        (pictures / path.name).write_bytes(path.read_bytes())
    options = {
        "folder_path": str(pictures), "model_type": "DIP_2_scaled", "dim": 2, "num_scales": 1,
        "num_iters": 2, "snapshots": [], "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    file = root / "sweep.yaml"
    seeds = list(range(RUNS // 10))
    file.write_text(yaml.safe_dump({"options": options, "grid": {"seed": seeds}}))
    status = command(["sweep", str(file), "--save_folder", str(root / "runs")])
    measured.write_text(json.dumps(found))
    return status


def _complete(root: Path) -> list[str]:
    """Every run is in a results.csv, the table counts them, and a page can be made of them."""
    problems = []
    tables = sorted((root / "runs").rglob("results.csv"))
    rows = sum(len(list(csv.DictReader(path.open(newline="")))) for path in tables)
    if rows != RUNS:
        problems.append(f"results.csv: {rows} rows of {RUNS}")
    if not (root / "runs/table.md").is_file():
        problems.append("no table.md")
    words = ["report", str(root / "runs"), "-o", str(root / "page")]
    if processes.wait(processes.start(lambda: command(words), root / "report.log")):
        problems.append(f"report: {(root / 'report.log').read_text()[-2000:]}")
    elif not (root / "page/index.html").is_file():
        problems.append("report: no index.html")
    return problems
