"""What a GPU makes of it, in under ten minutes; `suite.py` has what is the same on every machine.

    python benchmarks/gpu.py FOLDER [--parts formats recorded together …] [--minutes 9]

- formats: a step of the 5-scale network at 256² and 512² in float32, bfloat16 and with
  channels_last against the published one, and against that one with SSIM on the CPU every time.
- recorded: a step of small networks recorded (CUDA graphs) and operation by operation, and with
  ES-WMV asked at every step or at every eighth, against the published one.
- together: the steps of 4, 8 and 16 seeds of a picture as one batch against the same in turn.
- memory: bytes that a fit takes at most against what `needs.needed` reckons.
- limits, scaling: as in `suite.py`; the figure is FOLDER/scaling.png.
- quality: PSNR after the same iterations of four seeds, in turn and as one batch.

FOLDER/gpu.csv is written after every part. Variants take turns, so that a change of the machine's
speed meets all; seconds are the clock's. What `--minutes` leave no time for is left out, and said.
`--smoke` runs all of it small, on a CPU too, to see that it runs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import measuring
import torch
from measuring import each, in_turns
from scaling import scaling
from suite import limits

from dip_recon import metrics, needs
from dip_recon.callbacks import peak_memory
from dip_recon.fit import Result, State, choose, fit, step
from dip_recon.problem import Problem
from dip_recon.tasks import Job
from dip_recon.together import Batch, fit_together, stackable


def in_use() -> int:
    """Bytes of the card in use; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def how(s: State) -> str:
    """Whether its steps are recorded."""
    return s.recorded.why_not or "yes" if s.recorded else "no card"


def tell(part: str, found: dict[str, tuple[float, ...]], **what) -> None:
    for variant, (seconds, least, middle, most) in found.items():
        measuring.note(
            part, **what, variant=variant, seconds=f"{seconds:.5f}",
            steps_a_second=f"{what.get('fits', 1) / seconds:.2f}", ratio_min=f"{least:.3f}",
            ratio_median=f"{middle:.3f}", ratio_max=f"{most:.3f}",
        )  # fmt: skip


def formats(a) -> None:
    def with_ssim(s: State) -> None:
        measuring.plain_step(s)
        metrics.ssim(s.smoothed.cpu(), s.problem.x.cpu())

    def measure(size: int) -> None:
        def made(precision: str) -> State:
            return measuring.state("DIP_orig", size, precision)[0]

        last = made("fp32")
        last.network.to(memory_format=torch.channels_last)
        last.z = last.z.contiguous(memory_format=torch.channels_last)
        variants = {
            "published": (measuring.plain_step, measuring.plain(made("fp32"))),
            "published, SSIM each iteration": (with_ssim, measuring.plain(made("fp32"))),
            "ours, as it chooses": (step, made("auto")),
            "ours, float32": (step, made("fp32")),
            "ours, float32, channels_last": (step, last),
        }
        tell("formats", in_turns(variants, a), network="DIP_orig", size=size)

    each(a, "formats", [(64,)] if a.smoke else [(256,), (512,)], measure)


def recorded(a) -> None:
    def next_step(s: State) -> None:
        step(s)
        s.iteration += 1

    def measure(name: str, dim: int | None, size: int) -> None:
        def made(rule: str = "fixed") -> State:
            more = {"dim": [dim]} if dim else {}
            return measuring.state(name, size, "auto", stopping=rule, **more)[0]

        told, each_time, ours = made(), made("ES-WMV"), made()
        told.recorded, each_time.ask_every = None, 1
        variants = {
            "published": (measuring.plain_step, measuring.plain(made())),
            "ours, operation by operation": (next_step, told),
            "ours": (next_step, ours),
            "ours, ES-WMV": (next_step, made("ES-WMV")),
            "ours, ES-WMV, asked each time": (next_step, each_time),
        }
        what = {"network": name, "width": dim, "size": size}
        tell("recorded", in_turns(variants, a), **what)
        measuring.note("recorded", **what, variant="ours", recorded=how(ours))

    cases = [("DIP_2_scaled", 32, 128), ("DIP_2_scaled", 64, 256)]
    cases += [(name, None, 256) for name in ("DD", "ConvDecoder", "DIP_orig", "PG_DIP")]
    each(a, "recorded", [("DIP_2_scaled", 4, 32)] if a.smoke else cases, measure)


def together(a) -> None:
    def measure(name: str, dim: int | None, size: int, count: int) -> None:
        more = {"dim": [dim]} if dim else {}

        def seeds() -> list[State]:
            return [measuring.state(name, size, "auto", seed, **more)[0] for seed in range(count)]

        before = in_use()
        alone, states = seeds(), seeds()
        what = {"network": name, "width": dim, "size": size, "fits": count}
        if not stackable(states):
            measuring.note("together", **what, left_out="not to be batched")
            return
        peak_memory(states[0].z.device, reset=True)
        joint = Batch(states).stack()
        variants = {
            "in turn": (lambda _: [step(s) for s in alone], joint),
            "together": (step, joint),
        }
        found = in_turns(variants, a)
        tell("together", found, **what)
        taken = peak_memory(joint.z.device) - before
        measuring.note("together", **what, variant="both", megabytes=round(taken / 1e6),
                       recorded=how(joint))  # fmt: skip

    cases = [("DIP_2_scaled", 32, 128), ("DIP_2_scaled", 64, 256), ("DIP_orig", None, 256)]
    cases = [("DIP_2_scaled", 4, 32)] if a.smoke else cases
    counts = (2,) if a.smoke else (4, 8, 16)
    each(a, "together", [(*case, count) for case in cases for count in counts], measure)


def memory(a) -> None:
    def measure(name: str, size: int, precision: str) -> None:
        before = in_use()
        s, o = measuring.state(name, size, precision, **({"dim": [4]} if a.smoke else {}))
        job = Job("picture", Problem.denoising(s.problem.y.cpu()), None, "")
        reckoned = needs.needed(job, replace(o, precision=precision))
        peak_memory(s.z.device, reset=True)
        s.guard.every = 1  # it keeps a copy of all, soon or late
        fit(s, 8)  # it is recorded by then
        taken = peak_memory(s.z.device) - before
        measuring.note(
            "memory", network=name, size=size, precision=precision, megabytes=round(taken / 1e6),
            reckoned=round(reckoned / 1e6), share=f"{taken / reckoned:.2f}",
        )  # fmt: skip

    names = ("DIP_2_scaled",) if a.smoke else ("DIP_2_scaled", "DIP_orig", "ConvDecoder", "PG_DIP")
    sizes = (32,) if a.smoke else (256, 512, 1024)
    precisions = ("fp32",) if a.smoke else ("fp32", "bf16")
    each(a, "memory", [(n, s, p) for n in names for s in sizes for p in precisions], measure)


def quality(a) -> None:
    from skimage import data

    side, count, width = (32, 10, 4) if a.smoke else (128, 600, 32)

    def measure(name: str) -> None:
        picture = measuring.noisy(getattr(data, name)(), side)

        def seeds() -> list[State]:
            given = {"dim": [width], "picture": picture}
            return [measuring.state("DIP_2_scaled", side, "auto", n, **given)[0] for n in range(4)]

        states = seeds()
        alone = [metrics.psnr(fit(s, count).ema, s.problem.x) for s in seeds()]
        found = fit_together(states, count, [[] for _ in states])
        for seed, (psnr, s, result) in enumerate(zip(alone, states, found, strict=True)):
            if not isinstance(result, Result):  # memory was short, or its guard took it out
                measuring.note("quality", picture=name, seed=seed, left_out=f"no batch: {result}")
                continue
            measuring.note(
                "quality", picture=name, seed=seed, in_turn=f"{psnr:.3f}",
                together=f"{metrics.psnr(result.ema, s.problem.x):.3f}",
            )  # fmt: skip

    each(a, "quality", [("chelsea",)] if a.smoke else [("chelsea",), ("astronaut",)], measure)


PARTS = {
    part.__name__: part for part in (formats, recorded, together, memory, limits, scaling, quality)
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where gpu.csv goes; made if it is not there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many")
    parser.add_argument("--smoke", action="store_true", help="small: to see that it runs")
    a = parser.parse_args(argv)
    device, precision = choose()
    if device.type != "cuda" and not a.smoke:
        print("needs a card, and torch sees none here; --smoke shows whether it runs")
        return 2
    a.until = time.monotonic() + 60 * a.minutes
    a.rounds, a.steps = (1, 1) if a.smoke else (a.rounds, 5)
    a.size, a.networks = (32, ["DIP_2_scaled"]) if a.smoke else (256, None)  # of `suite.py`
    a.quick, a.full, a.figure = a.smoke, False, a.folder / "scaling.png"
    a.folder.mkdir(parents=True, exist_ok=True)
    measuring.ROWS.clear()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU, small: no figures"
    measuring.note("machine", device=name, precision=precision, torch=torch.__version__)
    for part in a.parts:
        PARTS[part](a)
        measuring.write(a.folder / "gpu.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
