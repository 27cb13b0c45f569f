"""Figures of PSNR along the iterations: upsamplers, low-pass filters, network inputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError
from .methods import mixed
from .records import Curve, Record, curve, fair, group, natural, over_seeds, upsampler
from .style import (
    COLUMN,
    DASHES,
    GREY,
    MARKERS,
    NOISY,
    PAGE,
    Drawing,
    grid,
    line,
    put_legend,
    shorten,
)

MEAN = "Lines: mean over pictures and seeds"


def upsampling(records: list[Record]) -> Drawing:
    """A line an upsampler, a panel a network: PSNR of the last output against the clean picture.

    Fig. 3 of Liu et al., "The Devil is in the Upsampling", ICCV 2023. The dotted line is the noisy
    picture's PSNR.
    """
    series, notes = fair(group(records, lambda r: (r.network, upsampler(r))))
    curves = {key: curve(runs, "psnr_gt") for key, runs in series.items()}
    networks = list(dict.fromkeys(network for network, _ in series))
    names = sorted({name for _, name in series}, key=natural)
    styles = {name: line(n) for n, name in enumerate(names)}
    lines, columns = grid(len(networks))
    size = (PAGE if columns > 1 else COLUMN, 2.9 * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    rows = []
    for network, axes in zip(networks, panels, strict=False):
        here = {name: curves[key] for key in series if (name := key[1]) and key[0] == network}
        used = [run for key, runs in series.items() if key[0] == network for run in runs]
        for name, this in here.items():
            _draw(axes, this, shorten(name), styles[name])
            rows += this.rows(panel=network, series=name)
        rows += _noisy(axes, used, panel=network)
        axes.set_title(network)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("PSNR of the output (dB)")
        _iterations(axes, here)
    for axes in panels:  # those left over in the last line
        axes.remove()
    _levels(figure.axes[0], curves, rows)
    put_legend(figure, max(figure.axes, key=lambda a: len(a.lines)))
    notes += mixed(series) + _cut(curves)
    bands = "; bands: one standard deviation" * any(c.n > 1 for c in curves.values())
    return Drawing(figure, rows, f"{MEAN}{bands}.", notes)


def network_input(records: list[Record]) -> Drawing:
    """A line a network input: PSNR of the moving average against the clean picture."""
    series, notes = fair(group(records, input_name))
    curves = {name: curve(runs, "psnr_gt_sm") for name, runs in series.items()}
    figure = Figure(figsize=(COLUMN, 3.0), layout="constrained")
    axes = figure.add_subplot()
    rows = []
    for n, (name, this) in enumerate(curves.items()):
        _draw(axes, this, shorten(name), line(n), band=False)
        rows += this.rows(series=name)
    rows += _noisy(axes, [run for runs in series.values() for run in runs])
    axes.set_ylabel("PSNR of the moving average (dB)")
    _iterations(axes, curves)
    _levels(axes, curves, rows)
    put_legend(figure, axes)
    return Drawing(figure, rows, f"{MEAN}.", notes + mixed(series) + _cut(curves))


def networks(records: list[Record]) -> Drawing:
    """A line a network and upsampler, and beside it what each picture's runs came to.

    The transformer experiment of Liu et al., "The Devil is in the Upsampling", ICCV 2023: the same
    network with unlearnt and with learnt upsampling. PSNRs are of the moving average; on the right
    hollow marks are oracles, and filled ones what was stopped, means over seeds.
    """
    series, notes = fair(group(records, network_name))
    curves = {name: curve(runs, "psnr_gt_sm") for name, runs in series.items()}
    figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = []
    pictures = sorted({run.picture for runs in series.values() for run in runs}, key=natural)
    names = [picture for picture, _ in pictures]
    places = ["mean"] * (len(names) > 1) + names
    for n, (name, runs) in enumerate(series.items()):
        style = line(n)
        _draw(left, curves[name], shorten(name), style, band=False)
        rows += curves[name].rows(panel="PSNR", series=name)
        by_picture = group(runs, lambda r: r.picture)
        sets = [runs] * (len(names) > 1) + [by_picture.get(p, []) for p in pictures]
        beside = 0.3 * (n - (len(series) - 1) / 2) / max(len(series) - 1, 1)
        for at, place in enumerate(places):
            if not sets[at]:
                continue
            (oracle, _), (stopped, spread) = (
                over_seeds(sets[at], key) for key in ("psnr_oracle", "psnr_stopped")
            )
            look = {"color": style["color"], "marker": MARKERS[n % len(MARKERS)], "ls": ""}
            right.plot([at + beside] * 2, [stopped, oracle], color=style["color"], lw=0.8)
            right.plot(at + beside, oracle, mfc="white", ms=7, **look)
            right.plot(at + beside, stopped, ms=3.5, **look)
            rows.append(
                {"panel": "pictures", "series": name, "picture": place, "oracle": oracle,
                 "stopped": stopped, "stopped deviation": spread, "n": len(sets[at])}
            )  # fmt: skip
    rows += _noisy(left, [r for runs in series.values() for r in runs], panel="PSNR")
    left.set(ylabel="PSNR of the moving average (dB)", title="all pictures")
    _iterations(left, curves)
    _levels(left, curves, rows)
    right.set_title("each picture, and their mean" if len(names) > 1 else "the picture")
    right.set_xticks(range(len(places)), [shorten(place, 12) for place in places])
    right.set_xlim(-0.5, len(places) - 0.5)
    if len(places) > 4:
        right.tick_params(axis="x", rotation=40)
    if len(names) > 1:
        right.axvline(0.5, color=GREY, lw=0.8)
    right.grid(alpha=0.3, axis="y")
    put_legend(figure, left)
    caption = f"{MEAN}. Right: hollow, at the best moment (oracle); filled, where the runs stopped."
    return Drawing(figure, rows, caption, notes + mixed(series) + _cut(curves))


def network_name(record: Record) -> str:
    """A network, and the upsampler where one was chosen for it."""
    mode = record.config.get("upsample_mode")
    return f"{record.network}, {mode}" if mode else record.network


def input_name(record: Record) -> str:
    """The network input as figures show it: the sweep's label, else method and picture."""
    label = record.labels.get("input")
    if label is not None:
        return str(label).replace("_", " ")
    method = str(record.config.get("noise_method")).replace("_", " ")
    picture = record.config.get("input_image_name")
    uses_picture = picture and "image" in method
    return f"{method} {Path(str(picture)).stem}" if uses_picture else method


def low_pass(records: list[Record]) -> Drawing:
    """Frequency responses of the fixed filters, and PSNR along the iterations with each.

    Fig. 4 of Liu et al., "The Devil is in the Upsampling", ICCV 2023. Filters are ordered, and
    shaded, by their mean gain above 0.5 π rad/sample, where zero insertion puts the images of the
    spectrum; the PSNR is that of the moving average.
    """
    series, notes = fair(group(records, upsampler))
    taps = {name: runs[0].config.get("upsample_taps") for name, runs in series.items()}
    gains = {name: stop_band_gain(t) for name, t in taps.items() if t}
    if not gains:
        raise UserError(
            f"{records[0].run.folder}: neither this nor the others have a fixed filter, whose "
            "response this figure shows; draw `upsampling` of them"
        )
    filters = sorted(gains, key=gains.get, reverse=True)
    others = [name for name in series if name not in gains]
    shades = colormaps["viridis"](np.linspace(0.9, 0, max(len(filters), 2)))
    styles = {
        name: {"color": tuple(shades[n]), "ls": DASHES[n % len(DASHES)]}
        for n, name in enumerate(filters)
    }
    styles |= {
        name: {**line(n), "color": GREY, "marker": "x", "ms": 4, "markevery": 0.15}
        for n, name in enumerate(others)
    }
    figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = []
    for name in filters:
        frequency, magnitude = response(taps[name])
        left.plot(frequency, magnitude, lw=1.5, **styles[name])
        rows += [
            {"panel": "response", "series": name, "frequency": f, "dB": m}
            for f, m in zip(frequency, magnitude, strict=True)
        ]
    left.axvline(0.5, color=GREY, lw=0.8)
    left.set(xlabel="frequency (×π rad/sample)", ylabel="magnitude (dB)", title="filters")
    left.set(xlim=(0, 1), ylim=(-110, 5))
    left.grid(alpha=0.3)
    curves = {name: curve(series[name], "psnr_gt_sm") for name in [*filters, *others]}
    for name, this in curves.items():
        gain = f" ({gains[name]:.0f} dB)".replace("-", "−") if name in gains else ""
        _draw(right, this, shorten(name) + gain, styles[name], band=False)
        top = int(np.argmax(this.mean))
        color = styles[name]["color"]
        mark = {"ms": 5, "mfc": "white", "mec": color, "zorder": 3, "clip_on": False}
        right.plot(this.at[top], this.mean[top], "o", **mark)
        rows += this.rows(panel="PSNR", series=name)
        rows.append(this.rows(panel="peak", series=name)[top])
    rows += _noisy(right, [r for runs in series.values() for r in runs], panel="PSNR")
    right.set(ylabel="PSNR of the moving average (dB)", title="denoising")
    _iterations(right, curves)
    _levels(right, curves, rows)
    put_legend(figure, right)
    caption = (
        "In brackets, and by shade: mean gain above 0.5π, where zero insertion repeats the "
        f"spectrum. {MEAN}; circles: peaks."
    )
    return Drawing(figure, rows, caption, notes + mixed(series) + _cut(curves))


def response(taps: list[float], n: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies 0…1 in π rad/sample, and the filter's magnitude there in dB, at least -300."""
    magnitude = np.abs(np.fft.rfft(taps, 2 * n))
    return np.linspace(0, 1, n + 1), 20 * np.log10(np.maximum(magnitude, 1e-15))


def stop_band_gain(taps: list[float]) -> float:
    """Mean power that a filter lets through from 0.5 to 1 π rad/sample, in dB."""
    frequency, magnitude = response(taps)
    return float(10 * np.log10(np.mean(10 ** (magnitude[frequency >= 0.5] / 10))))


def _draw(axes: Axes, this: Curve, label: str, style: dict, band: bool = True) -> None:
    axes.plot(this.at, this.mean, lw=1.5, label=label, **style)
    if band and this.n > 1:
        low, high = this.mean - this.deviation, this.mean + this.deviation
        axes.fill_between(this.at, low, high, color=style["color"], alpha=0.14, lw=0)


def _noisy(axes: Axes, records: list[Record], **names) -> list[dict]:
    """A dotted line at the noisy pictures' mean PSNR; returns its row, after the given columns.

    Pictures without noise, whose PSNR is no number, have no part in it.
    """
    levels = [record.figure_of("psnr_noisy") for record in records]
    levels = [level for level in levels if not math.isnan(level)]
    if not levels:
        return []
    mean = float(np.mean(levels))
    axes.axhline(mean, **NOISY)
    return [{**names, "series": NOISY["label"], "mean": mean, "n": len(levels)}]


def _iterations(axes: Axes, curves: dict[object, Curve]) -> None:
    axes.set(xlabel="iteration", xlim=(0, max(c.at[-1] for c in curves.values()) + 1))
    axes.grid(alpha=0.3)


def _levels(axes: Axes, curves: dict[object, Curve], rows: list[dict]) -> None:
    """Leave out the first climb: begin below the noisy picture and the second half of the lines."""
    levels = [row["mean"] for row in rows if row["series"] == NOISY["label"]]
    for this in curves.values():
        levels.append(this.mean[np.array(this.at) >= 0.5 * this.at[-1]].min())
    axes.set_ylim(bottom=min(levels) - 1)


def _cut(curves: dict) -> list[str]:
    """A note if runs of one line differ in length."""
    if not any(this.cut for this in curves.values()):
        return []
    return ["runs differ in length; a line ends where the shortest of its runs does"]
