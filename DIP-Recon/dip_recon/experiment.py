"""One experiment over pictures: options in, run folders out.

What the entry scripts and the command share: each picture is read, degraded or taken as it is,
fitted, and written to its run folder. Everything that can be wrong with what the user gave is
looked at for all pictures before the first file is written.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import __version__, data, figures, images, metrics, models, tables
from .callbacks import (
    Checkpoints,
    Evaluation,
    Lines,
    Progress,
    Snapshots,
    TensorBoard,
    peak_memory,
)
from .cluster import Cluster
from .errors import UserError, exit_status, silence_stdout
from .files import cannot_write, check_inside
from .fit import Fitting, Result, State, fit
from .flags import Switches, parse
from .needs import check as check_memory
from .needs import too_large
from .options import METHOD_NOISE, NOT_IN_THE_NUMBERS, Options
from .prepare import (
    check_rules,
    input_picture,
    network_input,
    network_settings,
    prepare,
    resolve,
)
from .runs import Run, check_writable, clear, make_folder, method_folder, safe_name, write_results
from .stopping import MethodNoise
from .tasks import JOBS, Job, tensor
from .tiling import Layout, Tiles
from .tiling.layout import InMemory


def configuration(
    o: Options, job: Job, device: str, precision: str, labels: dict | None = None
) -> dict:
    """What config.yaml holds: every option as resolved, the picture, and what it ran on.

    ``labels`` say where in a sweep the run stands. The filter's taps are there for the figures.
    """
    versions = {
        "dip_recon": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
    }
    chosen = {**asdict(o), "device": device, "precision": precision}
    digest = job.digest
    if o.noise_method in ("image", "noisy_image"):
        digest += hashlib.sha256(input_picture(o).read_bytes()).hexdigest()
    picture = {"image": job.name, "picture_sha256": digest}
    taps = models.upsamplers.taps(o.upsample_mode) if o.upsample_mode else None
    drawn = {"upsample_taps": None if taps is None else [round(float(t), 7) for t in taps]}
    return {**chosen, **picture, **drawn, "labels": labels or {}, "versions": versions}


TILE = 512  # pixels a side, where a picture is tiled because it would not fit


@dataclass(frozen=True)
class Plan:
    """One run to be done: a picture, its folder, the resolved options, its labels in a sweep."""

    item: data.Item
    run: Run
    options: Options
    labels: dict = field(default_factory=dict)

    def job(self) -> Job:
        return JOBS[self.options.task](self.item, self.options)

    def check_kept(self, switches: Switches) -> None:
        """Raise UserError unless what the folder holds is this run: since the plan was made,
        another process may have written there."""
        o = self.options
        _check_same(self.run, o, configuration(o, self.job(), *_where(o, switches)))


def plan(
    o: Options,
    items: list[data.Item],
    folders: list[Path],
    labels: dict,
    switches: Switches,
    elsewhere: tuple[str, str] | None = None,
) -> list[Plan]:
    """The runs of one experiment, a picture each; ``o`` is resolved.

    ``elsewhere``: device and precision of the workers, where the runs are not for this machine.

    Raises UserError if an option, a picture, a mask or a folder will not do. Writes nothing.
    """
    if switches.tensorboard:
        TensorBoard.check()
    plans = []
    for item, folder in zip(items, folders, strict=True):
        known = {"texture": item.label} if item.label else {}
        job = JOBS[o.task](item, o)
        chosen = o if elsewhere else _tiled(job, o, Run(folder), switches)
        this = Plan(item, Run(folder), chosen, known | labels)
        kept = switches.resume and this.run.finished
        if getattr(chosen, "tile", 0):
            if o.noise_method in ("image", "noisy_image"):
                raise UserError(f"--tile: not with --noise_method {o.noise_method}")
            _tiles(job, chosen, this.run).check(here=not (elsewhere or kept or switches.scheduler))
        else:
            settings = network_settings(job, o)
            if o.noise_method in ("image", "noisy_image"):
                network_input(job, o, settings)
            models.check_size(o.model_type, **settings)
            check_rules(job, o, settings)
            if not (elsewhere or kept):
                check_memory(job, o)
        config = configuration(chosen, job, *(elsewhere or _where(chosen, switches)))
        _check_same(this.run, o, config, switches.resume, switches.overwrite)
        plans.append(this)
    return plans


def _check_same(
    run: Run, o: Options, config: dict, resume: bool = True, overwrite: bool = False
) -> None:
    run.check(config, NOT_IN_THE_NUMBERS, resume, overwrite, asdict(type(o)()))


def run_one(
    job: Job,
    run: Run,
    o: Options,
    switches: Switches,
    say: Callable,
    *,
    labels: dict | None = None,
    cancelled: Callable[[], bool] | None = None,
    bar: bool = True,
    draw: bool = True,
    exact: bool = False,
    fitting: Fitting = fit,
) -> tuple[dict, np.ndarray]:
    """Fit one picture and fill its run folder; the closing line goes to ``say``.

    ``cancelled`` is asked after every iteration; once true the run ends like an interrupted one,
    by KeyboardInterrupt after a checkpoint. ``bar``: whether a progress bar is shown on stderr.
    ``draw``: whether its two figures are drawn. ``exact``: whether the restored picture is kept to
    the last digit. ``fitting``: carries out the fit, where it is not one by tiles.

    Raises UserError if another process writes in the folder, or has begun another run there.
    Returns what result.json holds, and the restored picture [C, H, W] in [0, 1].
    """
    device_name, precision = _where(o, switches)
    o = replace(o, device=device_name, precision=precision)
    tiled = getattr(o, "tile", 0)
    work = _run_tiled if tiled else partial(_run_whole, fitting=fitting)
    draw_run = figures.draw_run if draw else None  # imported now: not in a worker that leaves
    config = configuration(o, job, o.device, o.precision, labels)
    with run.alone():
        if not switches.overwrite:  # nor has another process begun another run here
            _check_same(run, o, config)
        run.begin(config, switches.overwrite)
        summary, restored = work(job, run, o, switches, say, cancelled, bar, exact)
        if draw_run:
            draw_run(run)
    return summary, restored


def _run_whole(
    job: Job,
    run: Run,
    o: Options,
    switches: Switches,
    say: Callable,
    cancelled: Callable[[], bool] | None,
    bar: bool,
    exact: bool,
    fitting: Fitting,
) -> tuple[dict, np.ndarray]:
    """``run_one`` in one piece."""
    device = torch.device(o.device)
    peak_memory(device, reset=True)
    state = prepare(job, o, device, o.precision)
    truth = state.truth
    baseline = metrics.psnr(tensor(job.seen), job.problem.x) if truth is not None else float("nan")
    evaluation = Evaluation(o.eval_every, o.iters_print_acc)
    checkpoints = Checkpoints(run, o.checkpoint_every, evaluation, cancelled)
    rule = state.stopping
    if isinstance(rule, MethodNoise):
        known = "estimated from the picture" if rule.estimated else "as given"
        say(f"{job.name}: noise level {rule.sigma:.2f}, {known}")
    if checkpoints.restore(state):
        say(f"{job.name}: goes on from iteration {state.iteration}")
    _write_inputs(job, run)
    progress = Progress(evaluation, o.num_iters, state.iteration, job.name, bar)
    lines = Lines(evaluation, o.iters_print_acc, baseline, say, o.verbose)
    callbacks = [evaluation, lines, Snapshots(run, o.snapshots), progress]
    board = TensorBoard(run, evaluation, o.snapshots, state) if switches.tensorboard else None
    callbacks += [board] * (board is not None)
    with checkpoints.listening():
        try:
            result = fitting(state, o.num_iters, [*callbacks, checkpoints])
        finally:
            progress.close()
            if board:
                board.close()
        if state.recorded and state.recorded.why_not:
            say(f"{job.name}: {state.recorded.why_not}; steps took longer for it")
        evaluation.measure(state)
        run.write_history(evaluation.rows)
        restored = result.restored[0].cpu().numpy()
        if job.keep_known:
            known = job.problem.A.mask[0].numpy()
            restored = known * job.problem.y[0].numpy() + (1 - known) * restored
        images.write(run.folder / "restored.png", restored, like=job.like)
        summary = summarise(job, o, state, result, baseline, evaluation)
        _write_inputs(job, run, again=False)
        _close(run, summary, restored if exact else None, say)
    return summary, restored


def _close(run: Run, summary: dict, exact: np.ndarray | None, say: Callable) -> None:
    """The result, and at once its line: a run that has its result is not come back to."""
    run.write_result(summary, exact)
    say(closing(summary))


def finish_off(run: Run, draw: bool = True) -> None:
    """Do for a finished run what its process did not come to, if that ended at the very end.

    Raises UserError if it is at it still.
    """
    undrawn = draw and not (run.folder / "comparison.png").is_file()
    if run.cut_off or undrawn:
        with run.alone():
            run.tidy()
            if draw:
                figures.draw_run(run)


def _write_inputs(job: Job, run: Run, again: bool = True) -> None:
    """The noisy and the clean picture; without ``again`` only where somebody has deleted them."""
    for name, picture in (("noisy.png", job.problem.y), ("clean.png", job.problem.x)):
        path = run.folder / name
        if picture is not None and (again or not path.is_file()):
            images.save_png(path, picture[0].numpy())


def _run_tiled(
    job: Job,
    run: Run,
    o: Options,
    switches: Switches,
    say: Callable,
    cancelled: Callable[[], bool] | None,
    bar: bool,
    exact: bool,
) -> tuple[dict, np.ndarray]:
    """``run_one`` tile by tile: ``tiles.csv`` in the place of one history."""
    cluster = Cluster(switches.workers, switches.scheduler)
    if cluster.here:
        peak_memory(torch.device(o.device), reset=True)
    y = job.problem.y[0].numpy()
    tiles = _tiles(job, o, run)
    said = f"{job.name}: {len(tiles.layout)} tiles"
    if o.stopping in METHOD_NOISE:
        known = "estimated from the picture" if tiles.estimated else "as given"
        said += f", noise level {tiles.sigma:.2f}, {known}"
    say(said)
    x = job.problem.x
    _write_inputs(job, run)
    tiles.fit(cluster, bar, cancelled)
    taken = peak_memory(torch.device(o.device)) if cluster.here else None  # elsewhere: not told
    restored = np.empty_like(y)
    for (top, bottom, left, right), window in tiles.blended():
        restored[:, top:bottom, left:right] = window
    images.write(run.folder / "restored.png", restored, like=job.like)
    counts = tiles.write_table(run.folder / "tiles.csv")
    picture = tensor(restored)
    problem = job.problem
    last = max(counts["iterations"] - 1, 0)  # a picture of one colour has none
    row = {"iteration": last, "seconds": counts["seconds"]}
    row |= {"loss": float((picture - problem.y).square().mean())}
    row["psnr_noisy"] = problem.psnr_measured(picture)
    summary = {
        "image": job.name, "model_type": o.model_type, "task": o.task,
        "parameters": tiles.parameters(), **counts,
        "stopping": o.stopping, "peak_memory_bytes": taken,
        "sigma": problem.sigma, "seed": o.seed, "device": o.device, "precision": o.precision,
    }  # fmt: skip
    if x is not None:
        row["psnr_gt"] = row["psnr_gt_sm"] = metrics.psnr(picture, x)
        row["ssim_gt_sm"] = metrics.ssim(picture, x)
        summary["psnr_noisy"] = _finite(metrics.psnr(tensor(job.seen), x))
        summary["psnr_stopped"] = _finite(row["psnr_gt"])
        summary["ssim_stopped"] = _finite(row["ssim_gt_sm"])
    run.write_history([row])
    _write_inputs(job, run, again=False)
    _close(run, summary, restored if exact else None, say)
    tiles.remove()
    return summary, restored


def _tiles(job: Job, o: Options, run: Run) -> Tiles:
    source = InMemory(job.problem.y[0].numpy())
    layout = Layout(tuple(job.problem.size), o.tile, o.overlap)
    return Tiles(source, layout, run.folder / "tiles", o, job.problem.sigma, job.name)


def _where(o: Options, switches: Switches) -> tuple[str, str]:
    """Device and precision: this machine's, or for tiles that of the workers."""
    cluster = Cluster(switches.workers, switches.scheduler if getattr(o, "tile", 0) else None)
    return cluster.choose(o.device, o.precision)


def _tiled(job: Job, o: Options, run: Run, switches: Switches) -> Options:
    """The options with ``tile`` set where the picture would not fit; if resumed, where it would not
    before."""
    if getattr(o, "tile", None) != 0:
        return o
    if run.begun and not switches.overwrite:
        return replace(o, tile=TILE) if run.config().get("tile") == TILE else o
    large = max(job.problem.size) > TILE and too_large(job, o)
    return replace(o, tile=TILE) if large else o


def _finite(value: float | None, digits: int = 4) -> float | None:
    """A figure for result.json: rounded, None where it is not a finite number."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def troubles(state: State) -> dict:
    """What result.json says of a fit that its guard had to put back; nothing of others."""
    found = {"troubles": state.guard.troubles} if state.guard.troubles else {}
    return found | ({"gave_up": True} if state.guard.gave_up else {})


GAVE_UP = "the fit was lost again and again; what it had before is kept. Try"


def summarise(
    job: Job, o: Options, state: State, result: Result, baseline: float, evaluation: Evaluation
) -> dict:
    """result.json's figures; PSNRs in dB: out, ema, stopped, oracle."""
    x = state.truth
    summary = {
        "image": job.name,
        "model_type": o.model_type,
        "task": o.task,
        "parameters": sum(p.numel() for p in state.network.parameters()),
        "iterations": result.iterations,
        "stop_iteration": result.stop_iteration,
        "stopping": o.stopping,
        "stopped_by_rule": result.stopped_by_rule,
        "seconds": round(result.seconds, 2),
        "peak_memory_bytes": peak_memory(state.z.device),
        "sigma": job.problem.sigma,
        "seed": o.seed,
        "device": state.z.device.type,
        "precision": state.precision,
        **troubles(state),
    }
    if x is not None:
        oracle, at = evaluation.oracle()
        stopped = metrics.psnr(result.stopped, x)
        if stopped > oracle and state.stopping.one_moment:  # between two evaluations
            oracle, at = stopped, result.stop_iteration
        summary |= {
            "psnr_noisy": _finite(baseline),
            "psnr_out": _finite(metrics.psnr(result.out, x)),
            "psnr_ema": _finite(metrics.psnr(result.ema, x)),
            "psnr_stopped": _finite(stopped),
            "psnr_oracle": _finite(oracle),
            "oracle_iteration": at,
            "ssim_stopped": _finite(metrics.ssim(result.stopped, x)),
        }
        if o.task == "sr":
            summary["psnr_luma_out"] = _finite(metrics.psnr_luma(result.out, x))
            summary["psnr_luma_stopped"] = _finite(metrics.psnr_luma(result.stopped, x))
            summary["psnr_luma_bicubic"] = _finite(metrics.psnr_luma(tensor(job.seen), x.cpu()))
    return summary


def run_all(o: Options, switches: Switches, notes: list[str] = ()) -> list[dict]:
    """The whole experiment: check everything, then fit picture after picture.

    Returns the summaries. Raises UserError before anything is written if an option, a picture, a
    mask or a folder will not do.
    """
    o, unused = resolve(o)
    folder = method_folder(o.save_folder, o.task, o.model_type, o.special)
    device, precision = _where(o, switches)
    items = data.resolve(o.folder_path)
    runs = getattr(o, "runs", 1)
    if switches.resume and switches.overwrite:
        raise UserError("--resume --overwrite: give one of the two")
    names = folder_names([item.name for item in items])
    plans = []
    for item, name in zip(items, names, strict=True):
        for n in range(runs):
            this = replace(o, seed=o.seed + n, noise_seed=_noise_seed(o)) if runs > 1 else o
            place = folder / (f"{name}_run{n + 1}" if runs > 1 else name)
            plans += plan(this, [item], [place], {}, switches)
    if not switches.dry_run:
        check_writable(folder)
    cluster = Cluster(switches.workers, switches.scheduler)
    cluster.check()
    notes = [*notes, unused] if unused else notes
    if o.task == "denoising" and any(item.noisy is not None for item in items):
        notes = [*notes, "pairs are noisy as they are: no noise is added to them"]
    if not cluster.here and not any(getattr(p.options, "tile", 0) for p in plans):
        notes = [*notes, "--workers and --scheduler are for tiles alone; see `dip-recon sweep`"]
    header = _header(o, notes, items, device, precision)
    if switches.dry_run:
        print("\n".join(header))
        return []
    make_folder(folder)
    with open_log(folder / "log.txt") as say:
        for line in header:
            say(line)
        if switches.overwrite:  # all at once: interrupted, it is gone on with by --resume
            clear([p.run for p in plans])
            (folder / "means.csv").unlink(missing_ok=True)
            switches = replace(switches, overwrite=False)
        summaries = []
        for n, this in enumerate(plans):
            name, run = this.item.name, this.run
            if switches.resume and run.finished:
                say(f"Sample {n + 1} {name}: finished before, kept")
                finish_off(run)
                summaries.append(run.result())
                continue
            with run.alone():
                if switches.resume and run.finished:  # by another process, just now
                    this.check_kept(switches)
                    say(f"Sample {n + 1} {name}: finished meanwhile, kept")
                    summaries.append(run.result())
                    continue
                say(f"Sample {n + 1} {name}")
                summary, _ = run_one(
                    this.job(), run, this.options, switches, say, labels=this.labels
                )
            summaries.append(summary)
            write_results(folder)
        write_results(folder)
        say(f"results: {folder / 'results.csv'}")
        if runs > 1:
            for line in tables.write_means([p.run for p in plans], runs, folder / "means.csv"):
                say(line)
    return summaries


def _noise_seed(o: Options) -> int:
    return o.seed if o.noise_seed is None else o.noise_seed


def folder_names(names: list[str]) -> Iterator[str]:
    """Safe folder names, one each even where letters' case or odd characters made them alike."""
    taken: set[str] = set()
    for name in map(safe_name, names):
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        free = next(c for c in candidates if c.casefold() not in taken)
        taken.add(free.casefold())
        yield free


@contextmanager
def open_log(path: Path, show: bool = True) -> Iterator[Callable[[str], None]]:
    """Yield a function that appends a line to ``path`` and, with ``show``, prints it."""
    quiet = not show

    def say(line: str) -> None:
        nonlocal quiet
        try:
            if not quiet:
                Progress.write(line)
        except BrokenPipeError:  # `| head`: the run goes on, the log has it all
            quiet = True
            silence_stdout()
        try:
            log.write(line + "\n")
            log.flush()
        except OSError as error:
            raise cannot_write(path, error) from error

    check_inside(path, path.parent)
    try:
        log = path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield say
    finally:
        with suppress(OSError):
            log.close()


def _header(o: Options, notes: list[str], items: list, device: str, precision: str) -> list[str]:
    lines = ["------------ Options -------------"]
    lines += [f"{k}: {v}" for k, v in asdict(o).items() if v not in (None, [])]
    lines += ["-------------- End ----------------"]
    lines += [f"note: {note}" for note in notes]
    names = ", ".join(item.name for item in items[:12]) + (" …" if len(items) > 12 else "")
    many = "s" * (len(items) != 1)
    lines += [f"{len(items)} picture{many}: {names}", f"on {device} in {precision}"]
    return lines


def closing(s: dict) -> str:
    line = f"--- {s['image']} --- {s['seconds']:.0f} s, stopped at {s['stop_iteration']}"
    if "psnr_stopped" in s:
        line += f"   PSNR: {s['psnr_stopped']}  SSIM: {s['ssim_stopped']}"
        line += f"  Noisy_Baseline: {s['psnr_noisy']}"
    if "psnr_oracle" in s:
        line += f"  (oracle {s['psnr_oracle']} at {s['oracle_iteration']})"
    return f"{line}   {GAVE_UP} a smaller --lr" if s.get("gave_up") else line


def main(cls: type[Options], argv: list[str] | None = None) -> int:
    """An entry script's main: parse, run, and turn what went wrong into a line and a status."""
    argv = sys.argv[1:] if argv is None else argv
    kept = [word for word in argv if word not in ("--resume", "--overwrite")]
    again = shlex.join(["python", sys.argv[0], *kept, "--resume"])

    def work() -> int:
        summaries = run_all(*parse(cls, argv, Path(sys.argv[0]).name))
        return int(any(summary.get("gave_up") for summary in summaries))

    return exit_status(work, again)
