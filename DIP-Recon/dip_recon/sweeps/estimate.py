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
from ..problem import Problem
from ..runs import Run
from ..tasks import Job
from ..tiling import Layout

MEASURED = 12  # kinds of run that are timed; the others are set between them by their operations


@dataclass
class Kind:
    """Runs that cost the same: one network on one size of picture, or of tile.

    operations: floating-point operations of the network's forward pass. step: seconds an
    iteration at the end of a run. early, before: iterations that a growing network has before its
    top level, and the seconds of all of them. memory: bytes at most, of the card or of the process.
    step and memory are None if not measured.
    """

    plan: Plan
    operations: int
    step: float | None = None
    early: int = 0
    before: float = 0.0
    memory: int | None = None

    def seconds(self, iterations: int) -> float:
        """Of so many iterations."""
        return self.before + max(iterations - self.early, 0) * self.step


@dataclass
class Estimate:
    """seconds: of each run, in the order of the plans. memory: bytes that the largest run took
    where it was measured."""

    seconds: list[float]
    memory: int


def estimate(plans: list[Plan], _=None) -> Estimate:
    """Time a few steps of the kinds of run there are, and reckon the whole from them.

    Runs that a stopping rule ends are counted as if it never did. Finished runs are not to be
    among the plans.
    """
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
    for n, kind in enumerate(ordered):
        if n in places or kind.plan.options.growing:
            _measure(kind)
    known = [kind for kind in ordered if kind.step is not None]
    at = [np.log(kind.operations) for kind in known]
    steps = [np.log(kind.step) for kind in known]
    for kind in ordered:
        if kind.step is None:
            kind.step = float(np.exp(np.interp(np.log(kind.operations), at, steps)))
    seconds = [
        start + _pieces(plan) * kind.seconds(plan.options.num_iters)
        for plan, kind in zip(plans, of_plan, strict=True)
    ]
    return Estimate(seconds, max(kind.memory for kind in known))


def _tile(plan: Plan) -> int:
    return getattr(plan.options, "tile", 0)


def _layout(plan: Plan, job: Job) -> Layout:
    return Layout(tuple(job.problem.size), plan.options.tile, plan.options.overlap)


def _pieces(plan: Plan) -> int:
    """How many fits a run is: one, or one a tile."""
    return len(_layout(plan, plan.job())) if _tile(plan) else 1


def _job(plan: Plan) -> Job:
    """What is fitted: the picture, or as much of it as a tile has."""
    job = plan.job()
    if not _tile(plan):
        return job
    height, width = _layout(plan, job)[0].size
    rows, columns = (-(-n // m) for n, m in zip((height, width), job.problem.size, strict=True))
    y = job.problem.y.repeat(1, 1, rows, columns)[..., :height, :width]
    return replace(job, problem=Problem.denoising(y, sigma=job.problem.sigma or 25.0))


def _key(plan: Plan) -> str:
    job, o = _job(plan), plan.options
    same = (
        o.model_type, network_settings(job, o), list(job.problem.y.shape), o.task, o.precision,
        o.optimizer, o.stopping, o.window, bool(o.tv_weight), bool(o.backtracking),
        o.growing, o.transition, o.stabilisation, o.average_last,
    )  # fmt: skip
    return json.dumps(same, default=str)


def _operations(plan: Plan) -> int:
    """Of one forward pass, counted without computing any."""
    settings = network_settings(_job(plan), plan.options)
    network = models.build(plan.options.model_type, **settings, device="meta")
    z = torch.empty(1, settings["in_channels"], *settings["in_size"], device="meta")
    with FlopCounterMode(display=False) as counter:
        network(z)
    return max(counter.get_total_flops(), 1)


def _measure(kind: Kind) -> None:
    """Time the steps of a kind of run, at each level if it grows, and see the memory it takes."""
    o = kind.plan.options
    state = prepare(_job(kind.plan), o, *choose(o.device, o.precision))
    state.network.train()
    peak_memory(state.z.device, reset=True)
    if o.growing:
        plan = state.schedule.plan
        for level in range(1, plan[-1].level):
            here = [phase for phase in plan if phase.level == level]
            state.iteration = here[-1].start
            kind.before += sum(phase.length for phase in here) * _step(state)
        state.iteration = plan[-1].start
        kind.early = next(phase for phase in plan if phase.level == plan[-1].level).start
    kind.step, kind.memory = _step(state), peak_memory(state.z.device)


def _step(state: State) -> float:
    """Seconds a step: the median of some, after the first few."""
    times = []
    began = time.perf_counter()
    while len(times) < 6 or (len(times) < 40 and time.perf_counter() - began < 1.5):
        before = time.perf_counter()
        step(state)
        if state.z.device.type == "cuda":
            torch.cuda.synchronize(state.z.device)
        times.append(time.perf_counter() - before)
    return statistics.median(times[3:])


def _start(plan: Plan) -> float:
    """Seconds that a run takes beside its steps: reading, measuring, pictures and plots."""
    once = replace(plan.options, num_iters=1)
    if _tile(plan):
        once = replace(once, tile=0)
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for n in range(2):  # the first one also imports
            began = time.perf_counter()
            run_one(_job(plan), Run(Path(folder) / str(n)), once, Switches(), _silent, bar=False)
            times.append(time.perf_counter() - began)
    return times[-1]


def _silent(line: str) -> None:
    """Say nothing."""
