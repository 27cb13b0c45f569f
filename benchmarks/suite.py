"""What this machine makes of it, side by side in one run, in under 15 minutes (`make bench`).

    python benchmarks/suite.py [--parts steps watching …] [--minutes 14] [--size 128] [--rounds 5]
                              [--csv FILE] [--figure FILE] [--full] [--quick]

- steps: every registered network at its default size, ours against plain: min, median, max.
- peers: seconds and PSNR of `dip-recon denoise`, of the published network and loop, of deepinv's
  DeepImagePrior and of BM3D on the same noisy crop, the loops for as long as the command takes.
- reach: the command's seconds to the PSNR that plain DIP has after 1800 iterations, by plain DIP's.
- quality: PSNR after the same iterations on three pictures, ours less plain, beside plain less
  plain with weights that differ by a rounding: what chaos alone does.
- startup: the processor's seconds of `dip-recon --help`, and of `import dip_recon` after torch.
- watching: the share of a run that evaluation, printing, rule, snapshots and checkpoints take.
- limits: operations and bytes of a float32 step against what a convolution and a copy reach here;
  the few products inside attention are not counted.
- scaling: seconds and memory against pixels, whole and tiled, width and number of runs, and the
  fitted exponents.

The plain step is the published one, see `measuring.py`; ours is ``fit.step`` as the entry scripts
run it on this machine. The two take turns, so that a change of the machine's speed meets both;
seconds are the processor's, so that other work does not count (on a GPU those of the clock). Quote
the ratios, not the seconds. What `--minutes` leave no time for is left out, and said. `--full` adds
what takes hours: plain DIP to its end, which `results/plain_dip.csv` keeps, and pictures of 4096².
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import (
    ROWS,
    clock,
    each,
    in_turns,
    noisy,
    note,
    plain,
    plain_step,
    state,
    timed,
    warm,
    write,
)
from peers import peers, reach
from scaling import scaling
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dip_recon import memory, metrics, models
from dip_recon.callbacks import Checkpoints, Evaluation, Lines, Snapshots
from dip_recon.fit import choose, fit, step
from dip_recon.runs import Run


def steps(a) -> None:
    def measure(name: str) -> None:
        before, ours = plain(state(name, a.size, "fp32")[0]), state(name, a.size, "auto")[0]
        turns = in_turns({"plain": (plain_step, before), "ours": (step, ours)}, a)
        _, least, middle, most = turns["ours"]
        note(
            "steps", network=name, size=a.size, precision=ours.precision,
            plain_seconds=f"{turns['plain'][0]:.4f}", ratio_min=f"{least:.3f}",
            ratio_median=f"{middle:.3f}", ratio_max=f"{most:.3f}",
        )  # fmt: skip

    each(a, "steps", [(name,) for name in a.networks or models.names()], measure)


def watching(a) -> None:
    """Share of a run's time that callbacks and rule take, at the experiments' defaults."""

    def measure(width: int) -> None:
        s, o = state("DIP_2_scaled", a.size, "auto", dim=[width], stopping="ES-WMV")
        spent = 0.0

        def timing(work: Callable) -> Callable:
            def call(*given):
                nonlocal spent
                began = clock()
                found = work(*given)
                spent += clock() - began
                return found

            return call

        s.stopping.update = timing(s.stopping.update)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run")
            run.begin({}, overwrite=False)
            evaluation = Evaluation(o.eval_every, o.iters_print_acc)
            lines = Lines(evaluation, o.iters_print_acc, 20.0, lambda line: None, False)
            checkpoints = Checkpoints(run, o.checkpoint_every, evaluation)
            callbacks = [evaluation, lines, Snapshots(run, o.snapshots), checkpoints]
            began = clock()
            fit(s, 11 if a.quick else 501, [timing(c) for c in callbacks])
            share = spent / (clock() - began)
        note("watching", network="DIP_2_scaled", width=width, share=f"{share:.4f}")

    each(a, "watching", [(8,)] if a.quick else [(32,), (64,)], measure)


def startup(a) -> None:
    """Told to be at most 0.4 s for the help, and 0.15 s for the import beyond torch's."""
    call = "[sys.executable, '-m', 'dip_recon', '--help']"
    sources = {
        "import dip_recon": "import time, torch; began = time.process_time(); import dip_recon; "
        "print(time.process_time() - began)",
        "dip-recon --help": "import os, subprocess, sys; "
        f"subprocess.run({call}, stdout=subprocess.DEVNULL); times = os.times(); "
        "print(times.children_user + times.children_system)",
    }
    how = {"env": {"PYTHONPATH": str(Path(__file__).parents[1] / "DIP-Recon")}, "check": True}

    def measure(what: str) -> None:
        call = [sys.executable, "-c", sources[what]]
        found = [
            float(subprocess.run(call, capture_output=True, **how).stdout)
            for _ in range(1 if a.quick else 5)
        ]
        note("startup", what=what, seconds=f"{statistics.median(found):.3f}")

    each(a, "startup", [(what,) for what in sources], measure)


def quality(a) -> None:
    """64² crops from the middle of three pictures, sigma 25, the moving average at the end.

    Of width 64, which is enough for all that is computed another way to be so. Nudged: plain, from
    weights that are off by what ours rounds to, so that chance has had as much to begin with.
    """
    from skimage import data

    side, count, width = (32, 10, 16) if a.quick else (64, 150, 64)
    differences: dict[str, list[float]] = {"ours": [], "nudged": []}

    def fitted(picture: tuple, seed: int, nudge: str = "") -> float:
        s = plain(state("DIP_2_scaled", side, "fp32", seed, picture, dim=[width])[0])
        with torch.no_grad():
            for weights in s.network.parameters():
                if nudge == "fp32":
                    weights *= 1 + 2.0**-22
                elif nudge == "bf16":
                    weights.copy_(weights.bfloat16())
        for _ in range(count):
            plain_step(s)
        return metrics.psnr(s.smoothed, s.problem.x)

    def measure(name: str, seed: int) -> None:
        picture = noisy(getattr(data, name)(), side)
        s = state("DIP_2_scaled", side, "auto", seed, picture, dim=[width])[0]
        ours = metrics.psnr(fit(s, count).ema, s.problem.x)
        before, nudged = fitted(picture, seed), fitted(picture, seed, s.precision)
        differences["ours"].append(ours - before)
        differences["nudged"].append(nudged - before)
        note("quality", picture=name, seed=seed, plain=f"{before:.3f}", ours=f"{ours:.3f}",
             nudged=f"{nudged:.3f}")  # fmt: skip

    names = ("chelsea", "coffee", "astronaut")
    seeds = a.seeds[:1] if a.quick else a.seeds
    each(a, "quality", [(name, seed) for seed in seeds for name in names], measure)
    for what, found in differences.items():
        if len(found) > 1:
            error = statistics.stdev(found) / len(found) ** 0.5
            note("quality", what=f"{what} less plain", pairs=len(found),
                 difference=f"{statistics.mean(found):+.3f}", standard_error=f"{error:.3f}",
                 most=f"{max(map(abs, found)):.3f}")  # fmt: skip


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations are given and give; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = self._sizes((args, kwargs))
        found = func(*args, **(kwargs or {}))
        made = self._sizes(found)
        if func._schema.is_mutable and not made:
            arguments = zip(func._schema.arguments, args, strict=False)
            made = self._sizes([v for a, v in arguments if a.alias_info and a.alias_info.is_write])
        if func._schema.is_mutable or not made.keys() & given.keys():
            self.count += sum(given.values()) + sum(made.values())
        return found

    @staticmethod
    def _sizes(values) -> dict[int, int]:
        """Bytes by address."""
        tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
        storages = [(t, t.untyped_storage()) for t in tensors]
        return {p.data_ptr(): min(t.nbytes, p.nbytes()) for t, p in storages if p.nbytes()}


def ceilings(a) -> tuple[float, float]:
    """Of the machine: operations a second of a 3×3 convolution of 64 channels, forward, and bytes
    a second of a copy of 64 MB."""
    side, numbers = (32, 2**20) if a.quick else (128, 2**24)
    torch.backends.cudnn.allow_tf32 = False  # as in a fit
    place = choose()[0]
    x, w = torch.rand(1, 64, side, side, device=place), torch.rand(64, 64, 3, 3, device=place)
    from_, to = torch.rand(numbers, device=place), torch.empty(numbers, device=place)

    def best(work) -> float:
        alone = torch.get_num_threads() == 1 or place.type == "cuda"
        now = clock if alone else time.perf_counter
        times = []
        for _ in range(3 + 2 * a.rounds):
            began = now()
            with torch.no_grad():
                work()
            times.append(now() - began)
        return max(min(times), 1e-9)

    peak = 2 * 9 * 64 * 64 * side**2 / best(lambda: functional.conv2d(x, w, padding=1))
    return peak, 2 * 4 * numbers / best(lambda: to.copy_(from_))


def limits(a) -> None:
    """A step can take no less than its operations at the convolution's rate, or, if all of them
    go to memory one by one, than its bytes at the copy's."""
    peak, moved = ceilings(a)
    note("limits", network="a convolution and a copy", gigaflop_a_second=f"{peak / 1e9:.0f}",
         gigabytes_a_second=f"{moved / 1e9:.1f}")  # fmt: skip

    def measure(name: str, given: dict) -> None:
        s = state(name, a.size, "fp32", **given)[0]
        recorded, s.recorded = s.recorded, None  # whose operations nobody sees
        step(s)
        with FlopCounterMode(display=False) as operations, Bytes() as traffic:
            step(s)
        s.recorded = recorded
        warm(step, s)
        seconds = min(timed(step, s) for _ in range(max(a.rounds // 2, 1)))
        computing = operations.get_total_flops() / peak
        moving = traffic.count / moved
        note(
            "limits", network=name, width=given.get("dim", [""])[0], size=a.size,
            seconds=f"{seconds:.4f}", gigaflop=f"{operations.get_total_flops() / 1e9:.2f}",
            gigabytes=f"{traffic.count / 1e9:.3f}",
            share_of_convolution=f"{computing / seconds:.2f}",
            share_of_copy=f"{moving / seconds:.2f}",
            share_of_limit=f"{max(computing, moving) / seconds:.2f}",
        )  # fmt: skip

    names = a.networks or models.names()
    each(a, "limits", [("DIP_2_scaled", {"dim": [32]}), *((name, {}) for name in names)], measure)


PARTS = {
    part.__name__: part
    for part in (steps, peers, reach, quality, startup, watching, limits, scaling)
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=14.0, help="begin nothing after so many")
    parser.add_argument("--networks", nargs="+", help="of `steps` and `limits`; all by default")
    parser.add_argument("--pictures", nargs="+", help="of `reach`; three by default")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8], help="of `quality`")
    parser.add_argument("--full", action="store_true", help="with what takes hours")
    parser.add_argument("--quick", action="store_true", help="small: to see that it runs")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--figure", type=Path, help="draw the scaling here")
    a = parser.parse_args(argv)
    if a.quick:
        a.size, a.rounds = 48, 1
    a.steps = 1
    a.until = math.inf if a.full else time.monotonic() + 60 * a.minutes
    ROWS.clear()
    device, precision = choose()
    note("machine", torch=torch.__version__, threads=torch.get_num_threads(), device=device.type,
         precision=precision)  # fmt: skip
    for part in a.parts:
        began = time.monotonic()
        with memory.kept():  # as in every fit
            PARTS[part](a)
        note("suite", what=part, seconds=f"{time.monotonic() - began:.0f}")
        if a.csv:
            write(a.csv)


if __name__ == "__main__":
    main()
