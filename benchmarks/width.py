"""Which width suits a picture: what each costs in PSNR and time, and the rule that loses least.

    python benchmarks/width.py --csv results/automatic/width.csv          measure, or go on with it
    python benchmarks/width.py --csv results/automatic/width.csv --fit

Measured is what `dip-recon denoise` makes of a noisy crop at each width, with its own stop, so that
a width that stops badly pays for it. The rule is a threshold of texture above the noise, from which
the wider network is taken; its price is the PSNR lost to the best width and PRICE for each doubling
of the time. The pictures are of Texture-DIP, and none of them in Set5, Set14 or Set9, which are to
judge the rule.
"""

from __future__ import annotations

import argparse
import csv
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from automatic import automatic, items, noisy, rounded, write

from dip_recon import auto
from dip_recon.errors import exit_status

FIELDS = ("picture", "noise", "crop", "texture", "width", "automatic", "iterations", "seconds")
PICTURES = [
    f"texture-dip/*/{n}"
    for n in ("0003", "0024", "0033", "0026", "0010", "0019", "0037", "0053", "0060", "0013")
]
PRICE = 0.05  # dB that halving the time is worth
NOW = (32, 64)  # the widths that the command chooses from


def measure(args: argparse.Namespace) -> None:
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    done = {(r["picture"], r["noise"], r["crop"], r["width"]) for r in rows}
    for noise in args.noise:
        for item in items(args.pictures):
            name = f"{item.path.parent.name}/{item.name}"
            for width in args.widths:
                if (name, noise, str(args.crop), str(width)) in done:
                    continue
                y, x = noisy(item, noise, args.crop)
                found = {"picture": name, "noise": noise, "crop": args.crop}
                found |= automatic(y, x, dim=width)
                rows.append(rounded({k: found[k] for k in FIELDS}))
                print(rows[-1], flush=True)
                write(args.csv, rows, FIELDS)


def fit(path: Path) -> None:
    """Print what every pair of widths and every threshold between two textures would cost.

    Of the crops that were measured at both; what is lost is lost to the best width measured.
    """
    crops: dict[tuple, dict[int, tuple[float, float]]] = {}
    for r in csv.DictReader(path.open()):
        key = r["picture"], r["noise"], r["crop"], float(r["texture"])
        crops.setdefault(key, {})[int(r["width"])] = float(r["automatic"]), float(r["seconds"])
    widths = sorted({w for found in crops.values() for w in found})
    for pair in pairwise(widths):
        some = {key: found for key, found in crops.items() if {widths[0], *pair} <= found.keys()}
        print(f"{pair[0]} and {pair[1]}, {len(some)} noisy crops: dB lost to the best width, "
              "mean and most; time by the narrowest's")  # fmt: skip
        lines = _priced(some, pair, widths[0])
        now = [line for line in lines if line.endswith("now") and pair == NOW]
        for line in dict.fromkeys(sorted(lines, key=lines.get)[:6] + now):
            print(line)


def _priced(crops: dict, pair: tuple[int, int], narrowest: int) -> dict[str, float]:
    """A line for every threshold from which the wider of a pair would be taken, and its price."""
    textures = sorted(key[-1] for key in crops)
    between = [(a + b) / 2 for a, b in pairwise(textures)]
    lines = {}
    for threshold in (0, *between, np.inf, *([auto.WIDE] if pair == NOW else [])):
        lost, time = [], []
        for (*_, texture), found in crops.items():
            psnr, seconds = found[pair[texture >= threshold]]
            lost.append(max(p for p, _ in found.values()) - psnr)
            time.append(seconds / found[narrowest][1])
        price = fmean(lost) + PRICE * fmean(np.log2(time))
        line = f"from texture {threshold:5.2f}: {fmean(lost):.3f} {max(lost):.2f}"
        line += f"  {fmean(time):.2f}  price {price:.3f}"
        lines[line + "  <- now" * (threshold == auto.WIDE)] = price
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pictures", nargs="+", default=PICTURES)
    p.add_argument("--noise", nargs="+", default=["25", "10"])
    p.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    p.add_argument("--crop", type=int, default=96)
    p.add_argument("--threads", type=int)
    p.add_argument("--csv", type=Path, required=True)
    p.add_argument("--fit", action="store_true")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    fit(args.csv) if args.fit else measure(args)


if __name__ == "__main__":
    sys.exit(exit_status(main))
