"""What an optimisation step costs on this machine, side by side in one run (`make bench`).

    python benchmarks/step.py [--parts steps watching startup quality limits scaling]
                              [--size 128] [--rounds 7] [--csv FILE] [--figure FILE] [--quick]

- steps: every registered network at its default size, ours against plain: min, median, max.
- watching: the share of a run that evaluation, printing, snapshots and checkpoints take.
- startup: the processor's seconds of `dip-recon --help`, and of `import dip_recon` after torch.
- quality: PSNR after the same iterations on three pictures, two seeds each, ours less plain.
- limits: operations and bytes of a step against what a convolution and a copy reach here.
- scaling: seconds and memory against size, width and number of runs, and the fitted exponents.

The plain step is the published one: float32, torch's own layers and memory layout, a fresh noise
tensor, Adam. Ours is ``fit.step`` as the entry scripts run it on this machine. The two take turns,
so that a change of the machine's speed meets both; seconds are the processor's, so that other work
does not count (on a GPU those of the clock). Quote the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "DIP-Recon"))

from dip_recon import metrics, models
from dip_recon.callbacks import Checkpoints, Evaluation, Lines, Snapshots, peak_memory
from dip_recon.fit import choose, fit, step
from dip_recon.flags import fill
from dip_recon.models import decoders, layers, upsamplers
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.runs import Run
from dip_recon.tasks import Job

PARTS = ("steps", "watching", "startup", "quality", "limits", "scaling")
ROWS: list[dict] = []


def note(part: str, **figures) -> None:
    ROWS.append({"part": part, **figures})
    print(f"{part:9}", "  ".join(f"{k} {v}" for k, v in figures.items()), flush=True)


def write(path: Path) -> None:
    """The table so far, as CSV."""
    names = list(dict.fromkeys(key for row in ROWS for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(ROWS)


def state(name: str, size: int, precision: str, seed: int = 7, picture=None, **more):
    """A fresh state and its options, for a random picture of this size or ``picture``, (x, y)."""
    if picture is None:
        random = np.random.RandomState(0).rand(3, size, size).astype(np.float32)
        picture = random, random
    x, y = (torch.from_numpy(p)[None] for p in picture)
    settings = {"model_type": name, "seed": seed, "stopping": "fixed", **more}
    o, _ = resolve(fill(DenoisingOptions, settings)[0])
    job = Job("picture", Problem.denoising(y, x), picture[1], "")
    return prepare(job, o, *choose("auto", precision)), o


def plain(s):
    """The same state with the published loop's optimiser."""
    if isinstance(s.optimizer, torch.optim.Adam):
        s.optimizer = torch.optim.Adam(s.network.parameters(), s.lr)
    return s


@contextmanager
def plain_layers():
    """torch's own layers in the place of those that the package computes in another way."""

    def pad(self, x):
        return layers.reflect_pad(x, *(self.width,) * 4)

    with (
        mock.patch.object(layers.BatchNorm, "forward", nn.BatchNorm2d.forward),
        mock.patch.object(layers.ReflectPad, "forward", pad),
        mock.patch.object(decoders.NearestBlock, "forward", decoders.Block.forward),
        mock.patch.object(upsamplers, "plain_float32", lambda x: False),
    ):
        yield


def plain_step(s) -> None:
    """The published loop's step, float32 throughout."""
    with plain_layers():
        z = s.z + torch.randn(s.z.shape, generator=s.generator, device=s.z.device) * s.jitter
        s.optimizer.zero_grad()
        out = s.network(z)
        loss = functional.mse_loss(out, s.problem.y)
        s.smoothed = out.detach() if s.smoothed is None else s.smoothed * 0.99 + out.detach() * 0.01
        loss.backward()
        s.optimizer.step()


def timed(work, s) -> float:
    clock = time.perf_counter if s.z.is_cuda else time.process_time
    began = clock()
    work(s)
    if s.z.is_cuda:
        torch.cuda.synchronize()
    return clock() - began


def steps(a) -> None:
    for name in a.networks or models.names():
        before, ours = plain(state(name, a.size, "fp32")[0]), state(name, a.size, "auto")[0]
        pairs = [(timed(plain_step, before), timed(step, ours)) for _ in range(a.rounds + 2)][2:]
        ratios = sorted(b / a for a, b in pairs)
        note(
            "steps", network=name, size=a.size, precision=ours.precision,
            plain_seconds=f"{statistics.median(p for p, _ in pairs):.4f}",
            ratio_min=f"{ratios[0]:.3f}", ratio_median=f"{statistics.median(ratios):.3f}",
            ratio_max=f"{ratios[-1]:.3f}",
        )  # fmt: skip


def watching(a) -> None:
    """Share of a run's time that is spent in the callbacks, at their default intervals."""
    for width in (8,) if a.quick else (32, 64):
        s, o = state("DIP_2_scaled", a.size, "auto", dim=[width])
        spent = [0.0]

        def timing(callback, spent=spent):
            def call(state):
                began = time.perf_counter()
                callback(state)
                spent[0] += time.perf_counter() - began

            return call

        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run")
            run.begin({}, overwrite=False)
            evaluation = Evaluation(o.eval_every, o.iters_print_acc)
            lines = Lines(evaluation, o.iters_print_acc, 20.0, lambda line: None, False)
            checkpoints = Checkpoints(run, o.checkpoint_every, evaluation)
            callbacks = [evaluation, lines, Snapshots(run, o.snapshots), checkpoints]
            result = fit(s, 11 if a.quick else 201, [timing(c) for c in callbacks])
        note(
            "watching",
            network="DIP_2_scaled",
            width=width,
            share=f"{spent[0] / result.seconds:.4f}",
        )


def startup(a) -> None:
    """Told to be at most 0.4 s for the help, and 0.15 s for the import beyond torch's."""
    code = (
        "import time, torch; began = time.process_time(); import dip_recon; "
        "print(time.process_time() - began)"
    )
    call = "[sys.executable, '-m', 'dip_recon', '--help']"
    measure = (
        f"import os, subprocess, sys; subprocess.run({call}, stdout=subprocess.DEVNULL); "
        "times = os.times(); print(times.children_user + times.children_system)"
    )
    for what, source in (("import dip_recon", code), ("dip-recon --help", measure)):
        again = 1 if a.quick else 5
        env = {"PYTHONPATH": str(Path(__file__).parents[1] / "DIP-Recon")}
        call = [sys.executable, "-c", source]
        found = [
            float(subprocess.run(call, env=env, capture_output=True, check=True).stdout)
            for _ in range(again)
        ]
        note("startup", what=what, seconds=f"{statistics.median(found):.3f}")


def noisy(whole: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a picture [H, W, C], and it with noise of sigma 25: [C, side, side] each."""
    top, left = ((n - side) // 2 for n in whole.shape[:2])
    x = np.moveaxis(whole[top : top + side, left : left + side], -1, 0) / np.float32(255)
    noise = np.random.RandomState(7).standard_normal(x.shape)
    y = (x + 25 / 255 * noise).clip(0, 1).astype(np.float32)
    return np.ascontiguousarray(x, np.float32), y


def quality(a) -> None:
    """64² crops from the middle of three pictures, sigma 25, the moving average at the end."""
    from skimage import data

    side, count = (32, 10) if a.quick else (64, 300)
    pictures = {"chelsea": data.chelsea(), "coffee": data.coffee(), "astronaut": data.astronaut()}
    differences = []
    for name, whole in pictures.items():
        x, y = noisy(whole, side)
        for seed in a.seeds[:1] if a.quick else a.seeds:
            s = plain(state("DIP_2_scaled", side, "fp32", seed, (x, y), dim=[16])[0])
            for _ in range(count):
                plain_step(s)
            ours = state("DIP_2_scaled", side, "auto", seed, (x, y), dim=[16])[0]
            found = [metrics.psnr(p, s.problem.x) for p in (s.smoothed, fit(ours, count).ema)]
            differences.append(found[1] - found[0])
            note(
                "quality", picture=name, seed=seed, plain=f"{found[0]:.3f}", ours=f"{found[1]:.3f}"
            )
    note("quality", picture="mean", difference=f"{statistics.mean(differences):+.3f}",
         most=f"{max(map(abs, differences)):.3f}")  # fmt: skip


def limits(a) -> None:
    """Of the machine: a 3×3 convolution of 64 channels, forward, and a copy of 64 MB."""
    side = 32 if a.quick else 128
    x, w = torch.rand(1, 64, side, side), torch.rand(64, 64, 3, 3)
    from_, to = torch.rand(2**20 if a.quick else 2**24), torch.empty(2**20 if a.quick else 2**24)

    def best(work) -> float:
        times = []
        for _ in range(2 + a.rounds):
            began = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
            with torch.no_grad():
                work()
            clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
            times.append(clock() - began)
        return max(min(times), 1e-9)

    peak = 2 * 9 * 64 * 64 * side**2 / best(lambda: functional.conv2d(x, w, padding=1))
    moved = 2 * 4 * from_.numel() / best(lambda: to.copy_(from_))
    for name, more in (("DIP_2_scaled", {"dim": [32]}), ("DIP_orig", {})):
        s = state(name, a.size, "fp32", **more)[0]
        step(s)
        with FlopCounterMode(display=False) as counter:
            step(s)
        seconds = best_step(s, a.rounds)
        flops = counter.get_total_flops()
        note("limits", network=name, size=a.size, gigaflop=f"{flops / 1e9:.2f}",
             machine=f"{peak / 1e9:.0f} GFLOP/s and {moved / 1e9:.1f} GB/s",
             share_of_convolution=f"{flops / peak / seconds:.2f}")  # fmt: skip


def best_step(s, rounds: int) -> float:
    return min(timed(step, s) for _ in range(rounds))


def scaling(a) -> None:
    sizes = (32, 48) if a.quick else (128, 192, 256, 384, 512)
    widths = (4, 8) if a.quick else (8, 16, 32, 64, 128)
    found: dict[str, list] = {}

    def one(against: str, value: int, *states) -> None:
        device = states[0].z.device
        peak_memory(device, reset=True)
        seconds = statistics.median(
            sum(timed(step, s) for s in states) for _ in range(max(a.rounds // 2, 2))
        )
        memory = peak_memory(device)
        found.setdefault(against, []).append((value, seconds, memory))
        note("scaling", against=against, value=value, seconds=f"{seconds:.4f}",
             megabytes=round(memory / 1e6))  # fmt: skip

    for size in sizes:
        one("size", size, state("DIP_2_scaled", size, "auto", dim=[8 if a.quick else 32])[0])
    for width in widths:
        one("width", width, state("DIP_2_scaled", sizes[0], "auto", dim=[width])[0])
    for runs in (1, 2) if a.quick else (1, 2, 4):
        one("runs", runs, *(state("DIP_2_scaled", sizes[0], "auto", seed, dim=[8])[0]
                            for seed in range(runs)))  # fmt: skip
    for against, points in found.items():
        logs = np.log([(value, seconds, memory) for value, seconds, memory in points])
        time_, memory = (np.polyfit(logs[:, 0], logs[:, n], 1)[0] for n in (1, 2))
        note("scaling", against=against, exponent_of_time=f"{time_:.2f}",
             exponent_of_memory=f"{memory:.2f}")  # fmt: skip
    if a.figure:
        _draw(found, a.figure)


def _draw(found: dict[str, list], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3), layout="tight")
    for axis, (against, points) in zip(axes, found.items(), strict=True):
        axis.loglog([p[0] for p in points], [p[1] for p in points], "o-")
        axis.set_xlabel({"size": "pixels a side"}.get(against, against))
        axis.set_ylabel("seconds a step")
    figure.savefig(path)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--networks", nargs="+", help="of `steps`; all by default")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8], help="of `quality`")
    parser.add_argument("--quick", action="store_true", help="small: to see that it runs")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--figure", type=Path, help="draw the scaling here")
    a = parser.parse_args(argv)
    if a.quick:
        a.size, a.rounds = 64, 1
    ROWS.clear()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {choose()[0].type}")
    for part in a.parts:
        globals()[part](a)
    if a.csv:
        write(a.csv)


if __name__ == "__main__":
    main()
