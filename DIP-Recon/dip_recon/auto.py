"""Noise level, network and stopping, chosen from the picture alone.

What is measured is put into words, so that a person can see why and overrule it. The width follows
the texture that rises above the noise ("The Devil is in the Upsampling", ICCV 2023, chooses it by
hand); what the rule rests on is in results/README.md, and ``benchmarks/width.py`` measures what
each width costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from . import models, noise, stopping
from .errors import UserError
from .operators import Mask
from .options import (
    METHOD_NOISE,
    DenoisingOptions,
    InpaintingOptions,
    Options,
    SuperResolutionOptions,
)
from .problem import Problem

SMALLEST = 8  # pixels a side
WHOLE = 192  # pixels a side up to which a picture is fitted as a whole
TILE = 128  # beyond, tiles have it sooner and better: a narrow network each, with a stop of its own
CLEAN = 0.7  # noise level (0-255) below which there is nothing to take away
SHARED = 2.0  # times that the flattest places vary more than white noise would have them
FLAT = 1.4  # times the deviation of the flattest places that such noise has elsewhere
FAITHFUL = 3.2  # most that is taken for such noise, for it may be texture: 38 dB
STRONG = 40.0  # noise level from which the input is shaken more, as the papers do at sigma 50
ENOUGH = 1000  # known pixels below which 3 % of them say too little
WIDE = 3.0  # texture, in units of the noise, from which 3000 iterations of the narrow one are few

DENOISING = DenoisingOptions(
    task="real_denoising", input_dim=64, dim=[32], num_iters=3000, stopping="held-out", mns_hold=10,
    exp_weight=0.98, iters_print_acc=500,
)  # fmt: skip

_HOURGLASS = {
    "model_type": "skip", "dim": [64], "num_scales": 5, "num_iters": 2000, "iters_print_acc": 500,
    "stopping": "held-out",
}  # fmt: skip
INPAINTING = InpaintingOptions(**_HOURGLASS, mask_type="file")
SUPER_RESOLUTION = SuperResolutionOptions(**_HOURGLASS)


def check_level(sigma: float | None, most: float, used: float) -> None:
    """Raise UserError for a noise level of more than ``most``, of 255, in a picture that uses
    ``used`` of its range."""
    if sigma and sigma > 255 * most:
        uses = f"the picture uses only {255 * used:.3g} of 255"
        raise UserError(f"--sigma {sigma:g}: {uses}; give less")


def check(size: tuple[int, int], given: dict, used: float = 1.0, halved: bool = False) -> None:
    """Raise UserError for a picture of ``size`` (H, W) that is too small to be denoised, and for a
    noise level ``given`` that it cannot have. used, halved: as for ``denoising``."""
    check_level(given.get("sigma"), used * (2 if halved else 1), used)
    if min(size) < SMALLEST:
        pixels = "×".join(map(str, size))
        raise UserError(f"{pixels} pixels: a picture wants at least {SMALLEST}×{SMALLEST}")


@dataclass(frozen=True)
class Choice:
    """What was chosen for a picture, and why.

    options: of the fit, complete but for what the network fills in. deviation, sigma: of the noise
    on the 0–255 scale, after clipping to [0, 1] and before. clean: whether there is no noise worth
    the name. reasons: lines for a person. measured: figures by name, for ``--explain``.
    """

    options: Options
    deviation: float
    sigma: float
    clean: bool = False
    reasons: list[str] = field(default_factory=list)
    measured: dict[str, str] = field(default_factory=dict)

    def tell(self, name: str, explain: bool, say: Callable[[str], None]) -> None:
        """Say why, and with ``explain`` from which measurements."""
        for reason in self.reasons:
            say(f"{name}: {reason}")
        if explain:
            for what, value in self.measured.items():
                say(f"  {what}: {value}")


def denoising(
    y: np.ndarray, given: dict | None = None, used: float = 1.0, halved: bool = False
) -> Choice:
    """Choose for the noisy picture ``y`` [C, H, W] in [0, 1].

    used: the share of its range that the picture used, before it was stretched to all of it.
    halved: whether it is of half the size, by means of 2×2 pixels, which halves the noise.
    ``given``: options that the user has set; what they say is not chosen. The sigma given, and the
    levels in the words, are of the picture as it was; those of the choice are of ``y``.
    Raises UserError for an option that will not do, and for a picture that is too small.
    """
    given = given or {}
    base = replace(DENOISING, **given)
    base.validate()
    check(y.shape[1:], given, used, halved)
    scale = used * (2 if halved else 1)  # of a level of y, as the picture was
    if given.get("sigma"):
        base = replace(base, sigma=given["sigma"] / scale)
    white, flat = noise.noise_level(y), noise.flat_level(y)
    shared = flat > SHARED * white  # neighbours share their noise
    if given.get("sigma"):
        sigma = base.sigma
        deviation = noise.clipped_deviation(y, sigma)
        said = f"noise level {given['sigma']:g} as given"
    elif shared:
        sigma = deviation = min(FLAT * flat, max(FAITHFUL / used, FLAT * white))
        said = f"noise level about {scale * sigma:.1f} of 255, shared by neighbouring pixels"
        if sigma < FLAT * flat:  # it may be texture
            most = f"{scale * FLAT * flat:.0f}"
            said += f" (--sigma {most} if the texture in the flattest places is noise)"
    else:
        deviation = white
        sigma = noise.before_clipping(y, deviation)
        said = f"noise level about {scale * sigma:.1f} of 255"
        if sigma > 1.15 * deviation:
            said += f", of which clipping has left {scale * deviation:.1f}"
    left = f"what clipping has left: {scale * deviation:.2f}"
    measured = {
        "noise level": f"{scale * sigma:.2f} ({left})",
        "by patches": f"{scale * white:.2f}",
        "by wavelets": f"{scale * noise.estimate_sigma(y):.2f}",
        "in the flattest places": f"{scale * flat:.2f}",
        "from dark to bright": ", ".join(f"{scale * s:.1f}" for s in noise.by_brightness(y)),
    }
    clean = sigma < CLEAN and not given.get("sigma")  # before clipping: where there is noise
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
    what = "much" if ratio >= WIDE else "some" if ratio >= 1 else "little"
    reasons = [f"{said}, {what} texture above it: {describe(options)}"]
    if noise.is_noise_alone(y, deviation):
        reasons.append("there seems to be nothing but noise in it: expect a flat picture")
    return Choice(options, deviation, sigma, clean, reasons, measured)


def filling(problem: Problem, base: Options, given: dict | None = None) -> Choice:
    """Choose for a picture with holes, or for a small one that is to be larger.

    base: ``INPAINTING`` or ``SUPER_RESOLUTION``; ``given`` as in ``denoising``. Pixels are held out
    as long as there are enough to be believed, else all the iterations are run.
    """
    given = given or {}
    options = fewer_scales(replace(base, **given), given, problem.size)
    if options.stopping in METHOD_NOISE and not options.sigma:
        raise UserError(
            f"--stopping {options.stopping}: is for denoising; "
            "give held-out, ES-WMV, ES-EMV or none"
        )
    options.validate()
    y = problem.y[0].numpy()
    h, w = problem.size
    measured = {}
    if isinstance(problem.A, Mask):
        mask = problem.A.mask[0].amin(0).numpy()
        known = int(mask.sum())
        furthest = distance_transform_edt(mask == 0).max(initial=0)
        share = 1 - known / mask.size
        what = f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
        what += " of the pixels are missing"
        what += f", at most {furthest:.0f} from one that is known"
        measured["missing"] = f"{mask.size - known} of {mask.size} pixels"
        measured["furthest from a known one"] = f"{furthest:.1f} pixels"
        sigma = deviation = 0.0  # what is known stays as it is
    else:
        known = y[0].size
        deviation = noise.noise_level(y) if min(y.shape[1:]) >= SMALLEST else 0.0
        sigma = noise.before_clipping(y, deviation)
        what = f"{y.shape[1]}×{y.shape[2]} to {h}×{w} pixels, noise level about {sigma:.1f} of 255"
        measured["noise level"] = f"{sigma:.2f} (what clipping has left: {deviation:.2f})"
    measured["pixels known"] = str(known)
    if known < ENOUGH and "stopping" not in given:
        options = replace(options, stopping="fixed")
    how = describe(options)
    if stopping.RULES[options.stopping].until:
        how += f", {options.num_iters} iterations at most"
    return Choice(options, deviation, sigma, reasons=[f"{what}: {how}"], measured=measured)


def fewer_scales(options: Options, given: dict, size: tuple[int, int]) -> Options:
    """``options``, with as many scales as a picture of ``size`` (H, W) has room for.

    n halvings want more than 2ⁿ pixels a side. What is in ``given`` stays as it is.
    """
    told = "num_scales" in given or len(options.dim or []) > 1  # a width each
    if told or options.model_type != INPAINTING.model_type:
        return options
    most = max(1, (min(size) - 1).bit_length() - 1)
    return replace(options, num_scales=min(options.num_scales, most))


def describe(o: Options) -> str:
    """The network and the rule in words."""
    width = f"{o.model_type} of width {o.dim[0]}" if o.dim else o.model_type
    if o.model_type == INPAINTING.model_type and o.num_scales < INPAINTING.num_scales:
        width += f" and {o.num_scales} scale" + "s" * (o.num_scales > 1)
    width += f" on tiles of {o.tile} pixels" if getattr(o, "tile", 0) else ""
    return f"{width}, {stopping.RULES[o.stopping].until or f'{o.num_iters} iterations'}"
