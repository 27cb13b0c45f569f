"""Attention of the Swin U-Nets: as the package has it against the plain formulation, side by side.

    python benchmarks/attention.py [--size 128] [--rounds 15] [--precisions fp32 bf16]

Whole optimisation steps of the same network take turns, so that a change of the machine's speed
meets both; quote the ratios, not the seconds. The plain formulation writes out logits, bias,
softmax and product, each a tensor, some of which autograd keeps. Memory is counted beyond what was
there before: what a forward pass keeps for the gradient, the most that forward and backward take,
and the most of a whole step, the optimiser's own included. On the CPU torch's profiler counts it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measuring import attention
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dip_recon import memory as allocator
from dip_recon.fit import State, choose, step
from dip_recon.flags import fill
from dip_recon.models import swin
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.tasks import Job

NETWORKS = ("Swin_upsample", "Swin_expand")
OURS = swin.attend


FORMULATIONS = {"plain": attention, "package": OURS}


def state(name: str, size: int, precision: str) -> State:
    """A fresh state for a random picture of ``size`` × ``size``, by the network's own recipe."""
    x = np.random.RandomState(0).rand(3, size, size).astype(np.float32)
    problem = Problem.denoising(torch.from_numpy(x)[None], torch.from_numpy(x)[None])
    o, _ = resolve(fill(DenoisingOptions, {"model_type": name})[0])
    return prepare(Job("random", problem, x, ""), o, *choose("auto", precision))


def timed(work: Callable[[], object], cuda: bool) -> float:
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def memory(work: Callable[[], object], cuda: bool) -> tuple[int, int]:
    """Bytes that ``work`` has allocated at most, and at its end, beyond what there was before."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = work()
        counts = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        del kept
        return tuple(count - before for count in counts)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        kept = work()
    del kept
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(changes.max()), int(changes[-1])


def compare(name: str, size: int, precision: str, rounds: int) -> dict:
    """Steps of two networks that differ in the formulation alone, in turn."""
    states = {kind: state(name, size, precision) for kind in FORMULATIONS}
    cuda = states["plain"].z.is_cuda
    seconds, kept, passes, steps, first = ({kind: [] for kind in FORMULATIONS} for _ in range(5))
    for n in range(rounds + 2):
        for kind, s in states.items():
            swin.attend = FORMULATIONS[kind]
            taken = timed(partial(step, s), cuda)
            first[kind] = s.out if n == 0 else first[kind]
            if n > 1:
                seconds[kind].append(taken)
    for kind, s in states.items():
        swin.attend = FORMULATIONS[kind]
        steps[kind] = memory(partial(step, s), cuda)[0]
        s.optimizer.zero_grad(set_to_none=True)
        kept[kind] = memory(partial(_loss, s), cuda)[1]
        passes[kind] = memory(lambda s=s: _loss(s).backward(), cuda)[0]
    swin.attend = OURS
    ratios = sorted(b / a for a, b in zip(seconds["plain"], seconds["package"], strict=True))
    return {
        "network": name,
        "size": size,
        "precision": precision,
        "plain_seconds": f"{statistics.median(seconds['plain']):.4f}",
        "our_seconds": f"{statistics.median(seconds['package']):.4f}",
        "ratio_min": f"{ratios[0]:.3f}",
        "ratio_median": f"{statistics.median(ratios):.3f}",
        "ratio_max": f"{ratios[-1]:.3f}",
        "kept_MB": _pair(kept),
        "passes_MB": _pair(passes),
        "step_MB": _pair(steps),
        "difference": f"{float((first['plain'] - first['package']).abs().max()):.1e}",
    }


def _loss(s: State) -> Tensor:
    with torch.autocast(s.z.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
        out = s.network(s.z)
    return (out.float() - s.problem.y).square().mean()


def _pair(found: dict[str, int]) -> str:
    return f"{found['plain'] / 1e6:.1f}->{found['package'] / 1e6:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {choose()[0].type}")
    for name in NETWORKS:
        for precision in args.precisions:
            with allocator.kept():  # as in every fit
                row = compare(name, args.size, precision, args.rounds)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
