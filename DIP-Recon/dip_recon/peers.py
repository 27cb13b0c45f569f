"""Methods without a network, measured on the very picture that a run was given, from its folder.

NLM is scikit-image's, BM3D (CBM3D on colour) that of the package ``bm3d``; both are told the noise
level that was added. The folder's noisy.png is rounded to 8 bits, which adds noise of 0.29 of 255:
0.001 dB at sigma 25. What was measured is kept in the folder, as peers.json.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.restoration import denoise_nl_means

from . import images, metrics
from .runs import Run

MISSING = 'BM3D is left out: pip install "dip-recon[peers]"'


def measure(run: Run, sigma: float) -> tuple[dict[str, float], list[str]]:
    """PSNR in dB of each peer against the clean picture of a finished run, and notes.

    sigma: of the Gaussian noise that was added, 0-255, above 0. The names are ``NLM`` and ``BM3D``
    or ``CBM3D``; without the package the latter is absent and a note says so.
    Raises UserError where the folder lacks a picture.
    """
    found = run.peers()
    noisy = run.file("noisy.png")
    y = images.read(noisy).data
    bm3d = "CBM3D" if len(y) == 3 else "BM3D"
    methods: dict[str, Callable | None] = {"NLM": nlm, bm3d: bm3d_function()}
    new = {
        name: round(_psnr(run, method(np.moveaxis(y, 0, -1), sigma / 255)), 4)
        for name, method in methods.items()
        if method is not None and name not in found
    }
    if new:
        found |= new
        run.write_peers(found)
    return {name: found[name] for name in methods if name in found}, (
        [] if bm3d in found else [MISSING]
    )


def _psnr(run: Run, restored: np.ndarray) -> float:
    """Of [H, W, C] against clean.png, in dB."""
    clean = np.moveaxis(images.read(run.file("clean.png")).data, 0, -1)
    return metrics.psnr(restored.astype(np.float32), clean)


def nlm(y: np.ndarray, s: float, strength: float = 0.6) -> np.ndarray:
    """Non-local means of [H, W, C] in [0, 1] with noise of deviation ``s``, on the same scale.

    Patches, and ``strength`` in units of ``s``, are those that did best on House and Baboon at
    sigma 25.
    """
    settings = {"patch_size": 5, "patch_distance": 6, "h": strength * s, "sigma": s}
    found = denoise_nl_means(y, channel_axis=-1, fast_mode=True, **settings)
    return found.reshape(y.shape)  # a single channel comes without its axis


def bm3d_function() -> Callable[[np.ndarray, float], np.ndarray] | None:
    """BM3D for [H, W, C] and ``s`` as ``nlm`` takes them; None without the package."""
    try:
        import bm3d
    except ImportError:
        return None

    def apply(y: np.ndarray, s: float) -> np.ndarray:
        found = bm3d.bm3d_rgb(y, s) if y.shape[2] == 3 else bm3d.bm3d(y[..., 0], s)
        return np.asarray(found).reshape(y.shape)

    return apply
