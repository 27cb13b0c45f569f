"""A sweep as data: a YAML file of options and axes becomes a list of runs.

experiment: denoising          # denoising, inpainting or sr
figures: [upsampling]          # what is drawn of it at the end
comparison: [published, peers] # beside what its table is put, of these two
options: {num_iters: 3000}     # of every run, by the names of the flags
grid:                          # all combinations; a list of such mappings is their union
  seed: [7, 8]                 # an option and its values
  upsampling:                  # or labels and the options that each stands for
    bilinear: {upsample_mode: bilinear, progressive: true}
    none: {upsample_mode: None, progressive: false}
quick:                         # with --quick: other options, another grid
  options: {num_iters: 500}
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from .. import data
from ..comparison import KINDS
from ..documents import read_yaml
from ..errors import UserError, nearest
from ..experiment import Plan, folder_names, plan
from ..flags import Switches, check_below, fill
from ..options import DenoisingOptions, InpaintingOptions, Options, SuperResolutionOptions, suits
from ..prepare import resolve
from ..runs import method_folder, safe_name

EXPERIMENTS: dict[str, type[Options]] = {
    "denoising": DenoisingOptions,
    "inpainting": InpaintingOptions,
    "sr": SuperResolutionOptions,
}
MOST = 10_000  # points of a grid
_KEYS = ("experiment", "figures", "comparison", "options", "grid", "quick")


@dataclass
class Sweep:
    """What a sweep's file says: options of all runs, and the axes of the grid or grids."""

    path: Path
    experiment: type[Options]
    figures: list[str] = field(default_factory=list)
    comparison: list[str] = field(default_factory=list)
    options: dict = field(default_factory=dict)
    grids: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its labels, axis by axis, and the options as given."""

    labels: dict
    given: dict


def load(path: str | Path, quick: bool = False) -> Sweep:
    """Read a sweep's YAML file; with ``quick`` as its quick version.

    Raises:
        UserError: naming the file, and the key that will not do.
    """
    path = Path(path)
    try:
        loaded = read_yaml(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a YAML file ({error})") from error
    loaded = _mapping(path, "the file", loaded)
    _known(path, loaded, _KEYS)
    name = str(loaded.get("experiment", "denoising"))
    if name not in EXPERIMENTS:
        raise UserError(f"{path}: experiment {name}: {nearest(name, EXPERIMENTS)}")
    options = _mapping(path, "options", loaded.get("options"))
    grid = loaded.get("grid")
    if quick:
        if "quick" not in loaded:
            raise UserError(f"{path}: has no quick version")
        short = _mapping(path, "quick", loaded["quick"])
        _known(path, short, ("options", "grid"))
        options |= _mapping(path, "quick: options", short.get("options"))
        grid = short.get("grid", grid)
    grids = grid if isinstance(grid, list) else [grid]
    if not grids:
        raise UserError(f"{path}: grid is empty")
    grids = [_axes(path, g) for g in grids]
    _options_exist(path, EXPERIMENTS[name], options, grids)
    figures, beside = (_words(loaded.get(key)) for key in ("figures", "comparison"))
    for kind in beside:
        if kind not in KINDS:
            raise UserError(f"{path}: comparison: {kind}: {nearest(kind, KINDS)}")
    return Sweep(path, EXPERIMENTS[name], figures, beside, options, grids)


def _words(value) -> list[str]:
    return (
        [] if value is None else [str(v) for v in (value if isinstance(value, list) else [value])]
    )


def _mapping(path: Path, what: str, value) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} must hold `name: value` lines")
    return {str(k): v for k, v in value.items()}


def _known(path: Path, given: dict, known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{path}: unknown key {key}: {nearest(key, known)}")


def _options_exist(path: Path, cls: type[Options], options: dict, grids: list[dict]) -> None:
    known = [f.name for f in fields(cls)]
    points = [point for axes in grids for axis in axes.values() for point in axis.values()]
    for option in itertools.chain(options, *points):
        if option not in known:
            raise UserError(f"{path}: unknown option {option}: {nearest(option, known)}")


def _axes(path: Path, grid) -> dict[str, dict]:
    """Axis -> label -> options."""
    axes = {}
    for axis, values in _mapping(path, "grid", grid).items():
        if isinstance(values, dict):
            for label in values:  # YAML has dates and nothing, too, which config.yaml cannot hold
                if label is None or not suits("", label):
                    raise UserError(f"{path}: grid: {axis}: {label}: put the label in quotes")
            labels = {k: _mapping(path, f"grid: {axis}: {k}", v) for k, v in values.items()}
        else:
            values = values if isinstance(values, list) else [values]
            labels = {_label(v): {axis: v} for v in values}
        if not labels:
            raise UserError(f"{path}: grid: {axis} has no values")
        axes[axis] = labels
    return axes


def _label(value) -> str | int:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def cells(sweep: Sweep, typed: dict) -> list[Cell]:
    """All points of the grid, with what was ``typed`` as flags in the place of what is there.

    A flag takes the place of an axis that varies it and nothing else. Raises UserError for one that
    would leave two labels of an axis the same, or that only some of them set, and for an option
    that two axes set.
    """
    found = []
    for grid in sweep.grids:
        axes = {axis: _without(labels, typed, axis, sweep) for axis, labels in grid.items()}
        axes = {axis: labels for axis, labels in axes.items() if labels}
        count = math.prod(map(len, axes.values()))
        if count > MOST:
            raise UserError(f"{sweep.path}: grid has {count} combinations; {MOST} at most")
        for combination in itertools.product(*(labels.items() for labels in axes.values())):
            given = dict(sweep.options)
            set_by: dict[str, str] = {}
            for axis, (_, options) in zip(axes, combination, strict=True):
                for name, value in options.items():
                    if name in set_by:
                        raise UserError(f"{sweep.path}: {set_by[name]} and {axis} both set {name}")
                    given[name], set_by[name] = value, axis
            labels = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
            found.append(Cell(labels, given | typed))
    return found


def _without(labels: dict, typed: dict, axis: str, sweep: Sweep) -> dict:
    """An axis without the options that were typed; empty if it has no others."""
    left = {
        label: {o: v for o, v in options.items() if o not in typed}
        for label, options in labels.items()
    }
    if left == labels:
        return labels
    if not any(left.values()):
        return {}
    counts = {name: sum(name in options for options in labels.values()) for name in typed}
    varied = [name for name, count in counts.items() if 0 < count < len(labels)]
    if not varied and any(a == b for a, b in itertools.combinations(left.values(), 2)):
        varied = [name for name, count in counts.items() if count]
    if varied:
        raise UserError(f"--{varied[0]}: {sweep.path.name} varies it by {axis}; edit that file")
    return left


def _method(cell: Cell, o: Options) -> Path:
    """The folder of a cell's runs: its labels are the special name, but for what is there anyway.

    A number follows the name of its axis (``seed7``), a word stands alone (``bilinear``).
    """
    parts = [o.special] if o.special else []
    for axis, label in cell.labels.items():
        if axis not in ("folder_path", "model_type"):
            parts.append(safe_name(label if isinstance(label, str) else f"{axis}{label}"))
    return method_folder(o.save_folder, o.task, o.model_type, "_".join(parts))


WIDTH_OF_TEXTURE = "texture"  # as the value of ``dim``: the width that the picture's folder names


def plans(
    sweep: Sweep,
    typed: dict,
    save_folder: str,
    switches: Switches,
    elsewhere: tuple[str, str] | None = None,
) -> tuple[list[Plan], list[str]]:
    """Every run of the sweep, checked; nothing is written. The notes say what flags do not do.

    ``typed`` are flags, by name; without ``save_folder`` among them the runs go to the one given.
    ``elsewhere`` is as in ``experiment.plan``.

    Raises:
        UserError: an option, a picture or a folder that will not do.
    """
    if "runs" in typed or "runs" in sweep.options:
        raise UserError(
            "--runs: a sweep has --seeds for that; --noise_seed keeps the noise the same"
        )
    found: list[Plan] = []
    notes: dict[str, None] = {}
    places: dict[Path, list[tuple[data.Item, Options, dict]]] = {}
    seen: dict[str, dict] = {}
    # of pictures, which may overlap
    sets = {axis for axis, options in _points(sweep) if "folder_path" in options}
    sets = set() if "folder_path" in typed else sets
    for cell in cells(sweep, typed):
        if "save_folder" not in typed:
            check_below(str(sweep.path), cell.given.get("save_folder"))
        given = {"save_folder": save_folder, **cell.given}
        by_texture = given.get("dim") == WIDTH_OF_TEXTURE
        if by_texture:
            del given["dim"]
        options, said = fill(sweep.experiment, given)
        for item in data.resolve(options.folder_path):
            width = {"dim": [_width(item)]} if by_texture else {}
            resolved, unused = resolve(replace(options, **width))
            notes |= dict.fromkeys([*said, *([unused] if unused else [])])
            methods = {axis: label for axis, label in cell.labels.items() if axis not in sets}
            alike = replace(resolved, folder_path="") if sets else resolved
            _no_twin(sweep, typed, seen, methods, item, alike)
            here = places.setdefault(_method(cell, resolved), [])
            if (item, resolved, cell.labels) not in here:
                here.append((item, resolved, cell.labels))
    for folder, here in places.items():
        names = folder_names([item.name for item, _, _ in here])
        for name, (item, options, labels) in zip(names, here, strict=True):
            found += plan(options, [item], [folder / name], labels, switches, elsewhere)
    return found, [note for note in notes if any(f"--{flag} " in note for flag in typed)]


def _no_twin(
    sweep: Sweep, typed: dict, seen: dict, labels: dict, item: data.Item, o: Options
) -> None:
    """Raise UserError where two labels come to the very same run, as if it were two methods.

    seen: the labels of each run that was asked about before.
    """
    other = seen.setdefault(f"{item.path}\n{o}", labels)
    if other != labels:
        axis = next(a for a in {**labels, **other} if labels.get(a) != other.get(a))
        varied = {name for _, options in _points(sweep) for name in options}
        given = "".join(f", with --{name} as given" for name in typed if name in varied)
        raise UserError(
            f"{sweep.path}: {axis} {other.get(axis)} and {labels.get(axis)} are the same run of "
            f"{item.name}{given}: leave one out"
        )


def _points(sweep: Sweep) -> list[tuple[str, dict]]:
    """Every axis with the options of each of its labels."""
    axes = (pair for grid in sweep.grids for pair in grid.items())
    return [(axis, options) for axis, labels in axes for options in labels.values()]


def _width(item: data.Item) -> int:
    if item.label is None:
        raise UserError(
            f"dim: {WIDTH_OF_TEXTURE}: {item.path} is in no folder 32, 64 or 128 that tells its "
            "width; give --dim, or take pictures of texture-dip"
        )
    return item.label
