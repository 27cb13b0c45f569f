"""One's own picture: no ground truth, no flags of a paper, a result in kind.

``auto`` chooses; here it is carried out, for the command and for the Python interface.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch.nn import functional

from . import (
    auto,
    data,
    figures,
    images,
    impulses,
    memory,
    metrics,
    models,
    needs,
    noise,
    operators,
)
from .cluster import Cluster
from .declipping import declipped
from .errors import Kept, UserError
from .experiment import configuration, finish_off, run_one
from .files import check_alone
from .flags import Switches
from .holes import joined, parts
from .options import NOT_IN_THE_NUMBERS, Options
from .prepare import network_settings, resolve
from .problem import Problem
from .runs import Run, check_free
from .tasks import (
    RESIZING,
    Job,
    as_grey,
    bicubic,
    brightest,
    denoising_job,
    enlarge,
    opaque,
    span,
    tensor,
)


def _read(path: Path) -> tuple[images.Picture, str]:
    return images.read(path), hashlib.sha256(path.read_bytes()).hexdigest()


def denoising(path: Path) -> Job:
    """A noisy picture as a problem."""
    picture, digest = _read(path)
    return job_of(picture, path.stem, digest)


def job_of(picture: images.Picture, name: str, digest: str | None = None) -> Job:
    """The same for a picture that was read already; digest: the SHA-256 of its file."""
    problem = Problem.denoising(tensor(picture.data), name=name)
    digest = digest or hashlib.sha256(picture.data.tobytes()).hexdigest()
    return Job(name, problem, picture.data, digest, _like(picture))


def _like(picture: images.Picture) -> images.Picture:
    """What a result is to be stored like: as it was, but a palette would change its colours."""
    return replace(picture, kind=picture.kind.without_palette(len(picture.data)))


def job_of_array(y: np.ndarray) -> Job:
    """The same for an array [C, H, W] in [0, 1]."""
    return Job("picture", Problem.denoising(tensor(y)), y, "")


DRAFT = 32  # pixels a side from which a draft is made at half the size
# of a draft, unless told; without noise on its input a fit gets as far in half the iterations
DRAFTED = {"dim": [32], "num_iters": 250, "exp_weight": 0.95, "reg_noise_std": 0.0}
FitAll = Callable[[Job, list[Options]], list[np.ndarray]]


@dataclass
class Denoised:
    """What came of a picture: [C, H, W] in [0, 1]; the choice; what a person should be told.

    disagreement: deviation at each pixel of several runs [H, W], None of one. unchanged: whether
    there was nothing to take away.
    """

    picture: np.ndarray
    choice: auto.Choice
    notes: list[str] = field(default_factory=list)
    disagreement: np.ndarray | None = None
    told: str = ""
    unchanged: bool = False


def denoise(
    job: Job,
    given: dict,
    fit_all: FitAll,
    runs: int = 1,
    draft: bool = False,
    tell: Callable[[auto.Choice], None] = lambda choice: None,
    declipping: bool = True,
) -> Denoised:
    """Choose for a noisy picture, and carry it out.

    given: options that are not to be chosen. fit_all: fits a job with each of several options and
        gives the pictures [C, H, W]. runs: so many seeds, whose mean is the result. draft: the
        picture of half the size is restored; detail comes back as far as it rises above the noise.
        tell: is given the choice before it is carried out. declipping: put right what clipping has
        done to the noise's mean, but in a draft.
    Raises UserError for options or a picture that will not do.
    """
    original = job.problem.y[0].numpy()
    original, struck = impulses.without(original)
    if struck:
        job = replace(job, digest=f"{job.digest}, filled")
    most = span(brightest(original))
    y = np.minimum(original / np.float32(most), 1)
    draft = draft and min(y.shape[1:]) >= DRAFT
    small = _halved(y) if draft else y
    choice = choose(small, given, most, draft, struck)
    tell(choice)
    if choice.clean:
        told = impulses.FILLED if struck else "unchanged"
        return Denoised(original, choice, told=told, unchanged=not struck)
    problem = Problem.denoising(tensor(small), name=job.name)
    fitted = replace(job, problem=problem, seen=small)
    if draft:
        fitted = replace(fitted, digest=f"{job.digest}, halved", like=None)
    began = time.perf_counter()
    seeds = [replace(choice.options, seed=choice.options.seed + n) for n in range(runs)]
    pictures = fit_all(fitted, seeds)
    if draft:
        level = 2 * choice.deviation if given.get("sigma") else noise.noise_level(y)
        pictures = [_with_detail(found, y, level) for found in pictures]
    mean = pictures[0] if runs == 1 else np.mean(pictures, axis=0, dtype=np.float32)
    # a draft has put back by itself what is not noise
    restored, weight = (mean, 1.0) if draft else noise.drawn_back(mean, y, choice.deviation)
    notes = []
    if weight < 0.9:
        notes.append(
            f"it ended before all detail was back: {1 - weight:.0%} of the original was mixed in; "
            "more --iterations, or a larger --width, may do better"
        )
    if declipping and not draft:
        restored, said = declipped(restored, y)
        notes += [said] * bool(said)
    spread = None
    if runs > 1:
        spread = np.float32(most) * np.sqrt(np.var(pictures, axis=0).mean(axis=0))
    what = f"mean of {runs} runs" if runs > 1 else "restored"
    told = f"{what} in {time.perf_counter() - began:.0f} s"
    restored = as_grey(restored, y) * np.float32(most)
    restored = np.where(original > most, original, restored)  # what towers above all others
    return Denoised(restored, choice, notes, spread, told)


def choose(
    y: np.ndarray, given: dict, most: float, draft: bool = False, struck: float = 0.0
) -> auto.Choice:
    """``auto.denoising`` for ``y`` [C, H, W], a picture divided by ``most``, its ``span``.

    draft: ``y`` is of half the size. struck: the share of its values that were salt or pepper, and
    are filled in. Raises as ``auto.denoising``.
    """
    choice = auto.denoising(y, (DRAFTED if draft else {}) | given, most, draft)
    if draft:
        choice.reasons.insert(0, "a draft, fitted at half the size, which halves the noise")
    if most < 1:
        choice.reasons.insert(0, f"uses {most:.1%} of its range: stretched while it is fitted")
    if struck:
        what = f"{struck:.1%}" if struck >= 0.001 else "less than 0.1%"
        what += " of the values are black or white by chance (salt and pepper)"
        choice.reasons.insert(0, f"{what}: filled in from what is around them")
    return choice


def _halved(y: np.ndarray) -> np.ndarray:
    """[C, H, W] at half the size, by 2×2 means."""
    means = functional.avg_pool2d(tensor(y), 2, ceil_mode=True, count_include_pad=False)
    return means[0].numpy()


def doubled(half: np.ndarray, size: tuple[int, int], clip: bool = True) -> np.ndarray:
    """What ``_halved`` has made of a picture of ``size``, enlarged to it: of an odd side the last
    mean was of one pixel, and of the two that it becomes one is cut off."""
    height, width = size
    return enlarge(half, tuple(2 * n for n in half.shape[1:]), clip)[:, :height, :width]


def _with_detail(half: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """A picture of half the size, enlarged, with the detail of ``y`` that is not noise of ``level``
    (0–255).

    The detail band as a whole is weighted as a Wiener filter would, by its power above the noise's.
    """
    size = y.shape[-2:]

    def band(x: np.ndarray) -> np.ndarray:
        return x - doubled(_halved(x), size, clip=False)

    unit = np.random.RandomState(0).standard_normal((1, *size)).astype(np.float32)
    share = float(np.square(band(unit)).mean())
    detail = band(y)
    power = float(np.square(detail).mean())
    noise_power = share * (level / 255) ** 2
    weight = max(0.0, 1 - noise_power / power) if power else 0.0
    return (doubled(half, size) + np.float32(weight) * detail).clip(0, 1)


def inpainting(path: Path, mask_path: Path | None = None, missing: str | None = None) -> Job:
    """A picture with holes: the mask is white where it is known.

    Without a mask, pixels of the colour ``missing`` are holes, or else those that are transparent.
    """
    picture, digest = _read(path)
    mask_digest = missing or ""
    try:
        if mask_path is not None:
            mask_picture, mask_digest = _read(mask_path)
            mask = operators.mask_from_picture(opaque(mask_picture), picture.size)
        elif missing is not None:
            mask = operators.mask_from_colour(picture.data, missing)
        elif picture.alpha is not None:
            mask = operators.mask_from_alpha(picture.alpha)
            picture = replace(picture, alpha=None)  # the holes are to be seen
        else:
            raise UserError("has no transparent pixels; give --mask FILE, or --missing COLOUR")
        if mask.all():
            raise UserError("no pixel is missing: what is to be filled in is black in a mask")
    except UserError as error:
        named = path if mask_path is None else f"--mask {mask_path}"
        raise UserError(f"{named}: {error}") from error
    A = operators.Mask(mask)
    y = A(tensor(picture.data))
    problem = Problem(y, A, picture.size, name=path.stem)
    like = _like(picture)
    return Job(path.stem, problem, y[0].numpy(), digest + mask_digest, like, keep_known=True)


def super_resolution(path: Path, factor: int) -> Job:
    """A small picture, to be ``factor`` times larger."""
    if not 2 <= factor <= 16:
        raise UserError(f"--factor {factor}: give a whole number from 2 to 16")
    picture, digest = _read(path)
    size = tuple(factor * n for n in picture.size)
    needed, free = RESIZING * len(picture.data) * math.prod(size), memory.free()
    if needed > free:
        raise UserError(
            f"{path}: {factor} times as large it takes more than {memory.words(needed)}, and "
            f"{memory.words(free)} are free; choose a smaller --factor, or a smaller picture"
        )
    problem = Problem(tensor(picture.data), operators.Downsample(factor), size, name=path.stem)
    return Job(path.stem, problem, bicubic(picture.data, size), digest, _like(picture))


def stretched(
    job: Job, options: Options
) -> tuple[Job, Options, Callable[[np.ndarray], np.ndarray]]:
    """``job`` and the noise level in ``options`` divided by its ``span``, and what makes of a
    picture [C, H, W] restored from that one of the measurement's own kind: of its range, grey where
    it is, with known pixels as they are."""
    y = job.problem.y[0].numpy()
    most = np.float32(span(y.max(initial=0)))
    problem = replace(job.problem, y=tensor(y / most))

    def back(restored: np.ndarray) -> np.ndarray:
        restored = as_grey(restored, y) * most
        if not job.keep_known:
            return restored
        known = job.problem.A.mask[0].numpy()
        return known * y + (1 - known) * restored

    auto.check_level(options.sigma, float(most), float(most))
    options = replace(options, sigma=options.sigma and options.sigma / float(most))
    return replace(job, problem=problem, seen=job.seen / most), options, back


def check(job: Job, options: Options, keep: Path | None = None) -> None:
    """Raise UserError for a picture that is too small for the network, for a folder that holds
    another run, or if memory has no room for a fit that was not begun there before."""
    options, _ = resolve(options)
    models.check_size(options.model_type, **network_settings(job, options))
    if keep and Run(keep).begun:
        _kept(job, options, keep, Cluster())
    else:
        needs.check(job, options)


def fill(
    job: Job, options: Options, keep: Path | None, say: Callable[[str], None]
) -> tuple[dict, np.ndarray]:
    """``restore`` for a picture with holes, by its ``parts``; what they come to, and the picture.

    keep: the run folder; parts have one each in it.
    Raises UserError as ``check``, before anything is fitted.
    """
    whole = None  # unless it was begun so, or in parts
    if keep and (Run(keep).begun or Run(keep / "part0").begun):
        whole = Run(keep).begun
    found = parts(job, options, whole)
    folders = [keep] * len(found)
    if found[0].job is not job:
        sizes = [part.job.problem.size for part in found]
        largest = "×".join(map(str, max(sizes, key=math.prod)))
        several = f"{len(found)} parts of it, the largest" if len(found) > 1 else "a part of it,"
        say(f"{job.name}: filled from what is around: {several} {largest} pixels")
        folders = [keep and keep / f"part{n}" for n in range(len(found))]
    for part, folder in zip(found, folders, strict=True):
        check(part.job, options, folder)
    done = [
        restore(part.job, options, {}, folder) for part, folder in zip(found, folders, strict=True)
    ]
    summaries, pictures = zip(*done, strict=True)
    stops = sorted(summary["stop_iteration"] for summary in summaries)
    return {
        "stop_iteration": stops[len(stops) // 2],
        "iterations": max(summary["iterations"] for summary in summaries),
        "seconds": sum(summary["seconds"] for summary in summaries),
        "stopped_by_rule": all(summary["stopped_by_rule"] for summary in summaries),
        "gave_up": any(summary.get("gave_up") for summary in summaries),
    }, joined(job, found, pictures)


def restore(
    job: Job,
    options: Options,
    given: dict,
    keep: Path | None,
    cluster: Cluster | None = None,
    **how,
) -> tuple[dict, np.ndarray]:
    """Fit ``job``; its summary and the restored picture [C, H, W].

    keep: the run folder. One that holds a run of the same picture and settings is gone on with, or
        what it found is taken; without one nothing is kept.
    cluster: where tiles are computed, if there are any. how: more for ``run_one``.
    """
    options, _ = resolve(replace(options, **given))
    options.validate()
    cluster = cluster or Cluster()
    where = cluster if getattr(options, "tile", 0) else Cluster()
    switches = Switches(resume=True, workers=cluster.workers, scheduler=cluster.scheduler)

    def fitted(run: Run) -> tuple[dict, np.ndarray]:
        models.check_size(options.model_type, **network_settings(job, options))
        kept = {"draw": keep is not None, "exact": keep is not None}
        return run_one(job, run, options, switches, lambda line: None, **(kept | how))

    if keep is None:  # nobody comes back to it
        options = replace(options, snapshots=[], checkpoint_every=10**9)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return fitted(Run(Path(folder)))
            except Kept as interrupt:  # not for long
                raise KeyboardInterrupt from interrupt
    run = Run(keep)
    check_alone(keep)
    check_free("--keep", run)
    found = _kept(job, options, keep, where)
    if run.finished and found is not None:
        finish_off(run, how.get("draw", True))
        return run.result(), found
    return fitted(run)


def _kept(job: Job, options: Options, keep: Path, where: Cluster) -> np.ndarray | None:
    """What a run in ``keep`` has found, if it is at its end; UserError if it is another run."""
    run = Run(keep)
    config = configuration(options, job, *where.choose(options.device, options.precision))
    try:
        run.check(config, NOT_IN_THE_NUMBERS, resume=True, overwrite=False)
        return run.load_exact()
    except UserError as error:
        raise UserError(
            f"{keep}: holds another run, or a damaged one; delete it, or choose another --keep"
        ) from error


DEMO = {
    "task": "denoising", "folder_path": "bundled/rocket", "crop": [256, 256], "noise_sigma": 25.0,
}  # fmt: skip


def demo(folder: Path) -> str:
    """Restore a picture that scikit-image ships, as ``dip-recon denoise`` would, into a run folder;
    returns a table of what came of it."""
    run = Run(folder)
    check_alone(folder)
    check_free("--output", run)
    item = data.resolve(DEMO["folder_path"])[0]
    job = denoising_job(item, replace(auto.DENOISING, **DEMO))
    print(f"{job.name}, 256×256, Gaussian noise sigma 25")
    choice = auto.denoising(job.problem.y[0].numpy(), DEMO)
    print("\n".join(choice.reasons))
    options, _ = resolve(choice.options)
    again = Switches(overwrite=True)
    summary, restored = run_one(job, run, options, again, lambda line: None, draw=False)
    restored, said = declipped(restored, job.problem.y[0].numpy())
    if said:
        print(said)
    images.write(run.folder / "restored.png", restored, like=job.like)
    summary["psnr_stopped"] = metrics.psnr(tensor(restored), job.problem.x)
    summary["ssim_stopped"] = metrics.ssim(tensor(restored), job.problem.x)
    run.write_result(summary)
    figures.draw_run(run)
    stop = f"{summary['stop_iteration']}, median of {summary['tiles']} tiles"
    rows = (
        ("noisy PSNR", f"{summary['psnr_noisy']:.2f} dB"),
        ("restored PSNR", f"{summary['psnr_stopped']:.2f} dB"),
        ("restored SSIM", f"{summary['ssim_stopped']:.3f}"),
        ("stopped at iteration", stop),
        ("seconds", f"{summary['seconds']:.0f} ({summary['device']}, {summary['precision']})"),
        ("side by side", run.folder / "comparison.png"),
    )
    return "\n".join(f"{name:<24}{value}" for name, value in rows)
