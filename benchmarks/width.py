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
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from automatic import automatic, items, noisy, rounded, write

from dip_recon import auto

FIELDS = ("picture", "noise", "texture", "width", "automatic", "iterations", "seconds")
PICTURES = [
    f"texture-dip/*/{n}"
    for n in ("0003", "0024", "0033", "0026", "0010", "0019", "0037", "0053", "0060", "0013")
]
PRICE = 0.05  # dB that halving the time is worth


def measure(args: argparse.Namespace) -> None:
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    done = {(r["picture"], r["noise"], r["width"]) for r in rows}
    for noise in args.noise:
        for item in items(args.pictures):
            name = f"{item.path.parent.name}/{item.name}"
            for width in args.widths:
                if (name, noise, str(width)) in done:
                    continue
                y, x = noisy(item, noise, args.crop)
                found = {"picture": name, "noise": noise} | automatic(y, x, dim=width)
                rows.append(rounded({k: found[k] for k in FIELDS}))
                print(rows[-1], flush=True)
                write(args.csv, rows, FIELDS)


def fit(path: Path) -> None:
    """Print what every pair of widths and every threshold between two textures would cost."""
    crops: dict[tuple, dict[int, tuple[float, float]]] = {}
    for r in csv.DictReader(path.open()):
        key = r["picture"], r["noise"], float(r["texture"])
        crops.setdefault(key, {})[int(r["width"])] = float(r["automatic"]), float(r["seconds"])
    widths = sorted({w for found in crops.values() for w in found})
    crops = {key: found for key, found in crops.items() if len(found) == len(widths)}
    textures = sorted(key[2] for key in crops)
    thresholds = [0, *((a + b) / 2 for a, b in pairwise(textures)), np.inf, auto.WIDE]
    print(
        f"{len(crops)} noisy crops; dB lost to the best width: mean, most; time / the narrowest's"
    )
    lines = {}
    for narrow, wide in pairwise(widths):
        for threshold in thresholds:
            lost, time = [], []
            for (*_, texture), found in crops.items():
                psnr, seconds = found[wide if texture >= threshold else narrow]
                lost.append(max(p for p, _ in found.values()) - psnr)
                time.append(seconds / found[widths[0]][1])
            price = fmean(lost) + PRICE * fmean(np.log2(time))
            words = f"{narrow}, {wide} from texture {threshold:5.2f}"
            line = f"{words}: {fmean(lost):.3f} {max(lost):.2f}  {fmean(time):.2f}"
            lines[f"{line}  price {price:.3f}" + "  <- now" * (threshold == auto.WIDE)] = price
    for line in sorted(lines, key=lines.get)[:8] + [s for s in lines if s.endswith("now")]:
        print(line)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pictures", nargs="+", default=PICTURES)
    p.add_argument("--noise", nargs="+", default=["25", "10"])
    p.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    p.add_argument("--crop", type=int, default=128)
    p.add_argument("--threads", type=int)
    p.add_argument("--csv", type=Path, required=True)
    p.add_argument("--fit", action="store_true")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    fit(args.csv) if args.fit else measure(args)


if __name__ == "__main__":
    main()
