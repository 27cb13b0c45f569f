"""Figure of spectra: which frequencies of a picture a network fits, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from .. import images
from ..errors import UserError
from .methods import mixed
from .records import Record, fair, group, upsampler
from .style import LEGEND_ROW, NOISY, PAGE, Drawing, grid, line, put_legend, shorten

BANDS = 4  # of equal width, from 0 to π
LIMIT = 20.0  # dB at the ends of the colours
CONTOURS = (-20, -10, -3, 3, 10, 20)


def spectra(records: list[Record]) -> Drawing:
    """The output's power spectrum over the clean picture's, in dB, along the iterations.

    The spectral bias of Liu et al., "The Devil is in the Upsampling", ICCV 2023, §3: a heat map an
    upsampler (and network), and below it a panel for each of four frequency bands. 0 dB is a band
    fitted whole; the dotted line is where fitting the noise ends. From the candidate pictures in
    ``snapshots/``, on the iterations that all runs of a series have; mean of the dB over pictures
    and seeds.
    """
    several = len({r.network for r in records}) > 1
    series, notes = fair(
        group(records, lambda r: f"{r.network}, {upsampler(r)}" if several else upsampler(r))
    )
    used = [run for runs in series.values() for run in runs]
    bins = _bins(used)
    found = {name: _Ratios(runs, bins) for name, runs in series.items()}
    noisy = [ratio for r in found.values() for ratio in r.noisy]
    lines, columns = grid(len(found))
    heights = (1.95 * lines, 2.3 + LEGEND_ROW * len(found) / 2)  # inches
    figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    _maps(upper, found, lines, columns)
    _bands(lower, found, noisy)
    rows = [row for name, ratios in found.items() for row in ratios.rows(name)]
    if noisy:
        mean = np.mean([_in_bands(n) for n in noisy], axis=0)
        rows += [
            {"panel": "band", "series": NOISY["label"], **_span(b, BANDS), "dB": m, "n": len(noisy)}
            for b, m in enumerate(mean)
        ]
    caption = (
        "Power of the output over that of the clean picture, by radial frequency; mean in dB over "
        "pictures and seeds. A column of a map is a snapshot; contours dashed below 0 dB."
    )
    return Drawing(figure, rows, caption, notes + mixed(series))


def density(picture: np.ndarray, bins: int) -> np.ndarray:
    """Power of a picture [C, H, W] in [0, 1] in rings of radial frequency, 0 to π rad/sample.

    Of the mean over channels, its mean removed, under a Hann window. π is Nyquist's along an axis;
    the corners beyond it are left out. The power of 8-bit rounding is added, so that a ratio exists
    where a picture has nothing.
    """
    grey = picture.mean(0, dtype=np.float64)
    window = np.outer(*map(np.hanning, grey.shape))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(*np.meshgrid(*(2 * np.fft.fftfreq(n) for n in grey.shape), indexing="ij"))
    ring = np.minimum((radius * bins).astype(int), bins)
    total = np.bincount(ring.ravel(), power.ravel(), bins + 1)[:bins]
    count = np.bincount(ring.ravel(), minlength=bins + 1)[:bins]
    return total + count * (window**2).sum() / (12 * 255**2)


class _Ratios:
    """Of one series: iterations, and ring powers of output and clean picture, run by run.

    ``output`` holds for each run [snapshots, 2, bins]: the candidate's powers and the clean ones;
    ``noisy`` [2, bins] for each run whose measurement has the clean picture's size.
    """

    def __init__(self, runs: list[Record], bins: int) -> None:
        kept = [run.run.snapshots() for run in runs]
        self.at = sorted(set.intersection(*map(set, kept)))
        if len(self.at) < 2:
            raise UserError(
                f"{runs[0].run.folder}: has fewer than two snapshots in common with the runs like "
                "it; give more --snapshots"
            )
        self.output, self.noisy = [], []
        for run, pictures in zip(runs, kept, strict=True):
            clean = _clean(run)
            target = density(clean, bins)
            powers = [density(_read(pictures[i]), bins) for i in self.at]
            self.output.append(np.array([[power, target] for power in powers]))
            measured = _read(run.run.file("noisy.png"))
            if measured.shape == clean.shape:  # of super-resolution it is smaller
                self.noisy.append(np.array([density(measured, bins), target]))

    def rings(self) -> np.ndarray:
        """Mean over runs of the ratio in dB [snapshots, bins]."""
        return np.mean([_dB(power) for power in self.output], axis=0)

    def bands(self) -> np.ndarray:
        """The same of whole bands [snapshots, BANDS]."""
        return np.mean([_in_bands(power) for power in self.output], axis=0)

    def rows(self, name: str) -> list[dict]:
        return [
            {"panel": panel, "series": name, "iteration": i, **_span(b, len(values)), "dB": value,
             "n": len(self.output)}
            for panel, table in (("map", self.rings()), ("band", self.bands()))
            for i, values in zip(self.at, table, strict=True)
            for b, value in enumerate(values)
        ]  # fmt: skip


def _read(path: Path) -> np.ndarray:
    return images.read(path).data


def _clean(record: Record) -> np.ndarray:
    path = record.run.file("clean.png")
    if not path.is_file():
        raise record.no_truth()
    return _read(path)


def _bins(records: list[Record]) -> int:
    """Rings that even the smallest picture fills: a multiple of BANDS, 32 at most."""
    side = min(min(_clean(record).shape[1:]) for record in records)
    return BANDS * int(np.clip(side // 16, 1, 8))


def _dB(powers: np.ndarray) -> np.ndarray:
    """[..., 2, bins] → [..., bins]: the first over the second, in dB."""
    return 10 * np.log10(powers[..., 0, :] / powers[..., 1, :])


def _in_bands(powers: np.ndarray) -> np.ndarray:
    """As ``_dB``, of powers summed over bands [..., BANDS]."""
    return _dB(powers.reshape(*powers.shape[:-1], BANDS, -1).sum(-1))


def _span(b: int, of: int) -> dict:
    """Where a ring or band lies, in units of π rad/sample."""
    return {"from": b / of, "to": (b + 1) / of}


# ---------------------------------------------------------------- drawing


class _Axis:
    """Iterations on an axis that is logarithmic but for its beginning, so that 0 has a place."""

    def __init__(self, iterations: set[int]) -> None:
        self.all = sorted(iterations)
        self.first = next((i for i in self.all if i > 0), 1)

    def __call__(self, iterations: list[int]) -> np.ndarray:
        return np.log10(1 + np.array(iterations) / self.first)

    def put(self, axes: Axes) -> None:
        """Ticks at the first snapshot's iteration, the last's, and others where there is room."""
        at = dict(zip(self.all, self(self.all), strict=True))
        shown = [self.all[0], self.all[-1]]
        room = 0.2 * (at[shown[1]] - at[shown[0]])
        for i in reversed(self.all):
            if all(abs(at[i] - at[other]) > room for other in shown):
                shown.append(i)
        names = [f"{i / 1000:.2g}k" if i >= 1000 else str(i) for i in shown]
        axes.set_xticks(self(shown), names)
        axes.set_xlabel("iteration")


def _maps(figure: SubFigure, found: dict[str, _Ratios], lines: int, columns: int) -> None:
    axis = _Axis({i for ratios in found.values() for i in ratios.at})
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for (name, ratios), axes in zip(found.items(), panels.flat, strict=False):
        table = ratios.rings().T  # [bins, snapshots]
        x = axis(ratios.at)
        edges = np.concatenate([[1.5 * x[0] - 0.5 * x[1]], (x[1:] + x[:-1]) / 2])
        edges = np.append(edges, 1.5 * x[-1] - 0.5 * x[-2])
        y = np.linspace(0, 1, len(table) + 1)
        mesh = axes.pcolormesh(
            edges, y, table, cmap=colormaps["RdBu_r"], vmin=-LIMIT, vmax=LIMIT, rasterized=True
        )
        lines_at = axes.contour(
            x, (y[1:] + y[:-1]) / 2, table, levels=CONTOURS, colors="black", linewidths=0.7
        )
        for text in axes.clabel(lines_at, fmt=_signed, fontsize=6, inline_spacing=2):
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
        axes.set_title("\n".join(shorten(part, 32) for part in name.split(", ", 1)))
        axis.put(axes)
        axes.tick_params(labelbottom=True)
    for axes in list(panels.flat)[len(found) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("frequency (×π)")
    figure.colorbar(
        mesh, ax=list(figure.axes), label="output / clean (dB)", extend="both", fraction=0.05
    )


def _signed(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _bands(figure: SubFigure, found: dict[str, _Ratios], noisy: list[np.ndarray]) -> None:
    axis = _Axis({i for ratios in found.values() for i in ratios.at})
    panels = figure.subplots(1, BANDS, sharex=True, sharey=True)
    for n, (name, ratios) in enumerate(found.items()):
        for b, axes in enumerate(panels):
            label = shorten(name, 40)
            axes.plot(axis(ratios.at), ratios.bands()[:, b], lw=1.5, label=label, **line(n))
    for b, axes in enumerate(panels):
        if noisy:
            level = np.mean([_in_bands(n)[b] for n in noisy])
            axes.axhline(level, **NOISY)
        span = _span(b, BANDS)
        axes.set_title(f"{span['from']:g}–{span['to']:g}π")
        axes.grid(alpha=0.3)
        axis.put(axes)
    panels[0].set_ylabel("output / clean (dB)")
    put_legend(figure, panels[0])
