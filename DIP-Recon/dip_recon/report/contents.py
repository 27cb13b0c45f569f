"""What a page says of its runs: plain data from run folders, for the templates and page.js."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..data import sets
from ..errors import UserError
from ..figures.methods import SHORT, methods, shown
from ..figures.records import Record, group, natural, upsampler
from ..runs import read_csv
from .pictures import Pictures

FACETS = ("Picture", "Task", "Network", "Upsampling", "Settings")  # what a run is chosen by
TASKS = {
    "denoising": "denoising",
    "real_denoising": "denoising, real noise",
    "inpainting": "inpainting",
    "sr": "super-resolution",
}
CURVES = ("loss", "psnr_noisy", "psnr_gt", "psnr_gt_sm")
POINTS = 400  # of a curve: about as many as the plot has pixels
# Where files were is nobody's business on a page that is published; versions are listed by name.
FILES = ("folder_path", "mask_path", "input_image_name")
UNLISTED = ("save_folder", "labels", "versions", "image", "upsample_taps")


def contents(records: list[Record], pictures: Pictures) -> list[dict]:
    """One dict a run, in natural order of its facets; see ``page.js`` for who reads what."""
    facets = _facets(records)
    ordered = sorted(records, key=lambda record: natural(facets[record]))
    names = _names(ordered)
    return [_run(record, facets[record], names[record], pictures) for record in ordered]


def _facets(records: list[Record]) -> dict[Record, tuple[str, ...]]:
    """The values of FACETS of each run; no two runs have all alike."""
    found: dict[Record, tuple[str, ...]] = {}
    labels = _picture_labels(records)
    first = {
        r: (labels[r.picture], TASKS.get(_task(r), _task(r)), r.network, upsampler(r))
        for r in records
    }
    for place, runs in group(records, lambda r: first[r]).items():
        taken: dict[str, int] = {}
        settings = _differing(runs)
        for run in runs:
            label = settings[run]
            taken[label] = taken.get(label, 0) + 1
            if taken[label] > 1:  # alike in all that is known of them
                label = f"{label} ({taken[label]})".strip()
            found[run] = (*place, label)
    return found


def _task(record: Record) -> str:
    return str(record.result.get("task"))


def _picture_labels(records: list[Record]) -> dict[tuple[str, str], str]:
    """A name for each picture: its own, numbered where two different pictures share it."""
    labels: dict[tuple[str, str], str] = {}
    taken = {record.picture[0] for record in records}
    for name, sha in sorted({record.picture for record in records}):
        if any(other == name for other, _ in labels):
            numbered = (f"{name} ({n})" for n in itertools.count(2))
            labels[name, sha] = next(label for label in numbered if label not in taken)
        else:
            labels[name, sha] = name
        taken.add(labels[name, sha])
    return labels


def _differing(runs: list[Record]) -> dict[Record, str]:
    """In what each of some similar runs differs from the others, such as ``width 64, seed 7``."""
    names, groups = methods(runs)
    seeds = len({run.seed for run in runs}) > 1
    labels = {}
    for these in groups.values():
        for run in these:
            parts = [
                f"{SHORT.get(name, name.replace('_', ' '))} {shown(these, name) or 'unset'}"
                for name in names[1:]  # the network, which comes first, is the same in all
            ]
            labels[run] = ", ".join(parts + [f"seed {run.seed}"] * seeds)
    return labels


def _names(records: Iterable[Record]) -> dict[Record, str]:
    """A name for each run's link: task, method and picture as its folders have them, each once.

    Folders further up say where somebody keeps files, and stay out of it.
    """
    names: dict[Record, str] = {}
    taken: dict[str, int] = {}
    for record in records:
        *_, task, method, picture = ("", "", *record.run.folder.resolve().parts)
        if task != _task(record) or not method.startswith(record.network):
            task, method = _task(record), record.network
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{task}-{method}-{picture}")
        taken[name] = taken.get(name, 0) + 1
        names[record] = name if taken[name] == 1 else f"{name}~{taken[name]}"
    return names


def _run(record: Record, facets: tuple[str, ...], name: str, pictures: Pictures) -> dict:
    run, result = record.run, record.result
    kinds = {kind: pictures.add(run.file(f"{kind}.png")) for kind in ("clean", "noisy", "restored")}
    known = [size for size in map(pictures.size, kinds.values()) if size]
    tiles = _tiles(run.file("tiles.csv"))
    history = record.history
    return {
        "id": name,
        "facets": facets,
        "size": pictures.size(kinds["restored"]) or (max(known) if known else None),
        "clean": kinds["clean"],
        "measurement": kinds["noisy"],
        "restored": kinds["restored"],
        "psnr": {
            "measurement": _number(record, "psnr_noisy"),
            "restored": _number(record, "psnr_stopped"),
        },
        "enlarged": _task(record) == "sr",
        "stop": result.get("stop_iteration"),
        "oracle": [_number(record, "oracle_iteration"), _number(record, "psnr_oracle")],
        "ending": _ending(result, tiles),
        "ssim": _number(record, "ssim_stopped"),
        "parameters": _number(record, "parameters"),
        "seconds": _number(record, "seconds"),
        "moments": _moments(record, pictures, kinds["restored"]),
        # a tiled run has one row, which says nothing of how it got there
        "history": _curves(record) if len(history) > 1 and not tiles else None,
        "tiles": tiles,
        "settings": _settings(record.config),
    }  # fmt: skip


def _ending(result: dict, tiles: list | None) -> str:
    """In words, when a run stopped and by what."""
    stop, rule = result.get("stop_iteration"), result.get("stopping")
    ran = result.get("iterations")
    lost = result.get("gave_up")  # of tiles, how many
    if tiles:
        stops = [tile[4] for tile in tiles]
        span = f"{min(stops)} to {max(stops)} iterations" if min(stops) < max(stops) else (
            f"{stops[0]} iterations"
        )  # fmt: skip
        given_up = f"; {lost:.0f} of them given up" if lost else ""
        return f"{len(tiles)} tiles, {span} each{given_up}"
    if lost:
        return f"given up after {ran} iterations: the fit was lost again and again"
    if rule in (None, "fixed"):
        return f"after all {ran} iterations"
    if result.get("stopped_by_rule") is False:
        return f"from iteration {stop} of {ran}; {rule} had not settled yet"
    return f"stopped at iteration {stop} of {ran} by {rule}"


def _moments(record: Record, pictures: Pictures, restored: str | None) -> list[dict]:
    """The pictures along the iterations, in order: snapshots, and the result where it stopped."""
    levels = {int(row["iteration"]): row["psnr_gt_sm"] for row in record.history}
    stop = record.result.get("stop_iteration")
    moments = [
        {"at": at, "src": pictures.add(path), "psnr": _rounded(levels.get(at))}
        for at, path in record.run.snapshots().items()
        if at != stop or not restored
    ]
    if moments and restored and stop is not None:
        psnr = _number(record, "psnr_stopped")
        moments.append({"at": stop, "src": restored, "psnr": psnr, "result": True})
    return sorted(moments, key=lambda moment: moment["at"])


def _curves(record: Record) -> dict[str, list]:
    """The columns of history.csv for the plot, thinned; the marked iterations stay."""
    rows = record.history
    step = -(-len(rows) // POINTS)
    marked = {record.result.get("stop_iteration"), record.result.get("oracle_iteration")}
    marked |= {rows[-1]["iteration"], *record.run.snapshots()}
    kept = [row for n, row in enumerate(rows) if n % step == 0 or row["iteration"] in marked]
    columns = {name: [_rounded(row[name]) for row in kept] for name in CURVES}
    known = {name: c for name, c in columns.items() if any(v is not None for v in c)}
    if columns["psnr_gt"] == columns["psnr_gt_sm"]:  # no average was taken
        known.pop("psnr_gt", None)
    return {"iteration": [int(row["iteration"]) for row in kept], **known}


def _tiles(path: Path) -> list[list[int]] | None:
    """Top, bottom, left, right and stop of each tile of a tiled run; None for another."""
    if not path.is_file():
        return None
    keys = ("top", "bottom", "left", "right", "stop_iteration")
    try:
        tiles = [[int(row[key]) for key in keys] for row in read_csv(path)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged; run it again with --overwrite") from error
    return tiles or None


def _settings(config: dict) -> list[tuple[str, str]]:
    """What config.yaml says, for people: what is unset is left out, and where files were."""
    versions = config.get("versions")
    items = [(k, v) for k, v in config.items() if k not in UNLISTED]
    named = {k: k if k == "threads" else f"{k} version" for k in versions or {}}
    items += [(named[k], v) for k, v in (versions or {}).items()]
    known = ((k, v) for k, v in items if v is not None and v != [])
    return [(str(k), _shown(_file(v) if k in FILES else v)) for k, v in known]


def _file(value) -> str:
    """The last part of a path; pictures of a data set with its name before it."""
    parts = [part for part in re.split(r"[/\\]", str(value)) if part] or [""]
    if len(parts) > 1 and parts[0] in sets.names():
        return f"{parts[0]}/{parts[-1]}"
    return parts[-1]


def _shown(value) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute():
            return path.name
    return text


def _number(record: Record, key: str) -> float | None:
    return _rounded(record.figure_of(key))


def _rounded(value: float | None) -> float | None:
    """Six digits, an integer where it is one; None for nothing and for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")
