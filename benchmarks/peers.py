"""Other programs and plain DIP beside `dip-recon denoise`: the parts peers and reach of `suite.py`.

All restore the same noisy crop, sigma 25, in one process; seconds are the processor's. deepinv and
BM3D are measured where they are installed: `pip install ".[bench]"` and, for BM3D, whose licence
excludes commercial use, `pip install ".[peers]"`.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from measuring import clock, each, given_back, noisy, note, plain, plain_step, state, timed

import dip_recon
from dip_recon import data, images, metrics
from dip_recon.errors import UserError
from dip_recon.files import atomic
from dip_recon.fit import choose
from dip_recon.peers import MISSING, bm3d_function

ITERATIONS = 1800  # of plain DIP: the published recipe
KNOWN = Path(__file__).parents[1] / "results" / "plain_dip.csv"
FIELDS = ("picture", "size", "sigma", "iterations", "psnr", "seconds_a_step", "torch", "threads")
HOUSE = "set9/image_House256rgb"


@cache
def crop(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a picture that scikit-image ships, or of House, and it with noise."""
    item = data.resolve(HOUSE if name == "House" else f"bundled/{name}")[0]
    return noisy(np.moveaxis(images.read(item.path).data * 255, 0, -1).round(), side)


def psnr(picture: np.ndarray, x: np.ndarray) -> float:
    """Of a picture [H, W, C] against the clean one [C, H, W]."""
    picture = np.ascontiguousarray(np.moveaxis(picture, -1, 0), np.float32)
    return metrics.psnr(torch.from_numpy(picture)[None], torch.from_numpy(x)[None])


@dataclass(frozen=True)
class Command:
    """What `dip-recon denoise` made of a picture: at its end, and (seconds, PSNR) on its way."""

    psnr: float
    seconds: float
    iterations: int
    way: list[tuple[float, float]]


@cache
def command(name: str, side: int, quick: bool) -> Command:
    """The automatic command's work, from the noisy picture to the restored one."""
    x, y = crop(name, side)
    way, watched, iterations = [], 0.0, 0

    def look(now) -> None:
        nonlocal watched, iterations
        iterations += 1
        if now.iteration % 5 == 0:
            at = clock()
            way.append((at - began - watched, psnr(now.picture, x)))
            watched += clock() - at

    began = clock()
    given = {"num_iters": 20, "dim": [4]} if quick else {}
    restored = dip_recon.denoise(np.moveaxis(y, 0, -1), progress=look, **given)
    seconds, found = clock() - began - watched, psnr(restored, x)
    return Command(found, seconds, iterations, [*way, (seconds, found)])


def published(name: str, side: int):
    """The published 5×128 network and loop, ready to begin."""
    return plain(state("DIP_orig", side, "fp32", picture=crop(name, side))[0])


def peers(a) -> None:
    """Each iterative method at its end, or stopped after the seconds that the command took."""
    name, side = "chelsea", 48 if a.quick else 128
    x, y = crop(name, side)
    given = np.moveaxis(y, 0, -1)

    def tell(method: str, seconds: float, found: float, count: int = 0) -> None:
        note("peers", picture=name, size=side, method=method, seconds=f"{seconds:.2f}",
             psnr=f"{found:.2f}", iterations=count or "",
             seconds_a_step=f"{seconds / count:.4f}" if count else "")  # fmt: skip

    def ours() -> None:
        done = command(name, side, a.quick)
        tell("dip-recon denoise", done.seconds, done.psnr, done.iterations)

    def loop() -> None:
        until, s = command(name, side, a.quick).seconds, published(name, side)
        passed, count = 0.0, 0
        while passed < until:
            passed, count = passed + timed(plain_step, s), count + 1
        tell("published network and loop", passed, metrics.psnr(s.smoothed, s.problem.x), count)

    def deepinv() -> None:
        try:
            from deepinv.models import ConvDecoder, DeepImagePrior
            from deepinv.physics import Denoising
        except (ImportError, RuntimeError) as error:  # or a torchvision that is not torch's
            why = str(error).splitlines()[0]
            note("peers", left_out=f'deepinv ({why}): pip install "dip-recon[bench]"')
            return

        place = choose()[0]

        def run(iterations: int) -> tuple[float, torch.Tensor]:
            network = ConvDecoder(img_size=(3, side, side)).to(place)
            prior = DeepImagePrior(network, img_size=(256, 4, 4), iterations=iterations)
            began = clock()
            with given_back():
                found = prior(torch.from_numpy(y)[None].to(place), Denoising())
            return clock() - began, found.detach().cpu()

        with torch.random.fork_rng():
            torch.manual_seed(7)
            run(1)  # the first is not like the others
            a_step = (run(3)[0] - run(1)[0]) / 2
            until = command(name, side, a.quick).seconds
            count = max(round(until / max(a_step, until / ITERATIONS)), 1)
            seconds, found = run(count)
        restored = np.moveaxis(found[0].numpy(), 0, -1)
        tell("deepinv DeepImagePrior", seconds, psnr(restored, x), count)

    def bm3d() -> None:
        restore = bm3d_function()
        if not restore:
            note("peers", left_out=MISSING)
            return
        began = clock()
        found = restore(given, 25 / 255)
        tell("BM3D, told sigma", clock() - began, psnr(found, x))

    work = {"ours": ours, "published": loop, "deepinv": deepinv, "BM3D": bm3d}
    each(a, "peers", [(method,) for method in work], lambda method: work[method]())


def known() -> list[dict]:
    """What plain DIP came to where it was run to its end."""
    if not KNOWN.is_file():
        return []
    with KNOWN.open(newline="") as file:
        return list(csv.DictReader(file))


def to_the_end(name: str, side: int, iterations: int) -> tuple[float, float]:
    """Plain DIP: the PSNR of its moving average in the end, and the seconds of a step."""
    s, seconds = published(name, side), []
    for _ in range(iterations):
        seconds.append(timed(plain_step, s))
    return metrics.psnr(s.smoothed, s.problem.x), statistics.median(seconds)


def learn(name: str, side: int) -> None:
    """Run plain DIP to its end, and put what it came to into the table."""
    found, seconds = to_the_end(name, side, ITERATIONS)
    row = (name, side, 25, ITERATIONS, f"{found:.3f}", f"{seconds:.3f}")
    row = dict(zip(FIELDS, (*row, torch.__version__, torch.get_num_threads()), strict=True))
    others = [r for r in known() if (r["picture"], r["size"]) != (name, str(side))]
    with atomic(KNOWN) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows([*others, row])


def plain_end(name: str, a, side: int) -> float | None:
    """The PSNR that plain DIP comes to, from the table; None where it was not measured."""
    if a.quick:
        return to_the_end(name, side, 3)[0]
    if a.full:
        learn(name, side)
    rows = [r for r in known() if (r["picture"], r["size"]) == (name, str(side))]
    return float(rows[0]["psnr"]) if rows else None


def reach(a) -> None:
    """The command's seconds to plain DIP's last PSNR, and to its own end, by plain DIP's."""
    side = 48 if a.quick else 128
    pictures = a.pictures or [_house_or("astronaut"), "chelsea", "coffee"]

    def measure(name: str) -> None:
        wanted = plain_end(name, a, side)
        s = published(name, side)
        a_step = statistics.median([timed(plain_step, s) for _ in range(4)][1:])
        done, plain_seconds = command(name, side, a.quick), ITERATIONS * a_step
        there = [seconds for seconds, found in done.way if wanted and found >= wanted]
        reached = {"not_measured": "plain DIP's PSNR: --full runs it"}
        if wanted:
            reached = {"plain_psnr": f"{wanted:.2f}", "seconds_to_reach": "never"}
        if there:
            share = f"{there[0] / plain_seconds:.4f}"
            reached |= {"seconds_to_reach": f"{there[0]:.1f}", "ratio_to_reach": share}
        note(
            "reach", picture=name, size=side, plain_seconds=f"{plain_seconds:.0f}", **reached,
            seconds=f"{done.seconds:.1f}", psnr=f"{done.psnr:.2f}", iterations=done.iterations,
            ratio_to_end=f"{done.seconds / plain_seconds:.4f}",
        )  # fmt: skip

    each(a, "reach", [(name,) for name in pictures], measure)


def _house_or(other: str) -> str:
    try:
        return "House" if data.resolve(HOUSE) else other
    except UserError:
        return other
