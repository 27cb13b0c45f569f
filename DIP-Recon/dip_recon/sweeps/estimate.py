"""How long a sweep will take, and how much memory a run needs: measured on a few steps."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import models
from ..callbacks import peak_memory
from ..experiment import Plan, run_one
from ..fit import State, choose, step
from ..flags import Switches
from ..prepare import network_settings, prepare
from ..runs import Run

MEASURED = 12  # kinds of run that are timed; the others are set between them by their operations


@dataclass
class Kind:
    """Runs that cost the same: one network on one size of picture.

    operations: floating-point operations of the network's forward pass. step: seconds an
    iteration. memory: bytes at most, of the card or of the process. Both None if not measured.
    """

    plan: Plan
    operations: int
    step: float | None = None
    memory: int | None = None


@dataclass
class Estimate:
    """seconds: of all runs on one worker, in the order of the plans. start: of a run without a
    step. memory: bytes that the largest run took where it was measured."""

    seconds: list[float]
    start: float
    memory: int


def estimate(plans: list[Plan], threads: int | None = None) -> Estimate:
    """Time a few steps of the kinds of run there are, and reckon the whole from them.

    Runs that a stopping rule ends are counted as if it never did. Finished runs are not to be
    among the plans.
    """
    if threads:
        torch.set_num_threads(threads)
    kinds: dict[str, Kind] = {}
    of_plan = []
    for plan in plans:
        key = _key(plan)
        if key not in kinds:
            kinds[key] = Kind(plan, _operations(plan))
        of_plan.append(kinds[key])
    ordered = sorted(kinds.values(), key=lambda kind: kind.operations)
    places = np.linspace(0, len(ordered) - 1, min(MEASURED, len(ordered))).round().astype(int)
    start = _start(ordered[0].plan)
    for kind in (ordered[i] for i in places):
        kind.step, kind.memory = _measure(kind.plan)
    known = [kind for kind in ordered if kind.step is not None]
    at = [np.log(kind.operations) for kind in known]
    steps = [np.log(kind.step) for kind in known]
    seconds = [
        start
        + plan.options.num_iters
        * (kind.step or float(np.exp(np.interp(np.log(kind.operations), at, steps))))
        for plan, kind in zip(plans, of_plan, strict=True)
    ]
    return Estimate(seconds, start, max(kind.memory for kind in known))


def _key(plan: Plan) -> str:
    job = plan.job()
    o = plan.options
    same = (
        o.model_type, network_settings(job, o), list(job.problem.y.shape), o.task, o.precision,
        o.optimizer, o.stopping, o.window, bool(o.tv_weight), bool(o.backtracking),
    )  # fmt: skip
    return json.dumps(same, default=str)


def _operations(plan: Plan) -> int:
    """Of one forward pass, counted without computing any."""
    settings = network_settings(plan.job(), plan.options)
    network = models.build(plan.options.model_type, **settings, device="meta")
    z = torch.empty(1, settings["in_channels"], *settings["in_size"], device="meta")
    with FlopCounterMode(display=False) as counter:
        network(z)
    return max(counter.get_total_flops(), 1)


def _state(plan: Plan) -> State:
    device, precision = choose(plan.options.device, plan.options.precision)
    state = prepare(plan.job(), plan.options, device, precision)
    state.network.train()
    return state


def _measure(plan: Plan) -> tuple[float, int]:
    """Seconds a step, the median of some after the first few, and the bytes in use at most."""
    state = _state(plan)
    device = state.z.device
    peak_memory(device, reset=True)
    times = []
    began = time.perf_counter()
    while len(times) < 6 or (len(times) < 40 and time.perf_counter() - began < 1.5):
        before = time.perf_counter()
        step(state)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - before)
    return statistics.median(times[3:]), peak_memory(device)


def _start(plan: Plan) -> float:
    """Seconds that a run takes beside its steps: reading, measuring, pictures and plots."""
    once = replace(plan.options, num_iters=1)
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for n in range(2):  # the first one also imports
            began = time.perf_counter()
            run_one(plan.job(), Run(Path(folder) / str(n)), once, Switches(), _silent, bar=False)
            times.append(time.perf_counter() - began)
    return times[-1]


def _silent(line: str) -> None:
    """Say nothing."""
