"""What one optimisation step costs, and what watching it costs, side by side in one run.

    python benchmarks/step.py [--size 256] [--rounds 9] [--csv results/step_cpu.csv]

The plain step is the published one: float32, default memory layout, a fresh noise tensor, Adam.
Ours is ``fit.step`` as the entry scripts run it on this machine. The two take turns, so that a
change of the machine's speed meets both; quote the ratios, not the seconds. Then the share of a
run that evaluation, printing, snapshots and checkpoints take at their default intervals.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "DIP-Recon"))

from dip_recon.callbacks import Checkpoints, Evaluation, Lines, Snapshots
from dip_recon.fit import choose, fit, step
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.runs import Run
from dip_recon.tasks import Job

NETWORKS = {
    "DIP_orig": {},
    "DIP_2_scaled 64": {"dim": [64]},
    "DIP_2_scaled 32": {"dim": [32]},
}


def state(name: str, options: dict, size: int, precision: str):
    """A fresh state for a random picture of ``size`` × ``size``."""
    x = np.random.RandomState(0).rand(3, size, size).astype(np.float32)
    problem = Problem.denoising(torch.from_numpy(x)[None], torch.from_numpy(x)[None])
    o, _ = resolve(DenoisingOptions(model_type=name.split()[0], stopping="ES-WMV", **options))
    device, precision = choose("auto", precision)
    return prepare(Job("random", problem, x, ""), o, device, precision), o


def plain_step(s) -> None:
    """The published loop's step, float32 throughout."""
    z = s.z + torch.randn_like(s.z) * s.jitter
    s.optimizer.zero_grad()
    out = s.network(z)
    loss = torch.nn.functional.mse_loss(out, s.problem.y)
    s.smoothed = out.detach() if s.smoothed is None else s.smoothed * 0.99 + out.detach() * 0.01
    loss.backward()
    s.optimizer.step()


def timed(work, s) -> float:
    began = time.perf_counter()
    work(s)
    if s.z.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(name: str, options: dict, size: int, rounds: int) -> dict:
    plain, _ = state(name, options, size, "fp32")
    ours, _ = state(name, options, size, "auto")
    pairs = []
    for n in range(rounds + 2):
        pair = timed(plain_step, plain), timed(step, ours)
        if n > 1:
            pairs.append(pair)
    ratios = sorted(b / a for a, b in pairs)
    return {
        "network": name,
        "size": size,
        "precision": ours.precision,
        "plain_seconds": f"{statistics.median(a for a, _ in pairs):.4f}",
        "our_seconds": f"{statistics.median(b for _, b in pairs):.4f}",
        "ratio_min": f"{ratios[0]:.3f}",
        "ratio_median": f"{statistics.median(ratios):.3f}",
        "ratio_max": f"{ratios[-1]:.3f}",
    }


def watching(name: str, options: dict, size: int, iterations: int) -> float:
    """Share of a run's time that is spent in the callbacks, at their default intervals."""
    s, o = state(name, options, size, "auto")
    spent = [0.0]

    def timing(callback):
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
        result = fit(s, iterations, [timing(c) for c in callbacks])
    return spent[0] / result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {choose()[0].type}")
    rows = [compare(name, o, args.size, args.rounds) for name, o in NETWORKS.items()]
    share = {name: watching(name, o, args.size, 201) for name, o in list(NETWORKS.items())[1:]}
    for row in rows:
        row["watching_share"] = f"{share[row['network']]:.4f}" if row["network"] in share else ""
        print("  ".join(f"{k} {v}" for k, v in row.items()))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
