"""Noise level, network and stopping, chosen from the noisy picture alone.

What is measured is put into words, so that a person can see why and overrule it. The width follows
the texture that rises above the noise ("The Devil is in the Upsampling", ICCV 2023, chooses it by
hand); what the rule rests on is in results/README.md, and ``benchmarks/width.py`` measures what
each width costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from . import models, noise, stopping
from .errors import UserError
from .options import DenoisingOptions

SMALLEST = 8  # pixels a side
WHOLE = 192  # pixels a side up to which a picture is fitted as a whole
TILE = 128  # beyond, tiles have it sooner and better: a narrow network each, with a stop of its own
CLEAN = 0.7  # noise level (0-255) below which there is nothing to take away
SHARED = 2.0  # times that the flattest places vary more than white noise would have them
FLAT = 1.4  # times the deviation of the flattest places that such noise has elsewhere
FAITHFUL = 3.2  # most that is taken for such noise, for it may be texture: 38 dB
STRONG = 40.0  # noise level from which the input is shaken more, as the papers do at sigma 50
WIDE = 1.2  # texture, in units of the noise, from which the wider network is worth its time

DENOISING = DenoisingOptions(
    task="real_denoising", input_dim=64, dim=[32], num_iters=3000, stopping="held-out", mns_hold=10,
    exp_weight=0.98, iters_print_acc=500,
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What was chosen for a picture, and why.

    options: of the fit, complete but for what the network fills in. deviation, sigma: of the noise
    on the 0–255 scale, after clipping to [0, 1] and before. clean: whether there is no noise worth
    the name. reasons: lines for a person. measured: figures by name, for ``--explain``.
    """

    options: DenoisingOptions
    deviation: float
    sigma: float
    clean: bool
    reasons: list[str] = field(default_factory=list)
    measured: dict[str, str] = field(default_factory=dict)


def denoising(y: np.ndarray, given: dict | None = None) -> Choice:
    """Choose for the noisy picture ``y`` [C, H, W] in [0, 1].

    ``given``: options that the user has set; what they say is not chosen. Raises UserError for one
    that will not do, and for a picture that is too small.
    """
    given = given or {}
    base = replace(DENOISING, **given)
    base.validate()
    if min(y.shape[1:]) < SMALLEST:
        size = "×".join(map(str, y.shape[1:]))
        raise UserError(f"{size} pixels: a picture wants at least {SMALLEST}×{SMALLEST}")
    white, flat = noise.noise_level(y), noise.flat_level(y)
    shared = flat > SHARED * white  # neighbours share their noise
    if given.get("sigma"):
        sigma = given["sigma"]
        deviation = noise.clipped_deviation(y, sigma)
        said = f"noise level {sigma:g} as given"
    elif shared:
        sigma = deviation = min(FLAT * flat, max(FAITHFUL, FLAT * white))
        said = f"noise level about {sigma:.1f} of 255, shared by neighbouring pixels"
    else:
        deviation = white
        sigma = noise.before_clipping(y, deviation)
        said = f"noise level about {sigma:.1f} of 255"
        if sigma > 1.15 * deviation:
            said += f", of which clipping has left {deviation:.1f}"
    measured = {
        "noise level": f"{sigma:.2f} (what clipping has left: {deviation:.2f})",
        "by patches": f"{white:.2f}",
        "by wavelets": f"{noise.estimate_sigma(y):.2f}",
        "in the flattest places": f"{flat:.2f}",
        "from dark to bright": ", ".join(f"{s:.1f}" for s in noise.by_brightness(y)),
    }
    clean = deviation < CLEAN and not given.get("sigma")
    if clean:
        reasons = [f"{said}: there is no noise to take away"]
        return Choice(base, deviation, sigma, clean, reasons, measured)
    ratio = noise.texture(y, deviation)
    measured["texture above the noise"] = f"{ratio:.2f} (the wider network from {WIDE:g})"
    chosen = {"dim": [64 if ratio >= WIDE else 32]}
    chosen["reg_noise_std"] = 1 / 20 if sigma >= STRONG else 1 / 30
    chosen |= models.get(base.model_type).recipe
    if max(y.shape[1:]) > WHOLE:
        chosen |= {"tile": TILE}
    if shared:  # pixels held out would be told by their neighbours
        chosen |= {"stopping": "AMNS", "sigma": sigma}
    options = replace(base, **{k: v for k, v in chosen.items() if k not in given})
    what = "much" if ratio >= WIDE else "little"
    reasons = [f"{said}, {what} texture above it: {describe(options)}"]
    if noise.is_noise_alone(y, deviation):
        reasons.append("there seems to be nothing but noise in it: expect a flat picture")
    return Choice(options, deviation, sigma, clean, reasons, measured)


def describe(o: DenoisingOptions) -> str:
    """The network and the rule in words."""
    width = f"{o.model_type} of width {o.dim[0]}" if o.dim else o.model_type
    width += f" on tiles of {o.tile} pixels" if o.tile else ""
    return f"{width}, {stopping.RULES[o.stopping].until or f'{o.num_iters} iterations'}"
