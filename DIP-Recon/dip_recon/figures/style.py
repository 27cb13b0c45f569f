"""What the figures share: colours, line styles, small print under a figure, and saving."""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from ..files import atomic

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#6b6b6b"  # tell apart in grey print too
COLOURS = (BLUE, ORANGE, "#111111", "#45a7a0", "#7b2d73", "#c7a008", "#7fb0e0")
DASHES = (  # dots alone are the noisy picture's
    "-",
    (0, (5, 1.6)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (2, 1)),
    (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)),
    (0, (10, 2)),
)
NOISY = {"label": "noisy picture", "color": "black", "lw": 1, "ls": (0, (1, 2))}
MARKERS = "os^DvP*X<>"
PLAIN = {"text.parse_math": False}  # dollars in a picture's name are dollars
PAPER = {
    "font.size": 8, "axes.titlesize": 8.5, "legend.fontsize": 7.5, "pdf.fonttype": 42, **PLAIN,
}  # fmt: skip
PAGE = 7.2  # inches: the width of a page's text
COLUMN = 4.6  # for a figure of one panel
LEGEND_ROW = 0.16


@dataclass
class Drawing:
    """A figure, the rows of its CSV file (exactly what is drawn), and what to say of it.

    ``caption`` explains the marks and ``notes`` warn; both stand in small print under the figure.
    """

    figure: Figure
    rows: list[dict]
    caption: str = ""
    notes: list[str] = field(default_factory=list)


def line(n: int) -> dict:
    """Colour and dashes of the n-th line; no two of the first 42 have both alike."""
    return {"color": COLOURS[n % len(COLOURS)], "ls": DASHES[n % len(DASHES)]}


def shorten(name: str, longest: int = 26) -> str:
    """A name cut for a legend: filters can be spelt out at any length."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def grid(panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels: at most three beside each other."""
    columns = 2 if panels == 4 else min(panels, 3)
    return -(-panels // columns), columns


def put_legend(figure: FigureBase, axes: Axes, title: str | None = None) -> None:
    """One legend above all panels, with the entries of ``axes``; a whole figure grows by it."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    each = 0.62 + 0.062 * max(map(len, labels))  # inches that the widest entry takes
    columns = int(np.clip(figure.bbox.width / figure.dpi // each, 1, len(labels)))
    rows = -(-len(labels) // columns)
    columns = -(-len(labels) // rows)  # rows of the same length
    if isinstance(figure, Figure):
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * (rows + (title is not None)))
    look = {"ncols": columns, "handlelength": 3.2, "frameon": False, "title": title}
    figure.legend(handles, labels, loc="outside upper center", **look)


def put_small_print(drawing: Drawing) -> None:
    """Write caption and notes under the figure, which grows by what they take."""
    figure = drawing.figure
    width, height = figure.get_size_inches()
    texts = [drawing.caption, *(f"Note: {note}." for note in drawing.notes)]
    lines = [part for text in texts for part in textwrap.wrap(text, int(width * 19))]
    if not lines:
        return
    room = 0.125 * len(lines) + 0.08
    figure.set_size_inches(width, height + room)
    bottom = room / (height + room)
    figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom))
    figure.text(0.012, 0.03 / (height + room), "\n".join(lines), fontsize=6.8, color="#444444")


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write the figure in the format of the path's suffix; the same figure gives the same bytes."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font does not have
        figure.savefig(temporary, dpi=dpi, metadata=metadata)
