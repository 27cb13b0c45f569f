"""How near the estimated noise level comes, as a ratio to the level that was added.

    python benchmarks/noise_level.py --csv results/automatic/noise_level.csv

Each picture as `dip-recon denoise` sees it, in colour and in grey, with Gaussian noise that is
clipped to [0, 1]; the level is the one before clipping. Sigma 0 gives the level itself (0–255).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from automatic import items, rounded, write

from dip_recon import images
from dip_recon.errors import exit_status
from dip_recon.noise import add_gaussian, before_clipping, estimate_sigma, noise_level

FIELDS = ("picture", "kind", "crop", "sigma", "ours", "wavelets")


def ratios(x: np.ndarray, sigma: int) -> dict:
    y = add_gaussian(x, sigma, np.random.RandomState(7))
    unit = sigma or 1
    return {
        "ours": before_clipping(y, noise_level(y)) / unit,
        "wavelets": estimate_sigma(y) / unit,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pictures", nargs="+", default=["set9", "set5", "set14"])
    p.add_argument("--sigma", type=int, nargs="+", default=[0, 10, 15, 25, 50])
    p.add_argument("--crops", type=int, nargs="+", default=[0, 128], help="0 is the whole picture")
    p.add_argument("--csv", type=Path, required=True)
    args = p.parse_args()
    rows = []
    for item in items(args.pictures):
        whole = images.read(item.path).data[:, :1024, :1024]
        for crop in args.crops:
            top, left = ((n - crop) // 2 if crop else 0 for n in whole.shape[1:])
            x = whole[:, top : top + crop, left : left + crop] if crop else whole
            kinds = {"colour": x} if len(x) == 3 else {}
            for kind, picture in (kinds | {"grey": x.mean(0, keepdims=True)}).items():
                for sigma in args.sigma:
                    name = f"{item.path.parent.name}/{item.name}"
                    about = {"picture": name, "kind": kind, "crop": crop or "", "sigma": sigma}
                    rows.append(rounded(about | ratios(picture, sigma)))
        write(args.csv, rows, FIELDS)
    for kind in ("colour", "grey"):
        for sigma in args.sigma:
            some = [r for r in rows if r["kind"] == kind and r["sigma"] == sigma]
            if not some:  # all pictures were grey
                continue
            for rule in ("ours", "wavelets"):
                found = np.array([float(r[rule]) for r in some])
                away = np.abs(found - 1) if sigma else found
                worst = some[int(away.argmax())]
                span = f"{found.min():.2f} to {found.max():.2f}"
                near = f"within 10 %: {np.mean(away <= 0.1):.0%}"
                where = f"worst: {worst['picture']} {worst['crop'] or 'whole'}"
                print(f"{kind:6} {sigma:2} {rule:8} {found.mean():.3f}, {span}; {near}; {where}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
