"""CONTRIBUTING.md, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from dip_recon import images

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
EDIT = re.compile(
    r"^(?:A new file `(?P<new>[^`]+)`"
    r"|In `(?P<file>[^`]+)`, (?P<where>above|below) `(?P<line>[^`]+)`):\n\n"
    r"```(?:python|text)\n(?P<code>.*?)```",
    re.M | re.S,
)


def test_a_network_an_upsampler_a_data_set_and_a_rule(tmp_path):
    here = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "data/Set*", "runs")
    shutil.copytree(ROOT / "DIP-Recon/dip_recon", here / "DIP-Recon/dip_recon", ignore=skip)
    shutil.copy(ROOT / "DIP-Recon/denoising.py", here / "DIP-Recon")
    data = tmp_path / "data"
    (data / "Mine").mkdir(parents=True)
    level = np.random.default_rng(0).random((1, 32, 32), np.float32)
    images.save_png(data / "Mine" / "a.png", level)
    edits = list(EDIT.finditer(GUIDE))
    assert len(edits) == 6
    for edit in edits:
        path = here / (edit["new"] or edit["file"])
        if edit["new"]:
            assert not path.exists()
            path.write_text(edit["code"])
            continue
        text, line = path.read_text(), edit["line"] + "\n"
        assert text.count("\n" + line) == 1, edit["line"]
        both = edit["code"] + line if edit["where"] == "above" else line + edit["code"]
        path.write_text(text.replace("\n" + line, "\n" + both))
    env = {**os.environ, "DIP_RECON_DATA": str(data), "CHECKOUT": str(here)}
    env["PYTHONPATH"] = str(here / "DIP-Recon")
    (shell,) = re.findall(r"```shell\n(.*?)```", GUIDE, re.S)
    subprocess.run(["bash", "-euc", shell], env=env, check=True)
    flags = (
        "--folder_path mine --model_type Plain --dim 4 --stopping Steady --num_iters 40 --lr 1e-9"
    )
    run = [sys.executable, "denoising.py", *flags.split(), "--save_folder", str(tmp_path / "runs")]
    ran = subprocess.run(run, cwd=here / "DIP-Recon", env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "stopped at" in ran.stdout
    code = (
        "from dip_recon import data, models\n"
        "taps = models.upsamplers.taps('Tent')\n"
        "assert taps.numel() == 5 and abs(taps.sum() - 1) < 1e-6\n"
        "assert data.verify('mine') == [] and 'Plain' in models.names()\n"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
