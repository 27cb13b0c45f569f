"""Figures of what a network's size does: width and texture, depth and skips, parameters."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..errors import UserError
from .methods import methods, mixed, show
from .records import Record, deviation, fair, group, natural, over_seeds, width
from .style import COLOURS, COLUMN, DASHES, MARKERS, PAGE, Drawing, grid, put_legend

FILLED = "Filled: stopped; hollow: oracle, the best of the same run."
SCALED, ORIGINAL = "DIP_2_scaled", "DIP_orig"
RESULTS = ("stopped", "oracle")


# ---------------------------------------------------------------- width and texture


def texture(record: Record) -> str | int:
    """The picture's texture class: the sweep's label, else the option; all alike without."""
    return record.labels.get("texture", record.config.get("texture")) or "all pictures"


def width_by_texture(records: list[Record]) -> Drawing:
    """PSNR by width and texture class, and the gain over the narrowest width.

    The gain is paired: each run minus the narrowest network's on the same picture and seed.
    """
    series, notes = fair(group(records, lambda r: (texture(r), width(r))), among=lambda k: k[0])
    classes = _classes({name for name, _ in series})
    widths = sorted({w for _, w in series})
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = []
    for n, name in enumerate(classes):
        here = {w: series[name, w] for w in widths if (name, w) in series}
        shift = 2 ** (0.09 * (n - (len(classes) - 1) / 2))  # so that bars stand apart
        for panel, axes in (("PSNR", left), ("gain", right)):
            for result in RESULTS:
                found = _by_width(here, result, gain=panel == "gain")
                found = [{"panel": panel, "series": name, "result": result, **f} for f in found]
                _points(axes, found, shift, n, str(name))
                rows += found
    left.set(ylabel="PSNR (dB)", title="by texture class")
    right.set(ylabel="gain (dB)", title="over the narrowest width")
    right.axhline(0, color="black", lw=0.8)
    for axes in (left, right):
        axes.set(xlabel="width (channels)", xscale="log")
        _ticks(axes, widths)
        axes.grid(alpha=0.3)
    put_legend(figure, left, "texture class")
    caption = f"{FILLED} Bars: one standard deviation over pictures and seeds. Gains are paired."
    return Drawing(figure, rows, caption, notes + mixed(series))


def _classes(names: set) -> list:
    """Texture classes from coarse to fine, where they are called so or by their widths."""
    known = ("smooth", "coarse", "medium", "fine")
    return sorted(names, key=lambda c: (known.index(c) if c in known else 9, natural(c)))


def _by_width(series: dict[int, list[Record]], result: str, gain: bool) -> list[dict]:
    """Mean and deviation over runs at each width, or of the gain over the narrowest."""
    base = _by_pair(series[min(series)], result)
    rows = []
    for w, runs in series.items():
        values = _by_pair(runs, result)
        if gain:
            values = {pair: v - base[pair] for pair, v in values.items() if pair in base}
        if values:
            v = list(values.values())
            rows.append({"width": w, "mean": np.mean(v), "deviation": deviation(v), "n": len(v)})
    return rows


def _by_pair(runs: list[Record], result: str) -> dict:
    """Picture and seed → PSNR in dB."""
    values: dict[tuple, list[float]] = {}
    for run in runs:
        psnr = _psnr(run, result)
        if not math.isnan(psnr):
            values.setdefault(run.pair, []).append(psnr)
    return {pair: float(np.mean(v)) for pair, v in values.items()}


def _psnr(run: Record, result: str) -> float:
    """In dB; nan for the oracle of a run by tiles, which has none. UserError without ground truth,
    which the other always takes."""
    stopped = run.known("psnr_stopped")
    return stopped if result == "stopped" else run.figure_of(f"psnr_{result}")


def _points(axes: Axes, rows: list[dict], shift: float, n: int, label: str) -> None:
    """Marks joined by a line: filled with bars for what was stopped, hollow for the oracle."""
    if not rows:
        return
    stopped = rows[0]["result"] == "stopped"
    color, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
    x = [row["width"] * shift for row in rows]
    y = [row["mean"] for row in rows]
    look = {"color": color, "marker": marker, "ms": 5 if stopped else 7.5}
    if stopped:
        bars = [np.nan_to_num(row["deviation"]) for row in rows]
        axes.errorbar(
            x, y, bars, ls=DASHES[n % len(DASHES)], lw=1.2, elinewidth=0.8, capsize=2,
            label=label, **look,
        )  # fmt: skip
    else:
        axes.plot(x, y, ls="none", mfc="none", mew=0.9, **look)


def _ticks(axes: Axes, values: list[int]) -> None:
    """Ticks at these values alone, with room at the sides."""
    axes.set_xticks(values, [str(v) for v in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(values[0] / 1.35, values[-1] * 1.35)


# ---------------------------------------------------------------- depth, skips and width


def architecture(records: list[Record]) -> Drawing:
    """PSNR of ``DIP_2_scaled`` by depth and skips, a heat map a width; stopped, and oracle below.

    The full-size ``DIP_orig``, if there are runs of it, is named under the figure, averaged over
    the same pictures and seeds.
    """
    cells = [r for r in records if r.network == SCALED]
    if not cells:
        raise UserError(f"no run of {SCALED} among them, which this figure is drawn of")
    others = [r for r in records if r.network not in (SCALED, ORIGINAL)]
    series = group(cells, _cell)
    reference = [r for r in records if r.network == ORIGINAL]
    series, notes = fair({**series, **({ORIGINAL: reference} if reference else {})})
    if others:
        notes.append(f"{len(others)} runs of other networks than {SCALED} are not drawn")
    notes += mixed(series)
    rows = [_summary(runs, key) for key, runs in series.items()]
    drawn = [row for row in rows if row["network"] == SCALED]
    figure = _heat_maps(drawn)
    caption = "Upper figure and shade: stopped; lower figure: oracle. Mean over pictures and seeds."
    for row in rows:
        if row["network"] == ORIGINAL:
            caption += (
                f" {ORIGINAL}, {row['parameters']:,} parameters: {_level(row['stopped'])} dB, "
                f"oracle {_level(row['oracle'])} dB."
            )
    return Drawing(figure, rows, caption, notes)


def _cell(record: Record) -> tuple[int, int, int]:
    """Width, scales and skips."""
    return width(record), record.config["num_scales"], record.config["num_skips"]


def _summary(runs: list[Record], key: tuple | str) -> dict:
    names = ("width", "num_scales", "num_skips")
    cell = {} if key == ORIGINAL else dict(zip(names, key, strict=True))
    stopped, oracle = (_mean(runs, result)[0] for result in RESULTS)
    parameters = round(np.mean([run.figure_of("parameters") for run in runs]))
    row = {"network": runs[0].network, **cell, "stopped": stopped, "oracle": oracle}
    return {**row, "parameters": parameters, "n": len(runs)}


def _mean(runs: list[Record], result: str) -> tuple[float, float]:
    """Mean and deviation over seeds of a PSNR in dB, nan where there is none; UserError for runs
    without ground truth."""
    for run in runs:
        run.known("psnr_stopped")
    return over_seeds(runs, f"psnr_{result}")


def _level(psnr: float) -> str:
    return "–" if math.isnan(psnr) else f"{psnr:.2f}"


def _heat_maps(rows: list[dict]) -> Figure:
    widths, depths, skips = (
        sorted({row[name] for row in rows}) for name in ("width", "num_scales", "num_skips")
    )
    each = 0.32 * len(skips) + 0.2  # inches
    columns = min(len(widths), max(int((PAGE - 0.8) // each), 1))
    lines = -(-len(widths) // columns)
    size = (max(each * columns + 1.0, 3.0), max((0.31 * len(depths) + 0.5) * lines + 0.3, 1.7))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    values = [v for row in rows if not math.isnan(v := row["stopped"])] or [0.0]
    middle, half = (max(values) + min(values)) / 2, max((max(values) - min(values)) / 2, 0.05)
    colours, scale = colormaps["cividis"], Normalize(middle - half, middle + half)
    for w, axes in zip(widths, panels.flat, strict=False):
        table = np.full((len(depths), len(skips)), np.nan)
        for row in (row for row in rows if row["width"] == w):
            at = depths.index(row["num_scales"]), skips.index(row["num_skips"])
            table[at] = row["stopped"]
            red, green, blue, _ = colours(scale(row["stopped"]))
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            place = {"ha": "center", "color": ink}
            axes.text(at[1], at[0], _level(row["stopped"]), va="bottom", fontsize=6.3, **place)
            oracle = _level(row["oracle"])
            axes.text(at[1], at[0] + 0.06, oracle, va="top", fontsize=5.2, **place)
        picture = axes.imshow(table, cmap=colours, norm=scale, aspect="auto")
        axes.set_title(f"width {w}")
        axes.set_xticks(range(len(skips)), [str(s) for s in skips])
        axes.set_yticks(range(len(depths)), [str(d) for d in depths])
    for axes in list(panels.flat)[len(widths) :]:
        axes.remove()
    for axes in figure.axes:
        spec = axes.get_subplotspec()
        if spec.is_first_col():
            axes.set_ylabel("scales")
        if spec.rowspan.start * columns + spec.colspan.start + columns >= len(widths):
            axes.set_xlabel("skips")
            axes.tick_params(labelbottom=True)
    figure.colorbar(
        picture, ax=list(figure.axes), label="PSNR (dB)", fraction=0.05, shrink=0.8, pad=0.01
    )
    return figure


# ---------------------------------------------------------------- parameters


def parameters_and_psnr(records: list[Record]) -> Drawing:
    """Parameters against PSNR, a mark a network, a panel a set and noise level.

    Table 2 of Liu et al., "The Devil is in the Upsampling", ICCV 2023, as a picture. A network
    whose width goes by the picture stands at its mean parameters, with a bar from least to most.
    """
    split, _ = methods(records)
    levels = "noise_sigma" in split

    def panel(record: Record) -> str:
        named = str(record.labels.get("set", ""))
        level = f"σ = {show(record.config.get('noise_sigma'))}" if levels else ""
        return ", ".join(filter(None, (named, level)))

    def network(record: Record) -> str:
        wide = f" {show(tuple(record.config.get('dim') or ()))}" if "dim" in split else ""
        return str(record.labels.get("network") or record.network + wide.rstrip())

    series, notes = fair(group(records, lambda r: (panel(r), network(r))), among=lambda k: k[0])
    titles = list(dict.fromkeys(title for title, _ in series))
    names = sorted({name for _, name in series}, key=natural)
    lines, columns = grid(len(titles))
    size = (PAGE if columns > 1 else COLUMN, 2.7 * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).flat
    rows = []
    for title, axes in zip(titles, panels, strict=False):
        for name in names:
            if (title, name) in series:
                row = {"panel": title, "series": name, **_table_row(series[title, name])}
                _mark(axes, row, names.index(name))
                rows.append(row)
        axes.set(title=title, xscale="log", xlabel="parameters", ylabel="PSNR (dB)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelbottom=True)
        axes.margins(x=0.15, y=0.12)
        axes.grid(alpha=0.3)
    for axes in panels:
        axes.remove()
    put_legend(figure, max(figure.axes, key=lambda a: len(a.get_legend_handles_labels()[1])))
    caption = f"{FILLED} Bars: one standard deviation over seeds of the mean over pictures."
    return Drawing(figure, rows, caption, notes + mixed(series))


def _table_row(runs: list[Record]) -> dict:
    sizes = [run.figure_of("parameters") for run in runs]
    row = {
        "parameters": round(np.mean(sizes)),
        "least": round(min(sizes)),
        "most": round(max(sizes)),
    }
    for result in RESULTS:
        row[result], row[f"{result} deviation"] = _mean(runs, result)
    pictures, seeds = ({f(run) for run in runs} for f in (lambda r: r.picture, lambda r: r.seed))
    return {**row, "pictures": len(pictures), "seeds": len(seeds), "n": len(runs)}


def _mark(axes: Axes, row: dict, n: int) -> None:
    color, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
    x = row["parameters"]
    for result in RESULTS:
        filled = result == "stopped"
        bar = row[f"{result} deviation"]
        axes.errorbar(
            x, row[result], None if math.isnan(bar) else bar,
            xerr=[[x - row["least"]], [row["most"] - x]] if filled and row["least"] < x else None,
            fmt=marker, ms=5.5 if filled else 8, color=color, mfc=color if filled else "none",
            mew=0.9, elinewidth=0.8, capsize=2, ls="none", label=row["series"] if filled else None,
        )  # fmt: skip


def _short_number(value: float, _position: int) -> str:
    """58k, 2.2M: parameters on an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"
