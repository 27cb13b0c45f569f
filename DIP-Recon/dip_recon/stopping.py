"""When to stop: rules as objects, each told of every iteration and asked whether to end the run.

A rule sees the raw output and the candidate result (the exponential moving average, or the output
itself where there is none). It never sees the ground truth. After the run ``iteration`` and
``picture`` are the iteration it settled on and the picture of that very iteration, or the mean of
several that it ends with.

``update`` is ``measure``, which computes where the output is and waits for nothing, and then
``decide``, by numbers. On a GPU, where reading a number waits for all that is under way, several
outputs are measured before they are decided on; what is decided is the same.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, nearest
from .noise import clipped_deviation, hardly_clipped, noise_level, texture
from .operators import FourierSampling, Identity, Kept, Mask
from .problem import Problem


class Fixed:
    """Run all the iterations and return the last picture."""

    name = "fixed"
    until = ""  # when the run ends, in words
    one_moment = True  # whether the picture is that of one iteration

    def __init__(self) -> None:
        self.iteration = -1
        self.picture: Tensor | None = None

    def fitted(self, problem: Problem) -> Problem:
        """The problem that the network is to be fitted to: all of it, or what the rule leaves."""
        return problem

    def update(self, iteration: int, out: Tensor, candidate: Tensor) -> bool:
        """Take note of iteration ``iteration`` (from 0); [1, C, H, W] each. True ends the run."""
        figures = self.measure(out, candidate)
        return self.decide(iteration, candidate, [] if figures is None else figures.tolist())

    def measure(self, out: Tensor, candidate: Tensor) -> Tensor | None:
        """What ``decide`` is to know of an output, [k] on its device; None if that is nothing."""
        return None

    def decide(self, iteration: int, candidate: Tensor, figures: list[float]) -> bool:
        """Take note of an iteration whose output has these ``figures``; True ends the run.

        Outputs are decided on in the order in which they were measured.
        """
        self.iteration, self.picture = iteration, candidate
        return False

    def state_dict(self) -> dict:
        """What a checkpoint needs so that a resumed run decides exactly as an unbroken one."""
        return {"iteration": self.iteration, "picture": self.picture}

    def load_state_dict(self, state: dict) -> None:
        self.iteration, self.picture = state["iteration"], state["picture"]


class _VarianceMinimum(Fixed, ABC):
    """Stop when ``patience`` iterations have brought no new strict minimum of a variance.

    The recorded picture is a copy made at the minimum, not whatever came later. Minima in the first
    ``start`` iterations that the rule is told of do not count: while the network still leaves its
    first grey, or a growing one its last level, the variance is small too. At most ``samples``
    values of the output are looked at, always the same ones, so that memory and time do not grow
    with the picture.
    """

    until = "until it is past where its output varies least"

    def __init__(self, patience: int, start: int, samples: int) -> None:
        super().__init__()
        if patience < 1:
            raise UserError(f"--patience {patience}: give a positive number of iterations")
        self.patience, self.start, self.samples = patience, start, samples
        self.minimum = math.inf
        self.first: int | None = None  # of the iterations that it was told of
        self.places: Tensor | None = None  # in memory, of the values that are looked at,
        self.strides: tuple = ()  # in a picture with these

    @abstractmethod
    def _taken_in(self, values: Tensor) -> Tensor | None:
        """What ``_variance`` is to know of these sampled values, still on the device."""

    @abstractmethod
    def _variance(self, figures: list[float]) -> float | None:
        """The variance with these values taken in, None while there is too little."""

    def measure(self, out: Tensor, candidate: Tensor) -> Tensor | None:
        return self._taken_in(self._sample(out))

    def _sample(self, out: Tensor) -> Tensor:
        if out.numel() <= self.samples:
            return out.detach().flatten()
        if self.strides != out.stride():  # found where they lie, or all would be copied
            self.strides = out.stride()
            order = torch.randperm(out.numel(), generator=torch.Generator().manual_seed(0))
            picked = torch.unravel_index(order[: self.samples].sort().values, out.shape)
            where = zip(picked, self.strides, strict=True)
            self.places = sum(i * stride for i, stride in where).to(out.device)
        span = 1 + sum((n - 1) * m for n, m in zip(out.shape, self.strides, strict=True))
        return out.detach().as_strided((span,), (1,)).index_select(0, self.places)

    def decide(self, iteration: int, candidate: Tensor, figures: list[float]) -> bool:
        variance = self._variance(figures)
        self.first = iteration if self.first is None else self.first
        if variance is None or iteration - self.first < self.start:
            # nothing recorded yet: a run that ends here ends with its last picture
            self.iteration, self.picture = iteration, candidate
            return False
        if variance < self.minimum:
            self.minimum = variance
            self.iteration, self.picture = iteration, candidate.clone()
        return iteration - self.iteration >= self.patience

    def state_dict(self) -> dict:
        return {**super().state_dict(), "minimum": self.minimum, "first": self.first}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.minimum, self.first = state["minimum"], state.get("first", 0)


class WindowedVariance(_VarianceMinimum):
    """ES-WMV: the variance of the last ``window`` outputs around their mean is at its minimum.

    V_t = 1/W Σ_i ‖x_i − x̄‖² / n over the last W raw outputs (Wang et al., Early Stopping for Deep
    Image Prior, TMLR 2023, §2.2, algorithm 1: W = 100, patience P = 1000). Kept as two running
    sums in float64 beside the window itself: samples·window·4 bytes, 7 MB at most by default.
    """

    name = "ES-WMV"

    def __init__(
        self, patience: int = 1000, window: int = 100, start: int = 200, samples: int = 16384
    ) -> None:
        super().__init__(patience, start, samples)
        if window < 2:
            raise UserError(f"--window {window}: give at least 2 outputs")
        self.window = window
        self.outputs: Tensor | None = None  # [window, n] ring buffer
        self.slot = 0  # of it, for the next
        self.count = 0  # of the outputs decided on
        self.total: Tensor | None = None  # Σ x_i, [n] float64
        self.squares = 0.0  # Σ ‖x_i‖²

    def _taken_in(self, values: Tensor) -> Tensor:
        new = values.double()
        if self.outputs is None:
            self.outputs = torch.zeros(self.window, values.numel(), device=values.device)
            self.total = torch.zeros_like(new)
        slot = self.outputs[self.slot]
        old = slot.double()
        self.total += new
        self.total -= old
        slot.copy_(values)
        self.slot = (self.slot + 1) % self.window
        return torch.stack([new.dot(new) - old.dot(old), self.total.dot(self.total)])

    def _variance(self, figures: list[float]) -> float | None:
        change, of_total = figures
        self.squares += change
        self.count += 1
        if self.count < self.window:
            return None
        return (self.squares / self.window - of_total / self.window**2) / len(self.total)

    def state_dict(self) -> dict:
        kept = {k: getattr(self, k) for k in ("outputs", "count", "total", "squares")}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for key in ("outputs", "count", "total", "squares"):
            setattr(self, key, state[key])
        self.slot = self.count % self.window


class MovingVariance(_VarianceMinimum):
    """ES-EMV: the same with an exponentially weighted variance, without a window.

    d = x_t − ema; ema ← ema + αd; emv ← (1 − α)(emv + α‖d‖²/n) with α = 0.1 (Wang et al., Early
    Stopping for Deep Image Prior, TMLR 2023, §2.2, equation for ES-EMV).
    """

    name = "ES-EMV"

    def __init__(
        self, patience: int = 1000, alpha: float = 0.1, start: int = 200, samples: int = 16384
    ) -> None:
        super().__init__(patience, start, samples)
        self.alpha = alpha
        self.ema: Tensor | None = None
        self.emv = 0.0

    def _taken_in(self, values: Tensor) -> Tensor | None:
        if self.ema is None:
            self.ema = values.clone()
            return None
        d = values - self.ema
        self.ema += self.alpha * d
        return d.square().mean()[None]

    def _variance(self, figures: list[float]) -> float | None:
        if not figures:
            return None
        self.emv = (1 - self.alpha) * (self.emv + self.alpha * figures[0])
        return self.emv

    def state_dict(self) -> dict:
        return {**super().state_dict(), "ema": self.ema, "emv": self.emv}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.ema, self.emv = state["ema"], state["emv"]


class MethodNoise(Fixed):
    """SMNS: stop when the method noise has come down to what the noise level says it should be.

    Method noise is the RMS of y − A(candidate) (Sidorenko, master's thesis, EPFL 2018, chapter 4,
    after Buades et al. 2005). Once it has been below ``target`` in ``mns_hold`` iterations the run
    ends with the picture of the last of them. The static target is 24.45 at sigma 25, so 0.978 of
    the noise level.

    Noise that was clipped is weaker than its level, and what is black or white is fitted soonest.
    So in denoising only the places count whose mean is two noise levels off both, as long as they
    are a fifth of the picture; the thesis takes all, and stops too soon by decibels where much is
    dark (the figures are in results/README.md).

    Args:
        problem: whose y is compared; its noise level is asked for where ``sigma`` is None.
        sigma: noise level on the 0–255 scale. Without one anywhere it is estimated from y, which
            gives the RMS that the noise has after clipping: no target has to be derived from it,
            and all places count.
        mns_hold: 25 in PG-DIP, 75 in the thesis's plain DIP.

    Raises:
        UserError: the noise level is neither known nor to be told from y.
    """

    name = "SMNS"
    until = "until what is taken away is as strong as the noise"
    STATIC = 24.45 / 25
    MARGIN = 2.0  # noise levels off black and white
    ENOUGH = 0.2  # share of the picture

    def __init__(self, problem: Problem, sigma: float | None = None, mns_hold: int = 25) -> None:
        super().__init__()
        given = problem.sigma if sigma is None else sigma
        self.estimated = given is None or (sigma is None and problem.estimated)
        if given is None and not isinstance(problem.A, Identity):
            raise UserError(f"--stopping {self.name}: tell the noise level by --sigma")
        if given is None:
            given = noise_level(problem.y[0].cpu().numpy())
        if given <= 0:
            raise UserError(f"--stopping {self.name}: there is no noise in {problem.name}")
        self.problem, self.sigma, self.hold = problem, given, mns_hold
        self.where: Tensor | None = None  # what counts, where not all does
        if isinstance(problem.A, Mask | FourierSampling):
            self.where = problem.A.mask.expand_as(problem.y) > 0
        elif isinstance(problem.A, Identity) and not self.estimated:
            free = hardly_clipped(problem.y[0].cpu().numpy(), self.sigma, self.MARGIN)
            if self.ENOUGH <= free.mean() < 1:
                self.where = torch.from_numpy(free)[None].to(problem.y.device)
        self.counting = problem.y.numel() if self.where is None else int(self.where.sum())
        self.below = 0

    def target(self) -> float:
        """The method noise to come down to, on the 0–1 scale."""
        return self.sigma / 255 * (1 if self.estimated else self.STATIC)

    def measure(self, out: Tensor, candidate: Tensor) -> Tensor:
        squares = (self.problem.y - self.problem.A(candidate)).square()
        if self.where is not None:
            squares = torch.where(self.where, squares, 0)
        return (squares.sum() / self.counting).sqrt()[None]

    def decide(self, iteration: int, candidate: Tensor, figures: list[float]) -> bool:
        self.iteration, self.picture = iteration, candidate
        self.below += figures[0] < self.target()
        return self.below >= self.hold

    def state_dict(self) -> dict:
        return {**super().state_dict(), "below": self.below}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.below = state["below"]


def _taken_along(y: np.ndarray, deviation: float) -> float:
    """By what share the method noise is below the noise where a fit of ``y`` [C, H, W] is best.

    A network that is to fit texture cannot help fitting some noise: 6 % for each unit that
    ``texture`` is above 0.4, up to 6 %.
    """
    return 0.06 * min(max(texture(y, deviation) - 0.4, 0), 1)


class AdaptiveMethodNoise(MethodNoise):
    """AMNS: the same with a target that follows from the picture (thesis, chapter 4).

    Noise that was clipped to [0, 1] has lost power where the picture is dark or bright, and its
    mean has moved: the network comes down to that mean, the method noise to the deviation about it.
    The target is 0.99 of that deviation over the places that count, by ``clipped_deviation``, and
    less where the picture has texture (see ``_taken_along``). What is half a noise level off black
    and white counts. Where the noise level is not given the target is what ``noise_level`` tells
    from y. (The thesis fits a polynomial to Foi's clipped deviation, with y in the place of the
    clean picture; the figures that ours rests on are in results/README.md.)
    """

    name = "AMNS"
    MARGIN = 0.5

    def __init__(self, problem: Problem, sigma: float | None = None, mns_hold: int = 25) -> None:
        super().__init__(problem, sigma, mns_hold)
        if not isinstance(problem.A, Identity):
            raise UserError("--stopping AMNS: for denoising only; SMNS goes by --sigma alone")
        y = problem.y[0].cpu().numpy()
        self.deviation = self.sigma
        if not self.estimated:
            where = None if self.where is None else self.where[0].cpu().numpy()
            share = 0.99 - _taken_along(y, clipped_deviation(y, self.sigma))
            self.deviation = share * clipped_deviation(y, self.sigma, where)

    def target(self) -> float:
        return self.deviation / 255


class HeldOut(Fixed):
    """held-out: stop where measured pixels that the fit does not see are told worse and worse.

    A few pixels, the same in all channels, are left out of the loss. What noise they have is news
    to the network, so that the error there is the picture's own plus the noise's power, which is
    the same at all iterations: no noise level is asked for, nor that the noise be Gaussian or the
    same everywhere, only that it be independent from pixel to pixel (Ding et al., "A validation
    approach to over-parameterized matrix and image recovery", arXiv 2209.10675, section 4; Yaman
    et al., "Zero-shot self-supervised learning for MRI reconstruction", ICLR 2022). The run ends
    when that error has had no new minimum for ``WAIT`` of the iterations done, but at least
    ``least``; it returns the picture of the minimum.

    Being told from few pixels, the error has minima by chance. In denoising a picture that is not
    significantly worse than the best, so by less than two standard errors of the squared errors'
    difference pixel by pixel, passes for as good, and what is returned is the mean of the best and
    of those that passed after it (what that is worth: results/README.md). While the method noise
    (see ``MethodNoise``) is far above what the noise level told from the picture would have it be
    the fit is coarse, and the last is returned; once it is clearly below, noise is fitted, and only
    a new minimum passes.

    In denoising also, what was held out is taken into the picture with the weight of least error:
    of two estimates with independent errors, e² that of the fit, known from the above, and s² the
    noise's, e²/(e² + s²).

    Args:
        problem: the whole problem; where it has a mask, known pixels are held out, or measured
            frequencies, but never the mean. Of its measured pixels ``SHARE`` are, but 600 if that
            is more and no more than three in a hundred.
    """

    name = "held-out"
    until = "until pixels held out of the fit get worse"
    one_moment = False
    SHARE, ENOUGH, MOST = 0.01, 600, 0.03
    WAIT = 0.15
    SIGNIFICANT = 2.0  # standard errors
    COARSE, FITTED = 1.15, 0.95  # method noise, of what the noise level would have it be

    def __init__(self, problem: Problem, least: int = 100) -> None:
        super().__init__()
        y = problem.y
        plane = y.shape[2:] if y.ndim > 3 else y.shape[min(1, y.ndim - 1) :]
        known = torch.ones((1,) * (y.ndim - len(plane)) + tuple(plane))
        if isinstance(problem.A, Mask):
            known *= problem.A.mask.amin(1, keepdim=True).cpu()
        if isinstance(problem.A, FourierSampling):
            known *= problem.A.mask.cpu()
            known[..., 0, 0] = 0
        places = known.flatten().nonzero().flatten()
        count = min(max(self.SHARE * len(places), self.ENOUGH), self.MOST * len(places))
        count = min(max(round(count), 1), len(places) - 1)
        if count < 1:
            raise UserError(f"--stopping {self.name}: {problem.name} has too few pixels")
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
        places = places[order[:count]].sort().values
        held = torch.zeros_like(known).flatten()
        held[places] = 1
        self.held = held.reshape(known.shape).to(y.device)
        self.places = places.to(y.device)
        self.problem, self.least = problem, least
        self.best = torch.tensor(math.inf, device=y.device)  # error of those measured
        self.errors = torch.zeros(count, device=y.device)  # squared, of the best
        self.count = 0  # of the pictures that ``picture`` is the mean of
        self.level = 0.0  # of the noise, on the 0–1 scale; 0 where it is not asked for
        self.coarse = self.enough = math.inf
        if isinstance(problem.A, Identity):
            picture = y[0].cpu().numpy()
            self.level = noise_level(picture) / 255
            taken = _taken_along(picture, 255 * self.level) if self.level else 0
            self.coarse, self.enough = (
                (share * (1 - taken) * self.level) ** 2 for share in (self.COARSE, self.FITTED)
            )

    def fitted(self, problem: Problem) -> Problem:
        kept = 1 - self.held
        return replace(problem, y=problem.y * kept, A=Kept(problem.A, kept))

    @torch.no_grad()
    def measure(self, out: Tensor, candidate: Tensor) -> Tensor:
        squares = (self.problem.A(candidate) - self.problem.y).square()
        errors = squares.reshape(-1, self.held.numel())[:, self.places].sum(0)
        error, change = errors.sum(), errors - self.errors
        figures = torch.stack([error, self.best, change.square().sum(), squares.mean()])
        better = error < self.best  # which of the two is not asked here
        self.errors = torch.where(better, errors, self.errors)
        self.best = torch.where(better, error, self.best)
        return figures

    def decide(self, iteration: int, candidate: Tensor, figures: list[float]) -> bool:
        error, best, variance, power = figures
        better = error < best
        close = error - best < self.SIGNIFICANT * math.sqrt(variance)
        if not (better or (close and power > self.enough)):
            return iteration - self.iteration >= max(self.least, self.WAIT * iteration)
        picture = self._with_held(candidate, error)
        if better or power > self.coarse:
            self.count, self.picture = 1, picture
        else:
            self.count += 1
            self.picture = torch.lerp(self.picture, picture, 1 / self.count)
        self.iteration = iteration
        return False

    def _with_held(self, candidate: Tensor, error: float) -> Tensor:
        """A copy of ``candidate`` with the measurement's share at the pixels held out."""
        if not self.level:
            return candidate.clone()
        noise = self.level**2 * len(self.places) * candidate.shape[1]
        weight = max(0.0, 1 - noise / max(error, 1e-12))
        return torch.lerp(candidate, self.problem.y, weight * self.held)

    def state_dict(self) -> dict:
        kept = {"best": float(self.best), "errors": self.errors, "count": self.count}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.errors, self.count = state["errors"], state["count"]
        self.best = torch.tensor(state["best"], device=self.errors.device)


RULES = {
    rule.name: rule
    for rule in (
        Fixed, WindowedVariance, MovingVariance, MethodNoise, AdaptiveMethodNoise, HeldOut,
    )
}  # fmt: skip


def make(name: str, **settings) -> Fixed:
    """The rule called ``name``, with those of ``settings`` that it takes (patience, window, …)."""
    if name not in RULES:
        raise UserError(f"--stopping {name}: unknown rule; {nearest(name, RULES)}")
    rule = RULES[name]
    taken = inspect.signature(rule).parameters
    return rule(**{k: v for k, v in settings.items() if k in taken})
