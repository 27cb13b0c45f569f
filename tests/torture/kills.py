"""Kill real runs at random moments, go on with them, and compare with runs that nobody killed."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import processes  # isort: skip  # first: it sets the number of threads

import numpy as np
import torch
import yaml
from PIL import Image

from dip_recon import images
from dip_recon.cli import main as command
from dip_recon.experiment import main
from dip_recon.options import (
    BaselineOptions,
    DenoisingOptions,
    GrowingOptions,
    InpaintingOptions,
    MethodNoiseOptions,
    SuperResolutionOptions,
    TiledOptions,
)

TINY = "--dim 4 --num_scales 1 --eval_every 3 --iters_print_acc 9 --device cpu --precision fp32"
OFTEN = "--num_iters 60 --checkpoint_every 4 --snapshots 0 5 30"
SCRIPTS = {
    "denoising": (DenoisingOptions, "--stopping ES-WMV --window 5 --patience 30"),
    "inpainting": (InpaintingOptions, "--zero_fraction 0.3"),
    "super_resolution": (SuperResolutionOptions, "--sr_factor 2"),
    "denoise_pgdip": (GrowingOptions, "--num_scales 2 --transition 3 5 --stabilisation 4 40"),
    "denoise_mns": (MethodNoiseOptions, "--model_type DIP_2_scaled --mns_hold 5"),
    "denoise_tiled": (TiledOptions, "--growing False --tile 20 --overlap 4"),
    "denoise_baseline": (BaselineOptions, "--model_type DIP_2_scaled"),
}
KILLS = 6  # of each kind


@dataclass
class Case:
    """A kind of run: ``work`` does it, or goes on with it, into a folder; the status is 0."""

    name: str
    work: Callable[[Path], int]
    duration: float = 0.0


def cases(root: Path, names: list[str] | None = None) -> list[Case]:
    """Pictures for all of them in ``root``, and the kinds of run there are."""
    pictures = root / "pictures"
    pictures.mkdir()
    rng = np.random.RandomState(0)
    h, w = (np.linspace(0, 1, n) for n in (24, 36))
    for name, channels in (("colour", 3), ("grey", 1)):
        x = np.stack([0.5 + 0.4 * np.sin(6 * h + c)[:, None] * (w > 0.5) for c in range(channels)])
        noisy = x + 0.1 * rng.randn(*x.shape)
        images.save_png(pictures / f"{name}.png", noisy.clip(0, 1).astype(np.float32))
    sweep = root / "sweep.yaml"
    options = {"folder_path": str(pictures), "num_iters": 20, "model_type": "DIP_2_scaled"}
    sweep.write_text(yaml.safe_dump({"options": options, "grid": {"seed": [7, 8]}}))

    def script(cls, more: str) -> Callable[[Path], int]:
        def work(out: Path) -> int:
            places = f"--folder_path {pictures} --save_folder {out} --resume"
            return main(cls, f"{places} {TINY} {OFTEN} {more}".split())

        return work

    def swept(out: Path) -> int:
        return command(["sweep", str(sweep), "--save_folder", str(out), *TINY.split()])

    def tiled(out: Path) -> int:
        place = out / "out.png"
        if place.exists() and not (out / ".out.png.tiles").exists():  # after its very last step
            return 0
        words = "--tile 20 --overlap 4 --sigma 25 --width 4 --iterations 15 --stopping none"
        words += " --device cpu --precision fp32"
        out.mkdir(exist_ok=True)
        return command(["denoise", str(pictures / "colour.png"), "-o", str(place), *words.split()])

    def reported(out: Path) -> int:  # of the first of them
        out.mkdir(exist_ok=True)
        return command(["report", str(root / "whole-denoising"), "-o", str(out / "page")])

    found = [Case(name, script(*which)) for name, which in SCRIPTS.items()]
    found += [Case("sweep", swept), Case("dip-recon denoise", tiled), Case("report", reported)]
    return [case for case in found if names is None or case.name in names]


def run(
    budget_s: float,
    say: Callable[[str], None],
    names: list[str] | None = None,
    each: int = KILLS,
    seed: int = 0,
) -> dict[str, object]:
    """``each`` kills of every kind of run, and one of a sweep with workers; the figures of it."""
    hands, until = random.Random(seed), time.monotonic() + budget_s
    figures: dict[str, object] = {"failed": 0, "kills": 0, "runs finished after kills": 0}
    figures |= {"left out for want of time": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for case in cases(root, names):
            whole = root / f"whole-{case.name}"
            began = time.monotonic()
            if processes.wait(processes.start(lambda c=case, w=whole: c.work(w), root / "log")):
                raise RuntimeError(f"{case.name}: {(root / 'log').read_text()[-2000:]}")
            case.duration = time.monotonic() - began
            try:
                _kill(case, root, each, hands, until, figures)
            except AssertionError as error:
                figures["failed"] += 1
                say(f"{case.name}: {error}")
            say(f"{case.name}: {case.duration:.1f} s unbroken; {figures['kills']} kills by now")
        if names is None and time.monotonic() < until:
            try:
                _kill_main_process(root)
                figures["kills"] += 1
            except AssertionError as error:
                figures["failed"] += 1
                say(f"sweep --workers 2: {error}")
    return figures


def _kill(case: Case, root: Path, each: int, hands: random.Random, until: float, figures) -> None:
    whole, broken, log = root / f"whole-{case.name}", root / "broken", root / "log"
    kills = 0
    while kills < each:
        if time.monotonic() > until:
            figures["left out for want of time"] += each - kills
            return
        shutil.rmtree(broken, ignore_errors=True)
        for _ in range(3):  # then it is let go on to the end
            pid = processes.start(lambda: case.work(broken), log)
            if not processes.kill_after(pid, hands.uniform(0, 0.6 * case.duration)):
                break
            kills += 1
            figures["kills"] += 1
            assert not processes.group(pid), "it left processes behind"
            check_whole(broken)
        # what it left a second ago may be another's; nobody is as quick as this but here
        time.sleep(1)
        status = processes.wait(processes.start(lambda: case.work(broken), log))
        assert status == 0, f"does not go on: status {status}\n{log.read_text()[-2000:]}"
        compare(whole, broken)
        figures["runs finished after kills"] += 1


def check_whole(root: Path) -> None:
    """Every file that has its name is a whole one."""
    for path in sorted(root.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(root).parts) or path.is_dir():
            continue
        try:
            _read(path)
        except Exception as error:
            raise AssertionError(f"{path.relative_to(root)}: half-written ({error})") from error


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text())
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert (
            rows and {len(row) for row in rows} == {len(rows[0])} and path.read_text()[-1] == "\n"
        )
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix in (".npz", ".npy"):
        with path.open("rb") as file:
            loaded = np.load(file)
            _ = [loaded[name] for name in loaded.files] if path.suffix == ".npz" else loaded


DIFFERENT = ("log.txt", "result.json", "config.yaml", "table.csv", "table.md")  # seconds, places


def compare(whole: Path, broken: Path) -> None:
    """The same files in both, and in them the same, but for seconds and where things are."""
    here, there = (
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
        for root in (whole, broken)
    )
    assert here == there, f"missing {sorted(here - there)}, left over {sorted(there - here)}"
    for name in sorted(here):
        a, b = whole / name, broken / name
        if a.suffix == ".csv" and a.name not in DIFFERENT:
            assert _timeless(a) == _timeless(b), f"{name} differs"
        elif a.name == "result.json":
            results = [json.loads(p.read_text()) for p in (a, b)]
            for result in results:
                result.update(seconds=0, peak_memory_bytes=0)
            assert results[0] == results[1], f"{name} differs"
        elif a.name not in DIFFERENT:
            assert a.read_bytes() == b.read_bytes(), f"{name} differs"


def _timeless(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _kill_main_process(root: Path) -> None:
    """A sweep with workers whose main process is killed: the workers go too, and lock nothing."""
    out = root / "workers"
    words = ["-m", "dip_recon", "sweep", str(root / "sweep.yaml"), "--save_folder", str(out)]
    words += [*TINY.split(), "--num_iters", "3000", "--checkpoint_every", "5", "--workers", "2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words], env=env, start_new_session=True, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 120
        while not list(out.rglob("checkpoint.pt")):
            assert process.poll() is None and time.monotonic() < until, (root / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 20
        while (left := processes.group(process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, f"workers outlive the process that started them: {left}"
        check_whole(out)
    finally:
        for pid in processes.group(process.pid):
            os.kill(pid, signal.SIGKILL)
    here = [word for word in words[2:] if word not in ("--workers", "2")]
    status = processes.wait(processes.start(lambda: _short_of(here), root / "log"))
    assert status == 0, f"its runs are not free\n{(root / 'log').read_text()[-2000:]}"


def _short_of(words: list[str]) -> int:
    """The sweep's runs are not locked by the dead: a dry run looks at each."""
    return command([*words, "--dry-run"])
