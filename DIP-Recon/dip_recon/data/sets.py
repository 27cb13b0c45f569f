"""The data sets: source, licence and manifest of each, and the folder they live in.

A manifest ``manifests/<name>.csv`` has a line a file: ``path`` relative to the data folder,
``bytes``, ``sha256``, and ``url`` relative to the base address of the set's source.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import UserError, nearest

MANIFESTS = Path(__file__).parent / "manifests"
CHECKOUT = Path(__file__).parents[2]  # the folder DIP-Recon, when run from a checkout


@dataclass(frozen=True)
class Source:
    """Where a set comes from. base: the address that a manifest's ``url`` is relative to."""

    description: str
    base: str
    home: str
    licence: str
    citation: str


@dataclass(frozen=True)
class DataSet:
    """What ``info`` tells: ``bytes`` of all ``files``, and whether all of them are ``here``."""

    name: str
    description: str
    files: int
    bytes: int
    source: str
    licence: str
    citation: str
    here: bool


@dataclass(frozen=True)
class Entry:
    """A line of a manifest, checked: ``path`` and ``url`` are relative and stay below."""

    path: str
    bytes: int
    sha256: str
    url: str


def _github(repository: str, commit: str) -> dict[str, str]:
    return {
        "base": f"https://raw.githubusercontent.com/{repository}/{commit}",
        "home": f"https://github.com/{repository}/tree/{commit}",
    }


_DEVIL = _github(
    "YilinLiu97/FasterDIP-devil-in-upsampling", "402747e956087bd83e56176036fa202645ab91d3"
)
_DIP = _github("DmitryUlyanov/deep-image-prior", "042e0d4c1e93f4b1eb0932781de55b8cff5e0f40")
_SELFEX = _github("jbhuang0604/SelfExSR", "master")
_POLYU = _github("csjunxu/PolyU-Real-World-Noisy-Images-Dataset", "master")

_RESEARCH = "the pictures keep their owners' terms, use them for research; repository under "
_UNSTATED = "none stated in the repository; use for research"

SETS: dict[str, Source] = {
    "bundled": Source(
        "the pictures inside scikit-image's wheel: nothing to download",
        base="",
        home="https://scikit-image.org/docs/stable/api/skimage.data.html",
        licence="public domain or CC0, but for a few: see skimage/data/README.txt",
        citation="van der Walt et al., scikit-image: image processing in Python, PeerJ 2014",
    ),
    "set9": Source(
        "9 colour pictures, 256² to 768×512: denoising",
        licence=_RESEARCH + "MIT",
        citation="Dabov et al., Image denoising by sparse 3-D transform-domain collaborative "
        "filtering, TIP 2007",
        **_DEVIL,
    ),
    "texture-dip": Source(
        "86 pictures of CBSD68, Set9 and Set12, each in the folder of the width that suits it",
        licence=_RESEARCH + "MIT",
        citation="Liu et al., The devil is in the upsampling: architectural decisions made simpler "
        "for denoising with deep image prior, ICCV 2023",
        **_DEVIL,
    ),
    "texture-dip-repeat": Source(
        "the pictures of texture-dip in every width that suits them: 110 files",
        licence=_RESEARCH + "MIT",
        citation="Liu et al., The devil is in the upsampling: architectural decisions made simpler "
        "for denoising with deep image prior, ICCV 2023",
        **_DEVIL,
    ),
    "bernoulli11": Source(
        "11 grey pictures, 256² and 512²: half the pixels missing",
        licence=_RESEARCH + "MIT",
        citation="Papyan et al., Convolutional dictionary learning via local processing, ICCV 2017",
        **_DEVIL,
    ),
    "set5": Source(
        "5 pictures, high and low resolution: super-resolution ×4",
        licence=_UNSTATED,
        citation="Bevilacqua et al., Low-complexity single-image super-resolution based on "
        "nonnegative neighbor embedding, BMVC 2012",
        **_SELFEX,
    ),
    "set14": Source(
        "14 pictures, high and low resolution: super-resolution ×4",
        licence=_UNSTATED,
        citation="Zeyde et al., On single image scale-up using sparse-representations, 2010",
        **_SELFEX,
    ),
    "polyu": Source(
        "100 crops of photographs, noisy and the mean of many shots: real noise",
        licence=_UNSTATED,
        citation="Xu et al., Real-world noisy image denoising: a new benchmark, 2018",
        **_POLYU,
    ),
    "dip-demos": Source(
        "the demonstrations of Deep Image Prior: snail, F16, zebra, kate, library, vase, cave",
        licence=_RESEARCH + "Apache-2.0",
        citation="Ulyanov et al., Deep image prior, CVPR 2018",
        **_DIP,
    ),
}

# In scikit-image's wheel; a release that has one of them not is served with the others.
BUNDLED = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "page.png",
    "text.png",
    "coins.png",
)


def names() -> list[str]:
    """The names of all data sets, ``bundled`` first."""
    return list(SETS)


def info(name: str, root: str | os.PathLike | None = None) -> DataSet:
    """What the set ``name`` is, and whether it is here (by the sizes of its files).

    Raises UserError for an unknown name.
    """
    source = source_of(name)
    if name == "bundled":
        files = bundled_files()
        sizes = [file.stat().st_size for file in files]
        here = bool(files)
    else:
        folder = data_root(root)
        entries = manifest(name)
        sizes = [entry.bytes for entry in entries]
        here = all(has_size(folder / entry.path, entry.bytes) for entry in entries)
    return DataSet(
        name=name,
        description=source.description,
        files=len(sizes),
        bytes=sum(sizes),
        source=source.home,
        licence=source.licence,
        citation=source.citation,
        here=here,
    )


def verify(name: str, root: str | os.PathLike | None = None) -> list[str]:
    """Problems of the set ``name`` as it lies here, a line each; none if every hash is right.

    Raises UserError for an unknown name.
    """
    source_of(name)
    if name == "bundled":
        here = {file.name for file in bundled_files()}
        return [f"{file}: not in this scikit-image" for file in BUNDLED if file not in here]
    folder = data_root(root)
    problems = []
    for entry in manifest(name):
        file = folder / entry.path
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif not has_size(file, entry.bytes):
            problems.append(f"{file}: {file.stat().st_size} bytes instead of {entry.bytes}")
        elif sha256(file) != entry.sha256:
            problems.append(f"{file}: wrong content (sha256)")
    return problems


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of the data sets: ``root``, else the variable DIP_RECON_DATA, else DIP-Recon/data
    of the checkout this runs from, else the user's cache folder. It need not exist."""
    chosen = root or os.environ.get("DIP_RECON_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if CHECKOUT.name == "DIP-Recon" and (CHECKOUT / "data" / "README.md").is_file():
        return CHECKOUT / "data"
    try:
        import pooch
    except ImportError:  # without it nothing can have been downloaded either
        return Path.home() / ".cache" / "dip-recon"
    return Path(pooch.os_cache("dip-recon"))


def source_of(name: str) -> Source:
    """The source of the set ``name``; raises UserError for an unknown one."""
    if name not in SETS:
        raise UserError(f"no data set is called {name!r}: {nearest(name, SETS)}")
    return SETS[name]


def manifest(name: str) -> list[Entry]:
    """The files of the set ``name``. Raises UserError for a line that is not well-formed or whose
    path or url would leave the folder."""
    file = MANIFESTS / f"{name}.csv"
    entries = []
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            path, url = row.get("path") or "", row.get("url") or ""
            size, digest = row.get("bytes") or "", row.get("sha256") or ""
            if not (_stays_below(path) and _stays_below(url)):
                raise UserError(f"{file}: line {number}: {path!r} or {url!r} leaves the folder")
            if not size.isdecimal() or not re.fullmatch("[0-9a-f]{64}", digest):
                raise UserError(f"{file}: line {number}: bytes or sha256 is no such thing")
            entries.append(Entry(path, int(size), digest, url))
    return entries


def _stays_below(path: str) -> bool:
    """Whether ``path`` is relative, plain, and without ``..``, for POSIX and Windows alike."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and ".." not in parts
        and not re.search(r'[\\:*?"<>|\x00-\x1f]', path)
    )


def bundled_files() -> list[Path]:
    """The files of ``bundled`` that the installed scikit-image has."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [folder / name for name in BUNDLED if (folder / name).is_file()]


def has_size(file: Path, size: int) -> bool:
    """Whether ``file`` is there with ``size`` bytes."""
    return file.is_file() and file.stat().st_size == size


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
