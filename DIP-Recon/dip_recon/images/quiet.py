"""Keeping the libraries that decode pictures from speaking on stderr."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the decoders from speaking on stderr; ``decode`` has its own for Pillow's own limit."""
    loggers = [logging.getLogger("PIL"), logging.getLogger("tifffile")]
    levels, limit = [logger.level for logger in loggers], Image.MAX_IMAGE_PIXELS
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Send file descriptor 2 nowhere: libtiff, which Pillow calls, writes its complaints to it."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nothing to keep quiet
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(nowhere)
        os.close(stderr)
