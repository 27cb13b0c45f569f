"""``dip-recon denoise``: pictures, folders of them and stacks of frames, each restored in kind."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from . import auto, images, impulses, own
from .cluster import Cluster
from .errors import Kept, UserError, out_of_memory
from .experiment import GAVE_UP
from .files import LOCK, atomic, cannot_write, clean, hidden
from .images.frames import FrameWriter, count_frames, read_frame
from .needs import too_large
from .options import DenoisingOptions, Options
from .prepare import resolve
from .runs import Run
from .tasks import Job, brightest, span
from .tiling.files import denoise_file, identity, is_large
from .tiling.layout import Layout
from .together import at_once, run_all

DEVIATION = images.Kind("grey", 32, floating=True)  # how a stack of uncertainty is stored
SMALLEST_TILE = 32  # pixels a side, where memory does not suffice for the whole
OVERWRITING = ".overwriting"  # in the folder of results, while --overwrite has some left to do
LONG = 1024**2  # pixels from which finished tiles are kept beside the output, as it takes long


@dataclass(frozen=True)
class Wishes:
    """What the user said. given: options of the fit that are not to be chosen."""

    given: dict
    draft: bool = False
    runs: int = 1
    explain: bool = False
    overwrite: bool = False
    keep: Path | None = None
    tile: int | None = None
    overlap: int | None = None
    declipping: bool = True
    cluster: Cluster = field(default_factory=Cluster)
    how: dict = field(default_factory=dict)  # more for ``run_one``, on a worker
    given_up: list[str] = field(default_factory=list)  # filled in: the pictures whose fit was
    draw: bool = True  # the figures of what is kept


def expand(words: list[str]) -> list[Path]:
    """The pictures that paths, folders and patterns mean, in order and each once.

    Raises UserError for a pattern without a match and a folder without a picture.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir() and path.suffix.lower() != ".zarr":
            new = images.list_pictures(path)
        elif not path.exists() and glob.has_magic(word):
            new = [Path(p) for p in sorted(glob.glob(word, recursive=True))]
            new = [p for p in new if images.is_picture_name(p) or p.suffix.lower() == ".zarr"]
            if not new:
                raise UserError(f"{word}: no picture matches")
        else:
            new = [path]
        found |= dict.fromkeys(new)
    return list(found)


def outputs(
    pictures: list[Path], output: Path | None, into_folder: bool, folder_given: bool = False
) -> list[Path]:
    """Where each result goes: ``output``, or in it where it is a folder.

    Without one, NAME_denoised beside a single picture or a folder; more must be told.
    Raises UserError where a result would replace a picture, or two would be one file.
    """
    if into_folder and output is None:
        if not folder_given:
            raise UserError("several pictures: say where they go by --output FOLDER")
        folder = pictures[0].parent
        folder = folder.resolve() if folder.name in ("", "..") else folder
        if not folder.name:
            raise UserError(f"{folder}: say where its pictures go by --output FOLDER")
        output = folder.with_name(f"{folder.name}_denoised")
    if not into_folder and output is None:
        places = [pictures[0].with_name(f"{pictures[0].stem}_denoised{_suffix(pictures[0])}")]
    elif not into_folder and not (output.is_dir() and output.suffix.lower() != ".zarr"):
        if not output.name:
            raise UserError(f"--output {output}: give a file's name")
        places = [output]
    else:
        if (output.exists() and not output.is_dir()) or images.is_picture_name(output):
            raise UserError(f"--output {output}: give a folder for several pictures")
        places = [output / f"{p.stem}{_suffix(p)}" for p in pictures]
    taken: dict[str, Path] = {}
    for picture, place in zip(pictures, places, strict=True):
        if place.exists() and picture.exists() and place.samefile(picture):
            raise UserError(f"--output {place}: would replace {picture}; choose another")
        other = taken.setdefault(str(place).casefold(), picture)
        if other is not picture:
            raise UserError(f"{picture}: would have the same output as {other}; do them apart")
    return places


def _suffix(picture: Path) -> str:
    """That of the picture, where we write it; PNG for what is only read."""
    suffix = picture.suffix.lower()
    return picture.suffix if suffix in (*images.WRITABLE, ".zarr") else ".png"


def denoise(words: list[str], output: Path | None, wishes: Wishes, say: Callable) -> int:
    """Denoise all that ``words`` mean; the exit status, 1 if a fit was given up.

    Raises UserError, before anything is written if it can.
    """
    pictures = expand(words)
    into_folder = pictures != [Path(words[0])] or len(words) > 1
    folder_given = len(words) == 1 and Path(words[0]).is_dir()
    places = outputs(pictures, output, into_folder, folder_given)
    wishes.cluster.check()
    for picture in pictures:
        if not picture.exists():
            raise UserError(f"{picture}: there is no such file; check the path")
    if into_folder:
        try:
            places[0].parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(places[0].parent, error) from error
    clean(places[0].parent)
    again = into_folder and wishes.overwrite
    marker = places[0].parent / OVERWRITING
    if not again:  # what it writes is not that command's
        with suppress(OSError):
            marker.unlink()
    since = _overwriting_since(marker, pictures, wishes) if again else -math.inf
    tasks = []
    for picture, place in zip(pictures, places, strict=True):
        if into_folder and place.exists() and place.stat().st_mtime_ns > since:
            done = "done again before, kept" if again else (
                "is there already, kept; --overwrite does it again"
            )  # fmt: skip
            say(f"{place}: {done}")
            continue
        keep = wishes.keep / picture.name if wishes.keep and into_folder else wishes.keep
        tasks.append(_Task(picture, place, replace(wishes, keep=keep), into_folder))
    failed = 0
    try:
        for task, error in _each(tasks, wishes, say):
            if error is None:
                continue
            ours = isinstance(error, RuntimeError) and not out_of_memory(error)
            if ours or len(pictures) == 1:
                if again and len(pictures) == 1:  # nothing else is left to go on with
                    marker.unlink(missing_ok=True)
                raise error
            failed += 1
            named = "" if isinstance(error, UserError) else f"{task.picture}: "
            say(f"left out: {named}{error or type(error).__name__}")
    except KeyboardInterrupt as interrupt:
        if into_folder or wishes.keep:  # results that are there, or a run folder
            raise Kept from interrupt
        raise
    if again:
        marker.unlink(missing_ok=True)
    if failed:
        raise UserError(f"{failed} of {len(pictures)} pictures were left out, as said above")
    return int(bool(wishes.given_up))


def _overwriting_since(marker: Path, pictures: list[Path], wishes: Wishes) -> float:
    """When this ``--overwrite`` began, in ns by the disk's clock, if one like it was cut off, which
    the same command goes on with; else inf, as it has done nothing yet."""
    told = repr((replace(wishes, cluster=None), [identity(picture) for picture in pictures]))
    with suppress(OSError):
        if marker.read_text(encoding="utf-8", errors="replace") == told:
            return marker.stat().st_mtime_ns
    with atomic(marker) as path:
        path.write_text(told, encoding="utf-8", errors="replace")
    return math.inf


@dataclass(frozen=True)
class _Task:
    """A picture, where its result goes, and whether others' results are beside it."""

    picture: Path
    place: Path
    wishes: Wishes
    several: bool


def _each(tasks: list[_Task], wishes: Wishes, say: Callable) -> Iterator:
    """Restore all; yield each with the error that it was left out for, or None.

    Several pictures are shared out among the workers, of one the tiles.
    """
    if wishes.cluster.here or len(tasks) < 2:
        for task in tasks:
            yield task, _attempt(task, say)
        return
    for task, found in wishes.cluster.each(_on_worker, tasks):
        lines, given_up, error = ([], [], found) if isinstance(found, Exception) else found
        for line in lines:
            say(line)
        wishes.given_up.extend(given_up)
        if error is None and not task.place.exists():
            error = UserError(
                f"{task.place}: done, but not to be seen from here; "
                "--output must be on a disk that all workers share"
            )
        yield task, error


def _on_worker(task: _Task, cancelled: Callable[[], bool] | None) -> tuple[list, list, object]:
    """What is said of a picture, the names of those whose fit was given up, and the error."""
    lines: list[str] = []
    how = {"cancelled": cancelled, "bar": False}
    wishes = replace(task.wishes, cluster=Cluster(), how=how, given_up=[])
    error = _attempt(replace(task, wishes=wishes), lines.append)
    return lines, wishes.given_up, error


def _attempt(task: _Task, say: Callable) -> Exception | None:
    try:
        _one(task.picture, task.place, task.wishes, task.several, say)
    except UserError as error:
        text = str(error)
        if any(path.name in text for path in (task.picture, task.place)):
            return error
        flag = text.startswith("--") and not task.several
        return error if flag else UserError(f"{task.picture}: {text}")
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        return error
    except OSError as error:
        return UserError(f"{task.picture}: {error.strerror or error}")
    return None


def _meanwhile(place: Path, kind: str) -> Path:
    """The folder beside an output in which what is done of it is kept until it is written."""
    return hidden(place, ".", f".{kind}")


@contextmanager
def _kept(picture: Path, place: Path, wishes: Wishes) -> Iterator[Wishes]:
    """``wishes``, with a folder in which runs are kept until this block ends well.

    What another picture or other wishes have left there goes; so does, with ``overwrite``, all that
    is not of such a command itself.
    """
    if wishes.keep:
        yield wishes
        return
    run = Run(_meanwhile(place, "runs"))
    of = run.folder / "of.txt"
    how = (wishes.draft, wishes.runs, wishes.declipping)
    told = repr((identity(picture), sorted(wishes.given.items()), *how))
    again = f"{told}\n--overwrite"
    with run.alone():
        if any(path.name != LOCK for path in run.folder.iterdir()):
            if not of.is_file():
                raise UserError(f"{run.folder}: holds other files; move it away")
            before = of.read_text(encoding="utf-8", errors="replace")
            if before != again and (wishes.overwrite or before != told):
                run.remove()
        with atomic(of) as path:
            text = again if wishes.overwrite else told
            path.write_text(text, encoding="utf-8", errors="replace")
        try:
            yield replace(wishes, keep=run.folder, draw=False)
            run.remove()
        except KeyboardInterrupt as interrupt:
            raise Kept from interrupt
        finally:
            if {path.name for path in run.folder.iterdir()} <= {LOCK, of.name}:  # nothing done
                run.remove()
    with suppress(OSError):  # somebody else is there by now
        run.folder.rmdir()


def _one(picture: Path, place: Path, wishes: Wishes, several: bool, say: Callable) -> None:
    """Restore one file. several: whether others' results are beside it."""
    frames = count_frames(picture)
    if wishes.tile is not None or (frames == 1 and is_large(picture)):
        _by_tiles(picture, place, wishes, say)
        return
    if wishes.overlap is not None:
        raise UserError("--overlap: only with --tile")
    if frames > 1:
        with _kept(picture, place, wishes) as kept:
            _frames(picture, place, frames, kept, say)
        return
    job = own.denoising(picture)
    images.check_writable(place, job.problem.size)
    long = math.prod(job.problem.size) > LONG
    if long and not wishes.draft and wishes.runs == 1:
        _by_tiles(picture, place, wishes, say)
        return
    keeping = long and not wishes.draft
    with _kept(picture, place, wishes) if keeping else nullcontext(wishes) as wishes:
        done = _restored(job, wishes, say)
        images.write(place, done.picture, like=job.like)
    if lost := images.lost(place, job.like.kind, job.like.alpha is not None):
        say(lost)
    _tell(place, done, several, say)


def _frames(picture: Path, place: Path, count: int, wishes: Wishes, say: Callable) -> None:
    """A stack frame by frame: chosen for each anew, since noise and texture may change."""
    if place.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"--output {place}: a stack of {count} frames goes into a .tif")
    beside = place.with_name(f"{place.stem}_uncertainty.tif")
    colour = _check_frames(picture, count, wishes)
    with ExitStack() as stack:
        writer = stack.enter_context(FrameWriter(place, count))
        spreads = stack.enter_context(FrameWriter(beside, count)) if wishes.runs > 1 else None
        for index in range(count):
            frame = read_frame(picture, index)
            if colour and len(frame.data) == 1:  # of a palette, in which it has greys alone
                frame = replace(frame, data=np.repeat(frame.data, 3, axis=0))
            job = own.job_of(frame, f"{picture.stem} frame {index + 1}")
            keep = wishes.keep / f"{index:04d}" if wishes.keep else None
            done = _restored(job, replace(wishes, keep=keep), say)
            writer.write(done.picture, like=job.like)
            if spreads:
                spread = np.zeros((1, *job.problem.size), np.float32)
                if done.disagreement is not None:  # a frame without noise is not fitted
                    spread[0] = done.disagreement
                spreads.write(spread, like=images.Picture(spread, None, DEVIATION, beside))
    say(f"{place}: {count} frames")
    if spreads:
        say(f"{beside}: how far the runs disagree; deviations, of a range of 0 to 1")


def _check_frames(picture: Path, count: int, wishes: Wishes) -> bool:
    """Whether a frame of the stack is in colour.

    Raises UserError for a frame that will not do, which would else cost those done by then.
    """
    colour = False
    for index in range(count):
        frame = read_frame(picture, index)
        colour |= len(frame.data) == 3
        halved = wishes.draft and min(frame.size) >= own.DRAFT
        try:
            most = 1.0  # which matters to a noise level alone
            if wishes.given.get("sigma"):
                most = span(brightest(impulses.without(frame.data)[0]))
            auto.check(frame.size, wishes.given, most, halved)
        except UserError as error:
            raise UserError(f"frame {index + 1} of {picture}: {error}") from error
    return colour


def _restored(job: Job, wishes: Wishes, say: Callable) -> own.Denoised:
    def tell(choice: auto.Choice) -> None:
        choice.tell(job.name, wishes.explain, say)
        if not wishes.cluster.here and not choice.options.tile:
            say(f"{job.name}: fitted here as a whole; --workers and --scheduler are for tiles")

    def fit_one(small: Job, options: Options, where: str, **how) -> np.ndarray:
        keep = wishes.keep / where if wishes.keep else None
        how = wishes.how | how | ({} if wishes.draw else {"draw": False})
        summary, restored = _within_memory(small, options, keep, wishes.cluster, say, **how)
        if summary.get("gave_up"):
            _give_up(small.name, wishes, say)
        return restored

    def fit_all(small: Job, seeds: list[Options]) -> list[np.ndarray]:
        names = [f"run{n + 1}" if len(seeds) > 1 else "" for n in range(len(seeds))]
        works = [partial(fit_one, small, *each) for each in zip(seeds, names, strict=True)]
        alone = len(seeds) == 1 or not wishes.cluster.here or wishes.how
        count = 1 if alone else at_once(resolve(seeds[0])[0], lambda: small)
        return list(run_all(works, count, say))

    how = (wishes.runs, wishes.draft, tell, wishes.declipping)
    return own.denoise(job, wishes.given, fit_all, *how)


def _within_memory(
    job: Job, o: Options, keep: Path | None, cluster: Cluster, say: Callable, **how
) -> tuple[dict, np.ndarray]:
    """``own.restore``; by tiles, ever smaller ones, where memory does not suffice otherwise."""
    begun = keep is not None and Run(keep).begun
    if begun:  # as it was begun, whatever memory there was then
        tile = Run(keep).config().get("tile") or o.tile
    else:
        tile = _fitting(job.seen, o, o.tile, cluster)
    while True:
        if tile != o.tile and not begun:
            say(f"{job.name}: not enough memory: goes on by tiles of {tile} pixels")
        given = {"tile": tile, "overlap": _overlap(o, tile)} if tile else {}
        try:
            return own.restore(job, o, given, keep, cluster, **how)
        except (MemoryError, RuntimeError) as error:
            side = tile or max(job.problem.size)
            # what a kept run had done by then is worth more than a try with smaller tiles
            if begun or not out_of_memory(error) or side < 2 * SMALLEST_TILE:
                raise
            if keep:
                Run(keep).clear()
        tile = min(auto.TILE, side // 2)


def _fitting(y: np.ndarray, o: Options, tile: int, cluster: Cluster) -> int:
    """``tile``, or 0 for all of ``y`` [C, H, W], as long as memory has room for fitting it; else
    the largest that it has room for."""
    whole, _ = resolve(replace(o, tile=0))
    while not cluster.scheduler:
        size = Layout(y.shape[1:], tile, _overlap(o, tile))[0].size if tile else y.shape[1:]
        part = own.job_of_array(np.empty((len(y), *size), np.float32))
        side = tile or max(size)
        if side < 2 * SMALLEST_TILE or not too_large(part, whole):
            break
        tile = min(auto.TILE, side // 2)
    return tile


def _overlap(o: Options, tile: int) -> int:
    return min(o.overlap, tile // 4)


def _give_up(name: str, wishes: Wishes, say: Callable) -> None:
    say(f"{name}: {GAVE_UP} a smaller --width")
    wishes.given_up.append(name)


def _tell(place: Path, done: own.Denoised, several: bool, say: Callable) -> None:
    say(f"{place}: {done.told}")
    for note in done.notes:
        say(f"  {note}")
    if done.disagreement is not None:
        path = place.with_name(f"{place.name if several else place.stem}_uncertainty.png")
        most = max(float(done.disagreement.max()), 1e-6)
        images.save_png(path, done.disagreement[None] / most)
        say(f"{path}: how far the runs disagree; white is a deviation of {255 * most:.1f} of 255")


def _by_tiles(picture: Path, place: Path, wishes: Wishes, say: Callable) -> None:
    if wishes.draft or wishes.runs > 1:
        raise UserError(
            "--draft, --best: not by tiles; leave out --tile, or take a smaller picture"
        )
    given = {"tile": wishes.tile or auto.TILE, **wishes.given}
    given["overlap"] = min(16, given["tile"] // 4) if wishes.overlap is None else wishes.overlap
    keep = wishes.keep or _meanwhile(place, "tiles")
    kept = wishes.keep is not None

    def choose(
        sample: np.ndarray, most: float, struck: float
    ) -> tuple[DenoisingOptions | None, float]:
        choice = own.choose(sample, given, most, struck=struck)
        choice.tell(picture.name, wishes.explain, say)
        if choice.clean:
            return None, choice.sigma
        o = choice.options
        if wishes.tile is None:
            begun = Run(keep).begun and Run(keep).config().get("tile")
            tile = begun or _fitting(sample, o, o.tile, wishes.cluster)
            if tile != o.tile:
                if not begun:
                    say(f"{picture.name}: not enough memory: by tiles of {tile} pixels")
                o = replace(o, tile=tile, overlap=_overlap(o, tile))
        return o, choice.sigma

    counts = denoise_file(
        picture, place, choose, say, wishes.cluster, keep, kept, wishes.overwrite,
        wishes.declipping, **wishes.how,
    )  # fmt: skip
    if counts.get("gave_up"):
        _give_up(picture.name, wishes, say)
    if not kept:
        with suppress(OSError):  # somebody else is there by now
            keep.rmdir()
