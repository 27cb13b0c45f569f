"""Writing the page: one folder that opens from disk, without a server or a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import __version__
from ..comparison import quoted
from ..errors import UserError
from ..figures.records import load
from ..files import atomic_folder, clean, resolved
from ..runs import Run, check_writable, make_folder
from .contents import FACETS, contents
from .pictures import NAME, Pictures

HERE = Path(__file__).parent
MARKER = '<meta name="generator" content="dip-recon report">'  # by it a page of ours is known
DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers', which nobody misses
OURS = {"index.html", "data.js", "assets", "pictures", ".nojekyll"}


def write(
    folders: Iterable[str | Path],
    output: str | Path,
    article: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a page of all finished runs at or below ``folders`` and return its index.html.

    ``output`` becomes a folder with index.html, data.js, assets/ and pictures/. A page that is
    there is replaced, whole or not at all. ``article``: explain the method below the runs. Notes,
    such as on runs left out, go to ``say``. The same runs give the same bytes.

    Raises:
        UserError: a folder without finished runs, a damaged run, an ``output`` that holds other
            files or cannot be written, or Jinja2 is not installed.
    """
    folders, output = list(map(Path, folders)), Path(output)
    template = _template()
    records = load(folders)
    _check_output(output)
    left = _unfinished(folders)
    if left:
        names = ", ".join(map(str, left[:3])) + (" …" if len(left) > 3 else "")
        say(f"{len(left)} unfinished run{'s' * (len(left) != 1)} left out: {names}")
    target = resolved(output)  # a link to the folder stays one
    make_folder(target.parent)
    clean(target.parent)
    with atomic_folder(target) as page:
        shutil.copytree(HERE / "assets", page / "assets")
        for name in ("page.css", "page.js"):
            shutil.copyfile(HERE / "page" / name, page / "assets" / name)
        (page / ".nojekyll").touch()  # GitHub Pages: serve the files as they are
        runs = contents(records, Pictures(page))
        given = {"facets": FACETS, "runs": runs}
        (page / "data.js").write_text(f"window.dipRecon = {_json(given)};\n", encoding="utf-8")
        html = template.render(
            runs=runs,
            facets=FACETS,
            article=article,
            marker=MARKER,
            published=quoted("bernoulli11", "50 % missing"),
            version=__version__,
            pictures=len({run["facets"][0] for run in runs}),
            columns=_columns(runs),
        )
        (page / "index.html").write_text(html, encoding="utf-8")
    return output / "index.html"


def _template():
    """The page's template. Raises UserError, naming the extra, if Jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError("report: run: pip install 'dip-recon[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("index.html")


def _columns(runs: list[dict]) -> list[dict]:
    """The table: a column's title, its cells' texts, and the numbers that it is sorted by."""
    facets = [
        {"title": title, "kind": None, "cells": [(run["facets"][n], None) for run in runs]}
        for n, title in enumerate(FACETS)
        if any(run["facets"][n] for run in runs)
    ]
    numbers = (
        ("Measured", "measured", lambda run: run["psnr"]["measurement"], ".2f"),
        ("Restored", "restored", lambda run: run["psnr"]["restored"], ".2f"),
        ("SSIM", "ssim", lambda run: run["ssim"], ".3f"),
        ("Oracle", "oracle", lambda run: run["oracle"][1], ".2f"),
        ("Stopped at", "stop", lambda run: run["stop"], ",.0f"),
        ("Parameters", "parameters", lambda run: run["parameters"], ",.0f"),
        ("Seconds", "seconds", lambda run: run["seconds"], ",.0f"),
    )
    figures = [
        {
            "title": title,
            "kind": kind,
            "cells": [("–" if (v := get(run)) is None else f"{v:{form}}", v) for run in runs],
        }
        for title, kind, get, form in numbers
        if any(get(run) is not None for run in runs)
    ]
    return facets + figures


def _json(value) -> str:
    """JSON that may stand in any script: no tag can be closed or opened in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _unfinished(folders: Iterable[Path]) -> list[Path]:
    """Folders of runs that were begun and have no result yet, each once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("config.yaml")):
            if not Run(path.parent).finished:
                found.setdefault(path.parent.resolve(), path.parent)
    return list(found.values())


def _strangers(page: Path) -> list[str]:
    """What lies in the folders of a page and was not put there with it, by its name in the page."""
    own = {path.name for path in (HERE / "assets").iterdir()} | {"page.css", "page.js"}
    found = [path for path in sorted((page / "assets").glob("*")) if path.name not in own]
    found += [
        path for path in sorted((page / "pictures").glob("*")) if not NAME.fullmatch(path.name)
    ]
    return [str(path.relative_to(page)) for path in found if path.name not in DROPPINGS]


def _check_output(output: Path) -> None:
    """Raise UserError unless ``output`` is free, empty or a page of ours, and can be written."""
    target = resolved(output)
    if Path.cwd().is_relative_to(target):
        raise UserError(f"--output {output}: is the current folder, or holds it; choose another")
    if target.is_dir():
        there = sorted(path.name for path in target.iterdir() if path.name not in DROPPINGS)
        index = target / "index.html"
        ours = index.is_file() and MARKER in index.read_text(encoding="utf-8", errors="replace")
        others = [name for name in there if name not in OURS or not ours] or _strangers(target)
        if others:
            raise UserError(
                f"--output {output}: holds {others[0]}, which is no part of such a page; "
                "choose a new folder"
            )
    elif target.exists():
        raise UserError(f"--output {output}: is a file; give a folder's name")
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"--output {output}: {parent} is a file; choose another folder")
    check_writable(target.parent)
