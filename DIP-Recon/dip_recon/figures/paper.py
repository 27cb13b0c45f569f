"""The figures by name, each drawn from finished runs into a PNG, a PDF and a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context

from ..errors import UserError, nearest
from ..files import atomic
from ..runs import make_folder
from .curves import low_pass, network_input, networks, upsampling
from .records import Record, load
from .sizes import architecture, parameters_and_psnr, width_by_texture
from .spectra import spectra
from .style import PAPER, Drawing, put_small_print, save
from .thesis import psnr_and_time


@dataclass(frozen=True)
class Entry:
    """A figure that can be drawn: what it shows, and the function that draws it."""

    summary: str
    draw: Callable[[list[Record]], Drawing]


FIGURES = {
    "upsampling": Entry("PSNR along the iterations by upsampler (Fig. 3)", upsampling),
    "lpf": Entry("low-pass filters' responses, and PSNR with each (Fig. 4)", low_pass),
    "width": Entry("PSNR by width and texture class", width_by_texture),
    "architecture": Entry("PSNR by depth, skips and width of DIP_2_scaled", architecture),
    "input": Entry("PSNR along the iterations by network input", network_input),
    "networks": Entry(
        "PSNR along the iterations by network, and each picture's (transformer-DIP)", networks
    ),
    "table2": Entry("parameters against PSNR, a panel a set (Table 2)", parameters_and_psnr),
    "time": Entry("PSNR against time, one run and the mean of several (PG-DIP)", psnr_and_time),
    "spectra": Entry("which frequencies are fitted when, by upsampler", spectra),
}


def draw(
    name: str,
    folders: Iterable[str | Path],
    out_folder: str | Path,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw the figure ``name`` of all finished runs at or below ``folders``.

    Writes ``<name>.png`` (150 dpi), ``<name>.pdf`` and ``<name>.csv``, which holds the numbers
    drawn, into ``out_folder`` and returns their paths. Notes, such as on runs left out because a
    sweep is unfinished, stand under the figure and go to ``say``.

    Raises:
        UserError: no figure of that name, a folder without finished runs, a run that lacks what
            the figure needs, or an ``out_folder`` that cannot be written.
    """
    if name not in FIGURES:
        raise UserError(f"figure {name}: {nearest(name, FIGURES)}")
    records = load(folders)
    paths = [Path(out_folder) / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")]
    with rc_context(PAPER):
        drawing = FIGURES[name].draw(records)
        put_small_print(drawing)
        make_folder(Path(out_folder))
        for path in paths[:2]:
            save(drawing.figure, path, dpi=150)
    _write_rows(drawing.rows, paths[2])
    for note in drawing.notes:
        say(f"note: {note}")
    return paths


def _write_rows(rows: list[dict], path: Path) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)


def _cell(value) -> str:
    if isinstance(value, float):  # numpy's too
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
