"""PG-DIP's comparison: what each method takes, and what it gives, alone and averaged."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .methods import mixed
from .records import Record, fair, group, over_seeds, psnr_of_mean
from .style import COLOURS, COLUMN, MARKERS, Drawing, put_legend


def psnr_and_time(records: list[Record]) -> Drawing:
    """PSNR against seconds a run, a mark a method; hollow: the mean of the runs' pictures.

    Sidorenko, "Progressively Grown Deep Image Prior" (EPFL 2018), reports two runs on the same
    noisy picture and their mean. Only seeds that share their noise are averaged so.
    """
    series, notes = fair(group(records, lambda r: str(r.labels.get("method") or r.network)))
    figure = Figure(figsize=(COLUMN, 3.2), layout="constrained")
    axes = figure.add_subplot()
    rows = []
    for n, (name, runs) in enumerate(series.items()):
        for run in runs:
            run.known("psnr_stopped")
        alone, spread = over_seeds(runs, "psnr_stopped")
        seconds = float(np.mean([run.figure_of("seconds") for run in runs]))
        together = _means(runs)
        color, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
        bar = None if np.isnan(spread) else spread
        axes.errorbar(
            seconds, alone, bar, fmt=marker, color=color, ms=5.5, capsize=2, elinewidth=0.8,
            label=name,
        )  # fmt: skip
        if together is not None:
            axes.plot(seconds, together, marker, color=color, mfc="none", ms=8, mew=0.9)
        rows.append(
            {"series": name, "seconds": seconds, "PSNR": alone, "PSNR deviation": spread,
             "PSNR of the mean picture": float("nan") if together is None else together,
             "iterations": float(np.mean([run.figure_of("iterations") for run in runs])),
             "oracle": over_seeds(runs, "psnr_oracle")[0], "n": len(runs)}
        )  # fmt: skip
    axes.set(xscale="log", xlabel="seconds a run", ylabel="PSNR (dB)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3, which="both")
    put_legend(figure, axes)
    caption = "Filled: one run, mean over pictures and seeds; hollow: the mean of a picture's runs."
    return Drawing(figure, rows, caption, notes + mixed(series))


def _means(runs: list[Record]) -> float | None:
    """PSNR of the mean of each picture's runs, averaged over pictures; None unless every noisy
    picture has several."""
    found = []
    for same in group(runs, lambda r: r.noisy).values():
        if len(same) < 2 or same[0].config.get("noise_seed") is None:
            return None
        found.append(psnr_of_mean([record.run for record in same]))
    return float(np.mean(found))
