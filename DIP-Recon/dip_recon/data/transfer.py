"""Download of data sets, file by file, each checked against its hash before it is seen."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from ..errors import UserError
from ..files import atomic
from .sets import (
    Entry,
    bundled_files,
    data_root,
    has_size,
    manifest,
    sha256,
    source_of,
)

ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte


def download(
    name: str,
    root: str | os.PathLike | None = None,
    mirror: str | None = None,
    progress: bool = True,
) -> Path:
    """Fetch the set ``name`` into the data folder and return that folder.

    Files that are here with the right hash are kept, so that a broken download goes on where it
    stopped; others are fetched beside, checked and then put in place. mirror: the address of a copy
    of the source, used instead of it (``mirror``/``url`` of the manifest). progress: a bar on
    stderr, if that is a terminal.

    Raises UserError for an unknown name, if pooch is not installed, if the folder cannot be written
    to, and, after all attempts, for files that did not come whole.
    """
    source = source_of(name)
    if name == "bundled":
        files = bundled_files()
        if not files:
            raise UserError("scikit-image has no pictures here; install it anew")
        return files[0].parent
    base = (mirror or source.base).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise UserError(f"--mirror {mirror}: give an address that begins with http:// or https://")
    folder = data_root(root)
    entries = manifest(name)
    try:
        wanted = [entry for entry in entries if not _is_right(folder / entry.path, entry)]
        if wanted:
            _fetch_all(wanted, base, folder, name, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); "
            "free some space, or choose another folder with DIP_RECON_DATA"
        ) from None
    return folder


def _fetch_all(wanted: list[Entry], base: str, folder: Path, name: str, progress: bool) -> None:
    """Fetch the entries; UserError at the end, or at once if the server cannot be reached."""
    try:
        import pooch
        import requests
    except ImportError:
        raise UserError(
            "downloading needs pooch and requests; install them: pip install pooch requests"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    failed = []
    total = sum(entry.bytes for entry in wanted)
    bar = tqdm(
        total=total, unit="B", unit_scale=True, desc=name, disable=None if progress else True
    )
    try:
        with bar, tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder) as incoming:
            for entry in wanted:
                url = f"{base}/{quote(entry.url)}"
                try:
                    _fetch(entry, url, folder, Path(incoming))
                except (requests.RequestException, ValueError) as error:
                    failed.append((entry, url, _reason(error, entry)))
                    if isinstance(error, requests.ConnectionError | requests.Timeout):
                        break
                bar.update(entry.bytes)
    finally:
        logger.setLevel(level)
    if failed:
        entry, url, reason = failed[0]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise UserError(
            f"{entry.path}{more} not downloaded from {url} ({reason}); try again, what is there is "
            "kept, or give another address with --mirror URL"
        )


def _fetch(entry: Entry, url: str, folder: Path, incoming: Path) -> None:
    """Fetch one file, with further attempts after a passing fault, and put it in place."""
    import pooch
    import requests

    def downloader(url: str, output: str, _) -> None:
        """No more than the file's bytes: a server may send without end."""
        with requests.get(url, stream=True, timeout=TIMEOUT) as answer, open(output, "wb") as file:
            answer.raise_for_status()
            for part in answer.iter_content(1 << 16):
                file.write(part)
                if file.tell() > entry.bytes:
                    raise ValueError("too many bytes")

    for attempt in range(ATTEMPTS):
        try:
            # pooch downloads to a temporary file, and gives it this name if the hash is right
            file = pooch.retrieve(
                url, f"sha256:{entry.sha256}", entry.sha256, incoming, downloader=downloader
            )
            break
        except (requests.RequestException, ValueError) as error:
            if attempt == ATTEMPTS - 1 or not _passing(error):
                raise
            time.sleep(PAUSE * 2**attempt)
    target = folder / entry.path
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{target.parent}: a link leads out of {folder}; remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        shutil.copyfile(file, temporary)


def _passing(error: Exception) -> bool:
    """Whether another attempt may help: not where the server says that there is no such file."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 429) or response.status_code >= 500


def _reason(error: Exception, entry: Entry) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    if isinstance(error, OSError):  # requests' own errors
        return f"the connection failed: {type(error).__name__}"
    return f"the bytes received are not the {entry.bytes} of the published file"


def _is_right(file: Path, entry: Entry) -> bool:
    return has_size(file, entry.bytes) and sha256(file) == entry.sha256
