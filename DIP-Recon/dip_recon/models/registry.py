"""Networks by name: a decorator that registers a builder, and what can be asked of all of them.

A builder is a function with keyword-only arguments. ``in_channels``, ``out_channels``,
``in_size`` and ``out_size`` come from the experiment; every other argument is an option that a
user can set, with its default. Adding a network is writing one such function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import UserError, nearest
from .layers import Size

SKIP_INPUT_DIM = 32  # channels of z in Ulyanov et al. 2018, supplementary material
LARGEST_SIDE = 2**14  # beyond this a failure is not for want of pixels
_GIVEN = ("in_channels", "out_channels", "in_size", "out_size")
_ENTRIES: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """One registered network.

    ``fixed`` holds the options that the name pins. ``small_input(out_size, **options)`` gives the
    input size of a progressive decoder, and is None for networks whose input is full size.
    ``recipe`` has the network's own defaults of the fit's options, such as ``lr``, which stand in
    the place of the experiment's where the user has not given the flag.
    """

    name: str
    summary: str
    source: str
    builder: Callable[..., nn.Module] = field(repr=False)
    fixed: dict[str, object] = field(default_factory=dict)
    small_input: Callable[..., Size] | None = field(default=None, repr=False)
    recipe: dict[str, object] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, object]:
        """Option names and their defaults, in the order of the builder's signature."""
        parameters = inspect.signature(self.builder).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in _GIVEN}

    @property
    def progressive(self) -> bool:
        """True if the network can start from a small input (``--progressive True``)."""
        return self.small_input is not None

    def resolve(self, options: Mapping[str, object]) -> dict[str, object]:
        """All options of this network: ``options`` over the defaults.

        A pinned option may be given at its pinned value. Raises UserError for any other value
        of it and for an unknown option.
        """
        chosen = self.options
        for key, value in options.items():
            if key in chosen:
                chosen[key] = value
            elif key not in self.fixed:
                hint = nearest(key, [*chosen, *self.fixed])
                raise UserError(f"{self.name} has no option {key!r}: {hint}")
            elif value != self.fixed[key]:
                raise UserError(f"--{key} {value}: {self.name} pins it at {self.fixed[key]}")
        return chosen

    def input_dim(self, options: Mapping[str, object] | None = None) -> int:
        """Default number of input channels: ``dim`` for decoders, 32 for all others."""
        return self.resolve(options or {})["dim"] if self.progressive else SKIP_INPUT_DIM


def register(
    name: str,
    *,
    summary: str,
    source: str,
    fixed: Mapping[str, object] | None = None,
    small_input: Callable[..., Size] | None = None,
    recipe: Mapping[str, object] | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: make a builder known as ``name``. A name can be taken only once (ValueError)."""

    def add(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _ENTRIES:
            raise ValueError(f"a network called {name!r} is registered already")
        pinned, fit = dict(fixed or {}), dict(recipe or {})
        _ENTRIES[name] = Entry(name, summary, source, builder, pinned, small_input, fit)
        return builder

    return add


def names() -> list[str]:
    """Names of all registered networks, in the order of registration."""
    return list(_ENTRIES)


def get(name: str) -> Entry:
    """The network registered as ``name``; UserError with the nearest name if there is none."""
    if name not in _ENTRIES:
        raise UserError(f"--model_type {name}: {nearest(name, _ENTRIES)}")
    return _ENTRIES[name]


def build(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
    **options: object,
) -> nn.Module:
    """Build a network with fresh weights, in training mode.

    Its forward takes [N, in_channels, *in_size] to [N, out_channels, *out_size], values in
    [0, 1] with ``need_sigmoid``. Weights have PyTorch's default distributions and are drawn on
    the CPU, so they are the same on every device. With ``generator`` they follow from it alone
    (it advances by one draw) and PyTorch's global generator is left untouched; without it they
    come from the global one. Raises UserError for an unknown name or option and for a value out
    of range.
    """
    entry = get(name)
    chosen = entry.resolve(options)
    given = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "in_size": tuple(in_size),
        "out_size": tuple(out_size),
    }
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return entry.builder(**given, **chosen)
    if generator is None and torch.device(device).type == "cpu":
        return entry.builder(**given, **chosen)
    if generator is None:
        return entry.builder(**given, **chosen).to(device)
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device).item()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        network = entry.builder(**given, **chosen)
    return network.to(device)


def input_size(name: str, out_size: Size, progressive: bool, **options: object) -> Size:
    """Size of the network's input for a picture of ``out_size``.

    Full size, or with ``progressive`` a small map for decoders: ceil(out / 32) a side where the
    upsampling can reach any size, ceil(out / 2^(num_layers - 1)) where every layer doubles
    (the same for the published 6 layers). Raises UserError if the network cannot start small.
    """
    entry = get(name)
    chosen = entry.resolve(options)
    if not progressive:
        return tuple(out_size)
    if entry.small_input is None:
        able = ", ".join(n for n, e in _ENTRIES.items() if e.progressive)
        raise UserError(f"--progressive True: {name} takes a full-size input; only for {able}")
    return entry.small_input(tuple(out_size), **chosen)


def check_size(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    out_size: Size,
    **options: object,
) -> None:
    """Raise UserError if the picture is too small for the network, or it gives another size.

    The network is run in training mode on the meta device, which computes shapes and nothing
    else. If that fails, the least square that works is searched for in the same way and named.
    """
    in_size, out_size = tuple(in_size), tuple(out_size)
    progressive = in_size != out_size

    def failure(in_size: Size, out_size: Size) -> Exception | None:
        given = {"in_channels": in_channels, "out_channels": out_channels}
        given |= {"in_size": in_size, "out_size": out_size}
        network = build(name, **given, device="meta", **options)
        try:
            out = network(torch.empty(1, in_channels, *in_size, device="meta"))
        except (RuntimeError, ValueError) as error:
            return error
        if out.shape != (1, out_channels, *out_size):
            raise UserError(
                f"{name}: gives {tuple(out.shape)} where {(1, out_channels, *out_size)} is wanted"
            )
        return None

    def works(side: int) -> bool:
        square = (side, side)
        return failure(input_size(name, square, progressive, **options), square) is None

    error = failure(in_size, out_size)
    if error is None:
        return
    high = 1
    while not works(high):
        high *= 2
        if high > LARGEST_SIDE:
            raise UserError(f"{name}: cannot be built with these options ({error})") from error
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)

    scales = {**get(name).fixed, **get(name).resolve(options)}.get("num_scales")
    depth = "" if scales is None else f" ({scales} scales)"
    mend = "fewer --num_scales" if "num_scales" in get(name).options else "another --model_type"
    raise UserError(
        f"the picture is {out_size[0]}×{out_size[1]} but {name}{depth} needs at least "
        f"{high}×{high}: choose {mend} or a larger picture"
    ) from error


def count_parameters(
    name: str, *, in_channels: int | None = None, out_channels: int = 3, **options: object
) -> int:
    """Number of trainable parameters; nothing is allocated.

    ``in_channels`` is the network's own default where it is not given.
    """
    entry = get(name)
    chosen = entry.resolve(options)
    out_size = (256, 256)
    small = entry.progressive and str(chosen["upsample_mode"]) != "None"
    network = build(
        name,
        in_channels=entry.input_dim(options) if in_channels is None else in_channels,
        out_channels=out_channels,
        in_size=input_size(name, out_size, small, **options),
        out_size=out_size,
        device="meta",
        **options,
    )
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
