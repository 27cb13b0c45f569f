"""Flags and YAML files into options: what the entry scripts' users type.

The published scripts' flags are all accepted; one that switches on a feature which this program
does not have is refused, and one that changes nothing is said to.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import shlex
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from . import models
from .documents import read_yaml
from .errors import UserError, nearest
from .options import GrowingOptions, Options, words
from .stopping import RULES

# Published features that this program does not have, with the values at which they are off …
OFF = {
    "freq_lbda": (0,),
    "prune_type": ("none",),
    "reg_type": (0,),
    "Lipschitz_constant": (0,),
    "Lipschitz_reg": (0,),
    "need_dropout": ("false", "no", "f", "n", 0),
}
# … and the flags that only matter while one of those is on.
DEPENDENT = {
    "freq_loss_func": "freq_lbda",
    "morph_lbda": "prune_type",
    "min_tau": "prune_type",
    "num_power_iterations": "Lipschitz_constant",
}
# How a fit is watched. That of a tile is not; when it is finished, the tile is kept.
WATCHING = ("eval_every", "iters_print_acc", "verbose", "snapshots", "checkpoint_every")
WHOLE = "--tile 0"
NOISE = ("poisson_scale", "noise_seed")  # that is added to a clean picture
DRAWN, BERNOULLI = ("zero_fraction", "mask_seed"), "--mask_type bernoulli"  # of a mask at random


def _boolean(text) -> bool:
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if str(text).lower() not in words:
        raise ValueError("give True or False")
    return words[str(text).lower()]


def _number(text) -> float:
    return float(Fraction(text)) if isinstance(text, str) and "/" in text else float(text)


def _float(text) -> float:
    if isinstance(text, bool):
        raise ValueError("a truth value is no number")
    return _number(text)


def _integer(text) -> int:
    if isinstance(text, bool):
        raise ValueError("a truth value is no number")
    if float(text) != int(float(text)):
        raise ValueError("give a whole number")
    return int(float(text))


def _text(text) -> str:
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        raise ValueError("not a text")
    return str(text)


READERS = {bool: _boolean, float: _float, int: _integer, str: _text}


def convert(f: dataclasses.Field, value):
    """Read one flag's or YAML key's value as its field wants it; UserError names the flag."""
    read = READERS[f.metadata.get("kind", str)]
    many = f.default_factory is not dataclasses.MISSING
    try:
        if many:
            parts = value if isinstance(value, list | tuple) else str(value).split()
            return [read(v) for v in parts]
        if value is None and f.default is None:
            return None
        return read(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        kind = {int: "a whole number", float: "a number", bool: "True or False", str: "a word"}
        wanted = kind[f.metadata.get("kind", str)]
        raise UserError(f"--{f.name} {value}: give {wanted}") from error


class _Parser(argparse.ArgumentParser):
    """argparse, but its mistakes are UserErrors."""

    def error(self, message):
        raise UserError(message)


@dataclass
class Switches:
    """What is asked of this one command and is no part of the experiment."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    tensorboard: bool = False
    workers: int = 1
    scheduler: str | None = None


def parser(cls: type[Options], prog: str) -> argparse.ArgumentParser:
    """The argument parser of an experiment: a flag a field, and the published ones that are off."""
    parser = _Parser(prog=prog, description=cls.__doc__, allow_abbrev=False)
    recipe = models.get(cls.model_type).recipe
    for f in dataclasses.fields(cls):
        many = f.default_factory is not dataclasses.MISSING
        default = recipe.get(f.name, f.default_factory() if many else f.default)
        shown = words(default if many else [default])
        text = f.metadata["help"]
        if "choices" in f.metadata:
            text += f": {', '.join(f.metadata['choices'])}"
        if shown not in ("None", ""):
            text += f" (default {shown})"
        other = [f"--{alias}" for alias, name in cls.ALIASES.items() if name == f.name]
        parser.add_argument(
            f"--{f.name}", *other, nargs="+" if many else None, default=None, metavar="V",
            help=text.replace("%", "%%"),
        )  # fmt: skip
    for name in (*OFF, *DEPENDENT, *cls.UNUSED):
        parser.add_argument(f"--{name}", default=None, metavar="V", help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; flags win over it")
    for flag, text in (
        ("--resume", "go on with unfinished runs and keep finished ones"),
        ("--overwrite", "throw away what the run folders hold and start again"),
        ("--dry-run", "print the resolved options and the pictures, then leave"),
        ("--tensorboard", "write curves and snapshots for TensorBoard into the run folder too"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    if any(f.name == "tile" for f in dataclasses.fields(cls)):
        parser.add_argument(
            "--workers", default=1, metavar="N", help="processes that restore tiles (1)"
        )
        parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, for tiles")
    return parser


def parse(cls: type[Options], argv: list[str], prog: str) -> tuple[Options, Switches, list[str]]:
    """Fill an experiment's options from flags and a YAML file; flags win.

    Returns the options, the switches, and notes: one line for each published flag that was given
    but changes nothing here.

    Raises:
        UserError: an unknown flag or key, a value of the wrong kind or out of range, a published
            feature that is switched on but not supported.
    """
    given, switches = read(cls, argv, prog)
    options, notes = fill(cls, given)
    if switches.tensorboard and getattr(options, "tile", 0):
        notes.append(f"--tensorboard has no effect without {WHOLE}")
    return options, switches, notes


def read(cls: type[Options], argv: list[str], prog: str) -> tuple[dict, Switches]:
    """What was typed, not yet converted: option name -> text (or YAML value), and the switches."""
    p = parser(cls, prog)
    args, unknown = p.parse_known_args(argv)
    known = [s.lstrip("-") for a in p._actions for s in a.option_strings]
    for word in unknown:
        if word.startswith("-"):
            name = word.lstrip("-").split("=")[0]
            raise UserError(f"unknown flag {word.split('=')[0]}: {_closest(name, known)}")
    if unknown:
        raise UserError(f"unexpected {unknown[0]!r}: every value follows a --flag")
    given = _read_yaml(args.config, [a.dest for a in p._actions]) if args.config else {}
    typed = {k: v for k, v in vars(args).items() if v is not None and k not in _COMMAND}
    if "save_folder" not in typed:
        check_below(f"--config {args.config}", given.get("save_folder"))
    given |= typed
    switches = {f.name: getattr(args, f.name, f.default) for f in dataclasses.fields(Switches)}
    try:
        switches["workers"] = _integer(switches["workers"])
    except (ValueError, OverflowError):
        switches["workers"] = 0
    if switches["workers"] < 1:
        raise UserError(f"--workers {args.workers}: give a whole number, at least 1")
    return given, Switches(**switches)


def fill(cls: type[Options], given: dict) -> tuple[Options, list[str]]:
    """Convert and check what ``read`` gave; returns the options and the notes.

    What was not given is as the named recipe has it, else as the network's own recipe has it, else
    as the experiment has it.
    """
    given = dict(given)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    notes = [note for name in list(given) for note in _published(cls, name, given, fields)]
    found = {k: convert(fields[k], v) for k, v in given.items()}
    found = cls.with_recipe(found)
    network = models.get(found.get("model_type", cls.model_type)).recipe
    options = cls(**(network | found))
    options.validate()
    return options, notes + _idle(options, given)


def _idle(o: Options, given: dict) -> list[str]:
    """A note for each option that was given but has no effect beside the others."""
    noise_input = o.noise_method == "noise"
    picture_input = o.noise_method in ("image", "noisy_image")
    ungrown = "--growing False"  # which has rates of its own
    decaying = ungrown if o.growing else "--decay_lr True"
    tiled, usual = getattr(o, "tile", 0) > 0, type(o)()
    needs = {
        **{name: _of_rules(name, o) for name in ("patience", "sigma", "mns_hold", "window")},
        "transition": (o.growing, "--growing True"),
        "stabilisation": (o.growing, "--growing True"),
        "overlap": (tiled, "--tile"),
        **{k: (not tiled or getattr(o, k) == getattr(usual, k), WHOLE) for k in WATCHING},
        "average_last": (o.exp_weight > 0, "--exp_weight above 0"),
        "exp_start": (
            o.exp_weight > 0 and not o.average_last,
            "--exp_weight above 0, and has none with --average_last",
        ),
        "decay_lr": (not (o.decay_lr and o.growing), ungrown),
        **{k: (o.decay_lr and not o.growing, decaying) for k in ("gamma", "step_size")},
        "backtracking_lr": (o.backtracking > 0, "--backtracking"),
        "input_scale": (noise_input, "--noise_method noise"),
        "noise_type": (noise_input, "--noise_method noise"),
        "input_image_name": (picture_input, "--noise_method image or noisy_image"),
        "decay": (o.optimizer == "adamw", "--optimizer adamw"),
        "noise_sigma": (  # which PG-DIP's noise on the input follows too
            (o.task == "denoising" and not getattr(o, "poisson_scale", 0))
            or isinstance(o, GrowingOptions)
            or o.noise_method == "noisy_image",  # to which it is added too
            "--task denoising without --poisson_scale",
        ),
        **{name: (o.task == "denoising", "--task denoising") for name in NOISE},
        **{k: (getattr(o, "mask_type", "") == "bernoulli", BERNOULLI) for k in DRAWN},
    }
    return [
        f"--{name} has no effect without {what}"
        for name, (used, what) in needs.items()
        if name in given and not used
    ]


def _of_rules(name: str, o: Options) -> tuple[bool, str]:
    """Whether the option called ``name`` is used, and the stopping rules that take it."""
    takers = [rule for rule in RULES if name in inspect.signature(RULES[rule]).parameters]
    used = o.stopping in takers or (name == "sigma" and isinstance(o, GrowingOptions))
    return used, f"--stopping {' or '.join(takers)}"


_COMMAND = ("config", *(f.name for f in dataclasses.fields(Switches)))


def _closest(name: str, known: list[str]) -> str:
    hint = nearest(name, known).split("Choices:")[0].replace("'", "").strip()
    return hint.replace("mean ", "mean --") if hint else "see --help"


def _published(cls: type[Options], name: str, given: dict, fields: dict) -> list[str]:
    """Take a published flag that is no option of ours out of ``given``; say what becomes of it."""
    if name in fields:
        return []
    value = given.pop(name)
    if name in OFF:
        try:
            off = _number(value) in OFF[name]
        except (ValueError, TypeError, ZeroDivisionError):
            off = str(value).lower() in OFF[name]
        if not off:
            raise UserError(f"--{name} {value}: not supported; leave it at {OFF[name][0]}")
        return []
    if name in DEPENDENT:
        return []
    return [f"--{name} {value} changes nothing in {cls.TASKS[0]}"]


def check_below(file: str, save_folder) -> None:
    """Raise UserError if a file says that results go elsewhere than below the current folder."""
    path = Path(str(save_folder))
    if save_folder is not None and (path.is_absolute() or ".." in path.parts):
        raise UserError(
            f"{file}: save_folder {path} leads out of the current folder; if that is wanted, give "
            f"it as a flag: --save_folder {shlex.quote(str(path))}"
        )


def _read_yaml(path: str, known: list[str]) -> dict:
    try:
        loaded = read_yaml(Path(path))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--config {path}: not a YAML file ({error})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"--config {path}: must hold `option: value` lines")
    for key in (
        "image",
        "picture_sha256",
        "versions",
        "labels",
        "upsample_taps",
    ):  # a run folder's config.yaml has these too
        loaded.pop(key, None)
    for key in loaded:
        if key not in known or key in _COMMAND:
            raise UserError(f"--config {path}: unknown key {key}: {_closest(str(key), known)}")
    return loaded
