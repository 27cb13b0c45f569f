"""The one optimisation loop: fit an untrained network to one measurement.

Everything that varies is handed in: the operator with the problem, the loss, a schedule for the
learning rate, a rule for stopping, callbacks that watch. ``descend`` is the whole method.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from . import memory
from .errors import UserError, nearest
from .problem import Problem
from .stopping import Fixed

if TYPE_CHECKING:
    from .guard import Guard
    from .recorded import Recorded

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    # NaN, which it may not be given, is for the guard to see in the output
    "bce": lambda measured, y: nn.functional.binary_cross_entropy(
        measured.clamp(0, 1).nan_to_num(0.5), y.clamp(0, 1)
    ),
}
OPTIMIZERS = ("adam", "adamw", "radam", "rmsprop", "sgd")


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference between neighbours of x [N, C, H, W], both directions, a scalar.

    The published penalty: (Σ(∂h x)² + Σ(∂w x)²) / (N·C·H·W).
    """
    return (x.diff(dim=-2).square().sum() + x.diff(dim=-1).square().sum()) / x.numel()


def make_optimizer(name: str, parameters, lr: float, weight_decay: float = 0.0):
    """One of the published optimisers by name; weight decay is adamw's alone."""
    if name == "adam":  # fused: in a third of the time, the same but for rounding
        return torch.optim.Adam(parameters, lr, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    if name == "radam":
        return torch.optim.RAdam(parameters, lr)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True)
    raise UserError(f"--optimizer {name}: unknown optimiser; {nearest(name, OPTIMIZERS)}")


class Backtracking:
    """Undo a step after which the fit has collapsed (Ulyanov et al., IJCV 2020, denoising code).

    When the PSNR to the measurement has fallen by more than ``drop_db`` since the last good
    iteration, weights, batch-norm statistics and the optimiser's moments go back to what they were
    then, the gradient of the bad output is not used, and neither the moving average nor the
    stopping rule sees that output. ``lr_factor`` shrinks the learning rate each time (0.9 in the
    TU Delft reproduction; 1 leaves it); below 1 it also keeps a run from repeating the same
    bad step: one of inpainting at factor 1 came to weights from which every step collapsed, and
    half of its next 2000 were undone. What slides by less than ``drop_db`` an iteration is let by;
    for that there is the ``Guard``.
    """

    def __init__(self, drop_db: float = 5.0, lr_factor: float = 0.9) -> None:
        self.drop_db, self.lr_factor = drop_db, lr_factor
        self.good_error = float("inf")
        self.count = 0
        self.scale = 1.0
        self._good: list[Tensor] = []

    def forget(self) -> None:
        """Begin anew: what was good is no measure for what comes now."""
        self.good_error, self._good = float("inf"), []

    def _tensors(self, state: State) -> list[Tensor]:
        moments = [t for s in state.optimizer.state.values() for t in s.values()]
        tensors = [*state.network.parameters(), *state.network.buffers(), *moments]
        return [t.detach() for t in tensors if isinstance(t, Tensor)]

    def undone(self, state: State, measured: Tensor) -> bool:
        """Whether ``measured``, the operator's view of the output, says that the fit collapsed.

        If so the last good weights and moments are back in place, else the present ones are noted.
        """
        error = float((measured - state.problem.y).square().mean())
        now = self._tensors(state)
        if error != error or error > self.good_error * 10 ** (self.drop_db / 10):
            for t, good in zip(now, self._good, strict=False):
                t.copy_(good)
            if len(self._good) < len(now):  # the optimiser had no moments yet
                state.optimizer.state.clear()
            self.scale *= self.lr_factor
            self.count += 1
            return True
        if len(self._good) == len(now):
            for good, t in zip(self._good, now, strict=True):
                good.copy_(t)
        else:
            self._good = [t.clone() for t in now]
        self.good_error = error
        return False

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("good_error", "count", "scale", "_good")}

    def load_state_dict(self, state: dict) -> None:
        for key in self.state_dict():
            setattr(self, key, state[key])


class Decay:
    """Schedule: the learning rate times ``gamma`` every ``step_size`` iterations; 1 leaves it.

    A schedule is called with the state before every step and returns the factor on the learning
    rate; it may change the state. ``restore`` puts back what a checkpoint does not hold.
    """

    def __init__(self, gamma: float = 1.0, step_size: int = 1) -> None:
        self.gamma, self.step_size = gamma, step_size

    def __call__(self, state: State) -> float:
        return self.gamma ** (state.iteration // self.step_size)

    def restore(self, state: State) -> None:
        """Nothing but the iteration matters."""


class MovingAverage:
    """Exponential moving average of the outputs with weight ``state.ema`` on the past.

    An average is called with the state after every output and returns the candidate picture; with
    ``state.ema`` 0 that is the output itself. It begins anew when ``state.smoothed`` is None, and
    first of all with the output of iteration ``start``; until then the candidate is the output.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __call__(self, state: State) -> Tensor:
        if not state.ema:
            return state.out
        if state.smoothed is None or state.iteration <= self.start:
            return state.out.clone()  # it is changed in place
        return state.smoothed.lerp_(state.out, 1 - state.ema)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """The average itself is the state's."""


class LastOutputs(MovingAverage):
    """Mean of the last ``count`` outputs, as in PG-DIP's tiles: ``count`` pictures of memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.outputs: list[Tensor] = []

    def __call__(self, state: State) -> Tensor:
        if not state.ema:
            return state.out
        if state.smoothed is None:
            self.outputs = []
        self.outputs = [*self.outputs, state.out][-self.count :]
        return torch.stack(self.outputs).mean(0)

    def state_dict(self) -> dict:
        return {"outputs": self.outputs}

    def load_state_dict(self, state: dict) -> None:
        self.outputs = state["outputs"]


@dataclass
class State:
    """Everything that a fit reads and changes; callbacks may look at all of it.

    Attributes:
        z: network input [1, c, h, w]; ``jitter`` is the deviation of the normal noise added to it
            at every iteration, drawn from ``generator``.
        iteration: the number of iterations done.
        out, smoothed: last output and the average of the last ones, [1, C, H, W]; the same tensor
            where ``ema`` is 0.
        measured: the operator's view of the last output, in the shape of the measurement.
        loss: last value of the whole objective, a detached scalar tensor.
        stopped: whether the stopping rule has ended the run.
        whole: the problem at the picture's own size, while a schedule has a reduced one fitted.
        steady: whether the schedule leaves problem and network's form as they were a step before.
        recorded: what does ``descend``'s work instead, on a GPU.
        ask_every: how many outputs are measured before the stopping rule decides on them.
        undecided: of those it has not decided on yet the iteration, what was measured, and
            (smoothed, out, measured, loss) there.
        at_end: the last of these where it has ended the run, which went on meanwhile.
    """

    problem: Problem
    network: nn.Module
    z: Tensor
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    lr: float
    jitter: float = 0.0
    ema: float = 0.99
    loss_fn: Callable[[Tensor, Tensor], Tensor] = LOSSES["mse"]
    tv_weight: float = 0.0
    schedule: Decay = field(default_factory=Decay)
    average: MovingAverage = field(default_factory=MovingAverage)
    stopping: Fixed = field(default_factory=Fixed)
    backtracking: Backtracking | None = None
    guard: Guard | None = None
    precision: str = "fp32"
    iteration: int = 0
    seconds: float = 0.0
    stopped: bool = False
    out: Tensor | None = None
    smoothed: Tensor | None = None
    measured: Tensor | None = None
    loss: Tensor | None = None
    whole: Problem | None = None
    steady: bool = True
    recorded: Recorded | None = None
    ask_every: int = 1
    undecided: list[tuple] = field(default_factory=list)
    at_end: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        orders = (torch.contiguous_format, torch.channels_last)
        if not any(self.z.is_contiguous(memory_format=order) for order in orders):
            self.z = self.z.contiguous()  # a window into a larger tensor

    @property
    def truth(self) -> Tensor | None:
        """The clean picture at its own size, if it is known."""
        return (self.whole or self.problem).x

    def full_size(self, picture: Tensor) -> Tensor:
        """An output at the picture's own size: enlarged bilinearly while it is smaller."""
        size = (self.whole or self.problem).size
        if tuple(picture.shape[-2:]) == tuple(size):
            return picture
        return nn.functional.interpolate(picture, size=size, mode="bilinear", align_corners=True)

    def ask(self) -> bool:
        """Have the stopping rule look at the last output; whether it ends the run.

        It may be told to do so only later, see ``settle``, and has then missed nothing.
        """
        rule = self.stopping
        if self.ask_every == 1 or type(rule).update is not Fixed.update:  # wants to see it itself
            return rule.update(self.iteration, self.out, self.smoothed)
        figures = rule.measure(self.out, self.smoothed)
        if figures is None:
            return self.settle() or rule.decide(self.iteration, self.smoothed, [])
        there = (self.smoothed.clone(), self.out, self.measured, self.loss)  # the first is changed
        self.undecided.append((self.iteration, figures, there))
        return len(self.undecided) >= self.ask_every and self.settle()

    def settle(self) -> bool:
        """Have the rule decide on every output measured by now; whether it has ended the run.

        What was measured after the output that ends it is forgotten.
        """
        told, self.undecided = self.undecided, []
        if told:
            numbers = torch.stack([figures for _, figures, _ in told]).tolist()
            for (iteration, _, there), figures in zip(told, numbers, strict=True):
                if self.stopping.decide(iteration, there[0], figures):
                    self.stopped, self.at_end = True, there
                    break
        return self.stopped

    PLAIN: ClassVar = ("iteration", "seconds", "stopped", "out", "smoothed", "measured", "loss")

    def _parts(self) -> dict:
        parts = {"network": self.network, "optimizer": self.optimizer, "stopping": self.stopping}
        parts["average"] = self.average
        return parts | ({"backtracking": self.backtracking} if self.backtracking else {})

    def state_dict(self, guarded: bool = True) -> dict:
        """All that the next iteration depends on, for a checkpoint; or all but the guard."""
        self.settle()
        plain = {k: getattr(self, k) for k in self.PLAIN}
        guard = self.guard if guarded else None
        return {
            **plain,
            "generator": self.generator.get_state(),
            **{k: part.state_dict() for k, part in self._parts().items()},
            **({"guard": guard.state_dict(self.iteration)} if guard else {}),
        }

    def load_state_dict(self, saved: dict) -> None:
        """Go on where ``saved``, with its tensors on the CPU, was; they move where ours are."""
        device = self.z.device
        self.undecided, self.at_end = [], None
        if self.recorded:
            self.recorded.forget()
        for key in self.PLAIN:
            setattr(self, key, _moved(saved.get(key), device))
        self.schedule.restore(self)
        self.generator.set_state(saved["generator"])
        for key, part in self._parts().items():
            # the optimiser puts its own state where it wants it: step counts stay on the CPU
            part.load_state_dict(saved[key] if key == "optimizer" else _moved(saved[key], device))
        if self.guard and "guard" in saved:
            self.guard.load_state_dict(saved["guard"], self)


def _moved(value, device: torch.device):
    """``value`` with the tensors in it, in dicts and lists too, on ``device``."""
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value


@dataclass
class Result:
    """What a fit leaves: pictures [1, C, H, W] in [0, 1] by the names used everywhere.

    ``out`` is the last output, ``ema`` its moving average, ``stopped`` the picture that the
    stopping rule settled on at ``stop_iteration``.
    """

    out: Tensor
    ema: Tensor
    stopped: Tensor
    stop_iteration: int
    iterations: int
    seconds: float
    stopped_by_rule: bool

    @property
    def restored(self) -> Tensor:
        """The result: always the stopping rule's picture, never one chosen by ground truth."""
        return self.stopped


def jittered(s: State) -> Tensor:
    """The network's input with this iteration's noise on it, [1, c, h, w]."""
    if not s.jitter:
        return s.z
    # drawn in memory order: five times as fast as through the strides of channels_last
    noise = torch.empty(s.z.numel(), device=s.z.device).normal_(generator=s.generator)
    noise = noise.mul_(s.jitter).as_strided(s.z.shape, s.z.stride())
    return noise.add_(s.z) if s.z.dtype == noise.dtype else s.z + noise


def step(s: State) -> bool:
    """One iteration; returns True when the stopping rule ends the run."""
    lr = s.lr * s.schedule(s) * (s.backtracking.scale if s.backtracking else 1)
    for group in s.optimizer.param_groups:
        group["lr"] = lr
    found = (s.recorded or descend)(s, jittered(s))
    if found is None:
        return False
    s.out, s.measured, s.loss = found
    s.smoothed = s.average(s)
    return s.ask()


def descend(s: State, z: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """A step of min_θ loss(A(f_θ(z + ε)), y) (Ulyanov et al. 2018, equation 2), z with its ε.

    Returns output, what the operator makes of it, and loss; None where the last step was undone.
    """
    bf16 = torch.autocast(z.device.type, torch.bfloat16) if s.precision == "bf16" else nullcontext()
    with bf16:
        out = s.network(z)
    out = out.float()
    measured = s.problem.A(out)
    loss = s.loss_fn(measured, s.problem.y)
    if s.tv_weight:
        loss = loss + s.tv_weight * total_variation(out)
    if s.backtracking and s.backtracking.undone(s, measured.detach()):
        return None
    s.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    s.optimizer.step()
    return out.detach(), measured.detach(), loss.detach()


def fit(state: State, iterations: int, callbacks: Sequence[Callable[[State], None]] = ()) -> Result:
    """Run ``step`` until the stopping rule ends it or ``iterations`` are done.

    Args:
        state: a fresh state, or one restored from a checkpoint, which goes on where it was.
        iterations: how many at most, counted from the very beginning, ≥ 1.
        callbacks: each is called with the state after every iteration. They watch; nothing that
            they do may change a number. Where the guard has gone back, those that have a method
            ``gone_back`` are told by it.

    Raises:
        FloatingPointError: when the objective is no longer a finite number, and there is no guard,
            or no good state for it to go back to.
    """
    iterate(state, iterations, callbacks)
    return outcome(state)


Fitting = Callable[..., Result]  # ``fit``, or what takes the same and does it elsewhere


def iterate(state: State, iterations: float, callbacks: Sequence[Callable[[State], None]]) -> None:
    """The loop itself, as ``fit`` says; the state is left where it ends."""
    state.network.train()
    began = time.perf_counter() - state.seconds
    if state.guard:
        state.guard.begin(state)
    with memory.kept():
        while state.iteration < iterations and not state.stopped:
            state.stopped = step(state)
            state.iteration += 1
            state.seconds = time.perf_counter() - began
            try:
                watch(state, iterations, callbacks)
            except FloatingPointError as trouble:
                if not put_back(state, trouble, callbacks):
                    break


def watch(state: State, iterations: float, callbacks: Sequence[Callable[[State], None]]) -> None:
    """Have all look that are to look after an iteration; FloatingPointError if the fit is lost."""
    last = state.iteration == iterations
    if state.stopped or last:
        check_finite(state)
    if state.guard:
        state.guard.look(state, last and not state.stopped)
    for callback in callbacks:
        callback(state)


def put_back(
    state: State, trouble: FloatingPointError, callbacks: Sequence[Callable[[State], None]]
) -> bool:
    """Have the guard go back, and the callbacks told; False if it gives up.

    Or if the rule had ended the run before it was lost: then what was there is put back.

    Raises ``trouble`` where there is no guard, or nothing for it to go back to.
    """
    if state.settle() and state.at_end is not None:  # it may be at the end that it was lost
        state.smoothed, state.out, state.measured, state.loss = state.at_end
        with suppress(FloatingPointError):
            check_finite(state)
            return False
        state.stopped = False
    if not state.guard:
        raise trouble
    goes_on = state.guard.go_back(state, trouble)
    for callback in callbacks:
        if hasattr(callback, "gone_back"):
            callback.gone_back(state)
    if not goes_on and state.out is None:
        raise trouble
    return goes_on


def outcome(state: State) -> Result:
    """What a fit leaves that has come to its end; FloatingPointError if it is no finite number."""
    check_finite(state)
    rule, stopped = state.stopping, state.settle()
    pictures = (state.full_size(p).clamp(0, 1) for p in (state.out, state.smoothed, rule.picture))
    return Result(*pictures, rule.iteration, state.iteration, state.seconds, stopped)


def check_finite(state: State) -> None:
    """Raise FloatingPointError if the fit has left the numbers; waits for the device."""
    if state.out is None or not torch.isfinite(state.loss + state.out.sum()):
        raise FloatingPointError(f"the fit is no finite number at iteration {state.iteration}")


def check_restored(s: State) -> None:
    """Raise an error of some kind unless a state can go on from what a checkpoint put into it."""
    counts = (s.iteration, s.stopping.iteration, s.seconds, s.stopped)
    kinds = [type(n) for n in counts]
    if kinds != [int, int, float, bool] or not (0 < s.iteration < 2**40 and s.seconds >= 0):
        raise ValueError("no such iteration")
    channels, largest = s.problem.channels, (s.whole or s.problem).size
    for picture in (s.out, s.smoothed, s.stopping.picture):
        if picture is not None and (
            picture.dtype != torch.float32
            or tuple(picture.shape[:-2]) != (1, channels)
            or any(n > m for n, m in zip(picture.shape[-2:], largest, strict=True))
        ):
            raise ValueError(f"a picture of {tuple(picture.shape)}")
    for p, moments in s.optimizer.state.items():
        if any(t.numel() != 1 and t.shape != p.shape for t in moments.values()):
            raise ValueError("moments of other weights")
    # what rule and average make of the next output shows whether they are whole
    copy.deepcopy(s.stopping).update(s.iteration, s.out, s.smoothed)
    trial = copy.copy(s)
    trial.average, trial.smoothed = copy.deepcopy(s.average), copy.deepcopy(s.smoothed)
    trial.average(trial)


def bf16_available(device: torch.device | str) -> bool:
    """Whether this device multiplies bfloat16 in hardware."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            flags = cpuinfo.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose(device: str = "auto", precision: str = "auto") -> tuple[torch.device, str]:
    """Resolve ``auto|cpu|cuda`` and ``auto|fp32|bf16`` on this machine.

    Raises:
        UserError: cuda asked for where there is none, or a name that is not in these lists.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: {nearest(device, ('auto', 'cpu', 'cuda'))}")
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {precision}: {nearest(precision, ('auto', 'fp32', 'bf16'))}")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    chosen = torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
    if precision == "auto":
        precision = "bf16" if bf16_available(chosen) else "fp32"
    return chosen, precision
