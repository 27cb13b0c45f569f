"""Options and one picture into everything that a fit needs: network, input, optimiser, rule."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import data, models, noise, stopping
from .errors import UserError
from .fit import (
    LOSSES,
    Backtracking,
    Decay,
    LastOutputs,
    MovingAverage,
    State,
    make_optimizer,
)
from .growing import Growing
from .guard import Guard
from .inputs import channels_of, make_input
from .operators import Identity
from .options import NETWORK_OPTIONS, Options, words
from .problem import Problem
from .recorded import Recorded, recordable
from .stopping import HeldOut
from .tasks import Job, load


def generator(seed: int, what: str, device: str | torch.device = "cpu") -> torch.Generator:
    """The random stream for one purpose (weights, input, jitter), all from one seed."""
    streams = ("weights", "input", "jitter")
    mixed = np.random.SeedSequence([seed, streams.index(what)]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0] >> np.uint64(1)))


def resolve(o: Options) -> tuple[Options, str | None]:
    """The options with the network's own defaults filled in, and a note on what it does not use.

    Options of other networks are unset, so that what is printed and saved is what is used.
    """
    entry = models.get(o.model_type)
    given = o.network_options()
    used = entry.resolve({k: v for k, v in given.items() if k in entry.options})
    unused = [k for k, v in given.items() if k not in entry.options and entry.fixed.get(k) != v]
    unused += [name for name in ("in_size", "out_chns") if getattr(o, name)]
    names = [f"--{k} {words(v if isinstance(v := getattr(o, k), list) else [v])}" for k in unused]
    note = f"{o.model_type} does not use {' '.join(names)}" if names else None
    lists = [k for k in NETWORK_OPTIONS if isinstance(getattr(o, k), list)]
    empty = {k: [] if k in lists else None for k in NETWORK_OPTIONS}
    filled = {k: _listed(v) if k in lists else v for k, v in used.items()}
    input_dim = o.input_dim
    if o.noise_method == "noise" and input_dim is None:
        input_dim = entry.input_dim(used)
    return replace(o, **(empty | filled), input_dim=input_dim, in_size=[], out_chns=None), note


def _listed(value) -> list:
    """A network's option as a list: one value, several, or none."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def network_settings(job: Job, o: Options) -> dict:
    """What ``models.build`` and ``models.check_size`` want for this picture."""
    given = o.network_options()
    channels = job.problem.channels
    in_channels = o.input_dim
    if o.noise_method != "noise":
        in_channels = channels_of(o.noise_method, 0, picture=np.empty((channels, 1, 1)))
        if o.input_dim not in (None, in_channels):
            raise UserError(
                f"--input_dim {o.input_dim}: --noise_method {o.noise_method} gives {in_channels}"
            )
    size = job.problem.size
    in_size = models.input_size(o.model_type, size, o.progressive, **given)
    sizes = {"in_size": in_size, "out_size": size}
    return {"in_channels": in_channels, "out_channels": channels, **sizes, **given}


NOISY_INPUT = 25.0  # sigma of ``--noise_method noisy_image`` where the task itself adds no noise


def input_picture(o: Options) -> Path:
    """The file that ``--input_image_name`` means: a path, one of the pictures at hand, SET/NAME."""
    path = Path(o.input_image_name)
    if path.is_file():
        return path
    for item in data.resolve(o.folder_path):
        if o.input_image_name in (item.name, item.path.name):
            return item.path
    beside = Path(o.folder_path) / o.input_image_name
    if beside.is_file():
        return beside
    with suppress(UserError):
        found = data.resolve(o.input_image_name)
        if len(found) == 1:
            return found[0].path
    raise UserError(f"--input_image_name {path}: neither a file nor a picture of {o.folder_path}")


def network_input(job: Job, o: Options, settings: dict) -> torch.Tensor:
    """z [1, c, h, w] on the CPU, as ``--noise_method`` says."""
    picture = None
    if o.noise_method in ("image", "noisy_image"):
        picture = load(input_picture(o), o)
        if o.noise_method == "noisy_image":
            rng = np.random.RandomState(o.seed + 1)
            picture = noise.add_gaussian(picture, getattr(o, "noise_sigma", NOISY_INPUT), rng)
        if picture.shape[0] != job.problem.channels:
            raise UserError(
                f"--input_image_name {o.input_image_name}: has {picture.shape[0]} channels, "
                f"{job.name} has {job.problem.channels}"
            )
    return make_input(
        o.noise_method,
        channels=settings["in_channels"],
        size=settings["in_size"],
        generator=generator(o.seed, "input"),
        noise_type=o.noise_type,
        scale=o.input_scale,
        picture=picture,
    )


def _rule(problem: Problem, o: Options) -> stopping.Fixed:
    settings = {"patience": o.patience, "window": o.window, "mns_hold": o.mns_hold}
    return stopping.make(o.stopping, problem=problem, sigma=o.sigma, **settings)


def check_rules(job: Job, o: Options, settings: dict) -> None:
    """Raise UserError if the stopping rule or the growing does not go with this picture."""
    _rule(job.problem, o)
    if o.growing:
        _growing(job, o, models.build(o.model_type, **settings, device="meta"))


def _growing(job: Job, o: Options, network: torch.nn.Module) -> Growing:
    """The schedule of levels; UserError if it does not go with the rule, the task, the network."""
    if o.stopping == HeldOut.name:
        raise UserError(f"--stopping {HeldOut.name}: not with --growing True")
    if not isinstance(job.problem.A, Identity):
        raise UserError(f"--growing True: for denoising only, not for {o.task}")
    return Growing.of(network, o.transition, o.stabilisation)


def on_gpu(device: torch.device) -> bool:
    """Whether operations are only told of, and carried out later."""
    return device.type == "cuda"


def ask_every(values: int) -> int:
    """How many outputs of so many values a rule decides on at once on a GPU.

    8; fewer of large ones, whose steps take longer than the waiting: all are kept by then.
    """
    return min(8, max(1, 2**22 // values))


def prepare(job: Job, o: Options, device: torch.device, precision: str) -> State:
    """A fresh state for this picture: network, input, optimiser and rule, as the options say.

    Raises UserError where they do not go together.
    """
    # cuDNN's default is TF32, 10 bits of mantissa: too few for filters, and for a fit that goes on
    # in float32 where bfloat16 has lost it
    torch.backends.cudnn.allow_tf32 = False
    settings = network_settings(job, o)
    weights = generator(o.seed, "weights")
    network = models.build(o.model_type, **settings, generator=weights).to(device)
    z = network_input(job, o, settings).to(device)
    if precision == "bf16":  # the kernels for bfloat16 are made for this layout
        network = network.to(memory_format=torch.channels_last)
        z = z.to(memory_format=torch.channels_last)
    problem = job.problem.to(device)
    rule = _rule(problem, o)
    schedule = Decay(o.gamma, o.step_size) if o.decay_lr else Decay()
    if o.growing:
        schedule = _growing(job, o, network)
    state = State(
        problem=rule.fitted(problem),
        network=network,
        z=z,
        optimizer=make_optimizer(o.optimizer, network.parameters(), o.lr, o.decay[0]),
        generator=generator(o.seed, "jitter", device),
        lr=o.lr,
        jitter=o.reg_noise_std,
        ema=o.exp_weight,
        loss_fn=LOSSES[o.loss_func],
        tv_weight=o.tv_weight,
        schedule=schedule,
        average=LastOutputs(o.average_last) if o.average_last else MovingAverage(o.exp_start),
        stopping=rule,
        backtracking=Backtracking(o.backtracking, o.backtracking_lr) if o.backtracking else None,
        guard=Guard(),
        precision=precision,
    )
    if on_gpu(device):
        state.ask_every = ask_every(problem.y.numel())
        state.recorded = Recorded() if recordable(state) else None
    return state
