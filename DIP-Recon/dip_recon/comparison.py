"""Runs beside published figures and beside peers: a row a method, a column a picture.

What is quoted lies in ``published/``: ``figures.csv`` has a line a figure (or a mean over a whole
set, where no more was published) with its source, ``pictures.csv`` the pictures by the digest that
run folders keep. So a picture is known by its content, and only where it is whole.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean

from . import peers
from .errors import UserError
from .figures.methods import SHORT, methods, shown
from .figures.records import Record, group, over_seeds
from .tables import markdown as pipe_table
from .tables import to_csv as csv_table

PUBLISHED = Path(__file__).parent / "published"
KINDS = ("published", "peers")
REFERENCE = "DIP"  # the quoted method that measured ones are held against
ELSE = "other pictures"


@dataclass
class Row:
    """A method's PSNRs in dB: ``figures`` says whether quoted, measured or a difference.

    ``mean`` is over ``over`` pictures; it is given where no figure of a picture is known, and else
    worked out by ``compare``.
    """

    method: str
    figures: str
    psnr: dict[str, float] = field(default_factory=dict)
    mean: float | None = None
    over: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """One table: the pictures of one set under one degradation, its rows, and what to say of it."""

    title: str
    pictures: list[str]
    rows: list[Row]
    notes: list[str]

    def lines(self, sources: bool = False) -> list[dict]:
        """The rows as the writers of ``tables`` take them; None where there is no figure."""
        return [
            {"method": row.method, "figures": row.figures}
            | {picture: row.psnr.get(picture) for picture in self.pictures}
            | {"mean": row.mean, "pictures": row.over}
            | ({"source": row.source} if sources else {})
            for row in self.rows
        ]


def compare(
    records: list[Record],
    published: bool = True,
    with_peers: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:
    """A table for each set and degradation among the runs, beside what is quoted or measured.

    Measured are the runs' results, mean over seeds: PSNR over all channels, for super-resolution of
    the luma, with the bicubic enlargement beside it. Where the result is the moving average, the
    last output, which is what some publish, has a row too. ``with_peers``: NLM and BM3D on the
    noisy pictures of denoising runs, which takes a while the first time; ``say`` is told of each.

    The mean is over the pictures that all rows have which tell pictures apart; ``over`` says how
    many these are. Differences are to the published figure of DIP.

    Raises UserError if no run has ground truth.
    """
    known = [record for record in records if _psnr_key(record) in record.result]
    if not known:
        raise UserError(f"{records[0].run.folder}: neither this nor the others have ground truth")
    return [
        _compare(name, setting, here, published, with_peers, say)
        for (name, setting), here in group(known, lambda r: (_picture(r)[0], _setting(r))).items()
    ]


def markdown(comparisons: list[Comparison]) -> str:
    """All tables for people, each under its title and with its notes."""
    parts = []
    for this in comparisons:
        notes = "".join(f"- {note}\n" for note in this.notes)
        parts.append(f"### {this.title}\n\n{pipe_table(this.lines())}\n{notes}")
    return "\n".join(parts)


def to_csv(comparisons: list[Comparison]) -> str:
    """All tables in one, for programs: the title is the first column, the source the last."""
    rows = [{"table": c.title} | line for c in comparisons for line in c.lines(sources=True)]
    last = ("mean", "pictures", "source")
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c not in last]
    return csv_table([{c: row.get(c) for c in (*columns, *last)} for row in rows])


# ---------------------------------------------------------------- what is published


@cache
def _pictures() -> dict[str, tuple[str, str]]:
    """Digest of a picture -> its set, and what tables call it."""
    return {row["sha256"]: (row["set"], row["picture"]) for row in _read("pictures.csv")}


@cache
def _quoted() -> dict[tuple[str, str], list[Row]]:
    """Set and setting -> rows, in the order of the file."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for line in _read("figures.csv"):
        rows = found.setdefault((line["set"], line["setting"]), {})
        row = rows.setdefault(line["method"], Row(line["method"], "quoted", source=line["source"]))
        if line["picture"]:
            row.psnr[line["picture"]] = float(line["PSNR"])
        else:
            row.mean, row.over = float(line["PSNR"]), int(line["pictures"])
    return {place: list(rows.values()) for place, rows in found.items()}


def _read(name: str) -> list[dict]:
    with (PUBLISHED / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quoted(name: str, setting: str) -> list[Row]:
    """Copies of the rows published for a set; for other pictures the methods without figures."""
    if name != ELSE:
        rows = _quoted().get((name, setting), [])
        return [Row(r.method, r.figures, dict(r.psnr), r.mean, r.over, r.source) for r in rows]
    known = [
        row.method for (_, other), rows in _quoted().items() if other == setting for row in rows
    ]
    return [Row(method, "quoted") for method in dict.fromkeys(known)]


# ---------------------------------------------------------------- what was measured


def _psnr_key(record: Record) -> str:
    return "psnr_luma_stopped" if record.config.get("task") == "sr" else "psnr_stopped"


def _picture(record: Record) -> tuple[str, str]:
    """The set a run's picture belongs to and its name there; neither if it was cut or resized."""
    config = record.config
    whole = not config.get("crop") and config.get("imsize") in (None, [-1])
    name, digest = record.picture
    return _pictures().get(digest, (ELSE, name)) if whole else (ELSE, name)


def _setting(record: Record) -> str:
    """What was done to the picture, in the words of ``figures.csv``."""
    config = record.config
    task = config.get("task", "denoising")
    if task == "sr":
        return f"×{config.get('sr_factor')}"
    if task == "inpainting":
        if config.get("mask_type") != "bernoulli":
            return f"{config.get('mask_type')} mask"
        return f"{100 * config['zero_fraction']:g} % missing"
    if task == "real_denoising":
        return "real noise"
    if poisson := config.get("poisson_scale"):
        return f"Poisson {poisson:g}"
    if record.result.get("sigma", ...) is None:  # a pair: no noise was added
        return "real noise"
    return f"sigma {config.get('noise_sigma', 0):g}"


def _measured(method: str, records: list[Record], key: str) -> Row:
    by_picture = group(records, lambda r: _picture(r)[1])
    figures = {name: over_seeds(runs, key)[0] for name, runs in by_picture.items()}
    return Row(method, "measured", {k: v for k, v in figures.items() if not math.isnan(v)})


def _by_average(record: Record) -> bool:
    """Whether the result is the moving average where the run ended."""
    return bool(record.config.get("exp_weight")) and record.config.get("stopping") == "fixed"


def _peers(records: list[Record], say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """A row a peer, over every noisy picture once, and notes."""
    figures: dict[str, dict[str, list[float]]] = {}
    notes: dict[str, None] = {}
    for runs in group(records, lambda r: (_picture(r)[1], r.noisy)).values():
        picture, seed = _picture(runs[0])[1], runs[0].noise_seed
        if not runs[0].run.peers():
            say(f"peers on {picture}, {_setting(runs[0])}, noise {seed}")
        found, said = peers.measure(runs[0].run, runs[0].config["noise_sigma"])
        notes |= dict.fromkeys(said)
        for name, psnr in found.items():
            figures.setdefault(name, {}).setdefault(picture, []).append(psnr)
    notes["peers see noisy.png, which is rounded to 8 bits, and are told the noise level"] = None
    if {"BM3D", "CBM3D"} <= figures.keys():  # one method, on grey pictures and on colour
        grey, colour = figures.pop("BM3D"), figures.pop("CBM3D")
        both = figures["BM3D, CBM3D in colour"] = {}
        for psnrs in (grey, colour):
            for picture, found in psnrs.items():
                both.setdefault(picture, []).extend(found)
    rows = [
        Row(name, "measured", {picture: fmean(psnrs) for picture, psnrs in by_picture.items()})
        for name, by_picture in figures.items()
    ]
    return rows, list(notes)


# ---------------------------------------------------------------- the table


def _compare(
    name: str,
    setting: str,
    records: list[Record],
    published: bool,
    with_peers: bool,
    say: Callable[[str], None],
) -> Comparison:
    key = _psnr_key(records[0])
    notes = [
        "PSNR in dB of the luma, 4 pixels cut from each side"
        if "luma" in key
        else "PSNR in dB over all channels"
    ]
    rows = quoted(name, setting) if published else []
    names, groups = methods(records)
    ours = []
    for runs in groups.values():
        label = _label(names, runs)
        ours.append(_measured(label, runs, key))
        if all(_by_average(run) for run in runs):
            last = _measured(f"{label}, last output", runs, key.replace("stopped", "out"))
            # older runs do not tell its luma, and the means are over what all rows have
            ours += [last] if last.psnr.keys() == ours[-1].psnr.keys() else []
    if "luma" in key:
        rows.append(_measured("bicubic", records, "psnr_luma_bicubic"))
        notes.append("bicubic is cubic convolution, as in the published comparison")
    if with_peers and setting.startswith("sigma") and records[0].config["noise_sigma"]:
        beside, said = _peers(records, say)
        rows += beside
        notes += said
    rows += ours
    rows = _with_differences(rows, ours)
    if len({record.picture for record in records}) > len({_picture(r)[1] for r in records}):
        notes.append("pictures of one name stand in one column, as their mean")
    listed = [picture for own, picture in _pictures().values() if own == name]
    pictures = listed or list(dict.fromkeys(picture for row in ours for picture in row.psnr))
    told = [set(row.psnr) for row in rows if row.psnr]
    apart = len(told) > 1 and not set.intersection(*told)
    if apart or len({row.over for row in rows if row.mean is not None}) > 1:
        notes.append("the means are not all over the same pictures: see the last column")
    seeds = sorted({str(record.seed) for record in records})
    notes.append(f"measured: mean over seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    sources: dict[str, list[str]] = {}
    for row in rows:
        if row.source:
            sources.setdefault(row.source, []).append(row.method)
    notes += [f"quoted, {'; '.join(found)}: {source}" for source, found in sources.items()]
    return Comparison(f"{name}, {setting}", pictures, rows, notes)


def _label(names: list[str], runs: list[Record]) -> str:
    """The network, and the options that tell its runs from others."""
    parts = [shown(runs, names[0])]
    for option in names[1:]:
        parts.append(f"{SHORT.get(option, option.replace('_', ' '))} {shown(runs, option) or '–'}")
    return ", ".join(parts)


def _put_means(rows: list[Row]) -> None:
    """The mean of each row over the pictures that all rows have, else over its own."""
    several = [set(row.psnr) for row in rows if row.psnr]
    shared = set.intersection(*several) if several else set()
    for row in rows:
        if row.psnr:
            own = [psnr for picture, psnr in row.psnr.items() if picture in shared or not shared]
            row.mean, row.over = fmean(own), len(own)


def _with_differences(rows: list[Row], ours: list[Row]) -> list[Row]:
    """All rows with their means, and what each of ``ours`` has more than the reference.

    Picture by picture; where only the reference's mean over the set is known, that of the means,
    if ours is over as many pictures.
    """
    reference = next((row for row in rows if row.method == REFERENCE), Row(REFERENCE, "quoted"))
    differences = []
    for row in ours:
        by_picture = {p: v - reference.psnr[p] for p, v in row.psnr.items() if p in reference.psnr}
        differences.append(Row(f"{row.method} − {REFERENCE}", "difference", by_picture))
    _put_means([*rows, *differences])
    for row, difference in zip(ours, differences, strict=True):
        if not difference.psnr and reference.mean is not None and row.over == reference.over:
            difference.mean, difference.over = row.mean - reference.mean, row.over
    return rows + [row for row in differences if row.mean is not None]
