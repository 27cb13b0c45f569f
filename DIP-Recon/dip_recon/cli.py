"""The command: ``dip-recon denoise|inpaint|sr PICTURE -o OUT``, and what one can choose from."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from . import __version__
from .errors import UserError, exit_status, say


class _Parser(argparse.ArgumentParser):
    """argparse, but its mistakes end like all others: one line, status 2."""

    def error(self, message):
        raise UserError(f"{message}; see `{self.prog} --help`")


class _ListFigures(argparse.Action):
    """``--list``: print the figures that can be drawn, and exit."""

    def __init__(self, **given):
        super().__init__(nargs=0, **given)

    def __call__(self, parser, namespace, values, option_string=None):
        from .figures import FIGURES

        columns = {"name": lambda r: r["name"], "what it shows": lambda r: r["summary"]}
        _print([{"name": k, "summary": v.summary} for k, v in FIGURES.items()], False, columns)
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dip-recon", description="Restore pictures with untrained networks.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, run, text in (
        ("denoise", _denoise, "take the noise out of a picture"),
        ("inpaint", _inpaint, "fill in what a mask says is missing"),
        ("sr", _enlarge, "enlarge a picture"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == "denoise":
            _denoising_flags(command)
        else:
            command.add_argument("picture", type=Path, help="PNG, JPEG, TIFF, …, 8 or 16 bit")
            command.add_argument("-o", "--output", type=Path, required=True, help="file to write")
        if name == "inpaint":
            command.add_argument(
                "--mask", type=Path, help="picture of the same size, white = known"
            )
            command.add_argument(
                "--missing", metavar="COLOUR",
                help="without a mask: what has this colour is missing, such as '#ff00ff' or red; "
                "without either, what is transparent",
            )  # fmt: skip
        if name == "sr":
            command.add_argument("--factor", type=int, default=4, help="times larger (default 4)")
        chosen = command.add_argument_group("what is chosen from the picture, unless told")
        if name == "denoise":
            _denoising_choices(chosen)
        chosen.add_argument("--width", type=int, help="of the network: 32, 64, 128")
        rules = "held-out, AMNS, SMNS, " if name == "denoise" else "held-out, "
        chosen.add_argument("--stopping", help=f"{rules}ES-WMV, ES-EMV or none")
        command.add_argument(
            "--iterations", type=int, help="iterations at most; it stops by itself"
        )
        command.add_argument(
            "--explain", action="store_true", help="print what the choices were made from"
        )
        command.add_argument("--seed", type=int, default=7)
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        command.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
        command.add_argument(
            "--keep", type=Path, metavar="FOLDER",
            help="keep curves, snapshots and checkpoint here; a killed run goes on from there",
        )  # fmt: skip
        command.set_defaults(run=run)

    demo = commands.add_parser("demo", help="restore a noisy picture that scikit-image ships")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder (./demo)")
    demo.set_defaults(run=_demo)

    listing = commands.add_parser("models", help="networks by name")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_models)

    listing = commands.add_parser("upsamplers", help="upsamplers by name, and their responses")
    listing.add_argument("--json", action="store_true")
    listing.add_argument("--plot", type=Path, metavar="PNG", help="plot frequency responses")
    listing.add_argument(
        "names", nargs="*", help="only these; also taps:a,b,… and kaiser:dB,cutoff[,transition]"
    )
    listing.set_defaults(run=_upsamplers)

    commands.add_parser(
        "sweep", help="all runs of a YAML file, here or on a cluster, and their figures",
        add_help=False,
    )  # fmt: skip

    sets = commands.add_parser("data", help="data sets by name").add_subparsers(
        dest="action", required=True, metavar="list|download|verify"
    )
    action = sets.add_parser("list", help="which there are, and which are here")
    action.add_argument("--json", action="store_true")
    action.set_defaults(run=_data_list)
    for name, run, text in (
        ("download", _data_download, "fetch a set"),
        ("verify", _data_verify, "compare a set with its published hashes"),
    ):
        action = sets.add_parser(name, help=text)
        action.add_argument("name")
        action.add_argument("--root", type=Path, help="folder the sets are in")
        if name == "download":
            action.add_argument("--mirror", metavar="URL", help="fetch from here instead")
        action.set_defaults(run=run)

    figure = commands.add_parser("figure", help="draw a figure of the papers from run folders")
    figure.add_argument("--list", action=_ListFigures, help="which there are")
    figure.add_argument("name", help="see --list")
    figure.add_argument("runs", nargs="+", type=Path, help="folders with finished runs in them")
    figure.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER",
        help="where NAME.png, .pdf and .csv go (figures, in the first of the runs' folders)",
    )  # fmt: skip
    figure.set_defaults(run=_figure)

    table = commands.add_parser("table", help="a table of finished runs, a row a method")
    table.add_argument("runs", nargs="+", type=Path, help="folders with finished runs in them")
    table.add_argument("--pictures", action="store_true", help="a row for each picture")
    table.add_argument(
        "--published", action="store_true",
        help="a column for each picture instead, beside published figures of the same pictures",
    )  # fmt: skip
    table.add_argument(
        "--peers", action="store_true", help="so too, beside NLM and BM3D on the noisy pictures"
    )
    table.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="write FILE.md or FILE.csv instead of printing Markdown",
    )  # fmt: skip
    table.set_defaults(run=_table)

    verify = commands.add_parser(
        "verify", help="begin a finished run again, and compare it with what it stored"
    )
    verify.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    verify.add_argument(
        "--iterations", type=int, default=50, metavar="N", help="how many of them (50)"
    )
    verify.set_defaults(run=_verify)

    report = commands.add_parser("report", help="a web page of finished runs, read from disk")
    report.add_argument("runs", nargs="+", type=Path, help="folders with finished runs in them")
    report.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER",
        help="where the page goes; open index.html in it",
    )  # fmt: skip
    report.add_argument(
        "--with-article", action="store_true", help="explain the method below the runs"
    )
    report.set_defaults(run=_report)
    return parser


def _denoising_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "pictures", nargs="+", metavar="PICTURE",
        help="PNG, JPEG, TIFF, Zarr, …, 8 or 16 bit; a stack of frames, a folder, a pattern",
    )  # fmt: skip
    command.add_argument(
        "-o", "--output", type=Path,
        help="file to write, or folder (PICTURE_denoised, FOLDER_denoised)",
    )  # fmt: skip
    how = command.add_mutually_exclusive_group()
    how.add_argument("--draft", action="store_true", help="a coarser picture, much sooner")
    how.add_argument(
        "--best", action="store_true",
        help="the mean of 4 runs, and a picture of where they disagree",
    )  # fmt: skip
    command.add_argument("--runs", type=int, metavar="N", help="the mean of N runs instead")
    tiles = command.add_argument_group("tiles")
    tiles.add_argument(
        "--tile", type=int, metavar="PIXELS",
        help="restore tiles of this size; by itself 128 beyond 192 pixels a side",
    )  # fmt: skip
    tiles.add_argument(
        "--overlap", type=int, metavar="PIXELS",
        help="on each side (16, or a quarter of a small tile)",
    )  # fmt: skip
    shared = command.add_argument_group("sharing out pictures, or of a single one the tiles")
    shared.add_argument("--workers", type=int, metavar="N", help="processes to share among (1)")
    shared.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster")
    command.add_argument(
        "--overwrite", action="store_true", help="do again what is done, but for what --keep holds"
    )


def _denoising_choices(chosen) -> None:
    chosen.add_argument("--sigma", type=float, help="noise level, 0-255")
    chosen.add_argument(
        "--no-declipping", dest="declipping", action="store_false",
        help="where noise was clipped at black or white, leave the mean that this has shifted",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """0 done, 2 the user's mistake, 1 ours, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int | None:
        if argv[:1] == ["sweep"]:  # its flags are those of the experiments as well
            from . import sweeps

            return sweeps.main(argv[1:])
        args = build_parser().parse_args(argv)
        return args.run(args)

    sweep = argv[:1] == ["sweep"]  # which would begin anew
    again = shlex.join(w for w in ["dip-recon", *argv] if not sweep or w != "--overwrite")
    return exit_status(work, again, sweep or any(w.startswith("--keep") for w in argv))


# ---------------------------------------------------------------- one's own picture


def _denoise(args) -> int:
    from . import batch
    from .cluster import Cluster

    given = _given(args) | ({} if args.sigma is None else {"sigma": args.sigma})
    workers = 1 if args.workers is None else args.workers
    for flag in ("tile", "workers", "runs"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    wishes = batch.Wishes(
        given, args.draft, args.runs or (4 if args.best else 1), args.explain, args.overwrite,
        args.keep, args.tile, args.overlap, args.declipping, Cluster(workers, args.scheduler),
    )  # fmt: skip
    return batch.denoise(args.pictures, args.output, wishes, say)


def _inpaint(args) -> int:
    from . import auto, own

    if args.mask is not None and args.missing is not None:
        raise UserError("--mask --missing: give one of the two")
    return _restore(args, own.inpainting(args.picture, args.mask, args.missing), auto.INPAINTING)


def _enlarge(args) -> int:
    from . import auto, own

    options = replace(auto.SUPER_RESOLUTION, sr_factor=args.factor)
    return _restore(args, own.super_resolution(args.picture, args.factor), options)


def _given(args) -> dict:
    """The options that all three commands' flags set."""
    given = {"seed": args.seed, "device": args.device, "precision": args.precision}
    if args.width is not None:
        if not 1 <= args.width <= 65536:
            raise UserError(f"--width {args.width}: must be from 1 to 65536")
        given["dim"] = [args.width]
    if args.stopping is not None:
        given["stopping"] = args.stopping
    if args.iterations is not None:
        if args.iterations < 1:
            raise UserError(f"--iterations {args.iterations}: must be at least 1")
        given["num_iters"] = args.iterations
    return given


def _restore(args, job, base) -> int:
    from . import auto, images, own
    from .experiment import GAVE_UP

    given = _given(args)
    if args.keep is not None and not args.keep.name:
        raise UserError("--keep: give a folder's name")
    images.check_writable(args.output, job.problem.size)
    for given_path in (args.picture, getattr(args, "mask", None)):
        if given_path and args.output.exists() and args.output.samefile(given_path):
            raise UserError(f"--output {args.output}: would replace {given_path}; choose another")
    choice = auto.filling(job.problem, base, given)
    choice.tell(job.name, args.explain, say)
    if lost := images.lost(args.output, job.like.kind, job.like.alpha is not None):
        say(lost)
    job, options, back = own.stretched(job, choice.options)
    if job.keep_known:
        summary, restored = own.fill(job, options, args.keep, say)
    else:
        own.check(job, options, args.keep)
        summary, restored = own.restore(job, options, {}, args.keep)
    images.write(args.output, back(restored), like=job.like)
    done = f"picture of iteration {summary['stop_iteration']}, {summary['iterations']} run"
    say(f"{args.output}: {done}, {summary['seconds']:.0f} s")
    if summary.get("gave_up"):
        say(f"{GAVE_UP} another --seed")
    elif options.stopping not in ("fixed", "none") and not summary["stopped_by_rule"]:
        say("it had not settled by then: more --iterations may be better")
    return int(bool(summary.get("gave_up")))


def _demo(args) -> None:
    from . import own

    print(own.demo(args.output))


# ---------------------------------------------------------------- listings


def _print(rows: list[dict], as_json: bool, columns: dict[str, Callable]) -> None:
    """Rows as JSON, or the columns asked for as an aligned table."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    cells = [list(columns)] + [[str(show(row)) for show in columns.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _models(args) -> None:
    from . import models
    from .options import words

    rows = []
    for name in models.names():
        entry = models.get(name)
        parameters = models.count_parameters(name)
        described = {"name": name, "parameters": parameters, "options": entry.options}
        described |= {"recipe": entry.recipe, "summary": entry.summary, "source": entry.source}
        rows.append(described)
    columns = {
        "name": lambda r: r["name"],
        "parameters": lambda r: f"{r['parameters']:,}",
        "what it is": lambda r: r["summary"],
    }
    _print(rows, args.json, columns)
    if args.json:
        return
    print("\nParameters at the defaults, for a colour picture. Options: --json")
    for row in rows:
        if row["recipe"]:
            flags = " ".join(f"--{k} {words([v])}" for k, v in row["recipe"].items())
            print(f"{row['name']} is fitted with {flags}, unless told otherwise")


def _upsamplers(args) -> None:
    from . import figures
    from .models import upsamplers

    infos = [upsamplers.get(name) for name in args.names or upsamplers.names()]
    rows = []
    for info in infos:
        taps = upsamplers.taps(info.name)
        taps = None if taps is None else [round(float(t), 6) for t in taps]
        rows.append(
            {"name": info.name, "learnt": info.learnt, "taps": taps, "summary": info.summary}
        )
    columns = {"name": lambda r: r["name"], "what it does": lambda r: r["summary"]}
    _print(rows, args.json, columns)
    if args.plot:
        if args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise UserError(f"--plot {args.plot}: give a name that ends in .png, .pdf or .svg")
        fixed = [row["name"] for row in rows if row["taps"]]
        if not fixed:
            raise UserError("--plot: none of these upsamplers has a fixed filter")
        responses = {name: upsamplers.frequency_response(name) for name in fixed}
        figures.draw_responses(responses, args.plot)
        print(f"\n{args.plot}")


def _data_list(args) -> None:
    from . import data

    rows = []
    for name in data.names():
        rows.append(asdict(data.info(name)))
    columns = {
        "name": lambda r: r["name"],
        "files": lambda r: r["files"],
        "MB": lambda r: f"{r['bytes'] / 1e6:.1f}",
        "here": lambda r: "yes" if r["here"] else "no",
        "what it is": lambda r: r["description"],
    }
    _print(rows, args.json, columns)


def _data_download(args) -> None:
    from . import data

    print(data.download(args.name, root=args.root, mirror=args.mirror))


def _data_verify(args) -> int:
    from . import data

    problems = data.verify(args.name, root=args.root)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{args.name}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 2 if problems else 0


# ---------------------------------------------------------------- from run folders


def _figure(args) -> None:
    from . import figures

    folder = args.output or args.runs[0] / "figures"
    for path in figures.draw(args.name, args.runs, folder):
        print(path)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _table(args) -> None:
    from . import comparison, tables
    from .figures.records import load
    from .files import atomic

    suffix = args.output.suffix.lower() if args.output else ".md"
    if suffix not in (".md", ".csv"):
        raise UserError(f"--output {args.output}: give a name that ends in .md or .csv")
    records = load(args.runs)
    if args.published or args.peers:
        if args.pictures:
            raise UserError("--pictures: --published and --peers have a column for each already")
        beside = comparison.compare(records, args.published, args.peers, _tell)
        text = comparison.markdown(beside) if suffix == ".md" else comparison.to_csv(beside)
    else:
        rows = tables.per_picture(records) if args.pictures else tables.summary(records)
        text = tables.markdown(rows) if suffix == ".md" else tables.to_csv(rows)
        for note in tables.notes(records):
            _tell(f"note: {note}")
    if not args.output:
        print(text, end="")
        return
    with atomic(args.output) as path:
        path.write_text(text, encoding="utf-8", newline="")
    print(args.output)


def _verify(args) -> int:
    from .verify import verify

    if args.iterations < 1:
        raise UserError(f"--iterations {args.iterations}: must be at least 1")
    return 0 if verify(args.folder, args.iterations, print) else 1


def _report(args) -> None:
    from . import report

    def say(note: str) -> None:
        _tell(f"note: {note}")

    print(report.write(args.runs, args.output, args.with_article, say))
