"""Files from strangers: what they claim, where they lead, and what they would have run."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torture import fuzz

from dip_recon import data, documents, experiment, images, memory, report
from dip_recon.callbacks import Checkpoints, Evaluation
from dip_recon.data import transfer
from dip_recon.errors import UserError, exit_status
from dip_recon.figures import draw_run
from dip_recon.figures.records import load as load_records
from dip_recon.fit import fit
from dip_recon.flags import parse
from dip_recon.images import large
from dip_recon.options import DenoisingOptions
from dip_recon.runs import Run
from dip_recon.sweeps.grid import cells
from dip_recon.sweeps.grid import load as load_sweep
from dip_recon.tables import markdown, summary
from dip_recon.tiling import Layout, Tiles
from dip_recon.tiling.layout import InMemory


class Shout:
    """What runs a command when it is unpickled."""

    def __init__(self, at: Path):
        self.at = at

    def __reduce__(self):
        return os.mkdir, (str(self.at),)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def png(width, height, bits=8, colour=2, samples=b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(samples)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(10**5, 10**5), (2**31 - 1, 1), (30_000, 20_000)])
def test_a_header_is_not_believed(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size))
    width, height = size
    refused(lambda: images.read(tmp_path / "a.png"), "a.png", f"{width}×{height}")


def test_a_picture_that_memory_has_no_room_for(tmp_path, monkeypatch):
    images.save_png(tmp_path / "a.png", np.zeros((3, 50, 40), np.float32))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 40, 3), np.uint16))
    monkeypatch.setattr(memory, "free", lambda device=None: 70_000)
    for name in ("a.png", "a.tif"):
        refused(lambda name=name: images.read(tmp_path / name), name, "40×50", "0.1 MB are free")


def test_a_16_bit_png_that_swells(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, 4, 16, 2, bytes(50_000_000)))
    refused(lambda: images.read(tmp_path / "a.png"), "a.png", "should hold")


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
@pytest.mark.parametrize("windows", [False, True])
def test_a_tiff_that_swells(tmp_path, windows, compression):
    path = tmp_path / "a.tif"
    small = np.zeros((16, 16), np.uint16)
    import lzma

    pack = {"zlib": zlib.compress, "lzma": lzma.compress}[compression]
    code = {"zlib": 8, "lzma": 34925}[compression]
    tifffile.imwrite(path, (pack(bytes(2**25)) for _ in (0,)), shape=small.shape,
                     dtype=small.dtype, compression=code, photometric="minisblack",
                     rowsperstrip=16)  # fmt: skip
    if windows:
        with large.open_source(path) as source:
            refused(lambda: source.read(0, 4, 0, 4), "a.tif", "should hold")
    else:
        refused(lambda: images.read(path), "a.tif", "should hold")


def test_a_tiff_of_absurd_tiles(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32), np.uint16), tile=(32, 32), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for tag in (322, 323):
            entry = tiff.pages[0].tags[tag]
            content[entry.offset + 2 : entry.offset + 4] = struct.pack("<H", 4)
            content[entry.offset + 8 : entry.offset + 12] = struct.pack("<I", 10**5)
    path.write_bytes(content)
    for call in (lambda: images.read(path), lambda: large.open_source(path)):
        refused(call, "a.tif", "100000×100000")


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_pages_go_round(tmp_path, big):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        for _ in range(3):
            writer.write(np.zeros((8, 8), np.uint16), contiguous=False)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[2].offset
    content = bytearray(path.read_bytes())
    count, entry, form = (8, 20, "<Q") if big else (2, 12, "<I")
    tags = int.from_bytes(content[last : last + count], "little")
    struct.pack_into(form, content, last + count + tags * entry, first)
    path.write_bytes(content)
    refused(lambda: images.read(path), "a.tif", "lead back")
    refused(lambda: large.open_source(path), "a.tif", "lead back")
    assert images.count_frames(path) == 1


def test_a_tiff_whose_one_strip_is_too_large_for_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="zlib", rowsperstrip=64)
    monkeypatch.setattr(memory, "free", lambda device=None: 4000)
    refused(lambda: large.open_source(path), "a.tif", "smaller strips")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    os.mkfifo(tmp_path / "a.yaml")
    assert images.count_frames(tmp_path / "a.tif") == 1
    refused(lambda: images.read(tmp_path / "a.tif"), "regular file")
    refused(lambda: load_sweep(tmp_path / "a.yaml"), "not a regular file")
    refused(lambda: load_sweep(Path("/dev/zero")), "not a regular file")


# ---------------------------------------------------------------- Zarr


def zarr_of(path, compressor=None, filters=None):
    """A Zarr of format 2 with these codecs."""
    path.mkdir()
    described = {
        "zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": "|u1", "fill_value": 0,
        "order": "C", "filters": filters, "compressor": compressor,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(described))
    return path


@pytest.mark.parametrize(
    "codecs",
    [{"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]},
     {"filters": [{"id": "shuffle"}, {"id": "pickle"}], "compressor": {"id": "zlib"}},
     {"filters": [{"id": "pickle"}, {"id": "shuffle"}], "compressor": {"id": "zlib"}}],
)  # fmt: skip
def test_a_zarr_does_not_run_what_it_holds(tmp_path, codecs):
    pytest.importorskip("zarr")
    path = zarr_of(tmp_path / "a.zarr", **codecs)
    (path / "0.0").write_bytes(pickle.dumps(Shout(tmp_path / "run")))

    def read():
        with large.open_source(path) as source:
            source.read(0, 8, 0, 8)

    refused(read, "a.zarr", "pickle")
    assert not (tmp_path / "run").exists()


SWOLLEN = bytes(2**23)
# no size in the header, and 200 blocks of 128 kB of one byte: RFC 8878
ZSTD_STREAM = b"\x28\xb5\x2f\xfd\x00\x48" + 199 * b"\x02\x00\x10\0" + b"\x03\x00\x10\0"


@pytest.mark.parametrize("name", ["blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"])
def test_a_chunk_of_a_zarr_that_swells(tmp_path, name):
    pytest.importorskip("zarr")
    numcodecs = pytest.importorskip("numcodecs")
    path = zarr_of(tmp_path / "a.zarr", {"id": name})
    codec = numcodecs.get_codec({"id": name})
    fine = np.arange(64, dtype="u1").reshape(8, 8)
    contents = [codec.encode(SWOLLEN)]
    contents += [ZSTD_STREAM] if name == "zstd" else []
    contents += [2 * codec.encode(SWOLLEN[:600_000])] if name in ("bz2", "gzip") else []
    for content in contents:
        (path / "0.0").write_bytes(content)
        with (
            mock.patch.object(type(codec), "decode", side_effect=AssertionError),
            large.open_source(path) as source,
        ):
            refused(lambda source=source: source.read(0, 8, 0, 8), "a.zarr", "swells", name)
    (path / "0.0").write_bytes(codec.encode(fine))
    with large.open_source(path) as source:
        assert np.allclose(source.read(0, 8, 0, 8).squeeze() * 255, fine)


def sharded(path, side, compressed):
    """A Zarr of one shard of side × side in chunks of 8 × 8; returns where the shard goes."""
    codecs = [{"name": "bytes"}] + [{"name": "gzip", "configuration": {"level": 5}}] * compressed
    sharding = {
        "chunk_shape": [8, 8], "codecs": codecs, "index_location": "end",
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }  # fmt: skip
    grid = {"name": "regular", "configuration": {"chunk_shape": [side, side]}}
    described = {
        "zarr_format": 3, "node_type": "array", "shape": [side, side], "data_type": "uint8",
        "chunk_grid": grid, "fill_value": 0, "attributes": {},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }  # fmt: skip
    (path / "c" / "0").mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps(described))
    return path / "c" / "0" / "0"


def test_a_chunk_in_a_shard_that_swells(tmp_path):
    pytest.importorskip("zarr")
    shard = sharded(tmp_path / "a.zarr", 8, True)
    for content in (SWOLLEN, bytes(range(64))):
        held = gzip.compress(content)
        shard.write_bytes(held + struct.pack("<QQ", 0, len(held)))
        with large.open_source(tmp_path / "a.zarr") as source:
            if content is SWOLLEN:
                refused(lambda s=source: s.read(0, 8, 0, 8), "a.zarr", "swells", "gzip")
            else:
                assert np.allclose(source.read(0, 8, 0, 8).ravel() * 255, list(content))


def test_chunks_in_a_shard_that_are_all_the_same_large_part(tmp_path):
    pytest.importorskip("zarr")
    shard = sharded(tmp_path / "a.zarr", 64, False)
    with shard.open("wb") as file:
        file.truncate(10**8)  # sparse
        file.seek(0, 2)
        file.write(struct.pack("<QQ", 0, 10**8) * 64)
    with large.open_source(tmp_path / "a.zarr") as source:
        refused(lambda: source.read(0, 56, 0, 56), "a.zarr", "100000000 bytes of a chunk")


def test_a_file_of_a_zarr_larger_than_its_chunk(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 8), chunks=(8, 8), dtype="u1",
                      compressors=None)[:] = 3  # fmt: skip
    with (tmp_path / "a.zarr" / "c" / "0" / "0").open("r+b") as file:
        file.truncate(10**10)
    with large.open_source(tmp_path / "a.zarr") as source:
        refused(lambda: source.read(0, 8, 0, 8), "a.zarr", "10000000000 bytes of a chunk")


def test_a_zarr_of_absurd_chunks(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 8), chunks=(10**6, 10**6),
                              dtype="u1")  # fmt: skip
    assert array.chunks == (10**6, 10**6)
    refused(lambda: large.open_source(tmp_path / "a.zarr"), "1000000×1000000", "smaller chunks")


def test_a_zarr_does_not_lead_out_of_its_folder(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "other"), shape=(8, 8), dtype="u1")[:] = 7
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for path in ("../other", str(tmp_path / "other"), "x/../../other"):
        group.attrs["multiscales"] = [{"datasets": [{"path": path}], "axes": ["y", "x"]}]
        refused(lambda: large.open_source(tmp_path / "a.zarr"), "a.zarr")

    linked = tmp_path / "b.zarr"
    zarr.create_array(str(linked), shape=(8, 8), chunks=(8, 8), dtype="u1")[:] = 3
    found = linked / "c" / "0" / "0"
    for target in (tmp_path / "other" / "c" / "0" / "0", Path("/dev/zero")):
        found.unlink()
        found.symlink_to(target)
        with large.open_source(linked) as source:
            refused(lambda source=source: source.read(0, 8, 0, 8), "leads out")


# ---------------------------------------------------------------- YAML

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
BAD_YAML = {
    "laughs": (LAUGHS, "values"),
    "merged laughs": (LAUGHS.replace("[", "{<<: [").replace("]", "]}"), ""),
    "itself": ("a: &a [*a]", "part of"),
    "deep": ("[" * 50_000, "deep"),
    "large": ("a: 1\n" * 100_000, "too large"),
    "a long number": ("num_iters: 0x" + "f" * 5000, "characters"),
    "sixties": ("num_iters: " + ":".join(["59"] * 5000), "characters"),
    "code": ("a: !!python/object/apply:os.mkdir [here]", "python"),
    "an empty number": ("num_iters: !!int ''", "not a YAML file"),
    "a wrong truth": ("resume: !!bool maybe", "not a YAML file"),
    "a wrong date": ("lr: !!timestamp x", "not a YAML file"),
    "a list as key": ("? [a]\n: b", "not a YAML file"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_none_of_ours(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text, word = BAD_YAML[name]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(lambda: load_sweep(path), "a.yaml", word)
    refused(lambda: parse(DenoisingOptions, ["--config", str(path)], "x"), "a.yaml", word)
    (tmp_path / "config.yaml").write_text(text)
    refused(Run(tmp_path).config, "config.yaml")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "path", sorted(Path(experiment.__file__).parents[1].glob("configs/*.yaml"))
)
def test_the_sweeps_here_are_read_as_they_were(path):
    assert documents.read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    ["num_iters: .inf", "num_iters: .nan", "lr: 1e999", "lr: -1", "dim: [.nan]", "dim: 9e99",
     "seed: 99999999999999999999", "num_scales: 40", "sigma: .nan", "imsize: [1000000]",
     "tile: -3", "special: ../../x", "noise_sigma: {a: b}", "folder_path: [a, b]",
     "upsample_mode: 'kaiser:60,1e-9,1e-12'", "upsample_mode: 'taps:nan'"],
)  # fmt: skip
def test_numbers_and_names_from_yaml(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)

    def resolved():
        options, *_ = parse(DenoisingOptions, ["--config", str(path)], "x")
        experiment.resolve(options)
        experiment.models.count_parameters(options.model_type, **options.network_options())

    refused(resolved)


def test_a_file_does_not_say_where_results_go(tmp_path):
    for place in ("/somewhere", "../up", "a/../../b"):
        path = tmp_path / "a.yaml"
        path.write_text(f"save_folder: {place}")
        config = ["--config", str(path)]
        refused(lambda: parse(DenoisingOptions, config, "x"), "save_folder", "leads out")  # noqa: B023
        given = [*config, "--save_folder", place]
        assert parse(DenoisingOptions, given, "x")[0].save_folder == place


@pytest.mark.parametrize("label", ["2024-01-01", ".nan", "null", "!!binary aGk=", ".inf"])
def test_labels_that_no_folder_can_be_named_by(tmp_path, label):
    path = tmp_path / "a.yaml"
    path.write_text(f"grid: {{when: {{{label}: {{seed: 7}}}}}}")
    refused(lambda: load_sweep(path), "a.yaml", "grid: when", "in quotes")
    path.write_text(f"grid: {{when: {{other: {{seed: 7}}, {label!r}: {{seed: 8}}}}}}")
    assert len(cells(load_sweep(path), {})) == 2


def test_a_grid_without_end(tmp_path):
    path = tmp_path / "a.yaml"
    axes = "".join(f"  x{n}: {{a: {{lr: 1}}, b: {{lr: 2}}}}\n" for n in range(64))
    path.write_text("grid:\n" + axes)
    refused(lambda: cells(load_sweep(path), {}), "a.yaml", f"{2**64} combinations")


# ---------------------------------------------------------------- run folders


def finished(folder: Path, **changes) -> Run:
    """A run folder as a stranger may have made it."""
    run = Run(folder)
    run.begin({"task": "denoising", "model_type": "DD", "dim": [8], "seed": 7}, overwrite=False)
    rows = [{"iteration": n, "seconds": 0.1, "loss": 0.1, "psnr_noisy": 20.0} for n in (0, 5)]
    run.write_history(rows)
    result = {
        "image": "a", "model_type": "DD", "task": "denoising", "stop_iteration": 5, "seed": 7,
        "stopping": "fixed", "iterations": 6, "seconds": 1.0, "parameters": 100,
    }  # fmt: skip
    run.write_result({**result, **changes})
    for name in ("noisy", "restored"):
        images.save_png(run.folder / f"{name}.png", np.full((1, 16, 16), 0.5, np.float32))
    return run


def all_readers(root: Path, output: Path) -> None:
    """Everything that reads run folders."""
    records = load_records([root])
    markdown(summary(records))
    for record in records:
        _ = record.history, record.labels, record.pair
        draw_run(record.run)
    report.write([root], output / "page", say=lambda line: None)


@pytest.mark.parametrize(
    "changes",
    [{"stop_iteration": "5"}, {"stop_iteration": [5]}, {"model_type": None}, {"task": {}},
     {"iterations": "x"}, {"psnr_stopped": "<b>"}, {"seconds": "1"}, {"seed": [1]},
     {"stopping": 5}, {"parameters": {}}, {"extra": {"a": 1}}, {"oracle_iteration": 1e999},
     {"stop_iteration": float("nan")}, {"psnr_stopped": 10**400}],
)  # fmt: skip
def test_a_result_of_the_wrong_kind(tmp_path, changes):
    finished(tmp_path / "runs" / "a", **changes)
    refused(lambda: all_readers(tmp_path / "runs", tmp_path), "result.json", "damaged")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    "text",
    ["seed: [1]", "labels: [a]", "labels: {a: [{b: c}]}", "dim: {a: b}", "versions: x",
     "upsample_mode: [[a]]", "noise_sigma: .inf", "num_scales: x", "1: 2"],
)  # fmt: skip
def test_a_configuration_of_the_wrong_kind(tmp_path, text):
    run = finished(tmp_path / "runs" / "a")
    (run.folder / "config.yaml").write_text("task: denoising\n" + text)
    refused(lambda: all_readers(tmp_path / "runs", tmp_path), "config.yaml", "damaged")


@pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "-5", "0.5", "1e300", "x", "9" * 400])
def test_a_history_of_no_iterations(tmp_path, cell):
    run = finished(tmp_path / "runs" / "a")
    path = run.folder / "history.csv"
    path.write_text(path.read_text() + f"{cell},1,1,1,,,\n")
    refused(lambda: all_readers(tmp_path / "runs", tmp_path), "history.csv", "damaged")


def test_numbers_that_are_none_are_shown_as_nothing(tmp_path):
    run = finished(tmp_path / "runs" / "a", psnr_stopped=float("nan"))
    path = run.folder / "history.csv"
    path.write_text(path.read_text() + "9,nan,inf,-inf,1e999,,\n")
    (run.folder / "snapshots" / "none.png").touch()
    (run.folder / "snapshots" / "12x.png").touch()
    all_readers(tmp_path / "runs", tmp_path)
    page = (tmp_path / "page" / "data.js").read_text()
    assert "NaN" not in page and "Infinity" not in page


@pytest.mark.parametrize("name", ["9" * 5000, "\ud800"])
def test_names_that_are_odd_text(tmp_path, name):
    run = finished(tmp_path / "runs" / "a", image=name, model_type=name)
    run.begin({**run.config(), "model_type": name, "upsample_mode": name}, overwrite=False)
    finished(tmp_path / "runs" / "b", image="8" * 5000)
    run.write_result({**Run(tmp_path / "runs" / "b").result(), "image": name, "model_type": name})
    all_readers(tmp_path / "runs", tmp_path)


def test_a_link_that_leads_in_a_circle(tmp_path):
    run = finished(tmp_path / "runs" / "a")
    (run.folder / "restored.png").unlink()
    (run.folder / "restored.png").symlink_to("restored.png")
    refused(lambda: all_readers(tmp_path / "runs", tmp_path), "restored.png", "circle")


@pytest.mark.parametrize(
    "name", ["config.yaml", "history.csv", "result.json", "restored.png", "noisy.png", "tiles.csv"]
)
def test_a_link_does_not_bring_in_what_is_elsewhere(tmp_path, name):
    run = finished(tmp_path / "runs" / "a")
    secret = tmp_path / "secret"
    path = run.folder / name
    secret.write_bytes(path.read_bytes() if path.exists() else b"top,bottom\n")
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    refused(lambda: all_readers(tmp_path / "runs", tmp_path), name, "a link leads out")
    assert not (tmp_path / "page").exists()


def test_a_link_does_not_have_files_elsewhere_written_or_deleted(tmp_path, folder):
    place = tmp_path / "runs" / "denoising" / "DD"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00000.png").write_bytes(b"mine")
    (outside / "log").write_bytes(b"mine")
    flags = f"--folder_path {folder / 'grey.png'} --save_folder {tmp_path / 'runs'} --model_type DD"
    flags += " --dim 4 --num_layers 2 --num_iters 1 --device cpu --precision fp32 --overwrite"

    def run():
        options, switches, _ = parse(DenoisingOptions, flags.split(), "x")
        experiment.run_all(options, switches)

    (place / "grey").mkdir(parents=True)
    (place / "grey" / "snapshots").symlink_to(outside)
    refused(run, "snapshots", "a link leads out")
    (place / "grey" / "snapshots").unlink()
    (place / "log.txt").unlink()
    (place / "log.txt").symlink_to(outside / "log")
    refused(run, "log.txt", "a link leads out")
    assert [p.read_bytes() for p in sorted(outside.iterdir())] == [b"mine", b"mine"]


def test_names_stay_text(tmp_path, capsys):
    name = "$\\frac$ <img src=x onerror=alert(1)> \x1b[2J"
    run = finished(tmp_path / "runs" / "a", image=name)
    all_readers(tmp_path / "runs", tmp_path)
    html = (tmp_path / "page" / "index.html").read_text()
    assert "<img src=x" not in html and "&lt;img" in html
    assert run.result()["image"] == name

    def fails():
        raise UserError(name)

    assert exit_status(fails) == 2
    assert "\x1b" not in capsys.readouterr().err


# ---------------------------------------------------------------- checkpoints and arrays


def archive(**parts) -> bytes:
    content = io.BytesIO()
    torch.save(parts, content)
    return content.getvalue()


def test_a_checkpoint_does_not_run_what_it_holds(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for save in (
        lambda: torch.save({"state": Shout(tmp_path / "run"), "rows": []}, path),
        lambda: path.write_bytes(pickle.dumps({"state": Shout(tmp_path / "run"), "rows": []})),
    ):
        save()
        refused(Run(tmp_path).load_checkpoint, "checkpoint.pt")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_claims_more_than_it_has(tmp_path):
    path = tmp_path / "checkpoint.pt"
    huge = torch.zeros(1).expand(10**6, 10**6)
    twice = [[torch.ones(9)] * 10] * 10
    for _ in range(5):
        twice = [twice] * 10
    for state in ({"out": huge}, {"out": twice}):
        path.write_bytes(archive(state=state, rows=[]))
        refused(Run(tmp_path).load_checkpoint, "checkpoint.pt")
    stored = zipfile.ZipFile(io.BytesIO(archive(state={"a": torch.zeros(10**6)}, rows=[])))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in stored.infolist():
            packed.writestr(part.filename, stored.read(part))
    refused(Run(tmp_path).load_checkpoint, "checkpoint.pt")


WRONG = {
    "iteration": ["x", -1, 10**400, 2.5, None],
    "seconds": [None, "x"],
    "out": [None, torch.zeros(3), torch.zeros(1, 3, 999, 999), "x"],
    "smoothed": [torch.zeros(1, 1, 8, 8), 5],
    "generator": [torch.zeros(3), None],
    "optimizer": [{}, {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
    "stopping": [{}, {"iteration": "x", "picture": None}, {"iteration": 0, "picture": 5}],
    "network": [{}, [], {"x": torch.zeros(2)}],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_checkpoint_that_cannot_be_gone_on_from(tmp_path, fresh, key):
    checkpoints = Checkpoints(Run(tmp_path), 2, Evaluation(1, 1))
    fit(fresh(), 2, [checkpoints])
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    assert checkpoints.restore(fresh())
    for wrong in WRONG[key]:
        torch.save({**saved, "state": {**saved["state"], key: wrong}}, path)
        refused(lambda: checkpoints.restore(fresh()), "checkpoint.pt")
    for rows in ("x", [1], [{"iteration": None}], [{"iteration": 1, "x": 2}], [{"loss": 1.0}]):
        torch.save({**saved, "rows": rows}, path)
        refused(lambda: checkpoints.restore(fresh()), "checkpoint.pt")


def npy(header: str, content: bytes = b"") -> bytes:
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


BAD_NPY = [
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 100000, 100000)}", bytes(12)),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps(3)),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}", bytes(16)),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': 10**9}", bytes(16)),
    npy("__import__('os').mkdir('x')"),
    npy("((((((((" * 10),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1, 1)}",
        struct.pack("<3f", 0, float("nan"), 1)),
    b"PK\x03\x04",
    pickle.dumps([1]),
    b"",
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(BAD_NPY)))
def test_an_array_that_is_none(tmp_path, n):
    (tmp_path / "restored.npy").write_bytes(BAD_NPY[n])
    refused(Run(tmp_path).load_exact, "restored.npy", "damaged")


def test_tiles_from_elsewhere(tmp_path):
    y = np.zeros((1, 24, 24), np.float32)
    layout = Layout((24, 24), 24, 0)
    tiles = Tiles(InMemory(y), layout, tmp_path, DenoisingOptions())
    whole = {"iterations": 1, "stop_iteration": 0, "stopped_by_rule": True, "seconds": 1.0}
    whole |= {"retries": 0, "gave_up": False}
    path = tiles.path(layout[0])
    np.savez(path, picture=y, **whole)
    assert tiles.load(layout[0]).picture.shape == y.shape
    for wrong in (
        {"picture": y[:, :4]}, {"picture": y * np.nan}, {"seconds": np.zeros(3)},
        {"picture": np.array([Shout(tmp_path / "run")])},
    ):  # fmt: skip
        np.savez(path, **{"picture": y, **whole, **wrong})
        refused(lambda: tiles.load(layout[0]), path.name, "damaged")
    np.savez_compressed(path, picture=np.zeros(10**7), **whole)
    refused(lambda: tiles.load(layout[0]), path.name, "damaged")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- downloads and absurd sizes


def test_a_server_that_never_ends(tmp_path, monkeypatch):
    requests = pytest.importorskip("requests")
    pytest.importorskip("pooch")
    sent = []

    class Endless:
        status_code = 200

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def raise_for_status(self):
            pass

        def iter_content(self, size):
            while True:
                sent.append(size)
                yield bytes(size)

    monkeypatch.setattr(requests, "get", lambda *a, **k: Endless())
    monkeypatch.setattr(transfer, "PAUSE", 0)
    refused(lambda: data.download("set5", root=tmp_path, progress=False), "not downloaded")
    assert sum(sent) < 40e6 and not list(tmp_path.rglob("*.png"))


def test_absurd_sizes_are_refused_before_anything_is_made(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device=None: 10**8)
    begin = f"--folder_path {folder / 'grey.png'} --save_folder {tmp_path / 'runs'} --device cpu "
    for flags, words in {
        "--imsize 1000000": ["--imsize", "20000"],
        "--imsize 20000": ["--imsize 20000", "6.4 GB", "free"],
        "--num_scales 40": ["--num_scales", "16"],
        "--dim 1000000": ["--dim", "65536"],
    }.items():
        words_of = (begin + flags).split()

        def run(words_of=words_of):
            options, switches, _ = parse(DenoisingOptions, words_of, "x")
            experiment.run_all(options, switches)

        refused(run, *words)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- what nobody thought of

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from((0, 1, 2, 4, 16, 300)),
        st.one_of(st.sampled_from(fuzz.WORDS), st.binary(max_size=6)),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", fuzz.READERS)
def test_spoilt_files_are_refused_in_one_line(tmp_path, name):
    reader = fuzz.READERS[name]
    seeds = reader.seeds()
    folder = tmp_path / "runs"
    folder.mkdir()
    fuzz.prepared(reader, folder)
    for content in seeds:  # a real file is read, or what is spoilt in it would not be seen
        assert fuzz.attempt(reader, folder, content) or name == "options.yaml"

    @settings(
        max_examples=12 if reader.read is fuzz.page else 40,
        derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(seeds), EDITS)
    def spoilt(seed, edits):
        fuzz.attempt(reader, folder, fuzz.mutated(seed, edits))

    spoilt()


def test_the_fuzzer_counts_what_fails(tmp_path, monkeypatch):
    def crash(folder):
        raise ZeroDivisionError

    one = fuzz.READERS["restored.npy"]
    assert fuzz.attempt(one, tmp_path, one.seeds()[0])
    assert not fuzz.attempt(one, tmp_path, b"x")
    with pytest.raises(ZeroDivisionError):
        fuzz.attempt(fuzz.Reader("x", crash, list), tmp_path, b"x")


def test_what_is_promised_has_a_test():
    root = Path(__file__).parent
    promised = set(re.findall(r"`(test_\w+)`", (root.parent / "SECURITY.md").read_text()))
    there = {
        n
        for path in root.glob("test_*.py")
        for n in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert promised and promised <= there, promised - there
