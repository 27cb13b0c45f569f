"""What the benchmarks share: the table, the plain step, the clock, variants that take turns.

The plain step is the published one: float32, torch's own layers and memory layout, a fresh noise
tensor where noise is asked for, Adam. Seconds are the processor's, so that other work does not
count; on a GPU the clock's.
"""

from __future__ import annotations

import csv
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "DIP-Recon"))

from dip_recon import memory
from dip_recon.errors import out_of_memory
from dip_recon.fit import State, choose
from dip_recon.flags import fill
from dip_recon.models import doubling, layers, swin, upsamplers
from dip_recon.options import DenoisingOptions
from dip_recon.prepare import prepare, resolve
from dip_recon.problem import Problem
from dip_recon.recorded import Recorded
from dip_recon.tasks import Job

ROWS: list[dict] = []
GROWING = ("ConvDecoder_LPF",)  # begins with a small input, and no other


def note(part: str, **figures) -> None:
    ROWS.append({"part": part, **figures})
    print(f"{part:9}", "  ".join(f"{k} {v}" for k, v in figures.items()), flush=True)


def write(path: Path) -> None:
    """The table so far, as CSV."""
    names = list(dict.fromkeys(key for row in ROWS for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(ROWS)


def state(name: str, size: int, precision: str, seed: int = 7, picture=None, **more):
    """A fresh state and its options, for a random picture of this size or ``picture``, (x, y)."""
    if picture is None:
        random = np.random.RandomState(0).rand(3, size, size).astype(np.float32)
        picture = random, random
    x, y = (torch.from_numpy(p)[None] for p in picture)
    settings = {"model_type": name, "seed": seed, "stopping": "fixed", **more}
    settings |= {"progressive": True} if name in GROWING else {}
    o, _ = resolve(fill(DenoisingOptions, settings)[0])
    job = Job("picture", Problem.denoising(y, x), picture[1], "")
    return prepare(job, o, *choose("auto", precision)), o


def plain(s):
    """The same state with the published loop's optimiser, and plain 1×1 convolutions."""
    for layer in s.network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            layer.dilation = (1, 1)
    if isinstance(s.optimizer, torch.optim.Adam):
        s.optimizer = torch.optim.Adam(s.network.parameters(), s.lr)
    return s


def attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + bias) v as ``swin.attend`` has it, written out."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return (logits.softmax(-1) @ v).transpose(1, 2)


@contextmanager
def plain_layers():
    """torch's own layers in the place of those that the package computes in another way."""

    def pad(self, x):
        return layers.reflect_pad(x, *(self.width,) * 4)

    def joined(a, b):
        return torch.cat([a, b], dim=1)

    with (
        mock.patch.object(layers._Join, "apply", joined),
        mock.patch.object(swin, "attend", attention),
        mock.patch.object(layers.BatchNorm, "forward", nn.BatchNorm2d.forward),
        mock.patch.object(layers.InstanceNorm, "forward", nn.InstanceNorm2d.forward),
        mock.patch.object(layers.ReflectPad, "forward", pad),
        mock.patch.object(upsamplers, "plain_float32", lambda x: False),
        mock.patch.object(doubling, "possible", lambda *_: False),
    ):
        yield


@contextmanager
def given_back():
    """Freed memory goes back to the system in here, and is kept from then on, as in ``fit``."""
    memory.keep(False)
    try:
        yield
    finally:
        memory.keep(True)


def plain_step(s) -> None:
    """The published loop's step, float32 throughout, memory as the C library deals with it.

    On a GPU in the TF32 of torch's defaults, and cuDNN tries its algorithms, as the published
    program has it.
    """
    with ExitStack() as stack:
        stack.enter_context(plain_layers())
        if s.z.is_cuda:
            cudnn = torch.backends.cudnn
            for setting in ("allow_tf32", "benchmark"):
                stack.callback(setattr, cudnn, setting, getattr(cudnn, setting))
                setattr(cudnn, setting, True)
        else:
            stack.enter_context(given_back())
        z = s.z
        if s.jitter:
            z = z + torch.randn(z.shape, generator=s.generator, device=z.device) * s.jitter
        s.optimizer.zero_grad()
        out = s.network(z)
        loss = functional.mse_loss(out, s.problem.y)
        s.smoothed = out.detach() if s.smoothed is None else s.smoothed * 0.99 + out.detach() * 0.01
        loss.backward()
        s.optimizer.step()


def clock() -> float:
    """Seconds of the processor, or of the clock where a GPU does the work, when that is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def warm(work: Callable, s: State | None) -> None:
    """Have it done as often as it takes until steps on a GPU are recorded."""
    if s is not None and s.recorded:
        for _ in range(Recorded.EAGER + 1):
            work(s)


def timed(work: Callable, s: State) -> float:
    began = clock()
    work(s)
    return clock() - began


def each(a, part: str, cases: list[tuple], measure: Callable) -> None:
    """``measure`` of every case, as long as there is time and memory for it."""
    for case in cases:
        if time.monotonic() > a.until:
            note(part, left_out=f"{case}: no time left")
            continue
        gc.collect()  # what the case before has left counts as taken
        try:
            measure(*case)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            note(part, left_out=f"{case}: not enough memory")


def in_turns(variants: dict[str, tuple[Callable, State]], a) -> dict[str, tuple[float, ...]]:
    """Seconds of each variant's work, median, and least, median and most of its ratio to the
    first's.

    Each begins its turn with an untimed step, since the one before has left memory and caches to
    its own liking.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for work, s in variants.values():
        warm(work, s)
    for _ in range(a.rounds):
        for name, (work, s) in variants.items():
            memory.trim()
            work(s)
            passed = timed(lambda s, work=work: [work(s) for _ in range(a.steps)], s)
            seconds[name].append(passed / a.steps)
    first = next(iter(seconds.values()))
    found = {}
    for name, passed in seconds.items():
        ratios = [b / a for a, b in zip(first, passed, strict=True)]
        middle = statistics.median(ratios)
        found[name] = (statistics.median(passed), min(ratios), middle, max(ratios))
    return found


def noisy(whole: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a picture [H, W, C], and it with noise of sigma 25: [C, side, side] each."""
    top, left = ((n - side) // 2 for n in whole.shape[:2])
    x = np.moveaxis(whole[top : top + side, left : left + side], -1, 0) / np.float32(255)
    noise = np.random.RandomState(7).standard_normal(x.shape)
    y = (x + 25 / 255 * noise).clip(0, 1).astype(np.float32)
    return np.ascontiguousarray(x, np.float32), y
