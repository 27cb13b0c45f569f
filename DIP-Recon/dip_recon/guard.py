"""What watches over a fit's numbers: it goes back from where they are lost, and tries again."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from . import memory
from .fit import State, check_finite

KEPT = ("troubles", "gave_up", "_errors", "_size", "_first", "_bad")  # in a checkpoint
CAREFUL = 0.25  # factor on the learning rate, each time
USUAL = 10  # good looks whose errors tell what is usual
TOLD = {
    "astray": "the fit is further off than where it began",
    "collapse": "the fit has collapsed, and not come back",
    "grey": "the fit is stuck at one grey",
}


class Collapse(FloatingPointError):
    """A fit that was good is so no more, though its numbers are finite."""


class Guard:
    """Go back to the last good state when a fit is lost, and go on more carefully.

    It looks every ``every`` iterations, and whoever else finds no finite number tells it too:

    - *no number*: the loss, a weight or a statistic is NaN or infinite;
    - *collapse*: at a third of ``patience`` looks in a row, or where the run ends, the mean squared
      error to the measurement is more than 10 times what is usual (10 dB in PSNR), the median of
      the last good looks, and more than 1e-4 (40 dB);
    - *astray*: at ``patience`` looks in a row it is more than 1.2 times that of the first output;
    - *grey*: at ``patience`` looks in a row no channel of the output varies by more than 1/1000 in
      space, though that leaves an error to the measurement of more than 1e-4 (40 dB).

    Healthy fits do not come near. DIP's error rises now and then, by 5 to 20 dB, and is back in
    tens of iterations: 200 and more, the default, are lasting, and one spike at a look is forgotten
    at the next. (Four of four long fits of inpainting at a learning rate of 0.001 fell by about 20
    dB and more; what had been left so was thousands of iterations short of where it had been.) Fits
    beyond 40 dB waver by more than 10. Where a growing network goes on to another size, the errors
    before are no measure. An untrained network's output varies by more than a tenth, and jitter on
    its input alone by more than 1/1000; of a picture that is flat itself a flat output leaves no
    error.

    What is looked at is at hand: nothing is computed by the operator, no random number drawn, so
    that a healthy run has the same bits as without a guard. A look waits for the device, and costs
    as much as a few copies of the weights.

    Going back puts weights, statistics, optimiser, stopping rule, average and generator where they
    were at the last look at which nothing was wrong, or the beginning. From there the learning rate
    is a quarter, and but for a first collapse what was in bfloat16 is in float32, if memory allows:
    that takes twice as much. After ``retries`` times it gives up, in the last good state.
    ``troubles`` has a dict each time: what it was, the number of iterations when it was noticed and
    that it went back to, the learning rate and precision from then on.
    """

    def __init__(self, every: int = 100, patience: int = 10, retries: int = 3) -> None:
        self.every, self.patience, self.retries = every, patience, retries
        self.troubles: list[dict] = []
        self.gave_up = False
        self._good: dict | None = None  # the state's dict, copied
        self._errors: list[float] = []  # of the last good looks
        self._size: list[int] = []
        self._first: Tensor | None = None  # error of the first output
        self._bad = dict.fromkeys(TOLD, 0)  # looks in a row

    def look(self, state: State, last: bool = False) -> None:
        """Look at the state, and note it if it is good; called after every iteration.

        ``last``: the run ends here, and not by its stopping rule, which has its picture already.

        Raises FloatingPointError, saying what is wrong, when the fit is lost.
        """
        if state.iteration == 1:
            check_finite(state)
            self._first, self._size = _error(state), list(state.problem.y.shape)
        at = state.iteration % self.every == 0
        if not (at or last):
            return
        error, wrong = self._found(state)
        if at:
            self._bad = {what: self._bad[what] + 1 if so else 0 for what, so in wrong.items()}
            if not any(wrong.values()):
                self._errors = [*self._errors, error][-USUAL:]
                self._note(state)
        enough = dict.fromkeys(TOLD, self.patience) | {"collapse": max(self.patience // 3, 2)}
        for what, looks in self._bad.items():
            if looks >= enough[what] or (last and what == "collapse" and wrong[what]):
                trouble = Collapse if what == "collapse" else FloatingPointError
                raise trouble(f"{TOLD[what]}, at iteration {state.iteration}")

    def begin(self, state: State) -> None:
        """What is there before the first step is good, unless something is known to be."""
        if self._good is None:
            self._note(state)

    def _note(self, state: State) -> None:
        self._good = None  # first, so that there are never two copies
        self._good = _copied(state.state_dict(guarded=False))

    def _found(self, state: State) -> tuple[float, dict[str, bool]]:
        """The error, and what is wrong."""
        check_finite(state)
        tensors = [*state.network.parameters(), *state.network.buffers()]
        sums = [t.detach().sum(dtype=torch.float64) for t in tensors if t.is_floating_point()]
        spread = (state.out.amax((-2, -1)) - state.out.amin((-2, -1))).max()
        first = _error(state) if self._first is None else self._first
        found = [_error(state), first, spread.double(), *sums]
        error, first, spread, *sums = torch.stack(found).tolist()
        if not all(map(math.isfinite, (error, *sums))):
            raise FloatingPointError(f"a weight is no finite number at iteration {state.iteration}")
        size = list(state.problem.y.shape)
        if size != self._size:
            self._first = None if self._size else self._first
            self._errors, self._size = [], size
        usual = statistics.median(self._errors or [error])
        return error, {
            "astray": self._first is not None and error > 1.2 * first,
            "collapse": error > max(10 * usual, 1e-4),
            "grey": spread < 1e-3 and error > 1e-4,
        }

    def go_back(self, state: State, trouble: FloatingPointError) -> bool:
        """Put the last good state back, and be more careful from there; False once it gives up."""
        noticed = state.iteration
        state.load_state_dict(_copied(self._good))
        self._bad = dict.fromkeys(TOLD, 0)
        self.gave_up = len(self.troubles) == self.retries
        if not self.gave_up:
            state.lr = CAREFUL * state.lr
            first_fall = not self.troubles and isinstance(trouble, Collapse)
            if not first_fall and memory.may_double(state.z.device):
                state.precision = "fp32"
        told = {"what": str(trouble), "noticed": noticed, "back_to": state.iteration}
        self.troubles.append({**told, "lr": state.lr, "precision": state.precision})
        return not self.gave_up

    def told(self) -> str:
        """The last trouble, in words."""
        last = self.troubles[-1]
        if self.gave_up:
            return f"{last['what']}; given up, back at iteration {last['back_to']}"
        more = f"learning rate {last['lr']:.3g} and {last['precision']}"
        return f"{last['what']}; back to iteration {last['back_to']}, with {more}"

    def state_dict(self, iteration: int) -> dict:
        """For a checkpoint of the state at ``iteration``; the same again is not kept twice."""
        good = None if self._good and self._good["iteration"] == iteration else self._good
        return {"good": good, **{name: getattr(self, name) for name in KEPT}}

    def load_state_dict(self, saved: dict, state: State) -> None:
        """Go on as before, in ``state``, which has been put back already."""
        if not _is_whole(saved):
            raise ValueError("a guard that knows nothing of the kind")
        for name in KEPT:
            setattr(self, name, saved[name])
        self._good = saved["good"]
        self._first = None if self._first is None else self._first.to(state.z.device)
        self.begin(state)
        if self.troubles:
            state.lr, state.precision = self.troubles[-1]["lr"], self.troubles[-1]["precision"]


def _is_whole(saved: dict) -> bool:
    """Whether this is what ``state_dict`` gave: not from anywhere, or damaged."""
    first, bad, good = saved["_first"], saved["_bad"], saved["good"]
    troubles = [(t["lr"], t["precision"]) for t in saved["troubles"]]
    return (
        isinstance(saved["gave_up"], bool)
        and all(isinstance(error, float) for error in saved["_errors"])
        and isinstance(saved["_size"], list)
        and (first is None or (isinstance(first, Tensor) and first.ndim == 0))
        and bad.keys() == TOLD.keys()
        and all(isinstance(n, int) for n in bad.values())
        and all(isinstance(lr, float) and p in ("fp32", "bf16") for lr, p in troubles)
        and (good is None or isinstance(good, dict))
    )


def _error(state: State) -> Tensor:
    """Mean squared error to the measurement, still on the device."""
    return (state.measured - state.problem.y).square().mean().double()


def _copied(value):
    """``value`` with copies of the tensors in it, in dicts and lists too."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value.clone() if isinstance(value, Tensor) else value
