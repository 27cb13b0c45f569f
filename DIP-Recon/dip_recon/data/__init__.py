"""Data sets by name: what they are, where they lie, and how they come here.

``resolve`` turns a name, a folder or a file into pictures; ``download`` fetches a set and checks
every file against the manifest that ships with the package; ``bundled`` needs no download.
"""

from .items import Item, resolve
from .sets import DataSet, data_root, info, names, verify
from .transfer import download

__all__ = ["DataSet", "Item", "data_root", "download", "info", "names", "resolve", "verify"]
