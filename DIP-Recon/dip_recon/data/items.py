"""From a name, a folder or a file to pictures, with the partner of each where sets have pairs.

Pairs are known by the published naming, in a data set and in any folder alike:
``X_SRF_4_HR`` and ``X_SRF_4_LR``; ``X_real`` (noisy) and ``X_mean`` (clean); ``X`` and ``X_mask``.
A folder called 32, 64 or 128 labels its pictures with the width that suits them (Texture-DIP).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import UserError, nearest
from ..images import is_picture_name, list_pictures
from .sets import (
    SETS,
    bundled_files,
    data_root,
    has_size,
    manifest,
    source_of,
)

_SRF = re.compile(r"(?P<base>.+)_SRF_(?P<factor>\d+)_(?P<side>HR|LR)", re.IGNORECASE)
_WIDTHS = ("32", "64", "128")


@dataclass(frozen=True)
class Item:
    """A picture to work on.

    name: unique among the items it came with. path: the noisy one of a noisy/clean pair, the high
    one of a high/low pair, else the picture itself. factor: how much smaller ``low`` is. mask: the
    picture of known pixels. label: the width of network that suits the texture.
    """

    name: str
    path: Path
    noisy: Path | None = None
    clean: Path | None = None
    high: Path | None = None
    low: Path | None = None
    factor: int | None = None
    mask: Path | None = None
    label: int | None = None


def resolve(name_or_folder: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Item]:
    """The pictures of a data set, of a folder (not below it, but for 32/64/128), or of one file.

    ``NAME/ITEM`` gives one picture of a set, such as ``bundled/astronaut``, and ``NAME/PATTERN``
    those that match, such as ``set9/kodim*``; the patterns of Texture-DIP may begin with a width,
    as in ``texture-dip/32/*`` or ``texture-dip/*/Set12_*``. A data set's name goes before a folder
    of the same name; write ``./set5`` for the folder.

    Raises UserError for an unknown name that is no folder, a set that is not downloaded, and a
    folder without pictures.
    """
    text = os.fspath(name_or_folder)
    if text in SETS:
        return _items(_files_of(text, root))
    path = Path(text)
    if path.is_file():
        return _items([path])
    if path.is_dir():
        return _items(_folder(path))
    name, _, wanted = text.partition("/")
    if name in SETS and wanted:
        items = _items(_files_of(name, root))
        found = [item for item in items if _matches(item, wanted)]
        if not found:
            choices = nearest(wanted, [item.name for item in items])
            raise UserError(f"data set {name!r} has no picture {wanted!r}: {choices}")
        return found
    raise UserError(f"{text!r} is neither a folder nor a data set: {nearest(text, SETS)}")


def _matches(item: Item, pattern: str) -> bool:
    """Whether a picture's name, or its width and name, match ``pattern`` (*, ? and […])."""
    names = {item.name, f"{item.label}/{item.name}"}
    if item.label is not None:  # a picture of two widths has the width before its name
        names |= {item.path.stem, f"{item.label}/{item.path.stem}"}
    return any(fnmatchcase(name, pattern) for name in names)


def _files_of(name: str, root: str | os.PathLike | None) -> list[Path]:
    """The files of the set ``name``; UserError unless all of them are here."""
    source_of(name)
    if name == "bundled":
        return bundled_files()
    folder = data_root(root)
    entries = manifest(name)
    missing = [entry for entry in entries if not has_size(folder / entry.path, entry.bytes)]
    if missing:
        raise UserError(
            f"data set {name!r}: {len(missing)} of {len(entries)} files are not in {folder}; "
            f"run: dip-recon data download {name}"
        )
    return [folder / entry.path for entry in entries]


def _folder(folder: Path) -> list[Path]:
    """The pictures in a folder; of a folder with 32, 64 and 128 in it, those in them."""
    own = any(is_picture_name(file) for file in folder.iterdir())
    widths = [] if own else [folder / width for width in _WIDTHS if (folder / width).is_dir()]
    return [file for part in widths or [folder] for file in list_pictures(part)]


def _items(files: list[Path]) -> list[Item]:
    """Files -> items, in the order of the files, partners put together."""
    at = {(file.parent, file.stem.lower()): file for file in files}

    def partner(file: Path, stem: str) -> Path | None:
        return at.get((file.parent, stem.lower()))

    def follows(file: Path) -> bool:
        """Whether the file is the second of a pair, and so comes with the first."""
        head, tail = file.stem[:-5], file.stem[-5:].lower()
        first = {"_mean": head + "_real", "_mask": head}.get(tail)
        return first is not None and partner(file, first) is not None

    items = []
    for file in files:
        stem = file.stem
        scaled = _SRF.fullmatch(stem)
        if scaled:
            is_high = scaled["side"].upper() == "HR"
            other = partner(file, stem[:-2] + ("LR" if is_high else "HR"))
            if is_high or not other:  # else the low one comes with the high one
                high, low = (file, other) if is_high else (None, file)
                factor = int(scaled["factor"])
                items.append(Item(scaled["base"], file, high=high, low=low, factor=factor))
        elif stem.lower().endswith("_real") and (clean := partner(file, stem[:-5] + "_mean")):
            items.append(Item(stem[:-5], file, noisy=file, clean=clean))
        elif not follows(file):
            label = int(file.parent.name) if file.parent.name in _WIDTHS else None
            items.append(Item(stem, file, mask=partner(file, stem + "_mask"), label=label))
    return _with_unique_names(items)


def _with_unique_names(items: list[Item]) -> list[Item]:
    """Give items of one name the folder before it, and if need be the suffix behind it."""
    longer: list[Callable[[Item], str]] = [
        lambda item: item.name,
        lambda item: f"{item.path.parent.name}_{item.name}",
        lambda item: f"{item.path.parent.name}_{item.path.stem}_{item.path.suffix[1:]}",
    ]
    candidates = [[name(item) for name in longer] for item in items]
    counts = [Counter(column) for column in zip(*candidates, strict=True)]
    unique = []
    for item, options in zip(items, candidates, strict=True):
        free = [o for o, count in zip(options, counts, strict=True) if count[o] == 1]
        unique.append(Item(**{**vars(item), "name": (free or options[-1:])[0]}))
    return unique
