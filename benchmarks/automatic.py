"""How good the choices of `dip-recon denoise` are: against the oracle over width and iteration.

    python benchmarks/automatic.py --pictures set14/img_003* --noise 25 --csv FILE

One noisy picture of each, a crop from the middle: what the command makes of it, without a look at
the clean one, beside the best moment of runs at the widths --widths (the oracle), and with --dip
beside the 5×128 network after 1800 iterations of the published recipe; NLM, and BM3D where the
package bm3d is installed, are given the same estimated noise level. --noise is a sigma, pSCALE for
Poisson noise, or real for pairs. Seconds are of processor time: other work on the machine does
not count. Iterations are of all tiles together. Rows that FILE has are kept, so that a killed run
goes on.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "DIP-Recon"))

import dip_recon
from dip_recon import auto, data, impulses, metrics, peers
from dip_recon.errors import UserError, exit_status
from dip_recon.files import atomic
from dip_recon.fit import choose, fit
from dip_recon.noise import texture
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job, brightest, denoising_job, span, tensor

FIELDS = (
    "picture", "noise", "crop", "texture", "width", "estimated", "sigma", "noisy", "automatic",
    "iterations", "seconds", "oracle", "oracle width", "oracle iteration", "of each width",
    "DIP", "DIP seconds", "NLM", "BM3D",
)  # fmt: skip
ITERATIONS = {32: 1500, 64: 1000, 128: 700}  # of the oracle's runs at sigma 25


def items(words: list[str]) -> list[data.Item]:
    """The pictures of data sets, folders and patterns."""
    return [item for word in words for item in data.resolve(word)]


def noisy(item: data.Item, noise: str, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """The noisy and the clean crop, [C, H, W]."""
    if (item.noisy is not None) != (noise == "real"):
        raise UserError(f"--noise {noise}: {item.name}: real is for pairs, which are noisy already")
    o = DenoisingOptions(crop=[crop])
    if noise.startswith("p"):
        o = replace(o, poisson_scale=float(noise[1:]))
    elif noise != "real":
        o = replace(o, noise_sigma=float(noise))
    job = denoising_job(item, o)
    return job.seen, job.problem.x[0].numpy()


def run(y: np.ndarray, o, watch=()):
    """Fit ``y`` and nothing else."""
    o, _ = resolve(o)
    o.validate()
    job = Job("picture", Problem.denoising(tensor(y)), y, "")
    return fit(prepare(job, o, *choose(o.device, o.precision)), o.num_iters, watch)


def automatic(y: np.ndarray, x: np.ndarray, **given) -> dict:
    """What the command makes of ``y``, with the options ``given``."""
    taken = []
    began = time.process_time()
    restored = dip_recon.denoise(np.moveaxis(y, 0, -1), progress=taken.append, **given)
    seconds = time.process_time() - began
    used = span(brightest(impulses.without(y)[0]))
    choice = auto.denoising(y / used, used=used)
    return {
        "estimated": choice.sigma * used, "width": given.get("dim", choice.options.dim[0]),
        "texture": texture(y / used, choice.deviation), "seconds": seconds,
        "iterations": len(taken),
        "automatic": metrics.psnr(tensor(np.moveaxis(restored, -1, 0)), tensor(x)),
    }  # fmt: skip


def oracle(y: np.ndarray, x: np.ndarray, widths: list[int], share: float) -> dict:
    """The best moving average over all iterations of fixed runs with all pixels."""
    clean, best = tensor(x), {}
    base = replace(auto.denoising(y).options, stopping="fixed", sigma=None)
    for width in widths:
        found = []

        def watch(state, found=found) -> None:
            found.append(metrics.psnr(state.smoothed, clean))

        n = round(ITERATIONS[width] * share)
        run(y, replace(base, dim=[width], num_iters=n), [watch])
        best[width] = (max(found), int(np.argmax(found)))
    width = max(best, key=lambda w: best[w][0])
    each = " ".join(f"{w}:{p:.2f}@{i}" for w, (p, i) in best.items())
    psnr, at = best[width]
    return {"oracle": psnr, "oracle width": width, "oracle iteration": at, "of each width": each}


def beside(y: np.ndarray, x: np.ndarray, sigma: float) -> dict:
    """NLM and BM3D, told this noise level."""
    moved, s = np.moveaxis(y, 0, -1), max(sigma, 0.5) / 255
    found = {"NLM": peers.nlm(moved, s, 0.8)}
    if bm3d := peers.bm3d_function():
        found["BM3D"] = bm3d(moved, s)
    back = {k: np.moveaxis(v, -1, 0) for k, v in found.items()}
    return {k: metrics.psnr(tensor(v.clip(0, 1)), tensor(x)) for k, v in back.items()}


def dip(y: np.ndarray, x: np.ndarray, sigma: float) -> dict:
    """The published recipe: 5 scales of 128, EMA 0.99, 1800 iterations."""
    shaken = 1 / 20 if sigma >= auto.STRONG else 1 / 30
    began = time.process_time()
    result = run(y, DenoisingOptions(model_type="DIP_orig", num_iters=1800, reg_noise_std=shaken))
    seconds = time.process_time() - began
    return {"DIP": metrics.psnr(result.ema, tensor(x)), "DIP seconds": seconds}


def rounded(row: dict) -> dict:
    return {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()}


def write(path: Path, rows: list[dict], columns: tuple[str, ...] = FIELDS) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pictures", nargs="+", required=True)
    p.add_argument("--noise", default="25")
    p.add_argument("--crop", type=int, default=128)
    p.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128], choices=ITERATIONS)
    p.add_argument("--share", type=float, default=1.0, help="of the oracle's iterations")
    p.add_argument("--dip", action="store_true")
    p.add_argument("--again", action="store_true", help="redo what was automatic, keep the rest")
    p.add_argument("--threads", type=int)
    p.add_argument("--csv", type=Path, required=True)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = list(csv.DictReader(args.csv.open())) if args.csv.exists() else []
    done = {(r["picture"], r["noise"], r["crop"]): r for r in rows}
    for item in items(args.pictures):
        name = f"{item.path.parent.name}/{item.name}"
        before = done.get((name, args.noise, str(args.crop)))
        if before and not args.again and (before["DIP"] or not args.dip):
            continue
        y, x = noisy(item, args.noise, args.crop)
        if before:
            before |= rounded(automatic(y, x)) if args.again else {}
            if args.dip and not before["DIP"]:
                before |= rounded(dip(y, x, float(before["estimated"])))
            print(before, flush=True)
            write(args.csv, rows)
            continue
        row = {"picture": name, "noise": args.noise, "crop": args.crop}
        row["noisy"] = metrics.psnr(tensor(y), tensor(x))
        row["sigma"] = args.noise if args.noise.isdigit() else ""
        row |= automatic(y, x)
        row |= beside(y, x, row["estimated"])
        if args.widths:
            row |= oracle(y, x, args.widths, args.share)
        if args.dip:
            row |= dip(y, x, row["estimated"])
        rows.append(rounded(row))
        print(rows[-1], flush=True)
        write(args.csv, rows)


if __name__ == "__main__":
    sys.exit(exit_status(main))
