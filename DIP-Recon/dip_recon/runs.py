"""The run folder: the only door to the disk for results.

``<save_folder>/<task>/<model_type>[_<special>]/`` holds ``log.txt`` and ``results.csv``, and in it
one folder a picture: ``config.yaml``, ``history.csv``, ``checkpoint.pt`` while it runs,
``snapshots/``, ``noisy.png``, ``clean.png``, ``restored.png`` and, last of all, ``result.json``.
Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import csv
import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml

from .errors import UserError
from .files import atomic, cannot_write

HISTORY = ("iteration", "seconds", "loss", "psnr_noisy", "psnr_gt", "psnr_gt_sm", "ssim_gt_sm")
RESULTS = ("ID", "PSNR", "SSIM", "Noisy_Baseline")


def method_folder(save_folder: str, task: str, model_type: str, special: str | None) -> Path:
    """Where the runs of one method go, by the published rule."""
    return Path(save_folder) / task / (model_type + (f"_{special}" if special else ""))


def safe_name(name: str) -> str:
    """A picture's name as a folder's name: no separator, no leading dot, never empty."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "picture"


def make_folder(path: Path) -> None:
    """Make a folder and its parents; UserError names it when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def check_writable(folder: Path) -> None:
    """Raise UserError if ``folder`` could not be made and written; leave nothing behind."""
    here = folder
    while not here.exists():
        here = here.parent
    if not here.is_dir():
        raise UserError(f"{folder}: {here} is a file; choose another --save_folder")
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


class Run:
    """One picture's run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    def check(self, config: dict, ignore: Iterable[str], resume: bool, overwrite: bool) -> None:
        """Whether a run with this configuration may use this folder.

        A folder that holds a run of another configuration, but for the keys in ``ignore``, is
        refused unless ``overwrite``; one that holds a run of the same unless ``resume`` or
        ``overwrite``.

        Raises:
            UserError: naming the folder, what differs, and the flags that help.
        """
        if overwrite or not self.begun:
            return
        before = self.config()
        for key in {**before, **config}:
            old, new = before.get(key), config.get(key)
            if key not in ignore and old != new:
                raise UserError(
                    f"{self.folder}: holds a run with {key} {old}, not {new}; choose another "
                    "--special or --save_folder, or --overwrite it"
                )
        if not resume:
            state = "a finished" if self.finished else "an unfinished"
            raise UserError(
                f"{self.folder}: holds {state} run of these settings; --resume keeps what is "
                "finished and goes on with the rest, --overwrite starts again"
            )

    def begin(self, config: dict, overwrite: bool) -> None:
        """Make the folder and save the configuration; with ``overwrite`` empty it first."""
        make_folder(self.folder / "snapshots")
        if overwrite:
            for old in [*self.folder.glob("snapshots/*.png"), *self.folder.glob("*.*")]:
                old.unlink()
        with atomic(self.folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def config(self) -> dict:
        """What ``begin`` saved."""
        path = self.folder / "config.yaml"
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file; --overwrite starts again") from error
        return loaded if isinstance(loaded, dict) else {}

    def save_checkpoint(self, state: dict) -> None:
        """``state``: nested dicts and lists of tensors, numbers and strings."""
        with atomic(self.folder / "checkpoint.pt") as path:
            torch.save(state, path)

    def load_checkpoint(self) -> dict | None:
        """The saved state with its tensors on the CPU, None if there is none.

        Raises:
            UserError: the file is broken, or not a checkpoint.
        """
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{path}: not a checkpoint of this program; delete it, or use --overwrite"
            ) from error

    def write_history(self, rows: list[dict]) -> None:
        """``rows``: one dict an evaluation, with the keys of HISTORY; absent ones stay empty."""
        with atomic(self.folder / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: _short(row.get(k)) for k in HISTORY})

    def history(self) -> list[dict]:
        """The rows of history.csv, numbers as floats, empty cells as None."""
        with (self.folder / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{k: float(v) if v else None for k, v in row.items()} for row in rows]

    def write_result(self, result: dict) -> None:
        """Save result.json, which marks the run as finished, and drop the checkpoint."""
        with atomic(self.folder / "result.json") as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def result(self) -> dict:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))

    def snapshots(self) -> dict[int, Path]:
        """Iteration → picture, in order."""
        found = {int(p.stem): p for p in (self.folder / "snapshots").glob("*.png")}
        return dict(sorted(found.items()))


def find(folder: str | Path) -> list[Run]:
    """All finished runs at or below ``folder``, by path."""
    return [Run(path.parent) for path in sorted(Path(folder).rglob("result.json"))]


def write_results(folder: Path) -> None:
    """Make ``results.csv`` of a method's folder anew from the finished runs in it."""
    with atomic(folder / "results.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(RESULTS)
        for run in find(folder):
            result = run.result()
            keys = ("psnr_stopped", "ssim_stopped", "psnr_noisy")
            writer.writerow([result["image"], *(_short(result.get(k)) for k in keys)])


def _short(value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
