"""Tables of finished runs: a row a method, as Markdown for people or CSV for programs.

Numbers are those of result.json; nothing is fitted or measured anew.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from .figures.methods import SHORT, methods, shown
from .figures.records import Record, group, natural, over_seeds, psnr_of_mean
from .files import atomic
from .runs import Run

# Columns of numbers, and how they are printed; a column is followed by its deviation.
FORMATS = {
    "noisy": ".2f",
    "stopped": ".2f",
    "oracle": ".2f",
    "oracle iteration": ".0f",
    "SSIM": ".3f",
    "seconds": ".0f",
}
DEVIATION = " deviation"


def summary(records: Iterable[Record]) -> list[dict]:
    """A row a method (and set, or texture class, if labels name one), in natural order.

    A method is what the options say that differ among the runs: their columns come first. Then:
    parameters (a range where the width goes by the picture), pictures, seeds, the PSNRs ``noisy``,
    ``stopped`` and ``oracle`` in dB, ``oracle iteration``, ``SSIM`` of what was stopped, and
    ``seconds`` a run. Numbers are means over pictures and seeds, ``… deviation`` that over seeds of
    the mean over pictures (ddof 1); None where there is nothing, as without ground truth.
    """
    names, split = _split(records)
    return [_row(names, place, runs) for place, runs in split]


def per_picture(records: Iterable[Record]) -> list[dict]:
    """As ``summary``, with a row for each picture of each method; deviations are over seeds."""
    names, split = _split(records)
    rows = []
    for place, runs in split:
        for (picture, _), these in group(runs, lambda r: r.picture).items():
            rows.append(_row(names, place, these, picture))
    return rows


def notes(records: Iterable[Record]) -> list[str]:
    """What a reader of ``summary`` should know: rows that are not over the same runs, lost fits."""
    _, split = _split(records)
    results = [run.result for _, runs in split for run in runs]
    tiled = sum(int(r.get("gave_up") or 0) for r in results if "tiles" in r)
    whole = sum(bool(r.get("gave_up")) for r in results if "tiles" not in r)
    lost = []
    for count, what in ((whole, "runs"), (tiled, "tiles")):
        words = "was given up: its" if count == 1 else "were given up: their"
        lost += [f"{count} of the {what} {words} fit was lost"] * (count > 0)
    sets: dict[str, set] = {}
    for place, runs in split:
        sets.setdefault(str(place), set()).add(frozenset(run.pair for run in runs))
    if all(len(pairs) == 1 for pairs in sets.values()):
        return lost
    return ["not all rows are over the same pictures and seeds", *lost]


def _split(records: Iterable[Record]) -> tuple[list[str], list[tuple[dict, list[Record]]]]:
    """The options that make the methods, and the runs of each set and method."""
    records = list(records)
    names, groups = methods(records)
    kind = "set" if any("set" in record.labels for record in records) else "texture"
    split = [
        ({kind: place} if place is not None else {}, these)
        for runs in groups.values()
        for place, these in group(runs, lambda r: r.labels.get(kind)).items()
    ]
    # by set first; the sort keeps the methods' order within one
    return names, sorted(split, key=lambda part: natural(part[0].get(kind)))


def _row(names: list[str], place: dict, runs: list[Record], picture: str | None = None) -> dict:
    row = dict(place)
    for name in names:
        row[SHORT.get(name, name.replace("_", " "))] = shown(runs, name)
    if picture is not None:
        row["picture"] = picture
    row["parameters"] = _range([run.figure_of("parameters") for run in runs])
    if picture is None:
        row["pictures"] = len({run.picture for run in runs})
    row["seeds"] = len({run.seed for run in runs})
    row["noisy"] = _mean(runs, "psnr_noisy")
    for result in ("stopped", "oracle"):
        mean, deviation = over_seeds(runs, f"psnr_{result}")
        row[result], row[result + DEVIATION] = _known(mean), _known(deviation)
    row["oracle iteration"] = _mean(runs, "oracle_iteration")
    row["SSIM"] = _mean(runs, "ssim_stopped")
    row["seconds"] = _mean(runs, "seconds")
    return row


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(runs: list[Record], key: str) -> float | None:
    return _known(over_seeds(runs, key)[0])


def _range(values: list[float]) -> int | str | None:
    if any(map(math.isnan, values)):
        return None
    least, most = round(min(values)), round(max(values))
    return least if least == most else f"{least:,}–{most:,}"


def write_means(runs: list[Run], each: int, path: Path) -> list[str]:
    """PSNR of several runs on the same noisy picture and of the mean of their pictures.

    ``runs`` are in order, ``each`` of them a picture, all finished and with ground truth; the
    thesis of PG-DIP reports two. Writes a row a picture and returns the lines to print; none for
    pictures whose truth is not known.
    """
    rows = []
    for first in range(0, len(runs), each):
        these = runs[first : first + each]
        if not (these[0].folder / "clean.png").is_file():
            continue
        results = [run.result() for run in these]
        singles = {f"PSNR_run{n + 1}": r["psnr_stopped"] for n, r in enumerate(results)}
        mean = psnr_of_mean(these)
        row = {"ID": results[0]["image"], **singles}
        row["PSNR_mean"] = round(mean, 4) if math.isfinite(mean) else None
        rows.append({**row, "Noisy_Baseline": results[0]["psnr_noisy"]})
    if not rows:
        return []
    columns = [c for c in rows[0] if c != "ID"]
    known = {c: [row[c] for row in rows if row[c] is not None] for c in columns}
    means = {c: round(fmean(values), 4) for c, values in known.items() if values}
    rows.append({"ID": "mean", **means})
    with atomic(path) as temporary:
        temporary.write_text(to_csv(rows), encoding="utf-8", newline="")
    return ["  ".join(f"{k} {v}" for k, v in row.items()) for row in rows]


# ---------------------------------------------------------------- writing


def markdown(rows: list[dict]) -> str:
    """Rows as an aligned pipe table: ``28.41 ± 0.05``, and – for nothing."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if DEVIATION not in c]
    lines = [columns, *([_text(row, column) for column in columns] for row in rows)]
    numbers = [any(isinstance(row.get(c), int | float) for row in rows) for c in columns]
    widths = [max(3, *(len(line[n]) for line in lines)) for n in range(len(columns))]
    lines.insert(1, ["-" * (w - 1) + ":" if number else "-" * w
                     for w, number in zip(widths, numbers, strict=True)])  # fmt: skip
    text = ""
    for line in lines:
        cells = [
            cell.rjust(w) if number else cell.ljust(w)
            for cell, w, number in zip(line, widths, numbers, strict=True)
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text


def _text(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None or value == "":
        return "–"
    if column in FORMATS:
        spread = row.get(column + DEVIATION)
        tail = "" if spread is None else f" ± {spread:{FORMATS[column]}}"
        return f"{value:{FORMATS[column]}}{tail}"
    if isinstance(value, float):
        return f"{value:.2f}"
    text = f"{value:,}" if column == "parameters" and isinstance(value, int) else str(value)
    return text.replace("|", "\\|")


def to_csv(rows: list[dict]) -> str:
    """Rows as CSV: plain numbers, deviations in columns of their own, empty for nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
