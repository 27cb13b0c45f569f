"""The one way a file gets onto the disk: whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

_UMASK = os.umask(0)  # there is no way to read it but to set it
os.umask(_UMASK)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes the name.

    The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        UserError: the folder is missing or cannot be written, or the disk is full. The temporary
            file is gone then, and what was at ``path`` before is still there.
    """
    path = Path(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_UMASK)
        yield temporary
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; when the block ends well it takes the name.

    What was at ``path`` before, a folder or nothing, is deleted only after that.

    Raises:
        UserError: as ``atomic``; what was at ``path`` is still there then.
    """
    path = Path(path)
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
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
        if before:
            shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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


def check_inside(path: Path, folder: Path) -> Path:
    """``path``, in ``folder``; UserError if a link on the way to it leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link leads out of {folder}; remove it")
    return path


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """The UserError for a failed write, naming the path and the mend."""
    if error.errno in _FULL:
        return UserError(f"{path}: no space left there; free some, or write to another folder")
    reason = error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({reason}); choose another folder")
