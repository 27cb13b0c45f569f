"""``dip-recon sweep FILE``: the runs of a grid, then the figures and the table of them."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from .. import comparison, figures, runs, tables
from ..cluster import Cluster
from ..errors import UserError, nearest
from ..experiment import GAVE_UP, Plan, finish_off, open_log
from ..figures.records import load as load_records
from ..files import atomic, clean
from ..fit import choose
from ..flags import Switches, read
from .grid import Sweep, load, plans
from .work import Outcome, outcomes


def parser(prog: str = "dip-recon sweep") -> argparse.ArgumentParser:
    """The sweep's own flags; all others are the experiment's, for every run."""
    p = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Do all runs that a YAML file lists, then draw its figures. Finished runs are "
        "kept and unfinished ones resumed. Any flag of the experiment can be added, such as "
        "--model_type ConvDecoder; it counts for every run.",
    )
    p.add_argument("file", type=Path, help="such as configs/cd_lpf.yaml")
    p.add_argument("--quick", action="store_true", help="the short version, for a laptop")
    p.add_argument("--seeds", nargs="+", metavar="N", help="these seeds instead of the file's")
    p.add_argument("--workers", default="1", metavar="N", help="processes on this machine (1)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster: tcp://node7:8786")
    p.add_argument(
        "--resources", nargs="+", default=[], metavar="NAME=N",
        help="give runs to workers that have these Dask resources only: GPU=1",
    )  # fmt: skip
    p.add_argument("--threads", metavar="N", help="torch's threads in each process")
    return p


def main(argv: list[str], prog: str = "dip-recon sweep") -> int:
    """Parse, run, report; returns the exit status, 1 if a run failed."""
    p = parser(prog)
    p.error = _refuse
    args, rest = p.parse_known_args(argv)
    sweep = load(args.file, args.quick)
    typed, switches = read(sweep.experiment, rest, prog)
    cluster = _cluster(args)
    for name in sweep.figures:
        if name not in figures.FIGURES:
            raise UserError(f"{args.file}: figures: {name}: {nearest(name, figures.FIGURES)}")
    if switches.resume and switches.overwrite:
        raise UserError("--resume --overwrite: give one of the two")
    if args.seeds:
        if "seed" in typed:
            raise UserError("--seed --seeds: give one of the two")
        seeds = {_whole("--seeds", s, 0): None for s in args.seeds}
        for grid in sweep.grids:
            grid["seed"] = {s: {"seed": s} for s in seeds}
    title = args.file.stem + "-quick" * args.quick
    # finished runs are kept and unfinished ones resumed, without being told
    checking = replace(switches, resume=not switches.overwrite)
    elsewhere = None
    if cluster.scheduler:
        asked = [typed.get(k) or sweep.options.get(k, "auto") for k in ("device", "precision")]
        for axis in (axis for grid in sweep.grids for axis in grid.values()):
            if {"device", "precision"} & {option for label in axis.values() for option in label}:
                raise UserError(f"--scheduler: one device and precision; {args.file} varies them")
        elsewhere = cluster.choose(*asked)
        typed |= dict(zip(("device", "precision"), elsewhere, strict=True))
    wanted, notes = plans(sweep, typed, str(Path("runs") / title), checking, elsewhere)
    folder = Path(wanted[0].options.save_folder)
    left = [plan for plan in wanted if switches.overwrite or not plan.run.finished]
    counts = f"{len(wanted)} run{'s' * (len(wanted) != 1)}"
    if len(left) < len(wanted):
        counts += f", {len(wanted) - len(left)} finished before"
    header = [f"{title}: {counts}", *(f"note: {note}" for note in notes)]
    if switches.dry_run:
        print("\n".join(header))
        _show_estimate(wanted, left, cluster)
        return 0
    runs.check_writable(folder)
    runs.make_folder(folder)
    if switches.overwrite:
        runs.clear([plan.run for plan in wanted])
        _forget(folder)
    with open_log(folder / "log.txt") as say:
        for line in header:
            say(line)
        finished = [plan.run for plan in wanted if plan.run.finished]
        for run in finished:
            finish_off(run)
        for method in dict.fromkeys(run.folder.parent for run in finished):
            runs.write_results(method)  # a kill may have come between a run's end and its row
        failed, given_up = _carry_out(
            left, replace(switches, overwrite=False), cluster, folder, say
        )
        return max(_report(sweep, folder, failed, say), int(given_up > 0))


def _forget(folder: Path) -> None:
    """Remove the tables and figures of runs that are gone, which would be taken for the new."""
    for name in ("table", "comparison"):
        for suffix in (".md", ".csv"):
            (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    for name in figures.FIGURES:
        for suffix in (".png", ".pdf", ".csv"):
            (folder / "figures" / name).with_suffix(suffix).unlink(missing_ok=True)


def _refuse(message: str):
    raise UserError(f"{message}; see `dip-recon sweep --help`")


def _whole(flag: str, text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(f"{flag} {text}: give a whole number, at least {least}")
    return number


def _cluster(args: argparse.Namespace) -> Cluster:
    workers = _whole("--workers", args.workers, 1)
    threads = None if args.threads is None else _whole("--threads", args.threads, 1)
    resources = {}
    for text in args.resources:
        name, _, number = text.partition("=")
        try:
            resources[name] = float(number)
        except ValueError as error:
            raise UserError(f"--resources {text}: write NAME=N, such as GPU=1") from error
    if resources and not args.scheduler:
        raise UserError("--resources: only with --scheduler")
    return Cluster(workers, args.scheduler, resources, threads)


# ---------------------------------------------------------------- doing


def _carry_out(
    left: list[Plan], switches: Switches, cluster: Cluster, folder: Path, say
) -> tuple[int, int]:
    """All runs that are left; returns how many failed, and how many gave up and left a picture.

    Interrupted, it leaves the table.
    """
    failed, given_up, began = 0, 0, time.perf_counter()
    try:
        for n, outcome in enumerate(outcomes(left, switches, cluster, say), 1):
            failed += outcome.error is not None
            given_up += bool((outcome.result or {}).get("gave_up"))
            passed = time.perf_counter() - began
            say(_line(outcome, n, len(left), passed * (len(left) - n) / n))
            if outcome.result:
                runs.write_results(outcome.plan.run.folder.parent)
    except KeyboardInterrupt:
        done = runs.find(folder)
        if done:
            say(f"interrupted; what is done: {_write_table(folder, say)}")
        raise
    if given_up:
        say(f"{given_up} gave up: {GAVE_UP} a smaller --lr")
    return failed, given_up


def _line(outcome: Outcome, n: int, total: int, seconds_left: float) -> str:
    folder = outcome.plan.run.folder
    line = f"[{n:{len(str(total))}d}/{total}] {folder.parent.name}/{folder.name}   "
    if outcome.error:
        return line + outcome.error
    result = outcome.result
    if result.get("psnr_stopped") is not None:  # as it is of a picture without a mistake
        line += f"{result['psnr_stopped']:.2f} dB   "
    if result.get("psnr_oracle") is not None:
        line += f"(oracle {result['psnr_oracle']:.2f} at {result['oracle_iteration']})   "
    line += f"{outcome.seconds:.0f} s"
    return line + (f"   about {_duration(seconds_left)} left" if n < total else "")


def _report(sweep: Sweep, folder: Path, failed: int, say) -> int:
    """The table and the figures of all that the folder holds."""
    clean(folder)
    clean(folder / "figures")
    if runs.find(folder):
        say(f"table: {_write_table(folder, say)}")
        if sweep.comparison:
            say(f"comparison: {_write_comparison(sweep.comparison, folder, say)}")
        for name in sweep.figures:
            paths = figures.draw(name, [folder], folder / "figures", say)
            say(f"figure: {', '.join(str(path) for path in paths)}")
    if failed:
        say(f"{failed} failed; the same command tries them again")
    return 1 if failed else 0


def _write_table(folder: Path, say) -> Path:
    records = load_records([folder])
    rows, markdown = tables.summary(records), ""
    for note in tables.notes(records):
        say(f"note: {note}")
        markdown += f"\n{note[0].upper()}{note[1:]}.\n"
    return _write(folder / "table.md", tables.markdown(rows) + markdown, tables.to_csv(rows))


def _write_comparison(kinds: list[str], folder: Path, say) -> Path:
    wanted = ("published" in kinds, "peers" in kinds)
    found = comparison.compare(load_records([folder]), *wanted, say)
    return _write(folder / "comparison.md", comparison.markdown(found), comparison.to_csv(found))


def _write(path: Path, markdown: str, csv: str) -> Path:
    for suffix, text in ((".md", markdown), (".csv", csv)):
        with atomic(path.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- estimating


def _show_estimate(wanted: list[Plan], left: list[Plan], cluster: Cluster) -> None:
    methods = Counter(plan.run.folder.parent for plan in wanted)
    seconds, memory, workers, where = _reckon(left, cluster) if left else ([], 0, 1, "")
    for method, count in methods.items():
        mine = [
            s for plan, s in zip(left, seconds, strict=True) if plan.run.folder.parent == method
        ]
        pictures = f"{count} picture{'s' * (count != 1)}"
        cost = f"{_duration(sum(mine) / len(mine))} each" if mine else "finished"
        print(f"  {method.name:<44} {pictures:<13} {cost}")
    if left:
        # the longest run alone, or an equal share for each worker
        total = max(sum(seconds) / workers, max(seconds))
        gigabytes = f"{memory / 1e9:.1f} GB"
        print(f"about {_duration(total)} {where}; a run takes up to {gigabytes}")


def _reckon(left: list[Plan], cluster: Cluster) -> tuple[list[float], int, int, str]:
    from .estimate import estimate

    found = cluster.ask(estimate, left)
    if cluster.scheduler:
        workers = cluster.count()
        return found.seconds, found.memory, workers, f"on the {workers} workers there are now"
    device, precision = choose(left[0].options.device, left[0].options.precision)
    workers = f"{cluster.workers} worker{'s' * (cluster.workers != 1)}"
    where = f"with {workers} on this machine, {device.type} in {precision}"
    return found.seconds, found.memory, cluster.workers, where


def _duration(seconds: float) -> str:
    """In words, rounded as an estimate is: 40 s, 12 min, 5 h 20 min."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
