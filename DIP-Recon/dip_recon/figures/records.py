"""What figures and tables are made of: finished runs, in series that can be compared fairly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import images
from ..errors import UserError
from ..metrics import psnr
from ..runs import Run, find, readable

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Record:
    """A finished run: its folder, config.yaml and result.json; history.csv when it is asked for."""

    run: Run
    config: dict
    result: dict

    @property
    def labels(self) -> dict:
        """Where the run stands in its sweep: axis → label; empty for runs made by hand."""
        labels = self.config.get("labels")
        return labels if isinstance(labels, dict) else {}

    @cached_property
    def history(self) -> list[dict]:
        return self.run.history()

    @property
    def picture(self) -> tuple[str, str]:
        """Name and SHA-256: two sets may have pictures of one name.

        Of a digest only the first file's counts: a picture stays the same under another input.
        """
        return self.result["image"], str(self.config.get("picture_sha256") or "")[:64]

    @property
    def seed(self) -> int | None:
        return self.config.get("seed", self.result.get("seed"))

    @property
    def noise_seed(self) -> int | None:
        seed = self.config.get("noise_seed")
        return self.seed if seed is None else seed

    @property
    def noisy(self) -> tuple:
        """Runs where this is the same were given the same noisy picture."""
        names = ("crop", "imsize", "noise_sigma", "poisson_scale")
        return self.picture, *(str(self.config.get(name)) for name in names), self.noise_seed

    @property
    def pair(self) -> tuple:
        """Picture and seed: runs of different methods are compared where these are the same."""
        return self.picture, self.seed

    @property
    def network(self) -> str:
        return str(self.result["model_type"])

    def figure_of(self, key: str) -> float:
        """A number of result.json, nan where there is none."""
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) else math.nan

    def known(self, key: str) -> float:
        """As ``figure_of``, for what takes ground truth. Raises UserError if there was none."""
        if key not in self.result:
            raise self.no_truth()
        return self.figure_of(key)

    def no_truth(self) -> UserError:
        return UserError(
            f"{self.run.folder}: has no ground truth, which this figure compares with; leave it out"
        )


def load(folders: Iterable[str | Path]) -> list[Record]:
    """All finished runs at or below the folders, each once, in the order of their paths.

    Raises:
        UserError: a folder is missing or holds no finished run, or a file in one is damaged.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "there is no such folder"
            raise UserError(f"{folder}: {what}; give a folder of runs")
        runs = find(folder)
        if not runs:
            raise UserError(f"{folder}: holds no finished run")
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    return [Record(run, readable(run.config()), run.result()) for run in found.values()]


def group(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by ``key``, the keys in natural order (32 before 128)."""
    groups: dict[K, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return dict(sorted(groups.items(), key=lambda item: natural(item[0])))


def fair(
    series: Mapping[K, list[Record]], among: Callable[[K], Hashable] = lambda key: None
) -> tuple[dict[K, list[Record]], list[str]]:
    """Keep the runs of those pictures and seeds that every series has.

    An unfinished sweep has easy pictures in some series only, and their averages would not compare.
    ``among`` names the group in which series are compared with each other: by default all of them.
    Where a group has no picture and seed in common, all its runs stay.

    Returns the series and notes on what was done.
    """
    pairs: dict[Hashable, list[set]] = {}
    for key, runs in series.items():
        pairs.setdefault(among(key), []).append({run.pair for run in runs})
    common = {name: set.intersection(*sets) for name, sets in pairs.items()}
    kept = {
        key: [run for run in runs if run.pair in common[among(key)]] or runs
        for key, runs in series.items()
    }
    total, left = (sum(map(len, s.values())) for s in (series, kept))
    notes = []
    if left < total:
        notes.append(f"{total - left} of {total} runs left out: not every variant has them yet")
    if not all(common.values()):
        notes.append(
            "no picture and seed is in every variant, so they are averaged over different ones"
        )
    return kept, notes


def deviation(values: Iterable[float]) -> float:
    """Sample standard deviation (ddof 1), nan for fewer than two values."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def over_seeds(records: Iterable[Record], key: str) -> tuple[float, float]:
    """Mean and deviation of a number of result.json, such as ``psnr_stopped`` in dB.

    The mean is over pictures of each picture's mean over seeds: over all runs, where every picture
    has every seed. The deviation (ddof 1) is that over seeds of a seed's mean over pictures; seeds
    that lack a picture do not count for it. Nan where there is nothing.
    """
    cells: dict[tuple, dict] = {}  # picture -> seed -> values
    for record in records:
        value = record.figure_of(key)
        if not math.isnan(value):
            cells.setdefault(record.picture, {}).setdefault(record.seed, []).append(value)
    if not cells:
        return math.nan, math.nan
    means = [{seed: np.mean(v) for seed, v in seeds.items()} for seeds in cells.values()]
    mean = np.mean([np.mean(list(seeds.values())) for seeds in means])
    whole = set.intersection(*map(set, means))
    return float(mean), deviation(np.mean([seeds[s] for seeds in means]) for s in sorted(whole))


def psnr_of_mean(runs: list[Run]) -> float:
    """PSNR in dB of the mean of several runs' restored pictures, on one and the same noisy one; inf
    if it is the clean one."""
    clean = images.read(runs[0].file("clean.png")).data
    mean = np.mean([images.read(run.file("restored.png")).data for run in runs], axis=0)
    return psnr(mean, clean)


@dataclass(frozen=True)
class Curve:
    """A PSNR in dB along the iterations (from 0): mean and deviation over ``n`` runs."""

    at: list[int]
    mean: np.ndarray
    deviation: np.ndarray
    n: int
    cut: bool  # whether some of the runs go on beyond the last common iteration

    def rows(self, **names) -> list[dict]:
        """A row an iteration for a CSV file, after the given columns."""
        columns = zip(self.at, self.mean, self.deviation, strict=True)
        return [
            {**names, "iteration": i, "mean": m, "deviation": d, "n": self.n} for i, m, d in columns
        ]


def curve(records: list[Record], key: str) -> Curve:
    """Average a column of history.csv over runs.

    Runs may differ in length and in how often they were looked at: the average is over the
    iterations that all of them have a row of, so it ends where the shortest does.

    Raises:
        UserError: a run has no ground truth, or the runs share no iteration.
    """
    lines = []
    for record in records:
        values = {int(row["iteration"]): row[key] for row in record.history}
        if None in values.values():
            raise record.no_truth()
        lines.append(values)
    at = sorted(set.intersection(*map(set, lines)))
    if not at:
        raise UserError(f"{records[0].run.folder}: shares no iteration with the runs like it")
    values = np.array([[line[i] for i in at] for line in lines])
    spread = values.std(0, ddof=1) if len(lines) > 1 else np.full(len(at), math.nan)
    return Curve(at, values.mean(0), spread, len(lines), max(map(max, lines)) > at[-1])


def upsampler(record: Record) -> str:
    """The upsampler's name as figures show it: the sweep's label, else ``upsample_mode``."""
    name = record.labels.get("upsampling", record.config.get("upsample_mode"))
    if name is None:
        return "the network's own"
    shown = {"none": "no upsampling", "transposed": "transposed (learnt)"}
    return shown.get(str(name).lower(), str(name))


def width(record: Record) -> int:
    """Channels of the first scale. Raises UserError for a network that has no ``dim``."""
    dim = record.config.get("dim")
    dim = dim[0] if isinstance(dim, list) and dim else dim
    if not isinstance(dim, int):
        raise UserError(
            f"{record.run.folder}: {record.network} has no width (dim), which this figure needs"
        )
    return dim


def natural(value) -> list:
    """A sort key that puts LPF2 before LPF14 and 32 before 128, and nothing first."""
    if isinstance(value, tuple | list):
        return [part for v in value for part in (*natural(v), (-1, 0, ""))]
    if value is None:
        return []
    if isinstance(value, int | float):
        return [(0, value, "")]
    parts = re.findall(r"\d{1,99}|\D+", str(value).lower())  # int() refuses thousands of digits
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
