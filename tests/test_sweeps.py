"""Sweeps: grids from YAML, run here, by workers of this machine, and on a real Dask cluster."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import refused

from dip_recon import cluster, files, images, sweeps
from dip_recon.errors import exit_status
from dip_recon.flags import Switches, fill
from dip_recon.prepare import resolve
from dip_recon.runs import find
from dip_recon.sweeps import estimate, work
from dip_recon.sweeps.grid import cells, load, plans

HERE = Path(__file__).parents[1] / "DIP-Recon"
CONFIGS = sorted((HERE / "configs").glob("*.yaml"))
SCRIPTS = sorted((HERE / "scripts").glob("*.sh"))
DEPTH = {"flat": {"num_scales": 1}, "deep": {"num_scales": 2}}
SMALL = "--dim 8 --num_iters 12 --eval_every 5 --snapshots 0 5 --device cpu --precision fp32"


@pytest.fixture
def sweep_file(tmp_path, folder):
    """A function that writes a sweep over the two small pictures and returns its path."""

    def write(**changed):
        content = {
            "options": {"folder_path": str(folder), "model_type": "DIP_2_scaled"},
            "grid": {"seed": [7, 8], "depth": DEPTH},
        } | changed  # fmt: skip
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def call(path, tmp_path, text="", small=SMALL):
    """Run a sweep in this process; its exit status. Runs go to ``tmp_path``/out."""
    words = [str(path), "--save_folder", str(tmp_path / "out"), *small.split(), *text.split()]
    return exit_status(lambda: sweeps.main(words))


def stamps(root):
    return {p: p.stat().st_mtime_ns for p in sorted(root.rglob("result.json"))}


# ---------------------------------------------------------------- the grid


def test_a_grid_is_every_combination_of_its_axes(sweep_file):
    found = cells(load(sweep_file()), {})
    assert [c.labels for c in found] == [
        {"seed": 7, "depth": "flat"}, {"seed": 7, "depth": "deep"},
        {"seed": 8, "depth": "flat"}, {"seed": 8, "depth": "deep"},
    ]  # fmt: skip
    assert [c.given["num_scales"] for c in found] == [1, 2, 1, 2]


def test_a_list_of_grids_is_their_union_and_what_is_twice_is_done_once(sweep_file):
    grid = [{"num_scales": 1, "dim": [4, 8]}, {"num_scales": 2}, {"num_scales": 1, "dim": [8]}]
    path = sweep_file(grid=grid)
    assert len(cells(load(path), {})) == 4
    found, _ = plans(load(path), {}, "out", Switches())
    names = [str(p.run.folder.relative_to("out/denoising")) for p in found]
    assert len(names) == len(set(names)) == 6  # three methods, two pictures
    assert "DIP_2_scaled_num_scales1_dim8/grey" in names


def test_a_flag_takes_the_place_of_an_axis(sweep_file):
    found = cells(load(sweep_file()), {"seed": "3", "lr": "0.1"})
    assert [c.given["seed"] for c in found] == ["3", "3"]
    assert all(c.given["lr"] == "0.1" and "seed" not in c.labels for c in found)
    assert len(cells(load(sweep_file()), {"num_scales": "3"})) == 2
    grid = {"depth": {"flat": {"num_scales": 1, "dim": 4}, "deep": {"num_scales": 2, "dim": 4}}}
    both = load(sweep_file(grid=grid))
    refused(lambda: cells(both, {"num_scales": "3"}), "--num_scales", "depth")
    assert len(cells(both, {"num_scales": "3", "dim": "5"})) == 1


def test_two_labels_do_not_come_to_the_same_run(sweep_file, folder, tmp_path, capsys):
    parts = {"parts": {"whole": {}, "tiles": {"tile": 36, "overlap": 4}}}
    assert call(sweep_file(grid=parts), tmp_path, "--tile 40") == 2
    assert "--tile: small.yaml varies it by parts" in capsys.readouterr().err
    idle = {"size": {"few": {"window_size": 4}, "many": {"window_size": 8}}}
    assert call(sweep_file(grid=idle), tmp_path) == 2
    assert "few and many are the same run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # sets of pictures may overlap
    sets = {"all": {"folder_path": str(folder)}, "one": {"folder_path": f"{folder}/grey.png"}}
    assert len(plans(load(sweep_file(grid={"set": sets})), {}, "out", Switches())[0]) == 3
    refused(
        lambda: plans(
            load(sweep_file(grid={"set": {k: {**v, "lr": 0.1} for k, v in sets.items()}})),
            {"folder_path": str(folder)}, "out", Switches(),
        ),
        "set",
    )  # fmt: skip


def test_quick_has_its_own_grid_and_options(sweep_file):
    path = sweep_file(quick={"options": {"lr": 0.1}, "grid": {"seed": 1}})
    [cell] = cells(load(path, quick=True), {})
    assert cell.labels == {"seed": 1} and cell.given["lr"] == 0.1
    assert cell.given["model_type"] == "DIP_2_scaled"
    refused(lambda: load(sweep_file(), quick=True), "small.yaml", "quick")


def test_the_width_follows_the_folder_of_the_texture(tmp_path, picture, sweep_file):
    for width in ("32", "64"):
        (tmp_path / "sorted" / width).mkdir(parents=True)
        images.save_png(tmp_path / "sorted" / width / f"p{width}.png", picture())
    options = {"folder_path": str(tmp_path / "sorted"), "dim": "texture"}
    found, _ = plans(load(sweep_file(options=options)), {}, "out", Switches())
    assert {(p.item.name, p.options.dim[0], p.labels["texture"]) for p in found} == {
        ("p32", 32, 32), ("p64", 64, 64),
    }  # fmt: skip
    options["folder_path"] = str(tmp_path / "sorted" / "32")
    shutil.move(options["folder_path"], tmp_path / "any")
    options["folder_path"] = str(tmp_path / "any")
    path = sweep_file(options=options)
    refused(lambda: plans(load(path), {}, "out", Switches()), "p32.png", "--dim")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"grids": {}}, ["grids", "did you mean 'grid'"]),
        ({"experiment": "denoise"}, ["denoise", "denoising"]),
        ({"grid": {"seed": []}}, ["seed", "no values"]),
        ({"grid": {"seed": {"a": 3}}}, ["grid: seed: a", "name: value"]),
        ({"grid": 3}, ["grid", "name: value"]),
        ({"options": [1]}, ["options", "name: value"]),
        ({"quick": {"figures": []}}, ["figures"]),
        ({"grid": {"a": {"x": {"lr": 1}}, "b": {"y": {"lr": 2}}}}, ["a and b", "lr"]),
        ({"options": {"lrr": 1}}, ["lrr"]),
        ({"grid": {"seed": ["many"]}}, ["--seed many"]),
        ({"grid": {"model_type": ["DIP"]}}, ["DIP"]),
        ({"figures": ["upsamplin"]}, ["upsamplin", "upsampling"]),
        ({"comparison": ["publishd"]}, ["comparison", "publishd", "published"]),
    ],
)
def test_a_mistake_in_the_file_is_named(sweep_file, tmp_path, changed, words, capsys):
    path = sweep_file(**changed)
    if "quick" in changed:
        refused(lambda: load(path, quick=True), *words)
        return
    assert call(path, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("--workers 0", ["--workers 0"]),
        ("--workers two", ["--workers two"]),
        ("--seeds x", ["--seeds x"]),
        ("--seeds 1 --seed 2", ["--seed", "--seeds"]),
        ("--scheduler tcp://a:1 --workers 2", ["--workers", "--scheduler"]),
        ("--resources GPU=1", ["--resources", "--scheduler"]),
        ("--scheduler nowhere", ["--scheduler nowhere", "tcp://"]),
        ("--resources GPU --scheduler tcp://a:1", ["--resources GPU", "GPU=1"]),
        ("--lrr 1", ["--lrr", "--lr"]),
        ("--quickly", ["--quickly"]),
        ("--overwrite --resume", ["--overwrite"]),
        ("--scheduler tcp://a:1", ["--scheduler", "precision"]),
    ],
)
def test_a_mistake_in_the_flags_is_named(sweep_file, tmp_path, text, words, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", "1s")
    varied = {"grid": {"precision": ["fp32", "bf16"]}} if "precision" in words else {}
    assert call(sweep_file(**varied), tmp_path, text) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert not list(tmp_path.rglob("result.json"))


# ---------------------------------------------------------------- the published figures


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_sweep_is_well_formed_and_quick_and_full_draw_the_same(path):
    script = HERE / "scripts" / f"{path.stem}.sh"
    assert script in SCRIPTS and f"configs/{path.stem}.yaml" in script.read_text()
    for quick in (False, True):
        sweep = load(path, quick)
        assert sweep.figures or sweep.comparison
        for cell in cells(sweep, {}):
            given = {k: v for k, v in cell.given.items() if v != "texture"}
            options, _ = fill(sweep.experiment, given)
            resolve(options)
            assert not quick or options.folder_path.startswith("bundled/")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_figure_in_miniature(path, tmp_path, picture, capsys):
    side = 66 if path.stem == "inpainting_table" else 48  # its second network wants as much
    images.save_png(tmp_path / "p.png", picture(3, (side, side)))
    text = f"--quick --seeds 7 --crop {side} --num_iters 3"
    own = f" --folder_path {tmp_path / 'p.png'}"
    # the pictures of each class are what this is about; the widths are not
    text += own if path.stem != "width_texture" else " --dim 4 --crop 32"
    text += " --eval_every 1 --snapshots 0 1 2"
    status = call(path, tmp_path, text, small="--device cpu --precision fp32")
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    for name in load(path).figures:
        for suffix in (".png", ".pdf", ".csv"):
            assert (tmp_path / "out" / "figures" / f"{name}{suffix}").stat().st_size > 100
    assert (tmp_path / "out" / "table.md").read_text().startswith("|")
    if load(path).comparison:
        assert "| quoted" in (tmp_path / "out" / "comparison.md").read_text()
        rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
        assert {row["figures"] for row in rows} == {"quoted", "measured"}
        assert ("NLM" in {r["method"] for r in rows if r["p"]}) == ("denoising_table" in path.stem)


@pytest.mark.parametrize(
    "name, runs, quick",
    [("inpainting_table", 22, 6), ("sr_table", 19, 3), ("denoising_table", 18, 6)],
)
def test_the_tables_are_of_these_runs(name, runs, quick):
    """As many as the sets have pictures, by the published settings."""
    sets = {"bernoulli11": 11, "set5": 5, "set14": 14, "set9": 9}
    for short, count in ((True, quick), (False, runs)):
        sweep = load(HERE / "configs" / f"{name}.yaml", short)
        found = [resolve(fill(sweep.experiment, cell.given)[0]) for cell in cells(sweep, {})]
        assert sum(sets.get(o.folder_path, 1) for o, _ in found) == count
        assert not any(unused for _, unused in found)
    found = [o for o, _ in found]
    said = {(o.model_type, o.lr, o.num_iters, o.reg_noise_std) for o in found}
    if name == "inpainting_table":
        ours = ("reproduction_unet", 0.01, 11000, 1 / 30)
        assert said == {("DIP_orig", 0.001, 11000, 0.03), ours}
        undone = {(o.model_type, o.backtracking, o.backtracking_lr) for o in found}
        assert {(name, drop) for name, drop, _ in undone} == {("DIP_orig", 0), (ours[0], 5)}
        assert (ours[0], 5, 0.9) in undone
        given = {(o.exp_weight, o.mask_type, o.zero_fraction, o.mask_seed) for o in found}
        assert given == {(0, "bernoulli", 0.5, 100)}
    elif name == "sr_table":
        assert said == {("DIP_orig", 0.01, 2000, 0.03)}
        assert {(o.sr_factor, o.sr_kernel_type, o.exp_weight) for o in found} == {
            (4, "lanczos2", 0.99)
        }
    else:
        assert said == {("DIP_orig", 0.01, 1800, jitter) for jitter in (1 / 30, 1 / 20)}
        assert {(o.noise_sigma, o.exp_weight) for o in found} == {(25, 0.99), (50, 0.99)}


def test_a_script_runs_from_anywhere_and_takes_any_flag(tmp_path, picture):
    images.save_png(tmp_path / "own.png", picture(3, (40, 40)))
    words = ["--quick", "--dry-run", "--folder_path", "own.png", "--crop", "32"]
    words += ["--model_type", "ConvDecoder", "--seeds", "3"]
    done = subprocess.run(
        [os.path.relpath(HERE / "scripts" / "fig3.sh", tmp_path), *words],
        cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                           "CDPATH": "."},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 runs" in done.stdout and "ConvDecoder_bilinear_seed3" in done.stdout
    assert re.search(r"about \d+ (s|min) with 1 worker", done.stdout)
    assert os.listdir(tmp_path) == ["own.png"]


# ---------------------------------------------------------------- running


def test_a_sweep_leaves_runs_a_table_and_results(sweep_file, tmp_path, capsys):
    assert call(sweep_file(), tmp_path) == 0
    out = tmp_path / "out"
    assert len(find(out)) == 8
    method = out / "denoising" / "DIP_2_scaled_seed8_deep"
    assert [row["ID"] for row in csv.DictReader((method / "results.csv").open())] == [
        "colour", "grey",
    ]  # fmt: skip
    assert "PSRN_gt" in (method / "grey" / "log.txt").read_text()
    config = find(method)[0].config()
    assert config["labels"] == {"seed": 8, "depth": "deep"} and config["num_scales"] == 2
    assert "| scales |" in (out / "table.md").read_text()
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len(rows) == 2 and {row["seeds"] for row in rows} == {"2"}


def test_run_again_it_keeps_what_is_finished_and_does_the_rest(sweep_file, tmp_path, capsys):
    assert call(sweep_file(), tmp_path) == 0
    before = stamps(tmp_path)
    gone = next(iter(before))
    gone.unlink()
    assert call(sweep_file(), tmp_path) == 0
    assert "8 runs, 7 finished before" in capsys.readouterr().out
    after = stamps(tmp_path)
    assert {p for p in after if before.get(p) != after[p]} == {gone}
    # killed between a run's end and its row
    tables = {path: path.read_bytes() for path in tmp_path.rglob("results.csv")}
    for path in tables:
        path.unlink()
    assert call(sweep_file(), tmp_path) == 0 and stamps(tmp_path) == after
    assert tables == {path: path.read_bytes() for path in tmp_path.rglob("results.csv")}
    capsys.readouterr()
    # other numbers are refused, unless told to start again
    assert call(sweep_file(), tmp_path, "--lr 0.5") == 2
    assert "lr" in capsys.readouterr().err
    assert stamps(tmp_path) == after
    assert call(sweep_file(), tmp_path, "--lr 0.5 --overwrite") == 0
    assert len(stamps(tmp_path)) == 8 and not set(stamps(tmp_path).items()) & set(after.items())


def test_tables_of_runs_that_are_thrown_away_go_with_them(sweep_file, tmp_path, monkeypatch):
    assert call(sweep_file(figures=["upsampling"]), tmp_path) == 0
    out = tmp_path / "out"
    assert (out / "table.md").is_file() and list(out.glob("figures/*.png"))
    (out / "figures" / "mine.txt").write_text("stays")
    (out / "figures" / "more.d").mkdir()
    stop = lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(sweeps.command, "outcomes", stop)
    assert call(sweep_file(figures=["upsampling"]), tmp_path, "--overwrite") == 130
    assert not find(out) and not list(out.glob("table.*")) and not list(out.glob("figures/*.png"))
    for path in out.rglob("results.csv"):
        assert list(csv.DictReader(path.open())) == []
    assert (out / "figures" / "mine.txt").is_file()


def test_a_run_that_fails_is_told_and_the_others_are_done(sweep_file, tmp_path, capsys):
    grid = {"rate": {"good": {"lr": 0.01}, "bad": {"lr": 900, "optimizer": "sgd"}}}
    path = sweep_file(grid=grid)
    assert call(path, tmp_path, "--need_sigmoid False --num_iters 60") == 1
    said = capsys.readouterr().out
    assert said.count("FloatingPointError") == 2 and "2 failed" in said
    assert "not all rows" not in said, "there is one row"
    assert {run.folder.parent.name for run in find(tmp_path)} == {"DIP_2_scaled_good"}


def test_two_workers_get_the_same_as_one(sweep_file, tmp_path, capsys):
    path = sweep_file(grid={"seed": [7, 8]})
    assert call(path, tmp_path, "--threads 1") == 0
    alone = {run.folder.relative_to(tmp_path): run.history() for run in find(tmp_path)}
    assert call(path, tmp_path, "--overwrite --workers 2 --threads 1") == 0
    assert "4 runs" in capsys.readouterr().out
    both = {run.folder.relative_to(tmp_path): run.history() for run in find(tmp_path)}
    for rows in (*alone.values(), *both.values()):
        for row in rows:
            del row["seconds"]
    assert alone == both


LONG = SMALL.replace("--num_iters 12", "--num_iters 400") + " --checkpoint_every 50"


def started(path, tmp_path, *words):
    """A sweep as a process group of its own."""
    command = [sys.executable, "-m", "dip_recon", "sweep", str(path), *LONG.split(), *words]
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--save_folder", str(tmp_path / "out")],
        env=env, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition, process, seconds=300):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    "words, sent", [((), signal.SIGTERM), (("--workers", "2"), signal.SIGUSR1)]
)
def test_an_interrupted_sweep_leaves_a_table_and_goes_on(sweep_file, tmp_path, words, sent):
    path = sweep_file(grid={"seed": [7, 8]})
    out = tmp_path / "out"
    process = started(path, tmp_path, *words)
    unfinished = lambda: [p for p in out.rglob("checkpoint.pt")]  # noqa: E731
    until(lambda: find(out) and unfinished(), process)
    # SLURM's signal reaches the whole group, as Ctrl-C does, another's SIGTERM the one process
    (os.killpg if sent == signal.SIGUSR1 else os.kill)(process.pid, sent)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors, errors
    done = len(find(out))
    assert 1 <= done < 4 and "table" in said
    assert (out / "table.md").read_text().startswith("|")
    left = unfinished()  # or what was at it had just come to its end
    again = started(path, tmp_path)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"{done} finished before" in said and len(find(out)) == 4
    logs = [log.read_text() for log in out.rglob("*/log.txt") if log.parent != out]
    assert any("goes on from iteration" in log for log in logs) or not left
    assert all(log.count("--- ") == 2 for log in logs)  # one closing line each


def test_what_another_process_finishes_meanwhile_is_not_done_again(
    sweep_file, tmp_path, monkeypatch
):
    """A worker that was asked to leave, or a second sweep: it is waited for."""
    [plan, *_], _ = plans(load(sweep_file()), {"num_iters": "3"}, str(tmp_path), Switches())
    assert work.carry_out(plan, switches=Switches(), bar=False).error is None
    first = plan.run
    result = (first.folder / "result.json").read_text()
    (first.folder / "result.json").unlink()
    busy = threading.Event()

    def finish():
        with files.alone(first.folder):
            busy.set()
            time.sleep(1.5)
            (first.folder / "result.json").write_text(result)

    other = threading.Thread(target=finish)
    other.start()
    busy.wait()
    monkeypatch.setattr(work, "run_one", None)
    found = work.carry_out(plan, lambda: False, switches=Switches(), patience=work.LEAVING)
    other.join()
    assert found.error is None and found.result["image"] == first.result()["image"]


def test_pictures_without_a_mistake(sweep_file, tmp_path):
    """Tiles of one colour are given back as they are: their PSNR is no number."""
    images.save_png(tmp_path / "black.png", np.zeros((1, 40, 40), np.float32))
    options = {"folder_path": str(tmp_path / "black.png"), "tile": 32, "overlap": 4}
    path = sweep_file(options=options, grid={"seed": [7, 8]}, figures=["time", "width"])
    assert call(path, tmp_path, "--noise_sigma 0 --stopping fixed") == 0
    assert len(find(tmp_path / "out")) == 2 and (tmp_path / "out" / "table.md").is_file()


@pytest.mark.parametrize("done", [True, False])
def test_a_run_of_other_settings_that_came_between_is_not_taken(sweep_file, tmp_path, done):
    """Two sweeps, started together, of one file and two learning rates."""
    sweep, small = load(sweep_file(grid={"seed": [7]})), {"num_iters": "3", "device": "cpu"}
    mine, other = (
        plans(sweep, {**small, "lr": lr}, str(tmp_path), Switches())[0][0] for lr in ("0.01", "0.5")
    )
    assert work.carry_out(other, switches=Switches(), bar=False).error is None
    if not done:
        (other.run.folder / "result.json").unlink()
    before = (other.run.folder / "config.yaml").read_bytes()
    found = work.carry_out(mine, switches=Switches(), bar=False)
    assert found.result is None and "lr 0.5, not 0.01" in found.error
    assert (other.run.folder / "config.yaml").read_bytes() == before


@pytest.mark.long
def test_a_cluster_outlives_a_worker(sweep_file, tmp_path):
    """A real scheduler and workers; one is killed in the middle of a run."""
    path = sweep_file(grid={"seed": [7, 8]})
    out, file = tmp_path / "out", tmp_path / "scheduler.json"
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
         "--host", "127.0.0.1", "--scheduler-file", file], **quiet,
    )  # fmt: skip
    worker = [*python, "distributed.cli.dask_worker", "--scheduler-file", file, "--no-nanny",
              "--nthreads", "1", "--no-dashboard", "--resources", "FIT=1"]  # fmt: skip
    processes = [scheduler]
    try:
        until(file.exists, scheduler)
        processes += [
            subprocess.Popen([*worker, "--local-directory", tmp_path / name], **quiet)
            for name in ("w1", "w2")
        ]
        address = re.search(r"tcp://[\d.:]+", file.read_text()).group()
        process = started(path, tmp_path, "--scheduler", address, "--resources", "FIT=1")
        processes.append(process)
        # each worker is at a run now, or has finished one
        until(lambda: len(list(out.rglob("checkpoint.pt"))) == 2, process)
        at_work = stamps(out)
        processes[1].kill()
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, said + errors
        assert len(find(out)) == 4
        assert at_work.items() <= stamps(out).items()
        logs = [log.read_text() for log in out.rglob("*/log.txt") if log.parent != out]
        assert all(log.count("--- ") == 2 for log in logs), logs
        assert sum("goes on from iteration" in log for log in logs) == 1
    finally:
        for p in processes:
            p.kill()
            p.wait()


def test_a_worker_looks_for_data_where_who_sent_the_work_does(monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    status = SimpleNamespace(name="running")
    worker = SimpleNamespace(
        get_current_task=lambda: "key", state=SimpleNamespace(tasks={}), status=status
    )
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.delenv("DIP_RECON_DATA", raising=False)
    place = lambda *_: (Path.cwd(), os.environ.get("DIP_RECON_DATA"))  # noqa: E731
    before = place()
    assert cluster._on_worker(place, None, None, (str(tmp_path), "/a")) == (tmp_path, "/a")
    assert cluster._on_worker(place, None, None, (str(tmp_path), None)) == (tmp_path, None)
    assert place() == before


def test_a_scheduler_without_workers_is_told_of(monkeypatch):
    """After a while: workers are often started together with what wants them."""
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "FIRST", 0.1)
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty:
        refused(
            lambda: cluster.Cluster(scheduler=empty.scheduler_address).ask(len, []),
            empty.scheduler_address, "no worker came", "dask worker",
        )  # fmt: skip
        empty.scale(1)
        empty.wait_for_workers(1)
        wanted = cluster.Cluster(scheduler=empty.scheduler_address, resources={"GPU": 1})
        refused(lambda: wanted.ask(len, []), "no worker with GPU=1", "--resources 'GPU=1'")


# ---------------------------------------------------------------- estimating


def test_a_dry_run_writes_nothing_and_counts_what_is_left(sweep_file, tmp_path, capsys):
    path = sweep_file()
    assert call(path, tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "small: 8 runs\n" in said and "DIP_2_scaled_seed7_flat" in said
    assert re.search(r"about .* 1 worker .*; a run takes up to [\d.]+ GB", said)
    assert not (tmp_path / "out").exists()
    assert call(path, tmp_path) == 0
    assert call(path, tmp_path, "--dry-run") == 0
    assert "8 runs, 8 finished before" in capsys.readouterr().out


def test_an_estimate_grows_with_the_iterations_and_knows_every_run(sweep_file, monkeypatch):
    monkeypatch.setattr(estimate, "MEASURED", 2)
    grid = {"num_scales": [1, 2, 3], "num_iters": [10, 1010], "dim": [4, 16]}
    found, _ = plans(load(sweep_file(grid=grid)), {}, "out", Switches())
    result = estimate.estimate(found)
    assert len(result.seconds) == len(found) == 24
    assert all(s > 0 for s in result.seconds) and result.memory > 10**6
    by_length = {10: [], 1010: []}
    for plan, seconds in zip(found, result.seconds, strict=True):
        by_length[plan.options.num_iters].append(seconds)
    for short, long in zip(*by_length.values(), strict=True):
        assert long > short


def test_an_estimate_knows_levels_and_tiles(sweep_file, folder):
    options = {"folder_path": str(folder / "colour.png"), "dim": 4, "num_iters": 100}
    grid = {
        "way": {
            "whole": {"model_type": "PG_DIP"},
            "grown": {"model_type": "PG_DIP", "growing": True, "transition": 20},
            "tiled": {"model_type": "PG_DIP", "tile": 10, "overlap": 2},
        }
    }
    found, _ = plans(load(sweep_file(grid=grid, options=options)), {}, "out", Switches())
    kinds = [estimate.Kind(plan, 1) for plan in found]
    for kind in kinds:
        estimate._measure(kind)
    whole, grown, tiled = kinds
    assert estimate._pieces(tiled.plan) == 16 and estimate._pieces(whole.plan) == 1
    assert estimate._job(tiled.plan).problem.y.shape == (1, 3, 14, 13)
    assert whole.early == 0 and grown.early == 120 and grown.before > 0
    assert len({estimate._key(plan) for plan in found}) == 3
