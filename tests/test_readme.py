"""What the README shows works as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dip_recon import images, models
from dip_recon.flags import parse, read
from dip_recon.options import DenoisingOptions, InpaintingOptions, SuperResolutionOptions
from dip_recon.sweeps.command import parser
from dip_recon.sweeps.grid import cells, load

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def test_python_example(tmp_path, monkeypatch, picture):
    images.save_png(tmp_path / "noisy.png", picture(3))
    monkeypatch.chdir(tmp_path)
    code = next(block for block in PYTHON if "fit(state" in block)
    assert "iterations=3000" in code
    names = {}
    exec(code.replace("iterations=3000", "iterations=2"), names)
    assert names["restored"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "script, cls",
    [
        ("denoising", DenoisingOptions),
        ("inpainting", InpaintingOptions),
        ("super_resolution", SuperResolutionOptions),
    ],
)
def test_commands_are_read(script, cls):
    commands = re.findall(rf"python {script}\.py (.*(?:(?<=\\)\n.*)*)", README)
    assert commands
    for command in commands:
        options, _, notes = parse(cls, command.replace("\\\n", " ").split(), script)
        models.get(options.model_type)
        assert not notes


def test_sweeps_are_read():
    root = Path(__file__).parents[1]
    commands = re.findall(r"^DIP-Recon/scripts/(\w+)\.sh( [^#\n]*)?", README, re.M)
    assert commands
    listed = set(re.findall(r"^\| `(\w+)\.sh` \|", README, re.M))
    assert listed == {path.stem for path in (root / "DIP-Recon" / "scripts").glob("*.sh")}
    for name, flags in commands:
        args, rest = parser().parse_known_args([f"{name}.yaml", *(flags or "").split()])
        sweep = load(root / "DIP-Recon" / "configs" / args.file, args.quick)
        typed, _ = read(sweep.experiment, rest, "sweep")
        assert cells(sweep, typed)


def test_nothing_is_left_to_fill_in():
    for path in (Path(__file__).parents[1] / "results").glob("*.md"):
        assert not re.search(r"\b[A-Z]+_(ROW|TABLE|TIME)|MEASURED", path.read_text() + README)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        picture = images.read(Path(__file__).parents[1] / path)
        assert np.isfinite(picture.data).all()


def test_the_citation_is_of_this_version():
    root = Path(__file__).parents[1]
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    project = (root / "pyproject.toml").read_text()
    for name in ("version", "license"):
        assert f'\n{name} = "{cited[name]}"\n' in project
    assert all(f"{work['title']}}}" in README for work in cited["references"])
