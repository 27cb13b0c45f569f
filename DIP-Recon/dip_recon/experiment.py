"""One experiment over pictures: options in, run folders out.

What the entry scripts and the command share: each picture is read, degraded or taken as it is,
fitted, and written to its run folder. Everything that can be wrong with what the user gave is
looked at for all pictures before the first file is written.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from . import __version__, data, figures, images, metrics, models, noise, stopping
from .callbacks import (
    Checkpoints,
    Evaluation,
    Lines,
    Progress,
    Snapshots,
    finite,
    peak_memory,
)
from .errors import UserError, exit_status, silence_stdout
from .files import cannot_write
from .fit import LOSSES, Backtracking, Result, State, choose, fit, make_optimizer
from .flags import Switches, parse
from .inputs import channels_of, make_input
from .options import NETWORK_OPTIONS, NOT_IN_THE_NUMBERS, Options, words
from .runs import Run, check_writable, make_folder, method_folder, safe_name, write_results
from .tasks import JOBS, Job, load, tensor


def generator(seed: int, what: str, device: str | torch.device = "cpu") -> torch.Generator:
    """The random stream for one purpose (weights, input, jitter), all from one seed."""
    streams = ("weights", "input", "jitter")
    mixed = np.random.SeedSequence([seed, streams.index(what)]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0] >> np.uint64(1)))


# ---------------------------------------------------------------- options into a network


def resolve(o: Options) -> tuple[Options, str | None]:
    """The options with the network's own defaults filled in, and a note on what it does not use.

    Options of other networks are unset, so that what is printed and saved is what is used.
    """
    entry = models.get(o.model_type)
    given = o.network_options()
    used = entry.resolve({k: v for k, v in given.items() if k in entry.options})
    unused = [k for k, v in given.items() if k not in entry.options and entry.fixed.get(k) != v]
    unused += [name for name in ("in_size", "out_chns") if getattr(o, name)]
    names = [f"--{k} {words(v if isinstance(v := getattr(o, k), list) else [v])}" for k in unused]
    note = f"{o.model_type} does not use {' '.join(names)}" if names else None
    lists = ("dim", "up_dim", "skip_dim")
    empty = {k: [] if k in lists else None for k in NETWORK_OPTIONS}
    filled = {k: v if isinstance(v, list) or k not in lists else [v] for k, v in used.items()}
    filled = {k: [] if v == [None] else v for k, v in filled.items()}
    input_dim = o.input_dim
    if o.noise_method == "noise" and input_dim is None:
        input_dim = entry.input_dim(used)
    return replace(o, **(empty | filled), input_dim=input_dim, in_size=[], out_chns=None), note


def network_settings(job: Job, o: Options) -> dict:
    """What ``models.build`` and ``models.check_size`` want for this picture."""
    given = o.network_options()
    channels = job.problem.channels
    in_channels = o.input_dim
    if o.noise_method != "noise":
        in_channels = channels_of(o.noise_method, 0, picture=np.empty((channels, 1, 1)))
        if o.input_dim not in (None, in_channels):
            raise UserError(
                f"--input_dim {o.input_dim}: --noise_method {o.noise_method} gives {in_channels}"
            )
    size = job.problem.size
    in_size = models.input_size(o.model_type, size, o.progressive, **given)
    sizes = {"in_size": in_size, "out_size": size}
    return {"in_channels": in_channels, "out_channels": channels, **sizes, **given}


NOISY_INPUT = 25.0  # sigma of ``--noise_method noisy_image`` where the task itself adds no noise


def input_picture(o: Options) -> Path:
    """The file that ``--input_image_name`` means: a path, or one of the pictures at hand."""
    path = Path(o.input_image_name)
    if path.is_file():
        return path
    for item in data.resolve(o.folder_path):
        if o.input_image_name in (item.name, item.path.name):
            return item.path
    beside = Path(o.folder_path) / o.input_image_name
    if beside.is_file():
        return beside
    raise UserError(f"--input_image_name {path}: neither a file nor a picture of {o.folder_path}")


def network_input(job: Job, o: Options, settings: dict) -> torch.Tensor:
    """z [1, c, h, w] on the CPU, as ``--noise_method`` says."""
    picture = None
    if o.noise_method in ("image", "noisy_image"):
        picture = load(input_picture(o), o)
        if o.noise_method == "noisy_image":
            rng = np.random.RandomState(o.seed + 1)
            picture = noise.add_gaussian(picture, getattr(o, "noise_sigma", NOISY_INPUT), rng)
        if picture.shape[0] != job.problem.channels:
            raise UserError(
                f"--input_image_name {o.input_image_name}: has {picture.shape[0]} channels, "
                f"{job.name} has {job.problem.channels}"
            )
    return make_input(
        o.noise_method,
        channels=settings["in_channels"],
        size=settings["in_size"],
        generator=generator(o.seed, "input"),
        noise_type=o.noise_type,
        scale=o.input_scale,
        picture=picture,
    )


def prepare(job: Job, o: Options, device: torch.device, precision: str) -> State:
    """A fresh state for this picture: network, input, optimiser and rule, as the options say."""
    if precision == "fp32":  # cuDNN's default is TF32, 10 bits of mantissa
        torch.backends.cudnn.allow_tf32 = False
    settings = network_settings(job, o)
    weights = generator(o.seed, "weights")
    network = models.build(o.model_type, **settings, generator=weights).to(device)
    z = network_input(job, o, settings).to(device)
    if precision == "bf16":  # the kernels for bfloat16 are made for this layout
        network = network.to(memory_format=torch.channels_last)
        z = z.to(memory_format=torch.channels_last)
    decays = (lambda i: o.gamma ** (i // o.step_size)) if o.decay_lr else (lambda i: 1.0)
    return State(
        problem=job.problem.to(device),
        network=network,
        z=z,
        optimizer=make_optimizer(o.optimizer, network.parameters(), o.lr, o.decay[0]),
        generator=generator(o.seed, "jitter", device),
        lr=o.lr,
        jitter=o.reg_noise_std,
        ema=o.exp_weight,
        loss_fn=LOSSES[o.loss_func],
        tv_weight=o.tv_weight,
        schedule=decays,
        stopping=stopping.make(o.stopping, patience=o.patience, window=o.window),
        backtracking=Backtracking(o.backtracking, o.backtracking_lr) if o.backtracking else None,
        precision=precision,
    )


# ---------------------------------------------------------------- runs


def configuration(o: Options, job: Job, device: torch.device, precision: str) -> dict:
    """What config.yaml holds: every option as resolved, the picture, and what it ran on."""
    versions = {
        "dip_recon": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    chosen = {**asdict(o), "device": device.type, "precision": precision}
    digest = job.digest
    if o.noise_method in ("image", "noisy_image"):
        digest += hashlib.sha256(input_picture(o).read_bytes()).hexdigest()
    picture = {"image": job.name, "picture_sha256": digest}
    return {**chosen, **picture, "versions": versions}


def run_one(
    job: Job, run: Run, o: Options, switches: Switches, say: Callable
) -> tuple[dict, np.ndarray]:
    """Fit one picture and fill its run folder.

    Returns what result.json holds, and the restored picture [C, H, W] in [0, 1].
    """
    device, precision = choose(o.device, o.precision)
    run.begin(configuration(o, job, device, precision), switches.overwrite)
    peak_memory(device, reset=True)
    state = prepare(job, o, device, precision)
    truth = state.problem.x
    baseline = metrics.psnr(tensor(job.seen), job.problem.x) if truth is not None else float("nan")
    evaluation = Evaluation(o.eval_every, o.iters_print_acc)
    checkpoints = Checkpoints(run, o.checkpoint_every, evaluation)
    if checkpoints.restore(state):
        say(f"{job.name}: goes on from iteration {state.iteration}")
    images.save_png(run.folder / "noisy.png", job.problem.y[0].numpy())
    if truth is not None:
        images.save_png(run.folder / "clean.png", job.problem.x[0].numpy())
    progress = Progress(evaluation, o.num_iters, state.iteration, job.name)
    lines = Lines(evaluation, o.iters_print_acc, baseline, say, o.verbose)
    callbacks = [evaluation, lines, Snapshots(run, o.snapshots), progress, checkpoints]
    try:
        with checkpoints.listening():
            result = fit(state, o.num_iters, callbacks)
    finally:
        progress.close()
    evaluation.measure(state)
    run.write_history(evaluation.rows)
    restored = result.restored[0].cpu().numpy()
    if job.keep_known:
        known = job.problem.A.mask[0].numpy()
        restored = known * job.problem.y[0].numpy() + (1 - known) * restored
    images.write(run.folder / "restored.png", restored, like=job.like)
    summary = summarise(job, o, state, result, baseline, evaluation)
    run.write_result(summary)
    figures.draw_run(run)
    return summary, restored


def summarise(
    job: Job, o: Options, state: State, result: Result, baseline: float, evaluation: Evaluation
) -> dict:
    """result.json's figures; PSNRs in dB, by the names of DESIGN: out, ema, stopped, oracle."""
    x = state.problem.x
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
    }
    if x is not None:
        oracle, at = evaluation.oracle()
        stopped = metrics.psnr(result.stopped, x)
        if stopped > oracle:  # a stop between two evaluations
            oracle, at = stopped, result.stop_iteration
        summary |= {
            "psnr_noisy": finite(baseline),
            "psnr_out": finite(metrics.psnr(result.out, x)),
            "psnr_ema": finite(metrics.psnr(result.ema, x)),
            "psnr_stopped": finite(stopped),
            "psnr_oracle": finite(oracle),
            "oracle_iteration": at,
            "ssim_stopped": finite(metrics.ssim(result.stopped, x)),
        }
        if o.task == "sr":
            summary["psnr_luma_stopped"] = finite(metrics.psnr_luma(result.stopped, x))
            summary["psnr_luma_bicubic"] = finite(metrics.psnr_luma(tensor(job.seen), x.cpu()))
    return summary


def run_all(o: Options, switches: Switches, notes: list[str] = ()) -> list[dict]:
    """The whole experiment: check everything, then fit picture after picture.

    Returns the summaries. Raises UserError before anything is written if an option, a picture, a
    mask or a folder will not do.
    """
    o, unused = resolve(o)
    make_job = JOBS[o.task]
    folder = method_folder(o.save_folder, o.task, o.model_type, o.special)
    device, precision = choose(o.device, o.precision)
    items = data.resolve(o.folder_path)
    if switches.resume and switches.overwrite:
        raise UserError("--resume --overwrite: give one of the two")
    runs = [Run(folder / name) for name in _folder_names([item.name for item in items])]
    for item, run in zip(items, runs, strict=True):
        job = make_job(item, o)
        settings = network_settings(job, o)
        if o.noise_method in ("image", "noisy_image"):
            network_input(job, o, settings)
        models.check_size(o.model_type, **settings)
        config = configuration(o, job, device, precision)
        run.check(config, NOT_IN_THE_NUMBERS, switches.resume, switches.overwrite)
    if not switches.dry_run:
        check_writable(folder)
    notes = [*notes, unused] if unused else notes
    header = _header(o, notes, items, device, precision)
    if switches.dry_run:
        print("\n".join(header))
        return []
    make_folder(folder)
    with _log(folder / "log.txt") as say:
        for line in header:
            say(line)
        summaries = []
        for n, (item, run) in enumerate(zip(items, runs, strict=True)):
            if switches.resume and run.finished:
                say(f"Sample {n + 1} {item.name}: finished before, kept")
                figures.draw_run(run)
                summaries.append(run.result())
                continue
            say(f"Sample {n + 1} {item.name}")
            summary, _ = run_one(make_job(item, o), run, o, switches, say)
            summaries.append(summary)
            write_results(folder)
            say(_closing(summary))
        write_results(folder)
        say(f"results: {folder / 'results.csv'}")
    return summaries


def _folder_names(names: list[str]) -> Iterator[str]:
    """Safe folder names, one each even where letters' case or odd characters made them alike."""
    taken: set[str] = set()
    for name in map(safe_name, names):
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        free = next(c for c in candidates if c.casefold() not in taken)
        taken.add(free.casefold())
        yield free


@contextmanager
def _log(path: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line and appends it to ``path``."""
    quiet = False

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

    try:
        log = path.open("a", encoding="utf-8", errors="replace")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield say
    finally:
        with suppress(OSError):
            log.close()


def _header(o: Options, notes: list[str], items: list, device, precision: str) -> list[str]:
    lines = ["------------ Options -------------"]
    lines += [f"{k}: {v}" for k, v in asdict(o).items() if v not in (None, [])]
    lines += ["-------------- End ----------------"]
    lines += [f"note: {note}" for note in notes]
    names = ", ".join(item.name for item in items[:12]) + (" …" if len(items) > 12 else "")
    many = "s" * (len(items) != 1)
    lines += [f"{len(items)} picture{many}: {names}", f"on {device.type} in {precision}"]
    return lines


def _closing(s: dict) -> str:
    line = f"--- {s['image']} --- {s['seconds']:.0f} s, stopped at {s['stop_iteration']}"
    if "psnr_stopped" in s:
        line += (
            f"   PSNR: {s['psnr_stopped']}  SSIM: {s['ssim_stopped']}"
            f"  Noisy_Baseline: {s['psnr_noisy']}  (oracle {s['psnr_oracle']} at "
            f"{s['oracle_iteration']})"
        )
    return line


def main(cls: type[Options], argv: list[str] | None = None) -> int:
    """An entry script's main: parse, run, and turn what went wrong into a line and a status."""
    prog = Path(sys.argv[0]).name
    argv = sys.argv[1:] if argv is None else argv
    kept = [word for word in argv if word not in ("--resume", "--overwrite")]
    again = shlex.join([*kept, "--resume"])

    def work() -> None:
        run_all(*parse(cls, argv, prog))

    return exit_status(work, f"python {prog} {again}")
