"""Which options tell runs apart: found by comparing their config.yaml files."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from ..options import NOT_IN_THE_NUMBERS
from .records import Record, natural

# Runs are averaged over these, or they say where and how often to look.
IGNORED = {
    *NOT_IN_THE_NUMBERS, "image", "picture_sha256", "texture", "seed", "noise_seed", "device",
    "labels", "upsample_taps", "eval_every",
}  # fmt: skip
# What was measured tells runs apart before how it was fitted.
FIRST = ("model_type", "noise_sigma", "poisson_scale", "zero_fraction", "sr_factor")
# A width may be chosen by the picture (its texture); it is no other method then.
WIDTHS = ("dim", "up_dim", "skip_dim", "input_dim")
SHORT = {
    "model_type": "network",
    "dim": "width",
    "up_dim": "width up",
    "skip_dim": "skip width",
    "input_dim": "input channels",
    "num_scales": "scales",
    "num_skips": "skips",
    "num_layers": "layers",
    "upsample_mode": "upsampling",
    "noise_method": "input",
    "input_image_name": "input picture",
    "reg_noise_std": "jitter",
    "num_iters": "iterations",
    "exp_weight": "averaging",
    "noise_sigma": "sigma",
    "sigma": "sigma told",
}


def methods(records: Iterable[Record]) -> tuple[list[str], dict[tuple, list[Record]]]:
    """The options that split the runs into methods, and the runs by their values.

    ``model_type`` always comes first, then what was measured, then the fit's in the order of
    config.yaml. Of options that vary together the first is taken. Keys are the values in the order
    of the options, in natural order.
    """
    records = list(records)
    names = dict.fromkeys([*FIRST, *(key for r in records for key in r.config)])
    chosen: list[str] = []
    groups: dict[tuple, list[Record]] = {(): records}
    for name in names:
        if name in IGNORED:
            continue
        finer: dict[tuple, list[Record]] = {}
        for values, runs in groups.items():
            by_picture = _by_picture(runs, name)
            for run in runs:
                value = None if by_picture else _value(run, name)
                finer.setdefault((*values, value), []).append(run)
        if len(finer) > len(groups) or name == "model_type":
            chosen, groups = [*chosen, name], finer
    return chosen, dict(sorted(groups.items(), key=lambda item: natural(item[0])))


def mixed(series: dict[Hashable, list[Record]]) -> list[str]:
    """A note that names the options in which the runs of one series differ, if they do."""
    found: dict[str, set[str]] = {}
    for runs in series.values():
        names, _ = methods(runs)
        for name in names:
            values = {show(_value(run, name)) or "unset" for run in runs}
            if len(values) > 1:
                found.setdefault(name, set()).update(values)
    told = [f"{name} ({', '.join(sorted(values, key=natural))})" for name, values in found.items()]
    return [f"averaged over runs that differ in {' and '.join(told)}"] if told else []


def shown(records: list[Record], name: str) -> str:
    """An option's value in a method's runs, for people; a range where it goes by the picture."""
    values = sorted({_value(run, name) for run in records}, key=natural)
    return "–".join(dict.fromkeys([show(values[0]), show(values[-1])]))


def show(value) -> str:
    """An option's value for people: empty for none."""
    if isinstance(value, tuple):
        value = value[:1] if len(set(value)) == 1 else value
        return " ".join(map(show, value))
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(record: Record, name: str) -> Hashable:
    value = record.config.get(name)
    if isinstance(value, list):
        return tuple(value) or None
    return value if isinstance(value, Hashable) else str(value)


def _by_picture(records: list[Record], name: str) -> bool:
    """Whether ``name`` is a width of which no picture has had two."""
    values: dict[tuple, set] = {}
    for record in records:
        values.setdefault(record.picture, set()).add(_value(record, name))
    return name in WIDTHS and all(len(v) == 1 for v in values.values())
