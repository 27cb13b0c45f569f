"""Ways to double a feature map, by name: interpolation, learnt, or a fixed low-pass filter.

Liu et al., "The Devil is in the Upsampling" (ICCV 2023), §4 and Fig. 4, take upsampling apart into
zero insertion and a low-pass filter, and show that the filter's stop band decides how well an
untrained network denoises. ``LPF1`` … ``LPF6`` are that paper's filters. Two further spellings
make new ones: ``taps:0.25,0.5,0.25`` and ``kaiser:60,0.4,0.2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, nearest
from .layers import Size, cut, plain_float32, reflect_pad, several

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
SPELLINGS = "or write a filter: taps:0.25,0.5,0.25 or kaiser:60,0.4,0.2 (dB, cut-off, transition)"
MAX_TAPS = 255


@dataclass(frozen=True)
class Upsampler:
    """What is known of an upsampler: taps (1-D, DC gain 1, None if not a filter), learnt or not."""

    name: str
    summary: str
    taps: tuple[float, ...] | None = None
    learnt: bool = False


def _mirrored(*left_half: float) -> tuple[float, ...]:
    """Taps of a symmetric filter of odd length from its first half, centre included."""
    return left_half + left_half[-2::-1]


def _unit_gain(taps: tuple[float, ...]) -> tuple[float, ...]:
    """Scale taps so that they sum to 1."""
    total = math.fsum(taps)
    return tuple(t / total for t in taps)


# Liu et al. 2023, Fig. 4 and the authors' published filter tables, before normalisation.
PUBLISHED_TAPS: dict[str, tuple[str, tuple[float, ...]]] = {
    "LPF1": ("2 taps, nearest neighbour, -3 dB at 0.50π", (0.5, 0.5)),
    "LPF2": ("3 taps, bilinear-like, -3 dB at 0.36π", _mirrored(0.25, 0.5)),
    "LPF3": (
        "7 taps, below -20 dB from 0.65π, -3 dB at 0.46π",
        _mirrored(-0.1070, 0.0, 0.3389, 0.5360),
    ),
    "LPF4": (
        "17 taps, below -39 dB from 0.50π, -3 dB at 0.32π",
        _mirrored(
            *(0.002745, 0.014011, 0.011312, -0.021707, -0.055602, -0.021802),
            *(0.112306, 0.280146, 0.357183),
        ),
    ),
    "LPF41": (
        "LPF4 with taps rounded to four digits",
        _mirrored(0.0027, 0.0140, 0.0113, -0.0217, -0.0556, -0.0218, 0.1123, 0.2801, 0.3572),
    ),
    "LPF14": (
        "7 taps, -13 dB at 0.75π, -3 dB at 0.50π",
        _mirrored(-0.0054, -0.0518, 0.2554, 0.6036),
    ),
    "LPF15": (
        "9 taps, -17 dB at 0.75π, -3 dB at 0.50π",
        _mirrored(0.0105, -0.0263, -0.0518, 0.2763, 0.5826),
    ),
    "LPF5": (
        "17 taps, below -55 dB from 0.75π, -3 dB at 0.41π",
        _mirrored(
            *(-0.001921, -0.004291, 0.009947, 0.021970, -0.022680, -0.073998),
            *(0.034907, 0.306100, 0.459933),
        ),
    ),
    "LPF6": (
        "17 taps, below -90 dB from 0.50π, -3 dB at 0.12π",
        _mirrored(
            *(0.000015, 0.000541, 0.003707, 0.014130, 0.037396, 0.075367),
            *(0.121291, 0.159962, 0.175182),
        ),
    ),
}

_TABLE = {
    u.name: u
    for u in (
        Upsampler("nearest", "repeats every pixel"),
        Upsampler("bilinear", "interpolates linearly"),
        Upsampler("bicubic", "interpolates cubically"),
        Upsampler("transposed", "2×2 transposed convolution of stride 2, learnt", learnt=True),
        Upsampler("None", "no upsampling at all (decoders only)"),
        *(
            Upsampler(name, summary, _unit_gain(taps))
            for name, (summary, taps) in PUBLISHED_TAPS.items()
        ),
    )
}


def names() -> list[str]:
    """All upsamplers with a name; a ``taps:`` or ``kaiser:`` spec can stand wherever these can."""
    return list(_TABLE)


def get(spec: str | None) -> Upsampler:
    """Look up a name, or read a ``taps:`` or ``kaiser:`` spec.

    ``taps:a,b,…`` gives any filter; its taps must not sum to zero. ``kaiser:A,c[,t]`` designs a
    low-pass filter by the Kaiser window method (scipy's kaiserord and firwin): A dB of
    attenuation in the stop band, cut-off c and width t of the transition (0.2 if left out) in
    units of π rad/sample on the doubled grid. Raises UserError for anything else.
    """
    spec = str(spec)
    if spec in _TABLE:
        return _TABLE[spec]
    kind, _, numbers = spec.partition(":")
    if kind not in ("taps", "kaiser"):
        raise UserError(f"--upsample_mode {spec}: {nearest(spec, _TABLE)}; {SPELLINGS}")
    try:
        values = tuple(float(v) for v in numbers.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise UserError(f"--upsample_mode {spec}: takes numbers with commas between; {SPELLINGS}")
    if kind == "taps":
        return Upsampler(spec, f"{len(values)} taps as given", _given_taps(spec, values))
    taps = _kaiser_taps(spec, values)
    return Upsampler(spec, f"{len(taps)} taps, {values[0]:g} dB, cut-off {values[1]:g}π", taps)


def _given_taps(spec: str, values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) > MAX_TAPS:
        raise UserError(f"--upsample_mode {spec}: takes at most {MAX_TAPS} taps")
    if abs(math.fsum(values)) <= 1e-6 * math.fsum(map(abs, values)):
        raise UserError(f"--upsample_mode {spec}: the taps sum to zero, so this is no low-pass")
    return _unit_gain(values)


def _kaiser_taps(spec: str, values: tuple[float, ...]) -> tuple[float, ...]:
    from scipy.signal import firwin, kaiserord

    if len(values) not in (2, 3):
        raise UserError(f"--upsample_mode {spec}: takes two or three numbers; {SPELLINGS}")
    attenuation, cutoff, width = (*values, 0.2)[:3]
    if not 8 <= attenuation <= 200:
        raise UserError(f"--upsample_mode {spec}: the attenuation must be 8 to 200 dB")
    if width <= 0 or cutoff - width / 2 < 0 or cutoff + width / 2 > 1:
        raise UserError(
            f"--upsample_mode {spec}: cut-off ± half the transition ({width:g}) must lie in 0 to 1"
        )
    count, beta = kaiserord(attenuation, width)
    count += 1 - count % 2  # odd, so that the filter is centred on a pixel
    if count > MAX_TAPS:
        raise UserError(
            f"--upsample_mode {spec}: needs {count} taps, more than {MAX_TAPS}: "
            "widen the transition or ask for less attenuation"
        )
    return _unit_gain(tuple(firwin(count, cutoff, window=("kaiser", beta)).tolist()))


def taps(spec: str | None) -> Tensor | None:
    """The filter's taps, 1-D float32 with sum 1, or None if ``spec`` is no filter."""
    found = get(spec).taps
    return None if found is None else torch.tensor(found, dtype=torch.float32)


def doubles(spec: str | None) -> bool:
    """True if ``spec`` can only multiply the size by two, False if it can reach any size."""
    return str(spec) == "transposed" or get(spec).taps is not None


class Interpolate(nn.Module):
    """Nearest, bilinear or bicubic interpolation to ``size``, or by two; nothing to learn."""

    def __init__(self, mode: str, align_corners: bool = False):
        super().__init__()
        self.mode = mode
        self.align_corners = None if mode == "nearest" else align_corners

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        if tuple(x.shape[-2:]) == tuple(size):
            return x
        double = tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1])
        large = double and x.numel() >= 2**15  # below that it makes no difference
        if large and self.mode == "bilinear" and not self.align_corners and plain_float32(x):
            return _doubled(x)
        return F.interpolate(x, size=size, mode=self.mode, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return self.mode


def _doubled(x: Tensor) -> Tensor:
    """Bilinear interpolation by two as a depthwise transposed convolution: in half the time.

    Between pixels lie 1/4 and 3/4 of the way; beyond the edge the map goes on as it ends.
    """
    channels = x.shape[1]
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel = torch.outer(line, line).expand(channels, 1, 4, 4)
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(x, kernel, stride=2, padding=3, groups=channels)


class Transposed(nn.ConvTranspose2d):
    """Learnt 2×2 transposed convolution of stride 2, cut to ``size`` at the right and bottom."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        return _cut(super().forward(x), size)


class FixedFilter(nn.Module):
    """Zero insertion, then a separable depthwise low-pass filter of gain 2 an axis.

    Liu et al. 2023, §4. The edges are reflected on the zero-inserted grid, with the alignment of
    ``padding="same"`` (an even filter reaches one pixel further to the right and bottom).
    Computed in float32 under autocast too, returned in x's precision. The taps are a buffer:
    never learnt, not in the state dict. Cut to ``size`` at the right and bottom.
    """

    def __init__(self, channels: int, kernel: Tensor):
        super().__init__()
        self.channels = channels
        self.register_buffer("taps", kernel, persistent=False)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        # Taps rounded to bfloat16 lose up to 30 dB of the stop band; and PyTorch's (2.13, CPU)
        # bfloat16 depthwise convolution can hang on wide channels_last kernels of 15 taps or more.
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
            out = self._filter(x.float()).to(x.dtype)
        return _cut(out, size)

    def _filter(self, x: Tensor) -> Tensor:
        count = self.taps.numel()
        before = (count - 1) // 2
        after = count - 1 - before
        kernel = (2.0 * self.taps.float()).expand(self.channels, 1, count)
        x = reflect_pad(_insert_zeros(x, 2), 0, 0, before, after)
        x = F.conv2d(x, kernel.unsqueeze(3), groups=self.channels)  # [N, C, 2H, W]
        x = reflect_pad(_insert_zeros(x, 3), before, after, 0, 0)
        return F.conv2d(x, kernel.unsqueeze(2), groups=self.channels)  # [N, C, 2H, 2W]

    def extra_repr(self) -> str:
        return f"{self.channels}, taps={self.taps.numel()}"


class Keep(nn.Module):
    """No upsampling: the map as it is."""

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        return x


def _insert_zeros(x: Tensor, dim: int) -> Tensor:
    """Put a zero after every sample along ``dim``, in x's own memory order (it is faster)."""
    if several(x):  # has no such order
        pads = (0, 1) if dim == 3 else (0, 0, 0, 1)
        return F.pad(x.unsqueeze(dim + 1), pads).flatten(dim, dim + 1)
    shape = list(x.shape)
    shape[dim] *= 2
    last = x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order).zero_()
    (out[:, :, ::2] if dim == 2 else out[..., ::2]).copy_(x)
    return out


def _cut(x: Tensor, size: Size | None) -> Tensor:
    if size is None:
        return x
    return cut(x, 0, max(x.shape[-1] - size[1], 0), 0, max(x.shape[-2] - size[0], 0))


def make(spec: str | None, channels: int, align_corners: bool = False) -> nn.Module:
    """Build the upsampler ``spec`` for maps of ``channels`` channels.

    Its ``forward(x, size=None)`` takes [N, channels, H, W] to [N, channels, *size]: interpolation
    to exactly ``size``, the rest to (2H, 2W) cut to ``size``; (2H, 2W) without ``size``. ``None``
    returns x itself. ``align_corners`` is for bilinear and bicubic. Raises UserError.
    """
    info = get(spec)
    if info.name in INTERPOLATIONS:
        return Interpolate(info.name, align_corners)
    if info.name == "transposed":
        return Transposed(channels)
    if info.taps is None:
        return Keep()
    return FixedFilter(channels, taps(spec))


def frequency_response(spec: str, n: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Frequency response on the doubled grid of what follows zero insertion, at DC gain 1.

    Returns ``n`` frequencies from 0 to 1 in units of π rad/sample, and the magnitude there in dB
    (never below -300). Interpolation is a filter too: its taps are its answer to one bright
    pixel. Raises UserError for ``transposed``, which is learnt, and for ``None``.
    """
    info = get(spec)
    if info.name in INTERPOLATIONS:
        line = torch.zeros(1, 1, 1, 15, dtype=torch.float64)
        line[..., 7] = 1.0
        kernel = make(spec, 1)(line, size=(1, 30)).flatten().numpy() / 2
    elif info.taps is not None:
        kernel = np.array(info.taps)
    else:
        raise UserError(f"--upsample_mode {spec}: has no fixed frequency response")
    w = np.linspace(0.0, 1.0, n)
    magnitude = np.abs(np.exp(-1j * np.pi * np.outer(w, np.arange(kernel.size))) @ kernel)
    return w, 20 * np.log10(np.maximum(magnitude, 1e-15))
