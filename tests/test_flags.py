"""Flags and YAML: published scripts run as they are, mistakes get one line."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from dip_recon import flags, models, stopping
from dip_recon.data.sets import manifest
from dip_recon.errors import UserError
from dip_recon.flags import parse
from dip_recon.options import (
    NETWORK_OPTIONS,
    DenoisingOptions,
    InpaintingOptions,
    Options,
    SuperResolutionOptions,
    TiledOptions,
    TransformerOptions,
)
from dip_recon.prepare import resolve

EXPERIMENTS = [DenoisingOptions, InpaintingOptions, SuperResolutionOptions]

# The flags of the published shell scripts, by what they run.
DECODER = """ --task denoising --folder_path ../data/Set9 --save_folder /path/to/folder
 --imsize -1 --model_type DD --progressive True --in_size 16 16 --out_chns 3 --num_iters 3000
 --norm_func bn --noise_sigma 25 --filter_size_down 3 --filter_size_up 3 --num_layers 6
 --num_skips 0 --need_sigmoid True --loss_func mse --freq_loss_func moment_matching
 --optimizer adam --decay_lr False --exp_weight 0 --noise_type u --noise_method noise
 --special bilinearUp --prune_type None --reg_type 0 --decay 1e-8 0 --reg_noise_std 0
 --upsample_mode bilinear --act_func ReLU --pad zero --dim 128 --lr 0.01"""
LPF = """ --task denoising --folder_path ../data/Set9/ --save_folder /path/to/folder
 --model_type ConvDecoder_LPF --progressive True --in_size 16 16 --num_iters 5000 --norm_func bn
 --noise_sigma 25 --filter_size_down 3 --filter_size_up 3 --num_layers 6 --num_skips 0
 --need_sigmoid True --loss_func mse --freq_loss_func focal_freq --num_scales 2 --optimizer adam
 --decay_lr False --step_size 50 --gamma 0.55 --morph_lbda 1e-5 --special lpf_LPF5_np_0_sm_0.99
 --prune_type None --reg_type 0 --decay 0 0 --freq_lbda 0 --reg_noise_std 0 --upsample_mode LPF5
 --act_func ReLU --pad zero --dim 128 --lr 0.01 --exp_weight 0.99"""
INPUT = """ --task denoising --folder_path ../data/denoising --save_folder saves
 --input_image_name image_Baboon512rgb.png --imsize -1 --model_type DIP_2_scaled
 --progressive False --num_iters 3000 --norm_func bn --noise_sigma 25 --filter_size_down 3
 --filter_size_up 3 --num_skips 0 --need_sigmoid True --loss_func mse
 --freq_loss_func moment_matching --num_scales 2 --optimizer adam --decay_lr False --step_size 50
 --gamma 0.55 --morph_lbda 1e-5 --min_tau 0.4 --exp_weight 0.99 --Lipschitz_constant 0
 --Lipschitz_reg 0 --verbose False --num_power_iterations 10 --noise_type u
 --noise_method noisy_image --special 2levels_0skips_64chns_NoisyBaboonForF16 --prune_type None
 --reg_type 0 --decay 1e-5 0 --freq_lbda 0 --prune_type None --reg_type 0 --decay 1e-7 0
 --freq_lbda 0 --reg_noise_std 1/30 --act_func ReLU --upsample_mode bilinear --pad zero --dim 64
 --lr 0.01"""
ALL = """ --mask_type bernoulli --zero_fraction 0.5 --sr_factor 4 --sr_kernel_type lanczos2
 --tv_weight 0 --batch_size 1 --poisson_scale 0 --seed 7 --iters_print_acc 100"""


def read(cls, text):
    return parse(cls, text.split(), "test")


@pytest.mark.parametrize("flags", [DECODER, LPF, INPUT, INPUT + ALL])
def test_published_flags_are_read(flags):
    options, _, _ = read(DenoisingOptions, flags)
    assert options.lr == 0.01 and options.need_sigmoid is True and options.decay_lr is False
    assert options.imsize == [-1] and options.dim == [int(re.search(r"--dim (\d+)", flags)[1])]


@pytest.mark.parametrize("cls", EXPERIMENTS)
def test_every_published_flag_is_known_to_every_experiment(cls):
    words = set(re.findall(r"--\w+", DECODER + LPF + INPUT + ALL)) - {"--task"}
    for word in words:
        value = re.search(rf"{word} (\S+)", DECODER + LPF + INPUT + ALL)[1]
        read(cls, f"{word} {value} --input_image_name x.png")


def test_the_flags_of_transformer_dip(capsys):
    flags = "--epochs 5 --lr1 2e-4 --input_dir in --img_dir out --display_epoch 3 --seed 9"
    options, _, notes = read(TransformerOptions, f"{flags} --use_sigmoid false")
    assert not notes and (options.num_iters, options.lr, options.iters_print_acc) == (5, 2e-4, 3)
    assert (options.folder_path, options.save_folder, options.seed) == ("in", "out", 9)
    assert options.need_sigmoid is False
    options, _, _ = read(TransformerOptions, "")
    assert (options.model_type, options.seed, options.lr) == ("Swin_upsample", 12345, 8e-4)
    assert (options.num_iters, options.exp_start, options.iters_print_acc) == (3000, 100, 100)
    assert read(TransformerOptions, "--num_iters 5")[0].num_iters == 5
    with pytest.raises(UserError, match="did you mean --epochs"):
        read(TransformerOptions, "--epoch 5")
    with pytest.raises(UserError, match="unknown flag --epochs"):
        read(DenoisingOptions, "--epochs 5")
    with pytest.raises(SystemExit):
        read(TransformerOptions, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "--lr V, --lr1 V learning rate (default 0.0008)" in said


def test_fractions_and_booleans():
    options, _, _ = read(DenoisingOptions, "--reg_noise_std 1/20 --verbose yes --decay_lr F")
    assert options.reg_noise_std == 0.05 and options.verbose and not options.decay_lr


def test_a_flag_that_changes_nothing_is_said_to():
    _, _, notes = read(InpaintingOptions, "--noise_sigma 25")
    assert notes == ["--noise_sigma 25 changes nothing in inpainting"]
    assert read(DenoisingOptions, "--noise_sigma 25")[2] == []
    for idle in (
        "--patience 9",
        "--gamma 0.5",
        "--decay 1e-8 0",
        "--input_image_name x.png",
        "--exp_start 9 --exp_weight 0",
        "--model_type PG_DIP --growing True --decay_lr True",
        "--model_type PG_DIP --growing True --decay_lr True --gamma 0.5",
    ):
        assert "has no effect without" in read(DenoisingOptions, idle)[2][0]


def test_how_a_mask_or_noise_is_drawn_is_idle_where_none_is():
    drawn = "--zero_fraction 0.3 --mask_seed 3"
    idle = [f"--{name} has no effect without --mask_type bernoulli" for name in flags.DRAWN]
    assert read(InpaintingOptions, f"--mask_type text {drawn}")[2] == idle
    assert read(InpaintingOptions, f"--recipe vase {drawn}")[2] == idle
    assert read(InpaintingOptions, drawn)[2] == []
    added = "--poisson_scale 0.1 --noise_seed 4"
    idle = [f"--{name} has no effect without --task denoising" for name in flags.NOISE]
    assert read(DenoisingOptions, f"--task real_denoising {added}")[2] == idle
    assert read(DenoisingOptions, added)[2] == []
    real = "--task real_denoising --noise_sigma 50"
    onto_input = f"{real} --noise_method noisy_image --input_image_name x"
    assert read(DenoisingOptions, onto_input)[2] == []
    assert read(DenoisingOptions, f"{onto_input} {added}")[2] == idle
    assert len(read(DenoisingOptions, real)[2]) == 1
    options, _, notes = read(TiledOptions, real)
    assert notes == [] and options.reg_noise_std == pytest.approx(50 / 1500 + 1 / 60)


def test_what_does_not_watch_tiles_is_said_to_be_idle():
    watched = {"snapshots": "5 9", "eval_every": "7", "checkpoint_every": "9", "verbose": "True"}
    flags = "--tensorboard " + " ".join(f"--{name} {value}" for name, value in watched.items())
    notes = [f"--{name} has no effect without --tile 0" for name in (*watched, "tensorboard")]
    assert sorted(read(DenoisingOptions, f"--tile 64 {flags}")[2]) == sorted(notes)
    assert sorted(read(TiledOptions, flags)[2]) == sorted(notes)
    assert read(DenoisingOptions, flags)[2] == read(TiledOptions, f"--tile 0 {flags}")[2] == []
    assert read(InpaintingOptions, flags)[2] == []
    assert read(DenoisingOptions, "--tile 64 --eval_every 10 --iters_print_acc 100")[2] == []


@pytest.mark.parametrize("rule", stopping.RULES)
def test_what_the_stopping_rule_does_not_take_is_said_to_be_idle(rule):
    takers = {
        "patience": ["ES-WMV", "ES-EMV"],
        "window": ["ES-WMV"],
        "sigma": ["SMNS", "AMNS"],
        "mns_hold": ["SMNS", "AMNS"],
    }
    flags = " ".join(f"--{name} 20" for name in takers)
    assert set(read(DenoisingOptions, f"--stopping {rule} {flags}")[2]) == {
        f"--{name} has no effect without --stopping {' or '.join(rules)}"
        for name, rules in takers.items()
        if rule not in rules
    }


def test_every_option_of_every_network_is_a_flag():
    for name in models.names():
        assert set(models.get(name).options) <= set(NETWORK_OPTIONS), name
    assert set(NETWORK_OPTIONS) <= {f.name for f in dataclasses.fields(Options)}


def test_every_recipe_is_of_options_of_the_fit():
    assert any(models.get(name).recipe for name in models.names())
    for name in models.names():
        recipe = models.get(name).recipe
        assert not set(recipe) & {*NETWORK_OPTIONS, *models.get(name).options}, name
        for cls in EXPERIMENTS:
            options = cls(**recipe)  # raises for what is none of its options
            options.validate()
            for key, value in recipe.items():
                assert isinstance(getattr(cls(), key), type(value)), (name, key)


def test_a_network_has_its_own_defaults_of_the_fit(tmp_path):
    recipe = models.get("Swin_upsample").recipe
    assert recipe["lr"] == 8e-4 and recipe["exp_start"] == 100 and recipe["num_iters"] == 3000
    assert recipe["input_scale"] == 0.2 and recipe["reg_noise_std"] == 1 / 50
    options, _, notes = read(DenoisingOptions, "--model_type Swin_upsample")
    assert {key: getattr(options, key) for key in recipe} == recipe and not notes
    # a flag wins over it, even at the experiment's default, and so does a file
    options, _, _ = read(DenoisingOptions, "--model_type Swin_upsample --lr 0.01 --exp_start 0")
    assert options.lr == 0.01 and options.exp_start == 0 and options.input_scale == 0.2
    (tmp_path / "o.yaml").write_text("{model_type: Swin_expand, num_iters: 7}")
    options, _, _ = parse(DenoisingOptions, ["--config", str(tmp_path / "o.yaml")], "test")
    assert options.num_iters == 7 and options.lr == 8e-4
    assert read(DenoisingOptions, "")[0] == DenoisingOptions()


DEMONSTRATIONS = {
    "kate": dict(
        upsample_mode="nearest", skip_dim=[128], num_iters=6001, reg_noise_std=0.03, input_dim=32,
        mask_type="file", lr=0.01, num_scales=5, dim=[128], exp_weight=0,
    ),
    "vase": dict(
        noise_method="meshgrid", skip_dim=[0], upsample_mode="nearest", num_iters=5001,
        reg_noise_std=0.03, mask_type="file", dim=[128],
    ),
    "library": dict(
        input_dim=1, num_scales=6, dim=[16, 32, 64, 128, 128, 128], skip_dim=[0],
        filter_size_down=5, filter_size_up=3, upsample_mode="nearest", need1x1=False,
        num_iters=3001, reg_noise_std=0, mask_type="file",
    ),
    "snail": dict(
        input_dim=3, dim=[8, 16, 32, 64, 128], skip_dim=[0, 0, 0, 4, 4], upsample_mode="bilinear",
        num_iters=2400, reg_noise_std=1 / 30, task="real_denoising", exp_weight=0.99,
    ),
    "flash": dict(
        noise_method="image", input_image_name="dip-demos/cave01_00_flash", num_iters=601, lr=0.1,
        folder_path="dip-demos/cave01_01_noflash", task="real_denoising", reg_noise_std=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_recipe_has_the_published_settings_and_flags_win(name, tmp_path):
    cls = InpaintingOptions if name in InpaintingOptions.RECIPES else DenoisingOptions
    options, _, notes = read(cls, f"--recipe {name}")
    expected = DEMONSTRATIONS[name] | {"model_type": "skip", "recipe": name}
    assert {key: getattr(options, key) for key in expected} == expected and not notes
    # its network takes all that it says of one, and its picture is one of the set
    _, unused = resolve(options)
    assert unused is None
    names = [Path(entry.path).stem for entry in manifest("dip-demos")]
    pictures = [options.folder_path, options.input_image_name or options.folder_path]
    for picture in pictures:
        assert picture.removeprefix("dip-demos/").removeprefix("inpainting_") in names
    # flags win, and so do files
    options, _, _ = read(cls, f"--recipe {name} --num_iters 7 --lr 0.5 --input_image_name own.png")
    assert (options.num_iters, options.lr, options.input_image_name) == (7, 0.5, "own.png")
    assert options.skip_dim == read(cls, f"--recipe {name}")[0].skip_dim
    (tmp_path / "o.yaml").write_text(f"{{recipe: {name}, num_iters: 8}}")
    options, _, _ = parse(cls, ["--config", str(tmp_path / "o.yaml"), "--lr", "0.2"], "test")
    assert (options.num_iters, options.lr, options.model_type) == (8, 0.2, "skip")


def test_recipes_are_listed_and_a_mistake_names_them(capsys):
    for cls in (InpaintingOptions, DenoisingOptions):
        with pytest.raises(SystemExit):
            read(cls, "--help")
        said = " ".join(capsys.readouterr().out.split())
        told = said[said.index("--recipe V ") :].split(" --")[0]
        assert all(f"{name} (" in told for name in cls.RECIPES) and cls.RECIPES
        with pytest.raises(UserError, match=f"--recipe cave.*{', '.join(cls.RECIPES)}"):
            read(cls, "--recipe cave")
    with pytest.raises(UserError, match="did you mean 'snail'"):
        read(DenoisingOptions, "--recipe snal")
    with pytest.raises(UserError, match="run: python denoising"):
        read(InpaintingOptions, "--recipe flash")
    with pytest.raises(UserError, match="unknown flag --recipe"):
        read(SuperResolutionOptions, "--recipe kate")
    # the flash picture of the set is none for another picture
    with pytest.raises(UserError, match="--noise_method image: name it by --input_image_name"):
        read(DenoisingOptions, "--recipe flash --folder_path bundled/coffee")


@pytest.mark.parametrize("cls", EXPERIMENTS)
def test_yaml_fills_the_same_options(cls, tmp_path):
    defaults = {f.name: getattr(cls(), f.name) for f in dataclasses.fields(cls)}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(defaults | {"lr": "1/50", "seed": 3}))
    options, _, _ = parse(cls, ["--config", str(tmp_path / "all.yaml"), "--seed", "4"], "test")
    assert options == cls(lr=0.02, seed=4)


WRONG = [
    ("--num_iter 5", "unknown flag --num_iter: did you mean --num_iters"),
    ("--upsample-mode bilinear", "did you mean --upsample_mode"),
    ("--num_iters 0", "--num_iters 0: must be at least 1"),
    ("--num_iters many", "--num_iters many: give a whole number"),
    ("--num_iters 1.5", "--num_iters 1.5: give a whole number"),
    ("--noise_sigma -1", "--noise_sigma -1: must be at least 0"),
    ("--noise_sigma nan", "--noise_sigma nan: give a finite number"),
    ("--lr 1/0", "--lr 1/0: give a number"),
    ("--lr 0", "--lr 0: must be above 0"),
    ("--exp_weight 1", "--exp_weight 1: give a weight below 1"),
    ("--verbose maybe", "--verbose maybe: give True or False"),
    ("--optimizer adm", "--optimizer adm: did you mean 'adam'"),
    ("--stopping ES-WVM", "--stopping ES-WVM: did you mean 'ES-WMV'"),
    ("--task denosing", "--task denosing: did you mean 'denoising'"),
    ("--freq_lbda 0.1", "--freq_lbda 0.1: not supported"),
    ("--prune_type HS", "--prune_type HS: not supported"),
    ("--reg_type 3", "--reg_type 3: not supported"),
    ("--Lipschitz_constant 2", "--Lipschitz_constant 2: not supported"),
    ("--batch_size 4", "--batch_size 4: one picture is fitted at a time"),
    ("--imsize 1 2 3", "--imsize 1 2 3: give -1, or a height and a width"),
    ("--imsize 0", "--imsize 0: give -1"),
    ("--noise_method noisy_image", "name it by --input_image_name"),
    ("--seed 1e30", "--seed 1e+30: must be at most"),
    ("--dim 100000000", "must be at most 65536"),
    ("--num_iters 1e300", "must be at most"),
    ("--decay -1 0 --optimizer adamw", "--decay -1: must be at least 0"),
    ("--freq_lbda 1/0", "--freq_lbda 1/0: not supported"),
    ("--need_dropout True", "--need_dropout True: not supported"),
    ("--special ../x", "--special ../x"),
    ("--seed", "argument --seed: expected one argument"),
    ("stray", "unexpected 'stray'"),
]


@pytest.mark.parametrize("flags, message", WRONG)
def test_mistakes_name_the_flag_and_the_mend(flags, message):
    with pytest.raises(UserError) as caught:
        read(DenoisingOptions, flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("num_iter: 5", "unknown key num_iter: did you mean --num_iters"),
        ("resume: true", "unknown key resume"),
        ("- 1", "must hold `option: value` lines"),
        ("a: [", "not a YAML file"),
        ("lr: null", "--lr None: give a number"),
        ("special: [a]", "--special ['a']: give a word"),
        ("num_iters: true", "--num_iters True: give a whole number"),
        ("backtracking: true", "--backtracking True: give a number"),
        ("exp_weight: no", "--exp_weight False: give a number"),
        ("prune_type: [1]", "--prune_type [1]: not supported"),
        ("num_iters: 0", "--num_iters 0: must be at least 1"),
        ("imsize: []", "give -1, or a height and a width"),
        ("num_iters: [1, 2]", "--num_iters [1, 2]: give a whole number"),
        ("!!python/object/apply:os.getcwd []", "not a YAML file"),
    ],
)
def test_mistakes_in_yaml(text, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse(DenoisingOptions, ["--config", str(path)], "test")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_config(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        parse(DenoisingOptions, ["--config", str(tmp_path / "none.yaml")], "test")


@pytest.mark.parametrize("cls", [InpaintingOptions])
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--mask_type bernouli", "did you mean 'bernoulli'"),
        ("--zero_fraction 1", "--zero_fraction 1: nothing would be known; below 1"),
        ("--mask_path m.png", "only with --mask_type file"),
    ],
)
def test_mistakes_in_inpainting(cls, flags, message):
    with pytest.raises(UserError, match=message):
        read(cls, flags)


def test_environment_yml_names_what_pyproject_and_requirements_do():
    root = Path(__file__).parents[1]
    environment = yaml.safe_load((root / "environment.yml").read_text())
    assert environment["name"] == "selfrecon"
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    pinned = dict(line.split("==") for line in pip if "==" in line)
    project = (root / "pyproject.toml").read_text()
    core = re.search(r"\ndependencies = \[(.*?)\]", project, re.S)[1]
    names = re.findall(r'"([\w-]+)', core)
    assert set(pinned) == {*names, "torchvision"}
    lines = (root / "requirements.txt").read_text().splitlines()
    lines += re.findall(r"TORCH := (\S+)", (root / "Makefile").read_text())
    for name in names:
        assert any(line.startswith(f"{name}=={pinned[name]}") for line in lines), name
    assert "-e .[test]" in pip


def test_what_is_installed_is_pinned_and_hashed():
    root = Path(__file__).parents[1]
    text = (root / "requirements.txt").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+ .*--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    locked = {line.split("==")[0] for line in lines}
    project = (root / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\](.*?)\n\[", project, re.S)[1]
    wanted = re.search(r"dip-recon\[(.*?)\]", extras)[1].split(",")
    parts = [re.search(r"\ndependencies = \[(.*?)\]", project, re.S)[1]]
    parts += [re.search(rf"\n{name} = \[(.*?)\]", extras, re.S)[1] for name in (*wanted, "test")]
    names = {n.lower() for part in parts for n in re.findall(r'"([\w-]+)[\[><=]', part)}
    assert names - {"torch", "dip-recon"} <= locked
    assert "--require-hashes" in (root / "Makefile").read_text()
