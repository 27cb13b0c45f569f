"""How far each stopping rule ends from the oracle, and after how many iterations.

    python benchmarks/stopping.py --csv results/automatic/stopping.csv           measure, or go on
    python benchmarks/stopping.py --csv results/automatic/stopping.csv --table   in Markdown

All rules listen to one run, the one that has pixels held out, with the recipe of
`dip-recon denoise` otherwise; none knows the noise level. What a rule loses is the oracle's PSNR,
the best moving average of that run, less that of the picture it settled on. A rule that has not
ended the run by its last iteration is given what it had by then.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from automatic import items, noisy, rounded, write

from dip_recon import auto, data, metrics, stopping
from dip_recon.fit import choose, fit
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job, tensor

FIELDS = ("picture", "noise", "network", "rule", "oracle", "oracle_at", "stopped", "at", "spent")
RULES = ("held-out", "AMNS", "ES-WMV", "ES-EMV")
# name: options and iterations, enough to see it fit the noise
NETWORKS = {
    "DIP_2_scaled 32": ({"dim": [32]}, 1800),
    "skip 5x32": ({"model_type": "skip", "dim": [32], "num_scales": 5}, 1500),
    "DD 6x64": ({"model_type": "DD", "dim": [64], "num_layers": 6, "progressive": True}, 1800),
}
PICTURES = ("set5/img_003*", "set14/img_003*", "set14/img_005*")
REAL = ("polyu/Canon5D2_5_160_6400_desk_4*", "polyu/Canon80D_8_8_12800_printer_15*")
NOISES = ("10", "25", "50", "75", "p0.05", "real")


class Listener:
    """A rule that is told of every iteration until it would have ended the run."""

    def __init__(self, rule: stopping.Fixed) -> None:
        self.rule, self.spent, self.ended = rule, 0, False

    def __call__(self, state) -> None:
        if not self.ended:
            self.spent = state.iteration
            self.ended = self.rule.update(state.iteration - 1, state.out, state.smoothed)
            if self.ended:  # the moving average goes on in place
                self.rule.picture = self.rule.picture.clone()


def measure(item: data.Item, noise: str, network: str, crop: int) -> list[dict]:
    """A row for each rule."""
    y, x = noisy(item, noise, crop)
    given, iterations = NETWORKS[network]
    base = auto.denoising(y, given).options
    o, _ = resolve(replace(base, stopping="held-out", tile=0, sigma=None))
    job = Job("picture", Problem.denoising(tensor(y)), y, "")
    state = prepare(job, o, *choose(o.device, o.precision))
    clean, curve = tensor(x), []
    listeners = [Listener(state.stopping)]
    for name in RULES[1:]:
        settings = {"mns_hold": o.mns_hold, "patience": o.patience, "window": o.window}
        rule = stopping.make(name, problem=job.problem.to(state.z.device), **settings)
        listeners.append(Listener(rule))
    state.stopping = stopping.Fixed()
    fit(state, iterations, [lambda s: curve.append(metrics.psnr(s.smoothed, clean)), *listeners])
    best = max(curve)
    return [
        {
            "picture": f"{item.path.parent.name}/{item.name}", "noise": noise, "network": network,
            "rule": name, "oracle": best, "oracle_at": curve.index(best),
            "stopped": metrics.psnr(one.rule.picture, clean), "at": one.rule.iteration,
            "spent": one.spent,
        }
        for name, one in zip(RULES, listeners, strict=True)
    ]  # fmt: skip


def table(path: Path) -> None:
    """dB lost, mean and worst, and iterations spent, by noise and by network."""
    rows = list(csv.DictReader(path.open()))
    print("| " + " | ".join(("", "runs", *RULES)) + " |")
    print("|---" * (len(RULES) + 2) + "|")
    for column in ("noise", "network", None):
        for value in dict.fromkeys(r[column] if column else "all" for r in rows):
            cells, count = [], 0
            for rule in RULES:
                some = [r for r in rows if r["rule"] == rule and (not column or r[column] == value)]
                lost = [float(r["oracle"]) - float(r["stopped"]) for r in some]
                spent = fmean(float(r["spent"]) for r in some)
                cells.append(f"{fmean(lost):.2f} / {max(lost):.2f} ({spent:.0f})")
                count = len(some)
            print("| " + " | ".join((str(value), str(count), *cells)) + " |")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pictures", nargs="+", default=PICTURES)
    p.add_argument("--noise", nargs="+", default=NOISES)
    p.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    p.add_argument("--crop", type=int, default=96)
    p.add_argument("--threads", type=int)
    p.add_argument("--csv", type=Path, required=True)
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.table:
        return table(args.csv)
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    done = {(r["picture"], r["noise"], r["network"]) for r in rows}
    for noise in args.noise:
        for item in items(REAL if noise == "real" else args.pictures):
            for network in args.networks:
                if (f"{item.path.parent.name}/{item.name}", noise, network) in done:
                    continue
                rows += [rounded(row) for row in measure(item, noise, network, args.crop)]
                print(*(tuple(r.values()) for r in rows[-len(RULES) :]), sep="\n", flush=True)
                write(args.csv, rows, FIELDS)


if __name__ == "__main__":
    main()
