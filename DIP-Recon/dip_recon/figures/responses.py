"""Frequency responses of upsampling filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..files import atomic


def draw_responses(responses: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Plot name → (frequency in units of π rad/sample, magnitude in dB) into a picture file."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    styles = ["-", "--", ":", "-."]
    for n, (name, (frequency, magnitude)) in enumerate(responses.items()):
        axes.plot(frequency, magnitude, ls=styles[n // 8 % 4], lw=1.4, label=name)
    axes.axvline(0.5, color="grey", lw=0.8, label="edge of the images of ×2")
    axes.set(
        xlabel="frequency (×π rad/sample)", ylabel="magnitude (dB)", ylim=(-110, 6), xlim=(0, 1)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120)
