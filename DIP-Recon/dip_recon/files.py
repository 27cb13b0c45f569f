"""The one way a file gets onto the disk: whole, or not at all; and by one process at a time.

What says that a process is still at it is a lock of the kernel's on an open file, which goes with
the process however that ends. Where there are no such locks, as on some network disks, it is done
without.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UMASK = os.umask(0)  # there is no way to read it but to set it
os.umask(_UMASK)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a lock is a file, and leads nowhere
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 255  # bytes of a name
LOCK = ".lock"  # the file in a folder that whoever writes there holds
_PART = re.compile(r"\.part-[a-z0-9_]{8}(\.[^.]+)?")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes the name.

    The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        UserError: the folder is missing or cannot be written, or the disk is full. The temporary
            file is gone then, and what was at ``path`` before is still there.
    """
    path = Path(path)
    temporary = held = None
    try:
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        held = _hold(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        if held is not None:
            os.close(held)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before what comes next: a machine that
    loses its power may else have done the one and not the other. Where that cannot be, nothing.

    Raises OSError if the disk is full or broken.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (*_FULL, errno.EIO):
            raise


def hidden(path: Path, before: str, after: str = "") -> Path:
    """A name beside ``path`` that begins with ``before``, no longer than a disk allows."""
    name = f"{before}{path.name}{after}"
    if len(os.fsencode(name)) > _LONGEST:
        name = f"{before}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{after}"
    return path.with_name(name)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; when the block ends well it takes the name.

    What was at ``path`` before, a folder or nothing, is deleted only after that.

    Raises:
        UserError: as ``atomic``; what was at ``path`` is still there then.
    """
    path = Path(path)
    temporary = held = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
        held = _hold(temporary)
        temporary.chmod(0o777 & ~_UMASK)
        yield temporary
        before = temporary.with_name(f"{temporary.name}-before") if path.exists() else None
        if before:
            path.rename(before)
        try:
            temporary.rename(path)
        except BaseException:
            if before:
                before.rename(path)
            raise
        if before:  # by a name that ``clean`` knows, once it is not the only one
            before.rename(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            os.close(held)


def clean(folder: str | Path, grace: float = 1.0) -> None:
    """Remove from ``folder`` what ``atomic`` and ``atomic_folder`` left when they were killed.

    A temporary file that a living process holds, or of which that cannot be told, stays; so does
    one of the last ``grace`` seconds, which its owner may be about to hold.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [e for e in entries if _PART.fullmatch(e.name)]:
            with suppress(OSError):
                if entry.stat().st_mtime > time.time() - grace:
                    continue
                handle = _open(entry.path)
                try:
                    if _lock(handle) and entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    elif _lock(handle):
                        os.unlink(entry.path)
                finally:
                    os.close(handle)


def _hold(temporary: Path) -> int | None:
    """An open file by which ``clean`` sees that somebody lives who writes here; None for none."""
    if fcntl is None:  # Windows renames no open file
        return None
    handle = _open(temporary)
    _lock(handle)
    return handle


def _open(path: str | Path) -> int:
    """Open a file or a folder to lock it: to be written if it can be, as NFS wants of a file."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError:  # a folder, or one that is nobody's to write
        return os.open(path, os.O_RDONLY)


def _lock(handle: int) -> bool | None:
    """Take the lock on an open file: whether it is ours; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def alone(
    folder: str | Path, patience: float = 1.0, cancelled: Callable[[], bool] | None = None
) -> Iterator[None]:
    """While in here, this is the only process that writes in ``folder``, which is made.

    In it lies a file ``.lock`` until the end; left behind by a killed process it holds nobody up.
    ``patience``: seconds to wait for somebody who is about to leave; KeyboardInterrupt if meanwhile
    ``cancelled()`` is True.

    Raises:
        UserError: naming the folder, and who writes there; or it cannot be made or written.
    """
    folder = Path(folder)
    lock, made = folder / LOCK, not folder.exists()
    until = time.monotonic() + patience
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666 & ~_UMASK)
        except FileNotFoundError:  # removed just now by who was here before
            if time.monotonic() > until:
                raise
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error
        ours = _lock(handle)
        if ours is None or (ours and _is_at(handle, lock)):
            break
        other = _owner(handle)
        os.close(handle)
        if not ours and time.monotonic() > until:
            raise _busy(folder, other)
        if cancelled and cancelled():
            raise KeyboardInterrupt
        time.sleep(0.05)
    with suppress(OSError):  # a full disk: then it has no name
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while it is held: who waits for it sees that it is another one
        os.close(handle)
        if made:
            with suppress(OSError):  # unless it is still empty
                folder.rmdir()


def check_alone(folder: str | Path) -> None:
    """Raise UserError if another process writes in ``folder`` now; writes nothing."""
    with suppress(OSError):
        handle = os.open(Path(folder) / LOCK, os.O_RDWR | _NO_LINK)
        try:
            if _lock(handle) is False:
                raise _busy(folder, _owner(handle))
        finally:
            os.close(handle)


def _busy(folder: str | Path, other: str) -> UserError:
    return UserError(
        f"{folder}: is being written by {other}; wait for it, or choose another folder"
    )


def _owner(handle: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return os.read(handle, 200).decode() or "another process"
    return "another process"


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def content(path: str | Path, most: int) -> bytes:
    """The bytes of a file. Raises OSError if it cannot be read, and ValueError for one that is
    larger than ``most`` bytes, or is no file but a pipe or a device, which may have no end."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is not a regular file")
    if state.st_size > most:
        raise ValueError(f"it is too large, {state.st_size} bytes; {most} at most")
    with open(path, "rb") as file:
        return file.read(state.st_size)


def resolved(path: Path) -> Path:
    """``path`` with all links followed; UserError if they lead in a circle."""
    try:
        os.stat(path)
    except OSError as error:  # it need not be there
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: a link that leads in a circle; remove it") from error
    return path.resolve()


def check_inside(path: Path, folder: Path) -> Path:
    """``path``, in ``folder``; UserError if a link on the way to it leads out of the folder."""
    if not resolved(path).is_relative_to(resolved(folder)):
        raise UserError(f"{path}: a link leads out of {folder}; remove it")
    return path


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """The UserError for a failed write, naming the path and the mend."""
    if error.errno in _FULL:
        return UserError(f"{path}: no space left there; free some, or write to another folder")
    if error.errno == errno.ENOENT and not Path(path).parent.is_dir():
        return UserError(f"{path}: its folder is not there, or no longer; make it, and start again")
    reason = error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({reason}); choose another folder")
