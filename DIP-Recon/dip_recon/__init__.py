"""Image restoration with untrained networks (Deep Image Prior).

``denoise``, ``inpaint``, ``enlarge`` and ``restore`` work on arrays; see ``dip_recon.api``. What
the user can mend is raised as ``UserError``.
"""

from .errors import UserError

__version__ = "0.1.0"
__all__ = ["Step", "UserError", "denoise", "enlarge", "inpaint", "restore"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api  # torch takes seconds to import: not for --help

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
