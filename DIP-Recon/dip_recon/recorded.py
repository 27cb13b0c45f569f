"""A step's work on a GPU, recorded once and then launched as a whole (CUDA graphs).

A step of a small network is some hundred operations of a few microseconds, and telling the card of
one takes longer than that. A recording is told of at once. What it reads and writes lies where it
lay when it was recorded: weights, moments and statistics are changed in place anyway, the input and
the learning rate are put where it looks for them, and copies are made of what it leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from .fit import State, descend
from .operators import OPERATORS, Kept

_one_at_a_time = threading.Lock()
Found = tuple[Tensor, ...]
Record = Callable[[Callable[[], Found]], tuple[Callable[[], None], Found]]


def recordable(state: State) -> bool:
    """Whether this fit's steps are work for the device alone, and the same each time.

    Not where the last step may be undone, which is asked at every step; nor with an optimiser that
    keeps its learning rate to itself, or an operator that is not ours and may do anything. Before
    torch 2.13 a recording that fails leaves memory and random numbers locked.
    """
    A = state.problem.A
    while isinstance(A, Kept):
        A = A.A
    fused = all(group.get("fused") for group in state.optimizer.param_groups)
    alone = state.backtracking is None and type(A) in OPERATORS
    return fused and alone and torch.__version__ >= (2, 13)


def on_card(work: Callable[[], Found]) -> tuple[Callable[[], None], Found]:
    """Record ``work`` without carrying it out: what carries it out, and where it leaves what.

    Raises RuntimeError if it has to wait for the card, or memory does not suffice.
    """
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.stream(torch.cuda.current_stream())  # whatever happens, back to this one
    with _one_at_a_time, here, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = work()
    return graph.replay, found


class Recorded:
    """``descend``, recorded after ``EAGER`` steps and anew whenever something else is fitted.

    Two steps are first done both ways from the same weights. Where the recording does not come to
    the same, or there can be none, ``why_not`` says why, and all goes on unrecorded.

    Args:
        record: what records, see ``on_card``.
    """

    EAGER = 3  # kernels are chosen and loaded, and moments made, by then
    CLOSE = 0.5  # of the change that a step makes

    def __init__(self, record: Record = on_card) -> None:
        self.record = record
        self.forget()

    def forget(self) -> None:
        """What was recorded is no longer what is fitted, or does not lie there any more."""
        self.replay: Callable[[], None] | None = None
        self.found: Found = ()
        self.z = self.lr = torch.empty(0)
        self.problem = None
        self.precision = ""
        self.steps = 0
        self.why_not = ""

    def __call__(self, s: State, z: Tensor) -> Found | None:
        """As ``descend``."""
        if not s.steady and self.replay is not None:  # keeps its memory to itself
            self.forget()
        if self.why_not or not s.steady:
            return descend(s, z)
        if s.problem is not self.problem or s.precision != self.precision:
            self.forget()
            self.problem, self.precision = s.problem, s.precision
        if self.replay is None:
            self.steps += 1
            if self.steps > self.EAGER:
                self._begin(s, z)
        return descend(s, z) if self.replay is None else self._replayed(s, z)

    def _replayed(self, s: State, z: Tensor) -> Found:
        self.z.copy_(z)
        self.lr.fill_(s.optimizer.param_groups[0]["lr"])
        self.replay()
        return tuple(t.clone() for t in self.found)

    def _begin(self, s: State, z: Tensor) -> None:
        """Record, and keep the recording if two steps with it are two steps without."""
        before, why_not = None, ""
        try:
            before = [t.clone() for t in _changed(s)]
            self.z, self.lr = z.clone(), torch.zeros((), device=z.device)
            with _set(s.optimizer, lr=s.lr):  # the schedule's may hardly change anything
                expected = [descend(s, z) for _ in range(2)]
            _put_back(s, before)
            with _set(s.optimizer, lr=self.lr, capturable=True):
                self.replay, self.found = self.record(lambda: descend(s, self.z))
            with _set(s.optimizer, lr=s.lr):
                found = [self._replayed(s, z) for _ in range(2)]
        except Exception as error:  # whatever it is, the fit does without
            why_not = f"a step cannot be recorded: {error}"
        else:
            if not _alike(expected, found, self.CLOSE):
                why_not = "what was recorded of a step does not come to the same"
        if before:
            _put_back(s, before)
        if why_not:
            self.forget()
            self.why_not = why_not


def _changed(s: State) -> list[Tensor]:
    """All that a step changes in place."""
    moments = [t for kept in s.optimizer.state.values() for t in kept.values()]
    return [t.detach() for t in (*s.network.parameters(), *s.network.buffers(), *moments)]


def _put_back(s: State, before: list[Tensor]) -> None:
    for t, kept in zip(_changed(s), before, strict=True):
        t.copy_(kept)


@contextmanager
def _set(optimizer: torch.optim.Optimizer, **settings):
    """In here the optimiser has these settings."""
    before = [{name: group[name] for name in settings} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(settings)
    try:
        yield
    finally:
        for group, kept in zip(optimizer.param_groups, before, strict=True):
            group.update(kept)


def _alike(expected: list[Found], found: list[Found], close: float) -> bool:
    """Whether the second outputs differ by less than ``close`` of what changed since the first."""
    (first, *_), (second, *_) = expected
    off = (found[1][0] - second).square().sum()
    return bool(off <= close**2 * (second - first).square().sum())
