"""The run folder: the only door to the disk for results.

``<save_folder>/<task>/<model_type>[_<special>]/`` holds ``log.txt`` and ``results.csv``, and in it
one folder a picture: ``config.yaml``, ``history.csv``, ``checkpoint.pt`` while it runs,
``snapshots/``, ``noisy.png``, ``clean.png``, ``restored.png`` (where one's own picture is restored
``restored.npy`` too) and, last of all, ``result.json``.
Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import yaml

from .documents import read_npy, read_yaml
from .errors import UserError
from .files import (
    LOCK,
    alone,
    atomic,
    cannot_write,
    check_alone,
    check_inside,
    clean,
    content,
)
from .options import suits

HISTORY = ("iteration", "seconds", "loss", "psnr_noisy", "psnr_gt", "psnr_gt_sm", "ssim_gt_sm")
FILES = (  # in the order in which they go: what is left without the first three is no run
    "result.json", "checkpoint.pt", "config.yaml", "history.csv", "restored.png", "noisy.png",
    "clean.png", "comparison.png", "curves.png", "tiles.csv", "restored.npy", "peers.json",
)  # fmt: skip
MOST_ITERATIONS = 10**9
# Numbers in result.json, beside PSNR and SSIM.
COUNTS = ("parameters", "iterations", "stop_iteration", "oracle_iteration", "seconds", "tiles",
         "peak_memory_bytes", "sigma", "seed", "gave_up")  # fmt: skip
FOLDERS = ("snapshots", "tiles", "tensorboard")
LARGEST = 2**26  # bytes of a history, a table or a result
EXACT = 2**36  # of a restored picture to the last digit, and of a checkpoint
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
        raise UserError(f"{folder}: {here} is a file; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(bytes(2**20))  # an empty file fits on a full disk
            file.flush()
    except OSError as error:
        raise cannot_write(folder, error) from error


class Run:
    """One picture's run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._mine = False
        self._config: dict | None = None

    @contextmanager
    def alone(self, patience: float = 1.0, cancelled: Callable[[], bool] | None = None):
        """While in here no other process writes in this folder; ``files.alone``, entered once."""
        if self._mine:
            yield
            return
        with alone(self.folder, patience, cancelled):
            self._mine = True
            try:
                yield
            finally:
                self._mine = False

    def file(self, name: str) -> Path:
        """A file in the folder; UserError if a link in its place leads out of the folder."""
        return check_inside(self.folder / name, self.folder)

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def begun(self) -> bool:
        return any((self.folder / name).is_file() for name in ("config.yaml", "checkpoint.pt"))

    def check(
        self,
        config: dict,
        ignore: Iterable[str],
        resume: bool,
        overwrite: bool,
        absent: dict | None = None,
    ) -> None:
        """Whether a run with this configuration may use this folder, and what is there is whole.

        A folder that holds a run of another configuration, but for the keys in ``ignore``, is
        refused unless ``overwrite``; one that holds a run of the same unless ``resume`` or
        ``overwrite``. ``absent`` has the values that options had before there were any.

        Raises:
            UserError: naming the folder, what differs, and the flags that help; or that another
                process writes there.
        """
        if not self._mine and not (resume and self.finished):
            check_alone(self.folder)
        if overwrite or not (self.begun or self.finished):
            return
        before = {**(absent or {}), **self.config()}
        if resume and self.finished:
            self.result(), self.history()
        elif resume:
            self.load_checkpoint()
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
        """Make the folder and save the configuration; with ``overwrite`` empty it first.

        So too where no run was begun: what lies there is the rest of one that was being removed.
        """
        make_folder(self.folder)
        self._clean()
        if overwrite or not self.begun:
            self.clear()
        make_folder(self.folder / "snapshots")
        stale = ("result.json", "restored.npy", "comparison.png", "curves.png", "peers.json")
        self._remove([self.folder / name for name in stale])
        self._config = config
        self._write_config()

    def _write_config(self) -> None:
        with atomic(self.folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(self._config, sort_keys=False), encoding="utf-8")

    def _clean(self) -> None:
        for name in FOLDERS:
            self.file(name)
        for place in (self.folder, self.folder / "snapshots", self.folder / "tiles"):
            clean(place, grace=0 if self._mine else 1)

    @property
    def cut_off(self) -> bool:
        """Whether a finished run's process did not come to its end, or is at it still."""
        left = ("checkpoint.pt", LOCK)
        tiles = next((self.folder / "tiles").glob("[0-9]*.npz"), None)
        return tiles is not None or any((self.folder / name).exists() for name in left)

    def tidy(self) -> None:
        """Remove what is left of a run whose process was killed after it had its result."""
        self._clean()
        tiles = self.folder / "tiles"
        self._remove([self.folder / "checkpoint.pt", *tiles.glob("[0-9]*.npz")])
        with suppress(OSError):  # none, or with something else in it
            tiles.rmdir()

    def clear(self) -> None:
        """Remove what a run has left in the folder, and nothing else."""
        for name in FOLDERS:
            self.file(name)
        snapshots = self.folder.glob("snapshots/[0-9]*.png")
        boards = self.folder.glob("tensorboard/events.out.*")
        tiles = self.folder.glob("tiles/[0-9]*.npz")
        files = (self.folder / name for name in FILES)
        self._remove([*files, *snapshots, *boards, *tiles])
        for name in FOLDERS:
            with suppress(OSError):  # there is none, or it holds something else
                (self.folder / name).rmdir()

    def remove(self) -> None:
        """Delete all that is in the folder, but for the lock of whoever is at work here."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            if path.is_file():
                path.unlink()

    def config(self) -> dict:
        """What ``begin`` saved."""
        path = self.file("config.yaml")
        try:
            loaded = read_yaml(path)
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        if not isinstance(loaded, dict) or not loaded:
            raise _damaged(path)
        for key, value in loaded.items():
            named = key in ("labels", "versions")  # whose keys are no options, whatever they say
            parts = value if named else {key: value}
            if not isinstance(key, str) or not isinstance(parts, dict | None):
                raise _damaged(path)
            if not all(suits("" if named else k, v) for k, v in (parts or {}).items()):
                raise _damaged(path)
        return loaded

    def save_checkpoint(self, state: dict) -> None:
        """``state``: nested dicts and lists of tensors, numbers and strings."""
        # through memory: torch tells a full disk as a RuntimeError without a name
        content = io.BytesIO()
        torch.save(_apart(state), content)
        with atomic(self.folder / "checkpoint.pt") as path:
            path.write_bytes(content.getbuffer())

    def load_checkpoint(self) -> dict | None:
        """The saved state with its tensors on the CPU, None if there is none.

        Raises:
            UserError: the file is broken, or not a checkpoint.
        """
        path = self.file("checkpoint.pt")
        if not path.is_file():
            return None
        try:
            _check_archive(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                saved = torch.load(path, map_location="cpu", weights_only=True)
            _check_tensors(saved, path.stat().st_size)
        except Exception as error:  # whatever the unpickler says of bytes that are none of ours
            raise self.bad_checkpoint() from error
        if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
            raise self.bad_checkpoint()
        rows = saved.get("rows")
        if not isinstance(rows, list) or not all(map(_is_row, rows)):
            raise self.bad_checkpoint()
        return saved

    def bad_checkpoint(self) -> UserError:
        """What to say of a checkpoint that cannot be gone on from."""
        path = self.folder / "checkpoint.pt"
        return UserError(
            f"{path}: not a checkpoint of this run, or an older version's; delete it, or "
            "use --overwrite"
        )

    def write_history(self, rows: list[dict]) -> None:
        """``rows``: one dict an evaluation, with the keys of HISTORY; absent ones stay empty."""
        with atomic(self.folder / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: short(row.get(k)) for k in HISTORY})

    def history(self) -> list[dict]:
        """The rows of history.csv, numbers as floats, empty cells as None."""
        path = self.file("history.csv")
        try:
            rows = read_csv(path)
            rows = [{k: float(row[k]) if row[k] else None for k in HISTORY} for row in rows]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise _damaged(path) from error
        if not rows or not all(map(_is_row, rows)):
            raise _damaged(path)
        return rows

    def load_exact(self) -> np.ndarray | None:
        """The restored picture [C, H, W] that ``write_result`` saved, None if it did not."""
        path = self.file("restored.npy")
        if not path.is_file():
            return None
        try:
            found = read_npy(content(path, EXACT))
        except (OSError, ValueError, MemoryError) as error:
            raise _damaged(path) from error
        if found.dtype != np.float32 or found.ndim != 3 or len(found) not in (1, 3):
            raise _damaged(path)
        if not found.size or not np.isfinite(found).all():
            raise _damaged(path)
        return found

    def write_result(self, result: dict, exact: np.ndarray | None = None) -> None:
        """Save result.json, which marks the run as finished, and drop the checkpoint.

        exact: the restored picture [C, H, W], to be kept to the last digit, which files do not
            have.
        """
        if self._config and not (self.folder / "config.yaml").is_file():  # somebody has deleted it
            self._write_config()
        if exact is not None:
            with atomic(self.folder / "restored.npy") as path, path.open("wb") as file:
                np.save(file, exact)
        with atomic(self.folder / "result.json") as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def result(self) -> dict:
        """What ``write_result`` saved: texts, numbers and truth values by name."""
        path = self.file("result.json")
        try:
            result = readable(json.loads(content(path, LARGEST)))
            result = {**result, "image": str(result["image"])}
            names = {key: result[key] for key in ("model_type", "task")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path) from error
        texts = (*names.values(), *(result.get(k) or "" for k in ("stopping", "device")))
        levels = (v for k, v in result.items() if k.startswith(("psnr_", "ssim_")))
        counts = (result.get(key) for key in COUNTS)
        told = result.get("troubles") or []  # what the guard has seen to
        if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
            raise _damaged(path)
        flat = [v for k, v in result.items() if k != "troubles"]
        flat += [v for one in told for v in one.values()]
        plain = all(v is None or isinstance(v, str | int | float) for v in flat)
        if not plain or not all(isinstance(text, str) for text in texts):
            raise _damaged(path)
        if not all(v is None or isinstance(v, float) or _is_number(v) for v in levels):
            raise _damaged(path)
        if not all(v is None or _is_number(v) for v in counts):
            raise _damaged(path)
        return result

    def peers(self) -> dict[str, float]:
        """What other methods make of the noisy picture, PSNR in dB by name; empty at first."""
        try:
            found = json.loads(content(self.file("peers.json"), LARGEST))
            return {str(name): float(psnr) for name, psnr in found.items()}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}  # it can be measured again

    def write_peers(self, found: dict[str, float]) -> None:
        """Keep them, if the folder can be written."""
        with suppress(UserError), atomic(self.folder / "peers.json") as path:
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    def snapshots(self) -> dict[int, Path]:
        """Iteration → picture, in order."""
        paths = (self.folder / "snapshots").glob("[0-9]*.png")
        found = {int(p.stem): self.file(f"snapshots/{p.name}") for p in paths if _is_count(p.stem)}
        return dict(sorted(found.items()))


def readable(value):
    """``value`` with ? for what is no text in it: a file's name on an old disk need not be any."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {readable(k): readable(v) for k, v in value.items()}
    return [readable(v) for v in value] if isinstance(value, list) else value


def _apart(value):
    """``value`` with copies of those tensors in it, in dicts and lists too, that are a part of a
    larger one: that would be saved with them."""
    if isinstance(value, dict):
        return {k: _apart(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_apart(v) for v in value]
    if isinstance(value, torch.Tensor) and value.nbytes < value.untyped_storage().nbytes():
        return value.clone()
    return value


def find(folder: str | Path) -> list[Run]:
    """All finished runs at or below ``folder``, by path."""
    return [Run(path.parent) for path in sorted(Path(folder).rglob("result.json"))]


def clear(found: list[Run]) -> None:
    """Remove what is in the runs' folders, and their rows in the ``results.csv`` above them.

    Raises UserError if another process writes in one.
    """
    for run in found:
        with run.alone():
            run.clear()
    for folder in dict.fromkeys(run.folder.parent for run in found):
        if (folder / "results.csv").exists():
            write_results(folder)


def write_results(folder: Path) -> None:
    """Make ``results.csv`` of a method's folder anew from the finished runs in it.

    Another process may finish runs there meanwhile and do the same: whoever writes last sees all.
    """
    clean(folder)
    found = None
    while found != (found := sorted(folder.glob("*/result.json"))):
        _write_results(folder, found)


def _write_results(folder: Path, found: list[Path]) -> None:
    table = folder / "results.csv"
    with atomic(table) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(RESULTS)
        for run in (Run(path.parent) for path in found):
            try:
                result = run.result()
            except UserError:  # gone by now, or damaged: who reads that run will tell
                continue
            keys = ("psnr_stopped", "ssim_stopped", "psnr_noisy")
            writer.writerow([result["image"], *(short(result.get(k)) for k in keys)])


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file, texts by the names in its first line.

    Raises OSError, ValueError and csv.Error for one that cannot be read.
    """
    return list(csv.DictReader(io.StringIO(content(path, LARGEST).decode("utf-8"), newline="")))


def _check_archive(path: Path) -> None:
    """Raise ValueError unless a checkpoint is what ``save_checkpoint`` writes: a ZIP whose parts
    are stored as they are, so that reading it takes no more memory than it has bytes."""
    size = path.stat().st_size
    if not path.is_file() or size > EXACT:
        raise ValueError(f"{size} bytes")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("compressed")
    if sum(part.file_size for part in parts) > size:
        raise ValueError("it claims to hold more than it does")


def _check_tensors(saved, size: int) -> None:
    """Raise ValueError unless what was saved is no larger than the file's ``size`` allows: a tensor
    may claim any shape of few bytes, and lists may hold one another many times over."""
    left, values, total = [saved], 0, 0
    while left:
        value = left.pop()
        values += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, torch.Tensor):
            count = value.numel() * value.element_size()
            if count > value.untyped_storage().nbytes():
                raise ValueError("a tensor that repeats itself")
            total += count
        if values > 10**7 or total > 8 * size:  # some tensors are saved once under several names
            raise ValueError("it claims to hold more than it does")


def _is_count(text: str) -> bool:
    """Whether a text is a number of iterations."""
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _is_row(row) -> bool:
    """Whether this is a row of a history: numbers or None, of a whole iteration."""
    if not isinstance(row, dict) or not all(key in HISTORY for key in row):
        return False
    at = row.get("iteration")
    return all(v is None or isinstance(v, int | float) for v in row.values()) and (
        at is not None and 0 <= at <= MOST_ITERATIONS and at == int(at)
    )


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged; delete its folder, or use --overwrite")


def short(value) -> str:
    """A figure as history.csv and results.csv have it; nothing for None."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def check_free(flag: str, run: Run) -> None:
    """Raise UserError unless the folder can be written and holds a run, or nothing."""
    mere = (LOCK, ".part-")  # of a run that was killed before it began
    others = run.folder.is_dir() and any(
        not path.name.startswith(mere) for path in run.folder.iterdir()
    )
    if others and not run.begun:
        raise UserError(f"{flag} {run.folder}: holds other files; choose a new folder")
    check_writable(run.folder)
