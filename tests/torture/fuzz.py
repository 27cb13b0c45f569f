"""Every reader against spoilt files: no crash, no hang, no exception but UserError.

    from torture import fuzz
    figures = fuzz.run(600, print)

Each reader has a process of its own, with a bound on its memory and on the processor time of one
input, so that a C library that crashes or never ends is counted and the rest goes on. Inputs are
made by atheris (the extra ``torture``) where it is installed, else by plain random mutation of real
files. What fails is kept in a folder, for a test.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

LED = ["PIL", "dip_recon", "numcodecs", "png", "tifffile", "yaml", "zarr"]
leading = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=LED) if leading else nullcontext():
    import numpy as np
    import tifffile
    import torch
    import yaml
    from PIL import Image

    from dip_recon import images, report
    from dip_recon.errors import UserError
    from dip_recon.figures.records import load as load_records
    from dip_recon.flags import parse
    from dip_recon.images import large
    from dip_recon.options import DenoisingOptions
    from dip_recon.runs import Run
    from dip_recon.sweeps.grid import cells
    from dip_recon.sweeps.grid import load as load_sweep
    from dip_recon.tables import summary

MEMORY = 2**31  # bytes that a reader's process may take beyond what it has after its imports
PATIENCE = 20.0  # seconds of processor time that one input may take
LONGEST = 2**16  # bytes of an input
WORDS = (
    b"nan", b"-1", b"1e999", b"inf", b"null", b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"-",
    b"&a ", b"*a", b"<<: *a", b"!!int ", b"!!binary ", b"!!timestamp ", b"? ", b"../..", b"/etc",
    b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00",
    b"9" * 30, b"0x" + b"f" * 40, b"<script>", b"PK\x03\x04", b"\x80\x04", b"true",
)  # fmt: skip

Edit = tuple[float, int, bytes]  # where, as a share of the length; how many bytes go; what comes


@dataclass(frozen=True)
class Reader:
    """A reader and real files for it.

    read: takes the folder that the content was written to as ``name``. seeds: whole files.
    """

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]


def mutated(seed: bytes, edits: list[Edit]) -> bytes:
    """``seed`` with some bytes replaced, taken out or put in."""
    content = bytearray(seed)
    for where, gone, come in edits:
        at = int(where * len(content))
        content[at : at + gone] = come
    return bytes(content[:LONGEST])


def edits(rng: random.Random, others: list[bytes]) -> list[Edit]:
    """A few edits at random, pieces of ``others`` among them."""
    found = []
    for _ in range(1 + rng.getrandbits(3)):
        piece = rng.choice(others)
        start = rng.randrange(len(piece) + 1)
        kind = rng.randrange(5)
        come = [
            bytes([rng.getrandbits(8)]),
            rng.choice(WORDS),
            piece[start : start + rng.getrandbits(7)],
            rng.getrandbits(32).to_bytes(4, "little"),
            b"",
        ][kind]
        gone = rng.choice((len(come), len(come), 0, 1 << rng.randrange(12)))
        found.append((rng.random(), gone, come))
    return found


# ---------------------------------------------------------------- readers


def _window(path: Path) -> None:
    with large.open_source(path) as source:
        height, width = source.size
        source.read(0, min(height, 8), 0, min(width, 8))
        source.read_alpha(max(height - 8, 0), height, 0, 1)


def _sweep(path: Path) -> None:
    cells(load_sweep(path), {})


def page(folder: Path) -> None:
    records = load_records([folder])
    summary(records)
    report.write([folder], folder.parent / f"{folder.name}-page", say=lambda line: None)


def _checkpoint(folder: Path) -> None:
    saved = Run(folder).load_checkpoint()
    if saved is not None:
        [row["iteration"] for row in saved["rows"]]


def _picture(suffix: str, count: int = 3, dtype=np.uint8, **options) -> bytes:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    samples = rng.integers(0, top, (12, 16, count) if count > 1 else (12, 16)).astype(dtype)
    content = io.BytesIO()
    if suffix == "tiff":
        tifffile.imwrite(content, samples, **options)
    else:
        Image.fromarray(samples).save(content, suffix, **options)
    return content.getvalue()


def _png16() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    samples = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(range(30)) for _ in range(4))))
    return b"\x89PNG\r\n\x1a\n" + header + samples + chunk(b"IEND", b"")


def _tiffs() -> list[bytes]:
    return [
        _picture("tiff", photometric="rgb"),
        _picture("tiff", 1, np.uint16, compression="zlib", rowsperstrip=3),
        _picture("tiff", 1, np.uint16, tile=(16, 16), compression="zlib"),
        _picture("tiff", 3, np.uint8, tile=(16, 16), bigtiff=True, photometric="rgb"),
        _picture("tiff", 1, np.uint8, rowsperstrip=4),
    ]


CONFIG = {"task": "denoising", "model_type": "DD", "dim": [8], "seed": 7, "lr": 0.01,
          "labels": {"width": 8}, "versions": {"torch": "2"}, "picture_sha256": "0"}  # fmt: skip
RESULT = {
    "image": "a", "model_type": "DD", "task": "denoising", "stop_iteration": 5, "seed": 7,
    "stopping": "fixed", "iterations": 6, "seconds": 1.5, "parameters": 100, "psnr_noisy": 20.1,
    "psnr_stopped": 25.0, "psnr_oracle": 26.0, "oracle_iteration": 4, "ssim_stopped": 0.9,
}  # fmt: skip
HISTORY = (
    b"iteration,seconds,loss,psnr_noisy,psnr_gt,psnr_gt_sm,ssim_gt_sm\r\n"
    b"0,0.1,0.2,10.5,11,11,0.5\r\n5,0.3,0.02,20.5,21,22.25,\r\n"
)
SWEEP = b"""experiment: denoising
figures: [upsampling]
options: {num_iters: 3000, folder_path: set9}
grid:
  seed: &seeds [7, 8]
  upsampling:
    bilinear: {upsample_mode: bilinear, progressive: true}
    none: {upsample_mode: None}
quick: {options: {num_iters: 5}, grid: {seed: *seeds}}
"""
ZARR = {
    "zarr_format": 3, "node_type": "array", "shape": [8, 8], "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0, "codecs": [{"name": "bytes"}], "attributes": {}, "storage_transformers": [],
}  # fmt: skip
ZARR_2 = {
    "zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": "|u1", "fill_value": 0,
    "order": "C", "filters": None, "compressor": {"id": "zlib", "level": 1},
}  # fmt: skip


def _saved() -> list[bytes]:
    content = io.BytesIO()
    state = {"iteration": 2, "out": torch.zeros(1, 3, 4, 4), "stopping": {"minimum": 0.5}}
    torch.save({"state": state, "rows": [{"iteration": 0, "loss": 0.5}]}, content)
    return [content.getvalue()]


def _array() -> list[bytes]:
    content = io.BytesIO()
    np.save(content, np.zeros((1, 3, 4), np.float32))
    return [content.getvalue()]


def _config(path: Path) -> None:
    parse(DenoisingOptions, ["--config", str(path), "--save_folder", "x"], "fuzz")


def _yaml() -> list[bytes]:
    options = {"dim": [64], "lr": 0.01, "sigma": None, "progressive": False, "num_iters": 9}
    return [yaml.safe_dump(options).encode(), SWEEP]


_FILES = [
    Reader("a.png", lambda f: images.read(f / "a.png"), lambda: [
        _picture("png"), _picture("png", 1), _picture("png", 4), _picture("png", 1, np.uint16)]),
    Reader("deep.png", lambda f: images.read(f / "deep.png"), lambda: [_png16()]),
    Reader("a.jpg", lambda f: images.read(f / "a.jpg"), lambda: [
        _picture("jpeg"), _picture("jpeg", 1, progressive=True)]),
    Reader("a.bmp", lambda f: images.read(f / "a.bmp"), lambda: [_picture("bmp")]),
    Reader("a.webp", lambda f: images.read(f / "a.webp"), lambda: [
        _picture("webp"), _picture("webp", 4, lossless=True)]),
    Reader("a.gif", lambda f: images.read(f / "a.gif"), lambda: [_picture("gif", 1)]),
    Reader("a.tif", lambda f: images.read(f / "a.tif"), _tiffs),
    Reader("frames.tif", lambda f: (images.count_frames(f / "frames.tif"),
                                    images.read_frame(f / "frames.tif", 0)),
           lambda: [_picture("tiff", 3, np.uint16), _picture("tiff", 3, imagej=True)]),
    Reader("windows.tif", lambda f: _window(f / "windows.tif"), _tiffs),
    Reader("sweep.yaml", lambda f: _sweep(f / "sweep.yaml"), lambda: [SWEEP]),
    Reader("options.yaml", lambda f: _config(f / "options.yaml"), _yaml),
    Reader("checkpoint.pt", _checkpoint, _saved),
    Reader("restored.npy", lambda f: Run(f).load_exact(), _array),
    Reader("config.yaml", page, lambda: [yaml.safe_dump(CONFIG).encode()]),
    Reader("history.csv", page, lambda: [HISTORY]),
    Reader("result.json", page, lambda: [json.dumps(RESULT).encode()]),
    Reader("zarr.json", _window, lambda: [json.dumps(ZARR).encode()]),
    Reader(".zarray", _window, lambda: [json.dumps(ZARR_2).encode()]),
    Reader("0.0", _window, lambda: [zlib.compress(bytes(range(64)))]),
]  # fmt: skip
READERS = {reader.name: reader for reader in _FILES}


def prepared(reader: Reader, folder: Path) -> Path:
    """A folder with what has to lie beside the reader's file."""
    if reader.read is page:
        (folder / "history.csv").write_bytes(HISTORY)
        (folder / "result.json").write_text(json.dumps(RESULT))
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        for name in ("clean", "noisy", "restored"):
            images.save_png(folder / f"{name}.png", np.full((1, 12, 16), 0.5, np.float32))
    if reader.name == "0.0":
        (folder / ".zarray").write_text(json.dumps(ZARR_2))
    if reader.name == "zarr.json":
        (folder / "c" / "0").mkdir(parents=True, exist_ok=True)
        (folder / "c" / "0" / "0").write_bytes(bytes(64))
    return folder


def attempt(reader: Reader, folder: Path, content: bytes) -> bool:
    """Have the reader read ``content``: whether it did; False if it refused in one line.

    Whatever else it raises, it raises.
    """
    (folder / reader.name).write_bytes(content)
    try:
        reader.read(folder)
    except UserError as error:
        if "\n" in str(error):
            raise ValueError(f"more than one line: {error}") from error
        return False
    return True


# ---------------------------------------------------------------- one process a reader


def run(budget_s: float, say: Callable[[str], None]) -> dict[str, object]:
    """Fuzz every reader for its share of ``budget_s`` seconds, as many at once as there are cores.

    What it takes to begin, more than that share with atheris, comes on top.

    Returns the figures: by what the inputs were made, how many were tried, read, refused, and
    ``failed``, how many kinds of crash, hang and wrong exception came of them.
    """
    by = "atheris" if atheris is not None else "random mutation, without atheris"
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    figures = {"by": by, "tried": 0, "read": 0, "refused": 0, "failed": 0}
    say(f"fuzz: {len(READERS)} readers by {by}")

    def fuzzed(n: int, reader: Reader) -> tuple[Reader, dict]:
        return reader, _one(reader, budget_s / len(READERS), n, kept / reader.name)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as hands:
        for reader, found in hands.map(fuzzed, range(len(READERS)), READERS.values()):
            for key in ("tried", "read", "refused"):
                figures[key] += found[key]
            figures["failed"] += len(found["failures"])
            say(f"fuzz {reader.name}: {found['tried']} tried, {found['refused']} refused cleanly")
            for failure in found["failures"]:
                say(f"fuzz {reader.name}: FAILED {failure}")
    if figures["failed"]:
        say(f"fuzz: what failed is in {kept}")
    return figures


def _one(reader: Reader, seconds: float, seed: int, kept: Path) -> dict:
    """Processes that fuzz one reader, one after the other as they die, until the time is over."""
    kept.mkdir()
    total = {"tried": 0, "read": 0, "refused": 0, "failures": {}}
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 or not total["tried"]:
        (kept / "counts.json").unlink(missing_ok=True)
        command = [sys.executable, __file__, reader.name, str(max(left, 1)), str(seed), str(kept)]
        died = ""
        try:
            done = subprocess.run(command, capture_output=True, timeout=left + 10 * PATIENCE + 60)
            if done.returncode == -signal.SIGVTALRM:
                died = f"hang: one input took {PATIENCE:g} s"
            elif done.returncode:
                died = (
                    f"ended with {done.returncode}: {done.stderr[-300:].decode(errors='replace')}"
                )
        except subprocess.TimeoutExpired:
            died = "hang: asleep for ever"
        counts = {"tried": 0, "read": 0, "refused": 0, "failures": {}}
        with suppress(OSError, ValueError):
            counts = json.loads((kept / "counts.json").read_text())
        for key in ("tried", "read", "refused"):
            total[key] += counts[key]
        total["failures"] |= counts["failures"]
        if died:
            total["tried"] += 1
            total["failures"][died] = died
            with suppress(OSError):
                (kept / "last").rename(kept / f"died{seed}")
        seed += 1000
        if died and not counts["tried"]:
            break
    return {**total, "failures": list(total["failures"].values())}


def _work(name: str, seconds: float, seed: int, kept: Path) -> None:
    """Fuzz one reader in this process; what came of it is in ``counts.json``."""
    reader = READERS[name]
    seeds = reader.seeds()
    counts: dict = {"tried": 0, "read": 0, "refused": 0, "failures": {}}
    last = (kept / "last").open("w+b", buffering=0)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        prepared(reader, folder)

        def one(content: bytes) -> None:
            last.seek(0)
            last.truncate()
            last.write(content)
            signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
            counts["tried"] += 1
            try:
                counts["read" if attempt(reader, folder, content) else "refused"] += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} in {Path(where.filename).name}: {where.name}"
                if kind not in counts["failures"]:
                    counts["failures"][kind] = f"{kind}: {str(error)[:200]}"
                    (kept / f"input{seed}-{len(counts['failures'])}").write_bytes(content)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if counts["tried"] % 20 == 0 or time.monotonic() > until:
                (kept / "counts.json").write_text(json.dumps(counts))

        until = time.monotonic() + seconds
        if atheris is not None:
            _by_atheris(one, seeds, seconds, seed, Path(place) / "corpus")
        else:
            for content in _by_chance(seeds, seed):
                one(content)
                if time.monotonic() > until:
                    return


def _by_chance(seeds: list[bytes], seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    yield from seeds
    while True:
        yield mutated(rng.choice(seeds), edits(rng, seeds))


def _by_atheris(one: Callable, seeds: list[bytes], seconds: float, seed: int, corpus: Path) -> None:
    """Inputs that libFuzzer makes of the seeds, led by what they reach in Python's readers."""
    corpus.mkdir()
    for n, content in enumerate(seeds):
        (corpus / str(n)).write_bytes(content)
    words = corpus.with_name("words")
    spelt = ["".join(f"\\x{byte:02x}" for byte in word) for word in WORDS]
    words.write_text("".join(f'"{word}"\n' for word in spelt))
    flags = [f"-max_total_time={int(seconds) + 1}", f"-seed={seed + 1}", f"-dict={words}"]
    flags += [f"-max_len={LONGEST}", "-timeout=9999", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _work(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
