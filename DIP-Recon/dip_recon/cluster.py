"""Where things are computed: in this process, by processes of this machine, or on Dask."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .errors import SIGNALS, UserError
from .fit import choose

_ONE_AT_A_TIME = threading.Lock()  # a worker with several threads still fits one picture
PATIENCE = "10s"  # with a scheduler that does not answer
FIRST = 30  # seconds for the first worker to come: they are often started at the same moment


@dataclass
class Cluster:
    """Where runs or tiles are computed.

    workers: processes to start on this machine; 1 computes in this very process. scheduler: the
    address of a Dask scheduler instead, such as ``tcp://node7:8786``. resources: what a worker
    must have been started with to be given a run, such as ``{"GPU": 1}``. threads: of torch in
    each process; None leaves them alone, or shares this machine's cores among its ``workers``.

    Raises:
        UserError: both workers and a scheduler.
    """

    workers: int = 1
    scheduler: str | None = None
    resources: dict[str, float] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.workers != 1 and self.scheduler:
            raise UserError(
                "--workers --scheduler: give one of the two; a cluster has its own workers"
            )

    @property
    def here(self) -> bool:
        return self.workers == 1 and self.scheduler is None

    @property
    def threads_each(self) -> int | None:
        if self.threads or self.here or self.scheduler:
            return self.threads
        return max((os.cpu_count() or 1) // self.workers, 1)

    def check(self) -> None:
        """Raise UserError if nobody answers at the scheduler, where there is to be one."""
        if self.scheduler:
            self.count()

    def count(self) -> int:
        """How many workers the scheduler has now."""
        with self.client() as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])

    def ask(self, function: Callable[[Any, Callable[[], bool] | None], Any], task: Any) -> Any:
        """``function(task, cancelled)`` once, where the work will be done; raises what it raises.

        For processes of this machine that is here, with as many threads as they will have. A
        scheduler is given ``FIRST`` seconds to have a worker that has the resources; UserError if
        it has none then.
        """
        if not self.scheduler:
            if self.threads_each:
                torch.set_num_threads(self.threads_each)
            return function(task, None)
        with self.client() as client:
            self._await_worker(client)
        [(_, answer)] = self.each(function, [task])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _await_worker(self, client) -> None:
        def suits(worker: dict) -> bool:
            has = worker.get("resources") or {}
            return all(has.get(name, 0) >= count for name, count in self.resources.items())

        until = time.monotonic() + FIRST
        while not any(map(suits, client.scheduler_info(n_workers=-1)["workers"].values())):
            if time.monotonic() > until:
                wanted = " ".join(f"{name}={n:g}" for name, n in self.resources.items())
                having = f" with {wanted}" if wanted else ""
                flag = f" --resources '{wanted}'" if wanted else ""
                raise UserError(
                    f"--scheduler {self.scheduler}: no worker{having} came to it in {FIRST} s; "
                    f"start one: dask worker {self.scheduler} --nthreads 1{flag}"
                )
            time.sleep(0.1)

    def choose(self, device: str, precision: str) -> tuple[str, str]:
        """Device and precision, as the machine chooses them that does the work."""
        if not self.scheduler:
            return _choose((device, precision))
        return self.ask(_choose, (device, precision))

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
            _signals_held_back() as restore,
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            distributed.LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                resources=self.resources or None,
                memory_limit=None,  # Dask's own limit would kill workers
                dashboard_address="127.0.0.1:0",  # None is port 8787, seen from outside
                local_directory=folder,
                silence_logs="ERROR",
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            restore()
            yield client

    def each(
        self,
        function: Callable[[Any, Callable[[], bool] | None], Any],
        tasks: Iterable[Any],
        large: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """Call ``function(task, cancelled)`` for each task; yield each with what came of it.

        Here in order, with ``cancelled`` None; by workers as they come. ``function`` must be found
        by its name on a worker, and raise KeyboardInterrupt soon after ``cancelled()`` is True: the
        task is given to another worker then, or forgotten. A task whose worker died is tried again
        elsewhere; what comes of one that cannot be done is the exception. ``large`` tasks are sent
        when they are wanted, two to a worker, and not all at once.
        """
        if self.here:
            if self.threads:
                torch.set_num_threads(self.threads)
            for task in tasks:
                yield task, function(task, None)
            return
        with self.client() as client:
            yield from self._each(client, function, iter(tasks), large)

    def _each(self, client, function, tasks: Iterator, large: bool) -> Iterator:
        import distributed

        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        ahead = 2 * max(workers, 1) if large else None

        settings = {"resources": self.resources} if self.resources else {}
        place = (os.getcwd(), os.environ.get("DIP_RECON_DATA"))

        def send(task):
            more = {"pure": False, "retries": 2, **settings}
            future = client.submit(_on_worker, function, task, self.threads_each, place, **more)
            futures[future] = task
            return future

        futures: dict = {}
        try:
            done = distributed.as_completed([send(task) for task in islice(tasks, ahead)])
            for future in done:
                task = futures.pop(future)
                try:
                    result = future.result()
                except Exception as error:  # whatever is told of a worker that died
                    result = error
                future.release()
                for more in islice(tasks, 1):
                    done.add(send(more))
                yield task, result
        finally:
            client.cancel(list(futures))


def _choose(asked: tuple[str, str], _=None) -> tuple[str, str]:
    device, precision = choose(*asked)
    return device.type, precision


@contextmanager
def _signals_held_back() -> Iterator[Callable[[], None]]:
    """Processes and threads started in here are deaf to what asks to leave, such as Ctrl-C or a
    scheduler's SIGTERM to all: it is for the process that started them, which tells them.

    Yields what makes this process listen again before the end; what came meanwhile comes then.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield lambda: None
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield restore
    finally:
        restore()


def _on_worker(function: Callable, task, threads: int | None, place: tuple[str, str | None]):
    """A Dask task. One that the worker cannot end is given back.

    place: the current folder and the variable DIP_RECON_DATA of the process that sent it, by which
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
        before, data = Path.cwd(), os.environ.get("DIP_RECON_DATA")
        with suppress(OSError):  # tiles do without
            os.chdir(place[0])
        _set_data(place[1] or data)
        try:
            return function(task, cancelled)
        except KeyboardInterrupt as interrupt:
            raise Reschedule from interrupt
        finally:
            os.chdir(before)
            _set_data(data)


def _set_data(place: str | None) -> None:
    if place is None:
        os.environ.pop("DIP_RECON_DATA", None)
    else:
        os.environ["DIP_RECON_DATA"] = place
