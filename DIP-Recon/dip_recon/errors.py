"""The one exception that means "the user can mend this", and how names are suggested."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a key, a value.

    The message is one line that names the file or flag and the mend. Command-line programs print
    it to stderr and exit with status 2; nothing has been written by then.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of ``choices`` a mistyped ``name`` may have meant, then list them all.

    Returns a fragment to end a message with: ``did you mean 'DD'? Choices: DD, ConvDecoder``.
    """
    choices = [str(c) for c in choices]
    lowered = {c.lower(): c for c in choices}
    match = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[match[0]]!r}? " if match else ""
    return f"{hint}Choices: {', '.join(choices)}"
