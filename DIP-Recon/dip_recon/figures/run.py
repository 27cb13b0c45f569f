"""The two pictures of one run: what it did, side by side, and how it got there."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .. import images
from ..runs import Run
from .style import BLUE, GREY, ORANGE, PLAIN, save


def draw_run(run: Run) -> None:
    """Draw ``comparison.png`` and ``curves.png`` into a finished run's folder, where missing."""
    missing = {"comparison.png": comparison, "curves.png": curves}
    missing = {name: draw for name, draw in missing.items() if not (run.folder / name).is_file()}
    if "curves.png" in missing and len(run.history()) <= 1:
        del missing["curves.png"]  # a tiled run has no one line of iterations
    with rc_context(PLAIN):
        for name, draw in missing.items():
            save(draw(run), run.folder / name, dpi=100)
    if missing:
        gc.collect()  # figures hold themselves: run after run it would be 40 MB more


def comparison(run: Run) -> Figure:
    """Measurement, result and, if known, the clean picture; below each a detail, enlarged."""
    result = run.result()
    restored = _read(run.file("restored.png"))
    measured = "measured, enlarged" if result["task"] == "sr" else "measured"
    panels = [(measured, _read(run.file("noisy.png")), result.get("psnr_noisy"))]
    panels += [("restored", restored, result.get("psnr_stopped"))]
    if (run.folder / "clean.png").is_file():
        panels += [("clean", _read(run.file("clean.png")), None)]
    height, width = restored.shape[:2]
    top, left, side = _detail(restored)
    wide = 3.4
    tall = wide * height / width
    figure = Figure(figsize=(wide * len(panels) + 0.2, tall + wide + 0.75))
    grid = figure.add_gridspec(
        2, len(panels), height_ratios=(tall, wide), left=0.01, right=0.99, top=0.94, bottom=0.01,
        wspace=0.03, hspace=0.03,
    )  # fmt: skip
    for column, (title, picture, psnr) in enumerate(panels):
        scale = picture.shape[0] / height  # a low-resolution measurement is smaller
        whole = figure.add_subplot(grid[0, column])
        whole.set_title(title if psnr is None else f"{title}, {psnr:.2f} dB", fontsize=11)
        whole.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        corner, edge = np.array([left, top]) * scale - 0.5, side * scale
        box = {"fill": False, "edgecolor": "white", "linewidth": 1.2}
        whole.add_patch(Rectangle(tuple(corner), edge, edge, **box))
        detail = figure.add_subplot(grid[1, column])
        rows, cols = (
            _span(at, side, scale, n) for at, n in zip((top, left), picture.shape[:2], strict=True)
        )
        detail.imshow(
            picture[rows, cols], cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
        )
        for axes in (whole, detail):
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def curves(run: Run) -> Figure:
    """Loss and PSNRs along the iterations, with the stop and the oracle marked."""
    rows, result = run.history(), run.result()
    at = [row["iteration"] for row in rows]
    known = rows[-1]["psnr_gt"] is not None
    averaged = run.config().get("exp_weight") != 0
    shown = "moving average" if averaged else "output"
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if known and averaged:
        axes.plot(at, [r["psnr_gt"] for r in rows], color=ORANGE, lw=0.8, alpha=0.7,
                  label="output against clean")  # fmt: skip
    if known:
        axes.plot(at, [r["psnr_gt_sm"] for r in rows], color=BLUE, lw=2,
                  label=f"{shown} against clean")  # fmt: skip
    axes.plot(at, [r["psnr_noisy"] for r in rows], color=GREY, lw=1.4, ls="--",
              label=f"{shown} against measurement")  # fmt: skip
    stop, rule = result.get("stop_iteration"), result.get("stopping")
    if stop is not None:
        axes.axvline(stop, color="black", lw=1, ls=":", label=f"stopped at {stop} ({rule})")
    best, best_at = result.get("psnr_oracle"), result.get("oracle_iteration")
    if known and None not in (best, best_at):
        label = f"oracle{' of the average' * averaged}: {best:.2f} dB at {best_at}"
        axes.plot(best_at, best, "o", mfc="none", color="black", label=label)
    axes.set(
        xlabel="iteration", ylabel="PSNR (dB)", title=f"{result['image']}, {result['model_type']}"
    )
    axes.set_ylim(bottom=max(5, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


def _read(path: Path) -> np.ndarray:
    """A PNG as [H, W] grey or [H, W, 3]."""
    x = images.read(path).data
    return x[0] if x.shape[0] == 1 else np.moveaxis(x, 0, -1)


def _span(start: int, side: int, scale: float, limit: int) -> slice:
    """``start`` to ``start + side``, scaled: at least a pixel, within ``limit``."""
    first = min(round(start * scale), limit - 1)
    return slice(first, max(round((start + side) * scale), first + 1))


def _detail(picture: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of the square with most detail, a quarter of the shorter side."""
    grey = picture.mean(-1) if picture.ndim == 3 else picture
    change = np.hypot(*np.gradient(grey)) if min(grey.shape) > 1 else np.zeros_like(grey)
    side = max(min(grey.shape) // 4, min(8, *grey.shape))
    step = max(side // 4, 1)
    tops = range(0, grey.shape[0] - side + 1, step)
    lefts = range(0, grey.shape[1] - side + 1, step)
    corners = [(change[t : t + side, c : c + side].mean(), t, c) for t in tops for c in lefts]
    _, top, left = max(corners)
    return top, left, side
