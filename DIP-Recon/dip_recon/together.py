"""Several runs at once, their fits as one: the seeds of a picture in one network, on a GPU.

Every run is what it is by itself, with a thread, a state and callbacks of its own, and only one
thread works at a time. Where a run comes to its fit it waits for the others; then all fits take
their steps as one batch through the one loop. No fit changes another's figures but for rounding.
One that ends leaves the batch and the rest go on; so does one that is lost, to be gone on with by
itself from where its guard has put it back.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from . import memory, needs
from .callbacks import listening
from .errors import out_of_memory
from .fit import (
    Decay,
    Result,
    State,
    choose,
    fit,
    iterate,
    jittered,
    outcome,
    put_back,
    watch,
)
from .options import Options
from .problem import Problem
from .recorded import Recorded
from .tasks import Job

MANY = 16  # fits at once, at most
Callbacks = Sequence[Callable[[State], None]]
Say = Callable[[str], None]
Found = TypeVar("Found")


# ---------------------------------------------------------------- runs


def at_once(o: Options, job: Callable[[], Job]) -> int:
    """How many runs with these options are to be done at once: on a GPU what memory has room for.

    On the CPU one after another, where a batch takes no less time; and so where there are tiles.
    """
    device, _ = choose(o.device, o.precision)
    if device.type == "cpu" or getattr(o, "tile", 0):
        return 1
    room = needs.SPARE * memory.free(device) / needs.needed(job(), o)
    return max(min(MANY, int(room)), 1)


def run_all(works: Sequence[Callable[..., Found]], count: int, say: Say) -> Iterator[Found]:
    """What comes of ``works``, in order, ``count`` of them at once; see ``run_together``."""
    if count == 1:
        yield from (work() for work in works)
        return
    for n in range(0, len(works), count):
        yield from run_together(works[n : n + count], say)


def run_together(works: Sequence[Callable[..., Found]], say: Say) -> list[Found]:
    """Carry out several runs at once, their fits as one batch where they can be one.

    works: each carries out a run, given ``fitting``, ``cancelled`` and ``bar`` for ``run_one``.
    say: is told where memory does not suffice for the batch.

    When all have ended the first error is raised, if there was one; or KeyboardInterrupt if Ctrl-C,
    SIGTERM or SIGUSR1 came, which leaves a checkpoint in every run. The seconds that a run of the
    batch tells are its share, the memory is that of all.
    """
    meeting = _Meeting(len(works), say)
    how = [{"cancelled": meeting.cancelled, "bar": n == 0} for n in range(len(works))]
    with listening(meeting.interrupted.set), ThreadPoolExecutor(len(works)) as pool:
        threads = [
            pool.submit(meeting.attend, partial(work, **more))
            for work, more in zip(works, how, strict=True)
        ]
        while wait(threads, timeout=0.2).not_done:  # in between signals are heard
            pass
    errors = [error for thread in threads if (error := thread.exception())]
    stops = [error for error in errors if isinstance(error, KeyboardInterrupt)]
    if meeting.interrupted.is_set() and not stops:  # after the last iteration
        raise KeyboardInterrupt
    for error in stops + errors:
        raise error
    return [thread.result() for thread in threads]


@dataclass
class _Member:
    """A fit that is to be one of a batch, and what became of it.

    left: whether it is out of the batch. found: its result, or what ended it; None while it is in
    the batch, and where it is to go on by itself.
    """

    state: State
    callbacks: Callbacks
    iterations: int
    left: bool = False
    found: Result | BaseException | None = None

    def look(self) -> None:
        """What ``fit`` does after an iteration."""
        s = self.state
        try:
            try:
                watch(s, self.iterations, self.callbacks)
                ended = s.stopped or s.iteration >= self.iterations
            except FloatingPointError as trouble:
                ended = not put_back(s, trouble, self.callbacks)
                self.left = True
            if ended:
                self.found = outcome(s)
        except BaseException as error:  # for its own thread to raise
            self.found = error
        self.left = self.left or self.found is not None


class _Meeting:
    """Where the threads of several runs wait for one another before the fit.

    ``turn`` is had by the one thread that works: Python's and torch's own states, as of random
    numbers, warnings and drawing, are one for all threads.
    """

    def __init__(self, count: int, say: Say) -> None:
        self.turn = threading.Condition()
        self.coming = count
        self.members: list[_Member] = []
        self.begun = False
        self.say = say
        self.interrupted = threading.Event()
        self.heard: bool | None = None  # while there is a batch, whether it had been by then

    def heed(self) -> None:
        """Note before all fits look whether they are to leave: at the same iteration then."""
        self.heard = self.interrupted.is_set()

    def cancelled(self) -> bool:
        return self.interrupted.is_set() if self.heard is None else self.heard

    def attend(self, work: Callable[..., Found]) -> Found:
        """Carry out a run in this thread; ``work`` is given ``fitting``."""
        came = False

        def fitting(state: State, iterations: int, callbacks: Callbacks = ()) -> Result:
            nonlocal came
            came = True
            return self._fit(_Member(state, callbacks, iterations))

        with self.turn:
            try:
                return work(fitting=fitting)
            finally:
                if not came:  # an error, or nothing to fit
                    self._one_less()

    def _one_less(self) -> None:
        self.coming -= 1
        self.turn.notify_all()

    def _fit(self, member: _Member) -> Result:
        self.members.append(member)
        self._one_less()
        self.turn.wait_for(lambda: not self.coming)
        if not self.begun:  # the first to find that all are there
            self.begun = True
            self._fit_all()
        if isinstance(member.found, BaseException):
            raise member.found
        return member.found or fit(member.state, member.iterations, member.callbacks)

    def _fit_all(self) -> None:
        alike = len({member.iterations for member in self.members}) == 1
        try:
            if alike and stackable([member.state for member in self.members]):
                _fit_members(self.members, self.say, self.heed)
        except Exception as error:  # of the batch, so of all that are in it
            for member in self.members:
                member.found = member.found or error
        self.heard = None


# ---------------------------------------------------------------- fits


def stackable(states: Sequence[State]) -> bool:
    """Whether these can be one batch: alike in all but weights, measurement, noise and rule.

    A fit that is undone, grown or has a penalty goes by itself, and so does a network with
    operations that are not to be batched.
    """
    first = states[0]
    alike = ("lr", "precision", "iteration", "stopped")
    for s in states:
        same = all(getattr(s, name) == getattr(first, name) for name in alike)
        same &= type(s.schedule) is Decay and vars(s.schedule) == vars(first.schedule)
        same &= _hyperparameters(s) == _hyperparameters(first)
        same &= s.z.shape == first.z.shape and s.problem.size == first.problem.size
        same &= s.problem.y.shape == first.problem.y.shape and str(s.network) == str(first.network)
        if not same or s.stopped or s.backtracking or s.tv_weight:
            return False
    return len(states) > 1 and _can_be_batched(first)


def _hyperparameters(s: State) -> tuple:
    groups = [
        {k: v for k, v in g.items() if k not in ("params", "lr")} for g in s.optimizer.param_groups
    ]
    return type(s.optimizer), groups


def _can_be_batched(s: State) -> bool:
    """Whether two such networks run as one, forward and backward."""
    two = [copy.deepcopy(s.network).train() for _ in range(2)]
    try:
        with torch.autocast(s.z.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
            out = Stack(two)(torch.cat([s.z, s.z]))
        out.float().square().mean().backward()
    except RuntimeError:  # of an operation that cannot be, or memory that does not suffice
        return False
    return True


def fit_together(
    states: Sequence[State], iterations: int, callbacks: Sequence[Callbacks], say: Say = print
) -> list[Result | BaseException | None]:
    """``fit.fit`` of several states at once, each with callbacks of its own; see ``stackable``.

    Returns what each has left; or what ended it; or None for one that has left the batch and is to
    be gone on with by ``fit``. say: is told where memory does not suffice.
    """
    members = [_Member(*each, iterations) for each in zip(states, callbacks, strict=True)]
    _fit_members(members, say, lambda: None)
    return [member.found for member in members]


def _fit_members(members: list[_Member], say: Say, heed: Callable[[], None]) -> None:
    for member in members:
        member.state.network.train()
        if member.state.guard:
            member.state.guard.begin(member.state)
    left = [member for member in members if member.state.iteration < member.iterations]
    while len(left) > 1:
        batch = Batch([member.state for member in left])
        short = False
        try:
            batch.stack()
            batch.run(left, heed)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            short = True
        if short:  # by now what the step had in memory is let go
            say(f"not enough memory for {len(left)} fits at once: they go on one after another")
            batch.put_back_noise()
        batch.part()
        left = [] if short else [member for member in left if not member.left]


class Stack(nn.Module):
    """Networks of one architecture as one, [B, c, h, w] -> [B, C, H, W], the b-th by the b-th.

    Weights and buffers are stacked, [B, …]; the networks' own become views of them.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = list(networks)  # a plain list: their tensors are not ours
        self.weights, self.kept = stack_module_state(self.networks)
        for b, network in enumerate(self.networks):
            for name, weight in network.named_parameters():
                weight.data = self.weights[name].data[b]
            for name, buffer in network.named_buffers():
                buffer.data = self.kept[name][b]

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        return iter(self.weights.values())

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return iter(self.kept.values())

    def forward(self, z: Tensor) -> Tensor:
        def one(weights: dict, kept: dict, z: Tensor) -> Tensor:
            return functional_call(self.networks[0], (weights, kept), (z,))

        return vmap(one)(self.weights, self.kept, z[:, None])[:, 0]


class Batch:
    """Fits as one state for the loop, whose parts go from fit to fit.

    Each fit draws its own noise, has its own operator, loss, average and rule; network and
    optimiser are one. ``states``: of the fits, whose weights and moments are views of the batch's
    while they are in it.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self.states = list(states)
        self.noise = [s.generator.get_state() for s in self.states]  # before the iteration
        self.state: State | None = None

    def stack(self) -> State:
        """The state of the batch, where its fits are; z has a fit a row."""
        first = self.states[0]
        network = Stack([s.network for s in self.states])
        recorded = all(s.recorded and not s.recorded.why_not for s in self.states)
        self.state = State(
            Problem(first.problem.y, self._measured, first.problem.size),
            network,
            torch.cat([s.z for s in self.states]),
            _joint_optimizer(self.states, network),
            first.generator,
            first.lr,
            loss_fn=self._loss,
            schedule=self._schedule,
            average=self._average,
            stopping=self,
            precision=first.precision,
            iteration=first.iteration,
            recorded=Recorded(first.recorded.record) if recorded else None,
        )
        self._share_moments()
        return self.state

    def run(self, members: Sequence[_Member], heed: Callable[[], None]) -> None:
        """Iterate until a member leaves; ``heed`` is called before they look."""
        since = time.perf_counter()

        def look(batch: State) -> None:
            nonlocal since
            before, since = since, time.perf_counter()
            self._share_moments()
            heed()
            for member in members:
                s = member.state
                s.iteration = batch.iteration
                s.seconds += (since - before) / len(members)  # its share
                member.look()
            batch.stopped = any(member.left for member in members)

        iterate(self.state, math.inf, [look])

    def part(self) -> None:
        """Give every fit tensors of its own, and the word why there was no recording."""
        recorded = self.state and self.state.recorded
        for s in self.states:
            if recorded and recorded.why_not:
                s.recorded.why_not = recorded.why_not
            for tensor in [*s.network.parameters(), *s.network.buffers()]:
                tensor.data = tensor.data.clone()
            if s.precision == "bf16":  # as ``prepare`` has it
                s.network.to(memory_format=torch.channels_last)
            for moments in s.optimizer.state.values():
                moments.update({k: v.clone() for k, v in moments.items() if isinstance(v, Tensor)})

    def put_back_noise(self) -> None:
        """Have the noise of an iteration that was not finished drawn again."""
        for s, noise in zip(self.states, self.noise, strict=True):
            s.generator.set_state(noise)

    def _schedule(self, batch: State) -> float:
        self.noise = [s.generator.get_state() for s in self.states]
        batch.z = torch.cat([jittered(s) for s in self.states])
        return self.states[0].schedule(batch)

    def _measured(self, out: Tensor) -> Tensor:
        rows = zip(self.states, out.split(1), strict=True)
        return torch.cat([s.problem.A(row) for s, row in rows])

    def _loss(self, measured: Tensor, _: Tensor) -> Tensor:
        rows = zip(self.states, measured.split(1), strict=True)
        losses = [s.loss_fn(row, s.problem.y) for s, row in rows]
        for s, loss in zip(self.states, losses, strict=True):
            s.loss = loss.detach()
        return torch.stack(losses).sum()

    def _average(self, batch: State) -> Tensor:
        for b, s in enumerate(self.states):
            s.out, s.measured = batch.out[b : b + 1], batch.measured[b : b + 1]
            s.smoothed = s.average(s)
        return batch.out

    def update(self, iteration: int, out: Tensor, candidate: Tensor) -> bool:
        """The batch's rule: every fit asks its own; none ends the others."""
        for s in self.states:
            s.stopped = s.ask()
        return False

    def _share_moments(self) -> None:
        """Make every fit's moments, once there are any, views of the batch's."""
        if any(s.optimizer.state for s in self.states):
            return
        for name, weights in self.state.network.weights.items():
            moments = self.state.optimizer.state.get(weights)
            for b, s in enumerate(self.states if moments else ()):
                s.optimizer.state[s.network.get_parameter(name)] = {
                    k: v[b] if isinstance(v, Tensor) and v.dim() else v for k, v in moments.items()
                }


def _joint_optimizer(states: Sequence[State], network: Stack) -> torch.optim.Optimizer:
    first = states[0].optimizer
    joint = type(first)(list(network.parameters()), states[0].lr)
    [group] = first.param_groups
    joint.param_groups[0].update({k: v for k, v in group.items() if k != "params"})
    for name, weights in network.weights.items():
        each = [s.optimizer.state.get(s.network.get_parameter(name)) for s in states]
        if each[0]:
            joint.state[weights] = {
                k: torch.stack([e[k] for e in each]) if isinstance(v, Tensor) and v.dim() else v
                for k, v in each[0].items()
            }
    for s in states:
        s.optimizer.state.clear()  # views of the new ones take their place
    return joint
