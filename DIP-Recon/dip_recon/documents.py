"""YAML and .npy from anywhere: bounded before they are believed."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from .files import content

MOST = 2**18  # bytes of a YAML file
LARGEST = 2**36  # of a file of arrays
NODES = 20_000  # values in one, each alias counted as what it stands for
LONGEST = 5_000  # characters of one value: a path has 4,096 at most


def read_yaml(path: Path):
    """What a YAML file holds: dicts, lists, texts, numbers and dates, nothing else.

    Raises OSError if it cannot be read, and ValueError in one line for anything that is no YAML,
    too large, too deep, or so once its aliases are followed.
    """
    text = content(path, MOST).decode("utf-8")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _values(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except Exception as error:  # a scanner's, a parser's, or of a value that is not of its tag
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. Raises ValueError beyond what a file may hold."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands for what it is part of")
        return known[id(node)]
    known[id(node)] = 0  # while it is counted
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > LONGEST:
            raise ValueError(f"a value of {len(node.value)} characters; {LONGEST} at most")
    else:
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        count += sum(_values(part, known) for part in parts)
    if count > NODES:
        raise ValueError(f"it stands for more than {NODES} values")
    known[id(node)] = count
    return count


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names in what ``numpy.savez`` wrote. Raises OSError and ValueError.

    Its parts are stored as they are: what would have to be decompressed is refused.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content(path, LARGEST))) as archive:
            parts = [archive.getinfo(f"{name}.npy") for name in names]
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("compressed")
            return {part.filename[:-4]: read_npy(archive.read(part)) for part in parts}
    except OSError:
        raise
    except Exception as error:  # whatever zipfile says of bytes from outside
        raise ValueError(str(error)) from None


def read_npy(stored: bytes) -> np.ndarray:
    """The array of numbers in a .npy file. Raises ValueError for anything else.

    The header is held against the bytes that are there before anything is allocated.
    """
    file = io.BytesIO(stored)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0}
        reader |= {(2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = reader[version](file)
    except Exception as error:  # whatever the parser of the header says
        raise ValueError(f"no .npy file ({type(error).__name__})") from None
    if dtype.kind not in "biuf" or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of {dtype}")
    count = math.prod(shape)
    if count * dtype.itemsize != len(stored) - file.tell():
        raise ValueError(f"its header says {count * dtype.itemsize} bytes of samples")
    order = "F" if by_columns else "C"
    return np.frombuffer(stored, dtype, count, file.tell()).reshape(shape, order=order).copy()
