"""Every option of the three experiments, in one place: flags and YAML both fill these dataclasses.

Names are those of the published scripts. A field's metadata holds its help text, choices and
bounds; ``flags`` builds the argument parser from the fields, so there is nothing to keep in step.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import ClassVar

from . import recipes
from .errors import UserError, nearest

METHOD_NOISE = ("SMNS", "AMNS")  # the rules that go by the noise level
STOPPING = (
    "fixed", "none", *METHOD_NOISE, "ES-WMV", "ES-EMV", "held-out",
)  # fmt: skip
SNAPSHOTS = (0, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def option(default, help: str, **more):
    """A dataclass field with its help text; ``kind`` says how it is read."""
    kwargs = {"default_factory": lambda: list(default)} if isinstance(default, list | tuple) else {}
    return field(**(kwargs or {"default": default}), metadata={"help": help, **more})


@dataclass
class Options:
    """What all three experiments share."""

    # pictures
    folder_path: str = option("bundled", "a folder, a picture, or a data set by name", kind=str)
    imsize: list[int] = option(
        [-1], "resize to H W first; -1 leaves pictures as they are", kind=int
    )
    crop: list[int] = option([], "cut H W from the middle first", kind=int, at_least=1)
    # network
    model_type: str = option(
        "DIP_2_scaled",
        "network by name: see `dip-recon models`; some have defaults of their own for what follows",
        kind=str,
    )
    dim: list[int] = option(
        [], "channels a layer (one number, or one a scale)", kind=int, at_least=1, at_most=65536
    )
    up_dim: list[int] = option(
        [], "channels going up, where they differ", kind=int, at_least=1, at_most=65536
    )
    skip_dim: list[int] = option(
        [], "channels of the skip branches", kind=int, at_least=0, at_most=65536
    )
    input_dim: int | None = option(
        None,
        "channels of the network input; by default the network's own",
        kind=int,
        at_least=1,
        at_most=65536,
    )
    num_scales: int | None = option(
        None, "how often the picture is halved", kind=int, at_least=1, at_most=16
    )
    num_skips: int | None = option(
        None, "skip connections, counted from the deepest", kind=int, at_least=0, at_most=16
    )
    num_layers: int | None = option(None, "layers of a decoder", kind=int, at_least=1, at_most=64)
    depth: list[int] = option(
        [], "attention blocks (one number, or one a scale)", kind=int, at_least=1, at_most=64
    )
    num_heads: list[int] = option(
        [], "heads of attention (one number, or one a scale)", kind=int, at_least=1, at_most=1024
    )
    window_size: int | None = option(
        None, "tokens a side of an attention window", kind=int, at_least=1, at_most=64
    )
    filter_size_down: int | None = option(
        None, "kernel size going down", kind=int, at_least=1, at_most=255
    )
    filter_size_up: int | None = option(
        None, "kernel size going up", kind=int, at_least=1, at_most=255
    )
    filter_skip_size: int | None = option(
        None, "kernel size of skips", kind=int, at_least=1, at_most=255
    )
    need1x1: bool | None = option(None, "a 1×1 convolution after each going up", kind=bool)
    exact_last: bool | None = option(None, "the last upsampling hits the exact size", kind=bool)
    upsample_mode: str | None = option(
        None,
        "upsampler by name, taps:a,b,… or kaiser:dB,cutoff: see `dip-recon upsamplers`",
        kind=str,
    )
    downsample_mode: str | None = option(None, "stride, avg or max", kind=str)
    act_func: str | None = option(None, "activation: ReLU, LeakyReLU, Swish, ELU, GELU", kind=str)
    norm_func: str | None = option(None, "normalisation: bn or instance", kind=str)
    pad: str | None = option(None, "zero or reflection", kind=str)
    need_sigmoid: bool | None = option(None, "end with a sigmoid", kind=bool)
    need_tanh: bool | None = option(None, "end with tanh", kind=bool)
    need_relu: bool | None = option(None, "end with ReLU", kind=bool)
    progressive: bool = option(
        False, "decoders start from 1/32 of the size instead of the full size", kind=bool
    )
    in_size: list[int] = option([], "taken from the picture and --progressive", kind=int)
    out_chns: int | None = option(None, "taken from the picture", kind=int)
    # network input
    noise_method: str = option(
        "noise", "network input", choices=("noise", "meshgrid", "fourier", "image", "noisy_image")
    )
    noise_type: str = option("u", "u uniform, n normal", choices=("u", "n"))
    input_scale: float = option(0.1, "factor on the input noise", kind=float, above=0, at_most=1000)
    input_image_name: str | None = option(
        None,
        "the picture in --folder_path (or a file) that is the input, or whose noisy version is",
    )
    reg_noise_std: float = option(
        1 / 30,
        "deviation of the noise added to the input each iteration",
        kind=float,
        at_least=0,
        at_most=1000,
    )
    # optimisation
    num_iters: int = option(3000, "iterations at most", kind=int, at_least=1, at_most=10**9)
    optimizer: str = option(
        "adam", "optimiser", choices=("adam", "adamw", "radam", "rmsprop", "sgd")
    )
    lr: float = option(0.01, "learning rate", kind=float, above=0, at_most=1000)
    decay_lr: bool = option(
        False, "multiply the learning rate by --gamma every --step_size", kind=bool
    )
    step_size: int = option(50, "iterations between two decays", kind=int, at_least=1)
    gamma: float = option(0.75, "factor of a decay", kind=float, above=0, at_most=10)
    loss_func: str = option("mse", "data term", choices=("mse", "l1", "bce"))
    tv_weight: float = option(
        0.0, "weight of the total variation", kind=float, at_least=0, at_most=10000
    )
    exp_weight: float = option(
        0.99,
        "weight of the past in the moving average of outputs; 0 for none",
        kind=float,
        at_least=0,
    )
    exp_start: int = option(
        0,
        "iteration that the moving average begins with; until then the output itself counts",
        kind=int,
        at_least=0,
        at_most=10**9,
    )
    average_last: int = option(
        0,
        "average this many last outputs instead; 0 for the moving average",
        kind=int,
        at_least=0,
        at_most=10000,
    )
    decay: list[float] = option(
        [0.0, 0.0],
        "weight decay (adamw alone), and an unused one",
        kind=float,
        at_least=0,
        at_most=1000,
    )
    backtracking: float = option(
        0.0,
        "undo a step when the fit falls by more than this many dB; 0 never",
        kind=float,
        at_least=0,
        at_most=1000,
    )
    backtracking_lr: float = option(
        0.9, "factor on the learning rate at each such step", kind=float, above=0, at_most=1
    )
    # growing
    growing: bool = option(False, "grow PG_DIP level by level while it is fitted", kind=bool)
    transition: list[int] = option(
        [70, 100],
        "iterations of fading a level in, below the top and there; or of each level",
        kind=int,
        at_least=0,
    )
    stabilisation: list[int] = option(
        [50, 650], "iterations at a level after that, given alike", kind=int, at_least=1
    )
    # stopping
    stopping: str = option(
        "fixed",
        "when to stop; none is fixed",
        choices=STOPPING,
    )
    sigma: float | None = option(
        None,
        "noise level that SMNS and AMNS go by, 0-255; by default the one added, or estimated",
        kind=float,
        above=0,
        at_most=255,
    )
    mns_hold: int = option(
        25, "iterations that SMNS and AMNS want below their target", kind=int, at_least=1
    )
    patience: int = option(
        1000, "iterations without a new minimum", kind=int, at_least=1, at_most=10**9
    )
    window: int = option(
        100, "outputs in the window of ES-WMV", kind=int, at_least=2, at_most=10000
    )
    # the run
    seed: int = option(
        7, "seed of weights, input, noise and jitter", kind=int, at_least=0, at_most=2**32 - 2
    )
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    precision: str = option("auto", "arithmetic", choices=("auto", "fp32", "bf16"))
    save_folder: str = option("runs", "where the run folders go", kind=str)
    special: str | None = option(None, "appended to the folder's name", kind=str)
    iters_print_acc: int = option(100, "iterations between two lines", kind=int, at_least=1)
    eval_every: int = option(10, "iterations between two rows of history.csv", kind=int, at_least=1)
    snapshots: list[int] = option(
        SNAPSHOTS, "iterations to keep a picture of", kind=int, at_least=0
    )
    checkpoint_every: int = option(500, "iterations between two checkpoints", kind=int, at_least=1)
    verbose: bool = option(False, "print the loss as well", kind=bool)
    batch_size: int = option(1, "one picture at a time", kind=int)

    TASKS = ()
    UNUSED = ()  # published flags that this experiment has no use for, whatever they say
    ALIASES: ClassVar[dict[str, str]] = {}  # other published names of options -> ours
    RECIPES: ClassVar[dict[str, dict]] = {}  # --recipe -> the options that it stands for

    @classmethod
    def with_recipe(cls, given: dict) -> dict:
        """``given`` options, and those of the recipe it names that it does not set itself.

        With another picture what belongs to the recipe's own is not taken over: its second picture.
        Raises UserError for an unknown recipe.
        """
        name = given.get("recipe")
        if name is None:
            return given
        if name not in cls.RECIPES:
            for program, others in recipes.OF_PROGRAMS.items():
                if name in others:
                    raise UserError(f"--recipe {name}: run: python {program}.py --recipe {name}")
            raise UserError(f"--recipe {name}: {nearest(name, cls.RECIPES)}")
        recipe = dict(cls.RECIPES[name])
        if "folder_path" in given:
            recipe.pop("input_image_name", None)
        return recipe | given

    def validate(self) -> None:
        """Raise UserError for a value out of range, naming the flag."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            for v in value if isinstance(value, list) else [value]:
                _check_value(f, v)
        if self.exp_weight >= 1:
            raise UserError(
                f"--exp_weight {self.exp_weight:g}: give a weight below 1, such as 0.99"
            )
        if self.stopping == "none":
            self.stopping = "fixed"
        if not 1 <= len(self.decay) <= 2:
            raise UserError(f"--decay {words(self.decay)}: give one number, or two")
        if self.batch_size != 1:
            raise UserError(
                f"--batch_size {self.batch_size}: one picture is fitted at a time; use 1"
            )
        if self.TASKS and self.task not in self.TASKS:
            raise UserError(f"--task {self.task}: {nearest(self.task, self.TASKS)}")
        for name in ("folder_path", "save_folder"):
            if not getattr(self, name):
                raise UserError(f"--{name}: give a path, . for the current folder")
        if self.special is not None and not re.fullmatch(r"[\w.+=,-]+", self.special):
            raise UserError(f"--special {self.special}: letters, digits and . + = , - _ only")
        if len(self.imsize) not in (1, 2) or (self.imsize != [-1] and min(self.imsize) < 1):
            raise UserError(f"--imsize {words(self.imsize)}: give -1, or a height and a width")
        if max(self.imsize) > 20_000:
            raise UserError(f"--imsize {words(self.imsize)}: must be at most 20000")
        if len(self.crop) > 2:
            raise UserError(f"--crop {words(self.crop)}: give a height and a width")
        uses_picture = self.noise_method in ("image", "noisy_image")
        if uses_picture and not self.input_image_name:
            raise UserError(f"--noise_method {self.noise_method}: name it by --input_image_name")

    def network_options(self) -> dict:
        """The options of the network that are set, by the names that networks know them by."""
        given = {name: getattr(self, name) for name in NETWORK_OPTIONS}
        lists = {
            k: v[0] if len(v) == 1 else v for k, v in given.items() if isinstance(v, list) and v
        }
        return {k: v for k, v in given.items() if v not in (None, [])} | lists


NETWORK_OPTIONS = (
    "dim", "up_dim", "skip_dim", "num_scales", "num_skips", "num_layers", "depth", "num_heads",
    "window_size", "filter_size_down", "filter_size_up", "filter_skip_size", "need1x1",
    "exact_last", "upsample_mode", "downsample_mode", "act_func", "norm_func", "pad",
    "need_sigmoid", "need_tanh", "need_relu",
)  # fmt: skip

# Options that say where results go or how often to look; a run may be resumed under other values.
NOT_IN_THE_NUMBERS = (
    "folder_path", "save_folder", "special", "verbose", "iters_print_acc",
    "snapshots", "checkpoint_every", "in_size", "out_chns", "batch_size", "versions",
    "labels", "upsample_taps", "runs", "recipe",
)  # fmt: skip


@dataclass
class DenoisingOptions(Options):
    """Denoising: A is the identity."""

    recipe: str | None = option(
        None,
        "published settings and picture, flags win over them: snail (blocks of JPEG), flash (a "
        "picture without flash guided by one with it)",
        kind=str,
    )
    task: str = option("denoising", "denoising adds noise, real_denoising does not", kind=str)
    noise_sigma: float = option(
        25.0,
        "deviation of the Gaussian noise added, on the 0-255 scale",
        kind=float,
        at_least=0,
        at_most=10000,
    )
    noise_seed: int | None = option(
        None, "seed of the noise added, where it is not --seed", kind=int, at_least=0,
        at_most=2**32 - 2,
    )  # fmt: skip
    poisson_scale: float = option(
        0.0,
        "add Poisson noise of this scale instead; 0 for none",
        kind=float,
        at_least=0,
        at_most=1,
    )

    runs: int = option(
        1, "runs on the same noisy picture, whose mean is measured too", kind=int, at_least=1
    )
    tile: int = option(
        0,
        "restore tiles of about this many pixels a side; 0 only what would not fit into memory",
        kind=int,
        at_least=0,
        at_most=100_000,
    )
    overlap: int = option(
        16, "pixels that a tile is grown by on each side and faded over", kind=int, at_least=0
    )

    RECIPES = recipes.DENOISING
    TASKS = ("denoising", "real_denoising")
    UNUSED = ("mask_type", "zero_fraction", "sr_factor", "sr_kernel_type")

    def validate(self) -> None:
        super().validate()
        if 0 < self.poisson_scale < 1e-6:
            raise UserError(f"--poisson_scale {self.poisson_scale:g}: give 0, or at least 1e-6")


@dataclass
class BaselineOptions(DenoisingOptions):
    """DIP as in the table of the paper; two runs on the same noisy picture, and their mean.

    The network is that of Ulyanov et al.; PG-DIP's thesis runs it with another epsilon of the batch
    normalisation (1e-6 for 1e-5) and bilinear upsampling with aligned corners.
    """

    model_type: str = option("DIP_orig", "network by name", kind=str)
    num_iters: int = option(1800, "iterations at most", kind=int, at_least=1, at_most=10**9)
    runs: int = option(2, "runs on the same noisy picture", kind=int, at_least=1)


@dataclass
class MethodNoiseOptions(DenoisingOptions):
    """DIP with method-noise stopping: --stopping AMNS, SMNS or none."""

    model_type: str = option("DIP_orig", "network by name", kind=str)
    num_iters: int = option(4000, "iterations at most", kind=int, at_least=1, at_most=10**9)
    stopping: str = option("AMNS", "when to stop", choices=STOPPING)
    mns_hold: int = option(75, "iterations below the target", kind=int, at_least=1)


@dataclass
class GrowingOptions(DenoisingOptions):
    """PG-DIP: the network grows from a small picture to the whole one."""

    model_type: str = option("PG_DIP", "network by name", kind=str)
    growing: bool = option(True, "grow level by level", kind=bool)
    num_iters: int | None = option(
        None,
        "iterations at most; by default all phases, and 4000 where a rule stops",
        kind=int,
        at_least=1,
        at_most=10**9,
    )
    reg_noise_std: float | None = option(
        None,
        "deviation of the noise added to the input; by default s/1500 + 1/60 for s = --sigma, or "
        "--noise_sigma",
        kind=float,
        at_least=0,
        at_most=1000,
    )
    stopping: str = option("AMNS", "when to stop", choices=STOPPING)

    def validate(self) -> None:
        super().validate()
        if self.reg_noise_std is None:
            self.reg_noise_std = (self.sigma or self.noise_sigma) / 1500 + 1 / 60
        if self.num_iters is None:
            from .growing import phases

            levels = self.num_scales or 5  # fewer on small pictures: the top level goes on then
            last = phases(levels, self.transition, self.stabilisation)[-1]
            self.num_iters = last.start + last.length if self.stopping == "fixed" else 4000


@dataclass
class TiledOptions(GrowingOptions):
    """PG-DIP on overlapping tiles: pictures of any size, each tile with its own stop."""

    tile: int = option(128, "pixels a tile's side, about", kind=int, at_least=0, at_most=100_000)
    dim: list[int] = option([32], "channels a layer", kind=int, at_least=1, at_most=65536)
    lr: float = option(0.005, "learning rate", kind=float, above=0, at_most=1000)
    average_last: int = option(
        20, "average this many last outputs", kind=int, at_least=0, at_most=10000
    )
    transition: list[int] = option(
        [14, 18, 22, 26, 40], "iterations of fading each level in", kind=int, at_least=0
    )
    stabilisation: list[int] = option(
        [13, 16, 19, 22, 4000], "iterations at each level after that", kind=int, at_least=1
    )


@dataclass
class TransformerOptions(DenoisingOptions):
    """transformer-DIP: a Swin U-Net with unlearnt upsampling, or --model_type Swin_expand."""

    model_type: str = option("Swin_upsample", "network by name", kind=str)
    seed: int = option(
        12345, "seed of weights, input, noise and jitter", kind=int, at_least=0, at_most=2**32 - 2
    )

    ALIASES: ClassVar[dict[str, str]] = {
        "epochs": "num_iters",
        "lr1": "lr",
        "input_dir": "folder_path",
        "img_dir": "save_folder",
        "display_epoch": "iters_print_acc",
        "use_sigmoid": "need_sigmoid",
    }


@dataclass
class InpaintingOptions(Options):
    """Inpainting: A keeps the known pixels."""

    recipe: str | None = option(
        None,
        "published settings, picture and mask, flags win over them: kate (text), vase (a region), "
        "library (a large hole)",
        kind=str,
    )
    task: str = option("inpainting", "inpainting", kind=str)
    mask_type: str = option("bernoulli", "bernoulli, text, or file", kind=str)
    mask_path: str | None = option(
        None, "mask picture for --mask_type file, white = known", kind=str
    )
    zero_fraction: float = option(0.5, "fraction of missing pixels", kind=float, at_least=0)
    mask_seed: int = option(
        100, "seed of the Bernoulli mask", kind=int, at_least=0, at_most=2**32 - 2
    )

    RECIPES = recipes.INPAINTING
    TASKS = ("inpainting",)
    UNUSED = ("noise_sigma", "poisson_scale", "sr_factor", "sr_kernel_type")

    def validate(self) -> None:
        super().validate()
        self.mask_type = self.mask_type.lower()
        if self.mask_type not in ("bernoulli", "text", "file"):
            choices = nearest(self.mask_type, ("bernoulli", "text", "file"))
            raise UserError(f"--mask_type {self.mask_type}: {choices}")
        if self.zero_fraction >= 1:
            raise UserError(
                f"--zero_fraction {self.zero_fraction:g}: nothing would be known; below 1"
            )
        if self.mask_path and self.mask_type != "file":
            raise UserError(f"--mask_path {self.mask_path}: only with --mask_type file")


@dataclass
class SuperResolutionOptions(Options):
    """Super-resolution: A blurs and downsamples."""

    task: str = option("sr", "sr", kind=str)
    num_iters: int = option(2000, "iterations at most", kind=int, at_least=1, at_most=10**9)
    sr_factor: int = option(
        4, "how many times smaller the low-resolution picture is", kind=int, at_least=2, at_most=16
    )
    sr_kernel_type: str = option("lanczos2", "downsampling kernel", kind=str)

    TASKS = ("sr",)
    UNUSED = ("noise_sigma", "poisson_scale", "mask_type", "zero_fraction")


def suits(name: str, value) -> bool:
    """Whether ``value``, from a saved configuration, is of the kind that option ``name`` has.

    Of what is no option, any one value, or a list of such.
    """
    wanted, many = _KINDS.get(name, ((str, int, float), True))
    parts = value if isinstance(value, list) and many else [value]
    return all(
        v is None or (isinstance(v, wanted) and not (isinstance(v, float) and not math.isfinite(v)))
        for v in parts
    )


def words(values) -> str:
    """Values as they would be typed after a flag."""
    return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _check_value(f: dataclasses.Field, value) -> None:
    if value is None:
        return
    low, high, above = (f.metadata.get(bound) for bound in ("at_least", "at_most", "above"))
    choices = f.metadata.get("choices")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{f.name} {value}: give a finite number")
    if low is not None and value < low:
        raise UserError(f"--{f.name} {value:g}: must be at least {low}")
    if high is not None and value > high:
        raise UserError(f"--{f.name} {value:g}: must be at most {high}")
    if above is not None and value <= above:
        raise UserError(f"--{f.name} {value:g}: must be above {above}")
    if choices and value not in choices:
        raise UserError(f"--{f.name} {value}: {nearest(value, choices)}")


def _kinds() -> dict[str, tuple[tuple[type, ...], bool]]:
    """What a saved configuration holds for each option of any experiment, and whether a list."""
    saved = {str: (str, int, float), float: (int, float), int: (int,), bool: (bool,)}
    return {
        f.name: (saved[f.metadata.get("kind", str)], f.default_factory is not dataclasses.MISSING)
        for cls in (DenoisingOptions, InpaintingOptions, SuperResolutionOptions)
        for f in dataclasses.fields(cls)
    }


_KINDS = _kinds()
