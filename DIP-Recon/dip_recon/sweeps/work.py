"""Carry out the runs of a sweep.

Whoever computes a run writes its run folder, which all must see under the same path; what comes
back is small. A run that is finished there is never computed again, one that was cut off goes on
from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..cluster import Cluster
from ..errors import UserError
from ..experiment import Plan, closing, open_log, run_one
from ..flags import Switches
from ..runs import make_folder


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
    plan: Plan, cancelled: Callable[[], bool] | None = None, *, switches: Switches, bar: bool = True
) -> Outcome:
    """Do one run, unless it is finished; what goes wrong with it is told, not raised."""
    began = time.perf_counter()
    try:
        if plan.run.finished and not switches.overwrite:
            return Outcome(plan, plan.run.result())
        make_folder(plan.run.folder)
        with open_log(plan.run.folder / "log.txt", show=False) as say:
            result, _ = run_one(
                plan.job(), plan.run, plan.options, switches, say,
                labels=plan.labels, cancelled=cancelled, bar=bar,
            )  # fmt: skip
            say(closing(result))
    except (UserError, FloatingPointError, MemoryError, OSError, RuntimeError) as error:
        return Outcome(plan, error=f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome(plan, result, seconds=time.perf_counter() - began)


def outcomes(plans: list[Plan], switches: Switches, cluster: Cluster) -> Iterator[Outcome]:
    """Compute the runs, and tell of each when it is done: in order here, else as they come."""
    work = partial(carry_out, switches=switches, bar=cluster.here)
    for plan, outcome in cluster.each(work, plans):
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
