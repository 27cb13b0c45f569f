"""Carry out the runs of a sweep.

Whoever computes a run writes its run folder, which all must see under the same path; what comes
back is small. A run that is finished there is never computed again, one that was cut off goes on
from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from ..cluster import Cluster
from ..errors import UserError
from ..experiment import Plan, open_log, run_one
from ..flags import Switches
from ..runs import make_folder
from ..together import at_once, run_together

LEAVING = 60.0  # seconds that a worker which was asked to leave may take over its checkpoint
FAILURES = (UserError, FloatingPointError, MemoryError, OSError, RuntimeError)  # of one run alone


@dataclass
class Outcome:
    """What became of a run: its result.json, or why there is none.

    ``seconds`` is what it took here and now, 0 for one that was finished before.
    """

    plan: Plan
    result: dict | None = None
    error: str | None = None
    seconds: float = 0.0


def carry_out(
    plan: Plan,
    cancelled: Callable[[], bool] | None = None,
    *,
    switches: Switches,
    bar: bool = True,
    patience: float = 1.0,
    **how,
) -> Outcome:
    """Do one run, unless it is finished; what goes wrong with it is told, not raised.

    patience: seconds to wait for another process that is at it. how: more for ``run_one``.
    """
    began = time.perf_counter()
    try:
        make_folder(plan.run.folder)
        with plan.run.alone(patience, cancelled):
            if plan.run.finished and not switches.overwrite:
                plan.check_kept(switches)
                return Outcome(plan, plan.run.result())
            with open_log(plan.run.folder / "log.txt", show=False) as say:
                result, _ = run_one(
                    plan.job(), plan.run, plan.options, switches, say,
                    labels=plan.labels, cancelled=cancelled, bar=bar, **how,
                )  # fmt: skip
    except FAILURES as error:
        return Outcome(plan, error=f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome(plan, result, seconds=time.perf_counter() - began)


def batches(plans: list[Plan]) -> Iterator[list[Plan]]:
    """Runs of one picture that differ in the seed alone, as many as are done at once."""
    alike: dict[str, list[Plan]] = {}
    keys = [repr((plan.item, replace(plan.options, seed=0))) for plan in plans]
    for key, plan in zip(keys, plans, strict=True):
        alike.setdefault(key, []).append(plan)
    counts: dict[str, int] = {}
    places = dict.fromkeys(alike, 0)
    for key, plan in zip(keys, plans, strict=True):
        group, place = alike[key], places[key]
        places[key] += 1
        if key not in counts:
            counts[key] = _at_once(plan) if len(group) > 1 else 1
        if place % counts[key] == 0:
            yield group[place : place + counts[key]]


def _at_once(plan: Plan) -> int:
    try:
        return at_once(plan.options, plan.job)
    except FAILURES:  # the runs will tell
        return 1


def _carried_out(
    plans: list[Plan], switches: Switches, cluster: Cluster, say: Callable
) -> Iterator[tuple[Plan, Outcome | Exception]]:
    work = partial(carry_out, switches=switches, bar=cluster.here)
    if not cluster.here:
        yield from cluster.each(partial(work, patience=LEAVING), plans)
        return

    def work_all(batch: list[Plan], _) -> list[Outcome]:
        if len(batch) == 1:
            return [work(batch[0])]
        began = time.perf_counter()
        found = run_together([partial(work, plan) for plan in batch], say)
        share = (time.perf_counter() - began) / len(batch)
        return [replace(one, seconds=share) if one.seconds else one for one in found]

    for batch, found in cluster.each(work_all, batches(plans)):
        yield from zip(batch, found, strict=True)


def outcomes(
    plans: list[Plan], switches: Switches, cluster: Cluster, say: Callable
) -> Iterator[Outcome]:
    """Compute the runs, and tell of each when it is done: in order here, or so many at once; else
    as they come. say: is told where memory does not suffice for so many.
    """
    for plan, outcome in _carried_out(plans, switches, cluster, say):
        if isinstance(outcome, Exception):
            line = f"{type(outcome).__name__}: {outcome}".splitlines()[0]
            outcome = Outcome(plan, error=line)
        if outcome.result and not _appears(plan):
            outcome = Outcome(
                plan, error="done, but its folder is not to be seen from here; "
                "--save_folder must be on a disk that all workers share",
            )  # fmt: skip
        yield outcome


def _appears(plan: Plan) -> bool:
    """Whether a worker's result can be seen from here, given that shared disks lag."""
    for wait in (0, 0.5, 2, 5):
        time.sleep(wait)
        if plan.run.finished:
            return True
    return False
