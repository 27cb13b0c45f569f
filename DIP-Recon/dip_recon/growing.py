"""PG-DIP's schedule: the network grows from a small picture to the whole one while it is fitted.

Sidorenko, "Progressively Grown Deep Image Prior" (master's thesis, EPFL 2018). The schedule is
handed to the one loop and called before every step; it decides from the iteration alone which level
is fitted and how far it is faded in, so that a resumed run goes on as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UserError
from .fit import State
from .models.progressive import ProgressiveSkip
from .options import words
from .stopping import Fixed

RAMP = 70  # iterations over which the learning rate rises from 0 in every phase


@dataclass(frozen=True)
class Phase:
    """Iterations ``start`` to ``start + length`` at one level; fading in, or stable."""

    level: int
    fading: bool
    start: int
    length: int


def phases(
    levels: int, transition: Sequence[int] = (70, 100), stabilisation: Sequence[int] = (50, 650)
) -> list[Phase]:
    """All phases in order. Their lengths: one for all levels, one below the top and one there, or
    one a level from the lowest up (the last ones, where there are fewer levels).

    The defaults are the thesis's: 1160 iterations with 5 levels. The lowest level is not faded in.

    Raises:
        UserError: another number of lengths.
    """
    fading_in = _each(levels, "transition", transition)
    stable = _each(levels, "stabilisation", stabilisation)
    found: list[Phase] = []
    for level in range(1, levels + 1):
        for fading, lengths in ((True, fading_in), (False, stable)):
            if lengths[level - 1] and not (fading and level == 1):
                start = found[-1].start + found[-1].length if found else 0
                found.append(Phase(level, fading, start, lengths[level - 1]))
    return found


def _each(levels: int, flag: str, lengths: Sequence[int]) -> list[int]:
    if not lengths or 2 < len(lengths) < levels:
        raise UserError(
            f"--{flag} {words(lengths)}: give one number, one below the top and one there, or "
            f"{levels}, one a level"
        )
    if len(lengths) <= 2:
        return [lengths[0]] * (levels - 1) + [lengths[-1]]
    return list(lengths)[-levels:]


class Growing:
    """The learning-rate factor of an iteration, after the state was made that level's.

    Below the top level the state's problem is the reduced picture, its input z is pooled, the
    input noise is 10 times less per level, there is no moving average and nothing stops the run.
    Every phase begins with a fresh optimiser and a learning rate that rises over ``RAMP``
    iterations. After the last phase the top level goes on.
    """

    def __init__(self, plan: list[Phase]) -> None:
        self.plan = plan
        self.phase: Phase | None = None
        self.full: dict = {}
        self.fresh: dict = {}  # the stopping rule's state, before it was told of anything
        self.target = self.before = torch.empty(0)

    @classmethod
    def of(cls, network: nn.Module, transition: list[int], stabilisation: list[int]) -> Growing:
        """The schedule of a network's levels, for lengths as ``phases`` takes them."""
        if not isinstance(network, ProgressiveSkip):
            raise UserError("--growing True: only --model_type PG_DIP can be grown")
        return cls(phases(len(network.levels), transition, stabilisation))

    def __call__(self, state: State) -> float:
        phase = self._at(state.iteration)
        if phase != self.phase:
            new_level = self.phase is None or phase.level != self.phase.level
            self._enter(state, phase)
            self._start(state, new_level)
        j = state.iteration - phase.start
        state.steady = not phase.fading
        if phase.fading:
            state.network.alpha = j / phase.length
            state.problem.y = torch.lerp(self.before, self.target, j / phase.length)
        return (1 - math.cos(min(j / RAMP, 1) * math.pi)) / 2

    def _at(self, iteration: int) -> Phase:
        return [phase for phase in self.plan if phase.start <= iteration][-1]

    def restore(self, state: State) -> None:
        """Make ``state`` that of the iteration last done: all that a checkpoint does not hold."""
        self._enter(state, self._at(max(state.iteration - 1, 0)))

    def _enter(self, state: State, phase: Phase) -> None:
        if not self.full:
            self._remember(state)
        self.phase = phase
        problem, z = self.full["problem"], self.full["z"]
        below = self.plan[-1].level - phase.level
        state.network.level, state.network.alpha = phase.level, 1.0
        state.z = F.avg_pool2d(z, 2**below, ceil_mode=True) if below else z
        self.target = _reduced(problem.y, below)
        x = None if problem.x is None else _reduced(problem.x, below)
        state.problem = replace(problem, y=self.target, x=x, size=tuple(self.target.shape[-2:]))
        if phase.fading:
            small, size = _reduced(problem.y, below + 1), self.target.shape[-2:]
            self.before = F.interpolate(small, size=size, mode="bilinear", align_corners=True)
        state.jitter = self.full["jitter"] * 10.0**-below
        state.ema = 0.0 if below else self.full["ema"]
        if below:  # what a guard comes back from may have told the rule something
            self.full["stopping"].load_state_dict(self.fresh)
        state.stopping = Fixed() if below else self.full["stopping"]

    def _remember(self, state: State) -> None:
        kept = ("problem", "z", "jitter", "ema", "stopping")
        self.full = {name: getattr(state, name) for name in kept}
        self.fresh = state.stopping.state_dict()
        state.whole = state.problem

    @staticmethod
    def _start(state: State, new_level: bool) -> None:
        state.optimizer.state.clear()
        if new_level:
            state.smoothed = None
        if state.backtracking:
            state.backtracking.forget()


def _reduced(picture: Tensor, times: int) -> Tensor:
    """[1, C, H, W] made 2^times smaller, anti-aliased, sides rounded up; still in [0, 1]."""
    if not times:
        return picture
    size = [math.ceil(n / 2**times) for n in picture.shape[-2:]]
    return F.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp(0, 1)
