"""How much memory a fit takes, reckoned without computing any of it."""

from __future__ import annotations

import math
import weakref
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import memory, models
from .errors import UserError
from .fit import bf16_available, choose
from .options import Options
from .prepare import ask_every, network_settings, on_gpu
from .tasks import Job

# What allocators keep, and convolutions lay out anew, beyond the tensors there are at once: as
# measured on a CPU, see tests/test_needs.py; on a card it was not measured.
WASTE = {"cpu": 1.6, "cuda": 1.3}
# Of the weights: they, their gradients, two moments, the guard's copy of three of these, and what
# convolutions lay out anew; on a card also a copy of four while a step is recorded.
COPIES = {"cpu": 8, "cuda": 12}
SPARE = 0.8  # share of the free memory that a fit may take


def needed(job: Job, o: Options) -> int:
    """Bytes that fitting the whole picture takes at most, beyond what the process has before.

    One step, forward and backward, is played through with tensors that have a shape and no content,
    and the bytes of those alive at once are counted; to this come the optimiser's two moments, the
    pictures that averages and rules keep or are to look at yet, and the guard's copy of all these.
    """
    from torch._subclasses import FakeTensorMode  # slow to import

    device, precision = choose(o.device, o.precision)
    settings = network_settings(job, o)
    bf16 = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    # in float32 the CPU has ways of its own, which save memory
    place = "cpu" if device.type == "cpu" or precision == "bf16" else "meta"
    live = _Live()
    with FakeTensorMode() if place == "cpu" else nullcontext(), live:
        network = models.build(o.model_type, **settings, device=place)
        z = torch.empty(1, settings["in_channels"], *settings["in_size"], device=place)
        with bf16:
            out = network(z + torch.empty_like(z))
        (out.float() - torch.empty_like(out)).square().mean().backward()
    weights = 4 * _weights(network)
    passing = live.most - 2 * weights  # all but the weights and their gradients
    kept = _pictures(o, out.numel(), device) * 4 * out.numel()
    return round(WASTE[device.type] * (passing + kept) + kept + COPIES[device.type] * weights)


def too_large(job: Job, o: Options) -> bool:
    """Whether the picture as a whole would not fit into memory, with a fifth to spare."""
    free = memory.free(choose(o.device, o.precision)[0])
    return _most(job, o) > SPARE * free and needed(job, o) > SPARE * free


def check(job: Job, o: Options) -> None:
    """Raise UserError, with what can be done, if fitting the picture would not fit into memory."""
    if not too_large(job, o):
        return
    device, precision = choose(o.device, o.precision)
    mends, tile = [], getattr(o, "tile", None)
    if tile or (tile == 0 and max(job.problem.size) > 64):
        mends.append(f"--tile {min(256, max(job.problem.size) // 2)}")
    if "dim" in models.get(o.model_type).options:
        mends.append("a smaller --dim (--width)")
    if precision == "fp32" and bf16_available(device):
        mends.append("--precision bf16")
    if not tile:
        mends.append("a smaller picture (of experiments: --crop, --imsize)")
    what = f"a tile of {tile} pixels" if tile else "it"
    raise UserError(
        f"{job.name}: {what} takes about {memory.words(needed(job, o))} to fit, and "
        f"{memory.words(memory.free(device))} are free; choose {' or '.join(mends)}"
    )


def _most(job: Job, o: Options) -> int:
    """A number of bytes that ``needed`` is far below, told in no time."""
    device, _ = choose(o.device, o.precision)
    settings = network_settings(job, o)
    network = models.build(o.model_type, **settings, device="meta")
    z = torch.empty(1, settings["in_channels"], *settings["in_size"], device="meta")
    live = _Live()
    with live:
        out = network(z)
    values = math.prod(job.problem.size) * job.problem.channels
    kept = 16 * values * _pictures(o, values, device)
    weights = 4 * COPIES[device.type] * _weights(network)
    return 6 * live.most + weights + 32 * z.numel() + kept + out.numel()


def _pictures(o: Options, values: int, device: torch.device) -> int:
    """How many pictures of so many values averages and rules keep, or are to look at yet."""
    undecided = 4 * ask_every(values) if on_gpu(device) else 0
    return 4 + o.average_last + undecided


def _weights(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive: the ``most`` there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self.now += size
        self.most = max(self.most, self.now)
        self._seen[key] = weakref.ref(storage, gone)
