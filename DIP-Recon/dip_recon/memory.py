"""How much memory is free, sizes in words, and freed memory kept while a fit lasts."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

UNKNOWN = 2**62  # where nobody tells
_CGROUPS = (  # the limit of a container and what it uses, of version 2 and of version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def free(device: torch.device | None = None) -> int:
    """Bytes that are free on the card, or by default in this machine; ``UNKNOWN`` if none tells.

    On the card: with what torch has put by for what comes next. In this machine: what
    /proc/meminfo says is available, or what the limits of its container (cgroup) and of this
    process (RLIMIT_AS) leave, whichever is less.
    """
    if device is not None and device.type == "cuda":
        put_by = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + put_by
    return min(_available(), _of_container(), _of_process())


def may_double(device: torch.device) -> bool:
    """Whether there is room for as much again as this process has taken; True if nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] > torch.cuda.memory_reserved(device)
    return free() > _taken()


# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_users = 0
_lock = threading.Lock()


@contextmanager
def kept() -> Iterator[None]:
    """What is freed in here stays with this process for what comes next, and goes back at the end.

    glibc gives large arrays back to the system as soon as they are freed, and the system clears
    every page of the next one: up to a third of a step's time. Elsewhere nothing is done.
    """
    global _users
    with _lock:
        _users += 1
        keep(True)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                keep(False)
                trim()


def keep(freed: bool) -> None:
    """Have glibc keep all that is freed; or give it back beyond 64 MB and arrays beyond 32 MB,
    which it comes to by itself where arrays of that size are freed."""
    if libc := _glibc():
        libc.mallopt(_MMAP_MAX, 0 if freed else 2**16)
        libc.mallopt(_TRIM_THRESHOLD, -1 if freed else 2**26)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)


def trim() -> None:
    """Have glibc give back what is free now."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    with suppress(TypeError, OSError):  # Windows
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
            return libc
    return None


def words(count: float) -> str:
    """Bytes for people: ``3.2 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _available() -> int:
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return UNKNOWN


def _of_container() -> int:
    for limit, used, cache in _CGROUPS:
        try:
            most, now = (int(Path(path).read_text()) for path in (limit, used))
            lines = Path(used).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or "max"
            continue
        given_back = sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
        return max(most - now + given_back, 0)
    return UNKNOWN


def _of_process() -> int:
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = _pages(0)
    except (ImportError, OSError, ValueError):
        return UNKNOWN
    return UNKNOWN if most == resource.RLIM_INFINITY else max(most - used, 0)


def _taken() -> int:
    """Bytes that this process has in memory; 0 if nobody tells."""
    try:
        return _pages(1)
    except (OSError, ValueError, AttributeError):
        return 0


def _pages(which: int) -> int:
    """Bytes of this process: 0 all it may address, 1 what is in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[which]) * os.sysconf("SC_PAGE_SIZE")
