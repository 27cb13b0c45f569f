"""Image files <-> float arrays.

``read`` gives a ``Picture``: ``data`` [C, H, W] float32 in [0, 1], the alpha channel as stored, and
the ``Kind`` of storage, so that ``write(path, data, like=picture)`` can give the result back in
kind: 16-bit stays 16-bit, greyscale stays greyscale, alpha is carried over. Where the format of the
output cannot hold that, the nearest thing it holds is written.

Up to 8 bits a sample Pillow reads and writes. Beyond, it would silently cut colour down to 8 bits,
so there tifffile reads TIFF, pypng reads colour PNG, and neither is written by Pillow.

A TIFF of several pages goes frame by frame: ``count_frames``, ``read_frame``, ``FrameWriter``.
"""

from .decoding import check_header
from .frames import FrameWriter, count_frames, read_frame
from .picture import MAX_PIXELS, READABLE, WRITABLE, Kind, Picture
from .reading import is_picture_name, list_pictures, read
from .writing import check_writable, lost, save_png, write

__all__ = [
    "MAX_PIXELS",
    "READABLE",
    "WRITABLE",
    "FrameWriter",
    "Kind",
    "Picture",
    "check_header",
    "check_writable",
    "count_frames",
    "is_picture_name",
    "list_pictures",
    "lost",
    "read",
    "read_frame",
    "save_png",
    "write",
]
