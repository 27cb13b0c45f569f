"""Carry out the runs of a sweep: here one after the other, or by the workers of a Dask cluster.

Whoever computes a run writes its run folder, which all must see under the same path; what comes
back is small. A run that is finished there is never computed again, one that was cut off goes on
from its checkpoint.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UserError
from ..experiment import Plan, closing, open_log, run_one
from ..flags import Switches
from ..runs import make_folder

_ONE_AT_A_TIME = threading.Lock()  # a worker with several threads still fits one picture
PATIENCE = "10s"  # with a scheduler that does not answer


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
    plan: Plan, switches: Switches, bar: bool = True, cancelled: Callable[[], bool] | None = None
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


@dataclass
class Cluster:
    """Where a sweep is computed.

    workers: processes to start on this machine; 1 computes in this very process. scheduler: the
    address of a Dask scheduler instead, such as ``tcp://node7:8786``. resources: what a worker
    must have been started with to be given a run, such as ``{"GPU": 1}``. threads: of torch in
    each process; None leaves them alone, or shares this machine's cores among its ``workers``.
    """

    workers: int = 1
    scheduler: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    threads: int | None = None

    @property
    def here(self) -> bool:
        return self.workers == 1 and self.scheduler is None

    @property
    def threads_each(self) -> int | None:
        if self.threads or self.here or self.scheduler:
            return self.threads
        return max((os.cpu_count() or 1) // self.workers, 1)

    @contextmanager
    def client(self) -> Iterator:
        """A Dask client of the scheduler, or of a cluster started on this machine for it.

        Raises:
            UserError: the extra is not installed, or nobody answers at the address.
        """
        try:
            import distributed
        except ImportError as error:
            flag = "--scheduler" if self.scheduler else "--workers"
            raise UserError(f"{flag}: run: pip install 'dip-recon[cluster]'") from error
        if self.scheduler:
            try:
                client = distributed.Client(self.scheduler, timeout=PATIENCE)
            except (OSError, TimeoutError, ValueError, TypeError, ImportError) as error:
                raise UserError(
                    f"--scheduler {self.scheduler}: no Dask scheduler answers there; "
                    "an address looks like tcp://node7:8786"
                ) from error
            with client:
                yield client
            return
        with (
            _sigint_ignored() as restore,
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            distributed.LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                resources=self.resources or None,
                memory_limit=None,  # Dask's own limit would kill workers
                dashboard_address=None,
                local_directory=folder,
                silence_logs="ERROR",
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            restore()
            yield client


@contextmanager
def _sigint_ignored() -> Iterator[Callable[[], None]]:
    """Processes started in here are deaf to Ctrl-C: it is for the one that started them.

    Yields what makes this process listen again before the end.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def restore() -> None:
        signal.signal(signal.SIGINT, before)

    try:
        yield restore
    finally:
        restore()


def outcomes(plans: list[Plan], switches: Switches, cluster: Cluster) -> Iterator[Outcome]:
    """Compute the runs, and tell of each when it is done: in order here, else as they come."""
    if cluster.here:
        if cluster.threads:
            torch.set_num_threads(cluster.threads)
        for plan in plans:
            yield carry_out(plan, switches)
        return
    with cluster.client() as client:
        yield from _by_workers(plans, switches, cluster, client)


def _by_workers(plans: list[Plan], switches: Switches, cluster: Cluster, client) -> Iterator:
    import distributed

    settings = {"resources": cluster.resources} if cluster.resources else {}
    place = (os.getcwd(), os.environ.get("DIP_RECON_DATA"))
    futures = {
        client.submit(
            on_worker,
            plan,
            switches,
            cluster.threads_each,
            place,
            pure=False,
            retries=2,
            **settings,
        ): plan
        for plan in plans
    }
    try:
        for future in distributed.as_completed(list(futures)):
            plan = futures.pop(future)
            try:
                outcome = future.result()
            except Exception as error:  # whatever the scheduler tells of a worker that died
                outcome = Outcome(plan, error=f"{type(error).__name__}: {error}".splitlines()[0])
            if outcome.result and not _appears(plan):
                outcome = Outcome(
                    plan, error="done, but its folder is not to be seen from here; "
                    "--save_folder must be on a disk that all workers share",
                )  # fmt: skip
            yield outcome
    finally:
        client.cancel(list(futures))


def _appears(plan: Plan) -> bool:
    """Whether a worker's result can be seen from here, given that shared disks lag."""
    for wait in (0, 0.5, 2, 5):
        time.sleep(wait)
        if plan.run.finished:
            return True
    return False


def on_worker(
    plan: Plan, switches: Switches, threads: int | None, place: tuple[str, str | None]
) -> Outcome:
    """``carry_out`` as a Dask task. One that the worker cannot end is given back, checkpointed.

    place: the current folder and the variable DIP_RECON_DATA where the sweep was started, by which
    relative paths and data sets' names mean the same files here.
    """
    from distributed import Reschedule, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return worker.status.name != "running" or task is None or task.state == "cancelled"

    with _ONE_AT_A_TIME:
        if threads:
            torch.set_num_threads(threads)
        before = Path.cwd()
        os.chdir(place[0])
        if place[1]:
            os.environ["DIP_RECON_DATA"] = place[1]
        try:
            return carry_out(plan, switches, bar=False, cancelled=cancelled)
        except KeyboardInterrupt as interrupt:
            raise Reschedule from interrupt
        finally:
            os.chdir(before)
