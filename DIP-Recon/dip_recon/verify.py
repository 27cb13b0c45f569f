"""``dip-recon verify``: begin a stored run again, and compare it number by number.

On a CPU the same seed gives the same bits on one machine with the same versions, precision and
number of threads. Sums are taken in another order by another number of threads, and rounded
otherwise: the figures part in the last digits, and further on by more. A GPU takes some sums in
another order each time, so that of a run on one only the beginning can be told, to a few digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import isclose
from pathlib import Path

from . import data, models, needs
from .callbacks import Evaluation
from .errors import UserError
from .experiment import configuration
from .fit import State, choose, fit
from .options import (
    DenoisingOptions,
    InpaintingOptions,
    Options,
    SuperResolutionOptions,
)
from .prepare import network_settings, prepare
from .runs import HISTORY, Run, short
from .tasks import JOBS, Job

COMPARED = tuple(name for name in HISTORY if name not in ("iteration", "seconds"))
NEAR = 0.01  # relative difference that the first iteration may have where a GPU has computed it


def verify(folder: Path, iterations: int, say: Callable[[str], None]) -> bool:
    """Whether the first ``iterations`` of a finished run come out as its history.csv has them.

    Compared are the loss and the figures of each row, to the last digit that is stored; with a GPU,
    then or now, those of the first iteration alone, to within ``NEAR``. What is found, and in what
    this machine differs from the one it ran on, goes to ``say``. The folder is only read.

    Raises:
        UserError: no finished run, one of tiles, or a picture that is gone or is another one now.
    """
    run = Run(folder)
    if not run.begun:
        raise UserError(f"{folder}: no run folder; give one that holds a config.yaml")
    if not run.finished:
        raise UserError(f"{folder}: its run is not finished; finish it by --resume first")
    config, stored = run.config(), run.history()
    if config.get("tile"):
        raise UserError(f"{folder}: a run of tiles has no history to compare with")
    o = _options(folder, config)
    try:
        device, _ = choose(str(config.get("device")), "fp32")
    except UserError:
        device, _ = choose("auto", "fp32")
    precision = str(config.get("precision"))
    o = replace(o, device=device.type)
    job, now = _found(folder, config, o, device.type, precision)
    for what, then, here in _differences(config, now):
        say(f"note: {what} {then} then, {here} now")
    count = min(iterations, int(stored[-1]["iteration"]) + 1)
    # what was put back shows once the fit has been through the same trouble
    troubles = run.result().get("troubles") or []
    noticed = max((int(one.get("noticed") or 0) for one in troubles), default=0)
    steps = count
    if count <= noticed:
        steps = noticed + 1
        count = min(steps, int(stored[-1]["iteration"]) + 1)
        say(f"note: it was put back at iteration {noticed}: the first {count} are compared")
    exact = {device.type, config.get("device")} == {"cpu"}
    if not exact:
        count = steps = 1
        say("note: a GPU adds in no fixed order: only the first iteration is compared")
    models.check_size(o.model_type, **network_settings(job, o))
    needs.check(job, o)
    evaluation = Evaluation(o.eval_every, o.iters_print_acc)
    state = prepare(job, o, device, precision)

    def end(state: State) -> None:
        state.stopped |= state.iteration >= steps

    fit(state, o.num_iters, [evaluation, end])  # the guard looks closer where a run ends
    evaluation.measure(state)
    again = {row["iteration"]: row for row in evaluation.rows}
    rows = [row for row in stored if row["iteration"] < count and row["iteration"] in again]
    for row in rows:
        for name in COMPARED:
            if row[name] is None:
                continue
            found = short(again[row["iteration"]].get(name))
            if not isclose(float(found or "nan"), row[name], rel_tol=0.0 if exact else NEAR):
                there = f"iteration {row['iteration']:.0f}: {name}"
                say(f"{folder}: {there} {short(row[name])} stored, {found or 'nothing'} now")
                return False
    what = f"same to the last digit stored, {len(rows)} rows of the first {count} iterations"
    say(f"{folder}: {what if exact else 'the first iteration is the same, as near as can be told'}")
    return True


def _options(folder: Path, config: dict) -> Options:
    """The options of a run, as its config.yaml has them."""
    kinds = {"inpainting": InpaintingOptions, "sr": SuperResolutionOptions}
    cls = kinds.get(config.get("task"), DenoisingOptions)
    try:
        o = cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})
        o.validate()
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{folder / 'config.yaml'}: damaged ({error})") from error
    return o


def _found(folder: Path, config: dict, o: Options, device: str, precision: str) -> tuple[Job, dict]:
    """The run's own picture as a problem, and what config.yaml would hold of it now."""
    name = config.get("image")
    try:
        items = [item for item in data.resolve(o.folder_path) if item.name == name]
    except UserError:
        items = []
    if not items:
        raise UserError(
            f"{folder}: its picture {name} is not in {o.folder_path} any more; put it back, or run "
            "this where relative paths are the same (where a run of `dip-recon denoise --keep` had "
            "its picture from is not known)"
        )
    for item in items:
        job = JOBS[o.task](item, o)
        now = configuration(o, job, device, precision)
        if now["picture_sha256"] == config.get("picture_sha256"):
            return job, now
    raise UserError(f"{items[0].path}: is not the picture of {folder} any more (SHA-256)")


def _differences(config: dict, now: dict) -> list[tuple[str, object, object]]:
    """What may change the numbers: name, value then, value now. What is not known is left out."""
    then = {"device": config.get("device"), **(config.get("versions") or {})}
    here = {"device": now["device"], **now["versions"]}
    return [(k, then[k], here[k]) for k in here if k in then and then[k] != here[k]]
