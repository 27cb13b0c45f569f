"""What watches a fit: measuring, printing, snapshots, checkpoints. None of it changes a number."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from tqdm import tqdm

from . import images, metrics
from .errors import SIGNALS, Kept, UserError
from .fit import State, check_finite, check_restored
from .runs import Run


class Evaluation:
    """Measure the fit every ``every`` iterations: one row of ``runs.HISTORY`` each time.

    Iterations are counted from 0, as the published programs print them: row i describes the output
    of iteration i. SSIM is slow and taken every ``ssim_every`` iterations only.
    """

    def __init__(self, every: int, ssim_every: int) -> None:
        self.every, self.ssim_every = every, ssim_every
        self.rows: list[dict] = []

    def __call__(self, state: State) -> None:
        if (state.iteration - 1) % self.every == 0 or (state.iteration - 1) % self.ssim_every == 0:
            self.measure(state)

    def gone_back(self, state: State) -> None:
        """Forget what came after."""
        self.rows = [row for row in self.rows if row["iteration"] < state.iteration]

    def measure(self, state: State) -> dict:
        """Append the row of the present iteration, unless it is there, and return it."""
        check_finite(state)
        i, x = state.iteration - 1, state.truth
        if self.rows and self.rows[-1]["iteration"] == i:
            return self.rows[-1]
        row = {"iteration": i, "seconds": round(state.seconds, 3), "loss": float(state.loss)}
        row["psnr_noisy"] = state.problem.psnr_measured(state.smoothed)
        if x is not None:
            out, smoothed = state.full_size(state.out), state.full_size(state.smoothed)
            row["psnr_gt"] = metrics.psnr(out, x)
            same = state.smoothed is state.out
            row["psnr_gt_sm"] = row["psnr_gt"] if same else metrics.psnr(smoothed, x)
            if i % self.ssim_every == 0:
                row["ssim_gt_sm"] = metrics.ssim(smoothed, x)
        self.rows.append(row)
        return row

    def oracle(self) -> tuple[float, int]:
        """Best PSNR of the moving average against ground truth, and the iteration it was at.

        Over every ``every``-th iteration and the last: lines printed in between do not count.
        """
        rows = [row for row in self.rows[:-1] if row["iteration"] % self.every == 0]
        best = max([*rows, self.rows[-1]], key=lambda row: row["psnr_gt_sm"])
        return best["psnr_gt_sm"], best["iteration"]


class Lines:
    """Print the published programs' line every ``every`` iterations, through ``say``."""

    def __init__(
        self, evaluation: Evaluation, every: int, baseline: float, say: Callable, verbose: bool
    ) -> None:
        self.evaluation, self.every, self.baseline = evaluation, every, baseline
        self.say, self.verbose = say, verbose

    def gone_back(self, state: State) -> None:
        """Say why."""
        self.say(state.guard.told())

    def __call__(self, state: State) -> None:
        if (state.iteration - 1) % self.every:
            return
        row = self.evaluation.measure(state)
        line = f"Iteration {row['iteration']:05d}"
        if "psnr_gt" in row:
            line += f"   PSNR_noisy_baseline: {self.baseline:f}   PSNR_noisy: {row['psnr_noisy']:f}"
            line += f"   PSRN_gt: {row['psnr_gt']:f} PSNR_gt_sm: {row['psnr_gt_sm']:f}"
        else:
            line += f"   PSNR_noisy: {row['psnr_noisy']:f}"
        self.say(line + (f"   loss: {row['loss']:.3e}" if self.verbose else ""))


class Progress:
    """A progress bar on stderr with the last PSNRs."""

    def __init__(
        self, evaluation: Evaluation, iterations: int, done: int, title: str, shown: bool = True
    ) -> None:
        self.evaluation = evaluation
        looks = {"desc": title, "unit": "it", "smoothing": 0.05, "disable": not shown}
        self.bar = tqdm(total=iterations, initial=done, **looks)
        if shown and not self.bar.fp.isatty():
            self.bar.mininterval = 10

    def __call__(self, state: State) -> None:
        if self.evaluation.rows and (state.iteration - 1) % self.evaluation.every == 0:
            row = self.evaluation.rows[-1]
            shown = {"fit": f"{row['psnr_noisy']:.2f}"}
            if "psnr_gt_sm" in row:
                shown["restored"] = f"{row['psnr_gt_sm']:.2f}"
            self.bar.set_postfix_str(", ".join(f"{k} {v} dB" for k, v in shown.items()), False)
        self.bar.update()

    def gone_back(self, state: State) -> None:
        """Be at the iteration where the fit is."""
        self.bar.n = state.iteration
        self.bar.refresh()

    @staticmethod
    def write(line: str) -> None:
        """Print a line to stdout above whatever bar is shown."""
        tqdm.write(line)

    def close(self) -> None:
        self.bar.close()


class Snapshots:
    """Keep the candidate picture of the given iterations as PNG."""

    def __init__(self, run: Run, iterations: list[int]) -> None:
        self.run, self.iterations = run, set(iterations)

    def __call__(self, state: State) -> None:
        i = state.iteration - 1
        if i in self.iterations:
            check_finite(state)
            picture = state.full_size(state.smoothed)[0].clamp(0, 1).cpu().numpy()
            images.save_png(self.run.folder / "snapshots" / f"{i:05d}.png", picture)

    def gone_back(self, state: State) -> None:
        """Forget those of iterations that are to be done anew, or never."""
        for i, path in self.run.snapshots().items():
            if i >= state.iteration:
                path.unlink(missing_ok=True)


class TensorBoard:
    """Write what is measured, and the snapshots, to ``tensorboard/`` in the run folder.

    PSNRs in dB and the loss, at each evaluation; the extra ``tensorboard`` brings the package.
    """

    def __init__(self, run: Run, evaluation: Evaluation, snapshots: list[int], state: State):
        self.folder = run.folder / "tensorboard"
        self.evaluation, self.snapshots = evaluation, set(snapshots)
        self.writer = self._opened(state)

    def _opened(self, state: State):
        """A writer; what was written after this iteration, before a kill or the guard, goes."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.folder, purge_step=state.iteration)

    def gone_back(self, state: State) -> None:
        """Forget what came after."""
        self.writer.close()
        self.writer = self._opened(state)

    @staticmethod
    def check() -> None:
        """Raise UserError, naming the extra, if the package is not installed."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError("--tensorboard: run: pip install 'dip-recon[tensorboard]'") from error

    def __call__(self, state: State) -> None:
        i = state.iteration - 1
        row = self.evaluation.rows[-1] if self.evaluation.rows else {"iteration": None}
        if row["iteration"] == i:
            for name, value in row.items():
                if name not in ("iteration", "seconds") and value is not None:
                    self.writer.add_scalar(name, value, i)
        if i in self.snapshots:
            picture = state.full_size(state.smoothed)[0].clamp(0, 1)
            self.writer.add_image("restored", picture.cpu(), i)

    def close(self) -> None:
        self.writer.close()


class Checkpoints:
    """Save all that the run needs to go on, every ``every`` iterations and when interrupted.

    Where these take longer than ``LONGEST`` seconds, after that time already. Ctrl-C, SIGTERM and
    SIGUSR1 are looked at between two iterations only, so that what is saved is whole: it is written
    and Kept raised. The same when ``cancelled`` says True.
    """

    LONGEST = 120.0

    def __init__(
        self,
        run: Run,
        every: int,
        evaluation: Evaluation,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.run, self.every, self.evaluation = run, every, evaluation
        self.cancelled = cancelled
        self.interrupted = False
        self.saved = time.monotonic()

    def __call__(self, state: State) -> None:
        if self.cancelled and self.cancelled():
            self.interrupted = True
        late = time.monotonic() - self.saved > self.LONGEST
        if state.iteration % self.every == 0 or late or self.interrupted:
            self.save(state)
        if self.interrupted:
            raise Kept

    def save(self, state: State) -> None:
        check_finite(state)
        rows = self.evaluation.rows
        self.run.save_checkpoint({"state": state.state_dict(), "rows": rows})
        self.run.write_history(rows)
        self.saved = time.monotonic()

    def restore(self, state: State) -> bool:
        """Put ``state`` and the rows back to where the last checkpoint was; False if none is."""
        saved = self.run.load_checkpoint()
        if saved is None:
            return False
        try:
            state.load_state_dict(saved["state"])
            check_restored(state)
        except (
            LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
            RuntimeError,  # torch's, of tensors that do not fit
        ) as error:  # fmt: skip
            raise self.run.bad_checkpoint() from error
        self.evaluation.rows = saved["rows"]
        return True

    @contextmanager
    def listening(self):
        """While in here, the signals that ask to leave end the run after the iteration at hand.

        After the last one they are heard at the end of the block, with all of it done.
        """

        def note():
            self.interrupted = True

        with listening(note):
            yield
        if self.interrupted:
            raise Kept


@contextmanager
def listening(note: Callable[[], None]):
    """While in here the signals that ask to leave call ``note``, and do nothing else."""
    try:
        before = {s: signal.signal(s, lambda *_: note()) for s in SIGNALS}
    except ValueError:  # not the main thread: somebody else listens
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory(device: torch.device, reset: bool = False) -> int:
    """Most bytes in use since the last reset: of the card, or of this process on the CPU.

    Where that cannot be reset it is since the process began; 0 where nobody tells.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:  # Windows
            return 0
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
