"""The pictures of a page: each stored once, in a form that all browsers show alike."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from .. import images

NAME = re.compile(r"[0-9a-f]{20}\.png")  # of a picture in a page
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN = ((8, 0), (8, 2))  # bits and colour type: 8-bit grey, 8-bit RGB
_CHUNKS = (b"IHDR", b"IDAT", b"IEND")


class Pictures:
    """Puts pictures into a page's folder, under names made of their content.

    Runs share clean and noisy pictures, which so are stored once; and no picture's name, which may
    hold anything, becomes a file's.
    """

    def __init__(self, page: Path) -> None:
        self.page = page
        (page / "pictures").mkdir()

    def add(self, path: Path) -> str | None:
        """Copy a PNG and return its address in the page; None where there is no such file.

        8-bit grey and RGB is copied as it is. What has 16 bits, transparency or a colour profile is
        rewritten without, so that it looks the same beside pictures that never had any; and so is
        what has notes in it: where a picture was taken is nobody's business who sees the page.
        """
        if not path.is_file():
            return None
        images.check_header(path)
        content = path.read_bytes()
        name = f"pictures/{hashlib.sha256(content).hexdigest()[:20]}.png"
        if not (self.page / name).exists():
            if _is_plain(content):
                (self.page / name).write_bytes(content)
            else:
                images.save_png(self.page / name, images.read(path).data)
        return name

    def size(self, name: str | None) -> tuple[int, int] | None:
        """Width and height of a picture that was added."""
        if name is None:
            return None
        with (self.page / name).open("rb") as file:
            return struct.unpack(">II", file.read(24)[16:])


def _is_plain(content: bytes) -> bool:
    """Whether a PNG is 8-bit grey or RGB and holds nothing but pixels."""
    if not content.startswith(_SIGNATURE) or len(content) < 33:
        return False
    if struct.unpack(">BB", content[24:26]) not in _PLAIN:
        return False
    at = len(_SIGNATURE)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind not in _CHUNKS:
            return False
        at += length + 12  # length, kind, data, checksum
    return True
