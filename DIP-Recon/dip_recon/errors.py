"""What goes wrong: the exception that means "the user can mend this", and exit statuses."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

SIGNALS = tuple(  # what asks to leave: Ctrl-C, a scheduler, SLURM's --signal=USR1
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class Kept(KeyboardInterrupt):
    """Interrupted where the same command goes on with what has been done."""


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
    begins = [c for c in lowered if name and c.startswith(str(name).lower())]
    match = begins or difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[match[0]]!r}? " if match else ""
    return f"{hint}Choices: {', '.join(choices)}"


def exit_status(
    work: Callable[[], int | None], resume: str | None = None, always: bool = True
) -> int:
    """Run a program's ``work`` and turn what goes wrong into one line on stderr and a status.

    0 done (or what ``work`` returns), 2 the user's mistake, 1 ours, 130 interrupted by Ctrl-C,
    SIGTERM or SIGUSR1. ``resume`` is the command that goes on with an interrupted run; said without
    ``always`` only where ``Kept`` tells that it would.
    """
    with suppress(ValueError):  # not the main thread: somebody else listens
        for number in SIGNALS[1:]:
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return work() or 0
    except UserError as error:
        # names come from files too, and may hold what moves a terminal's cursor
        line = "".join(c if c.isprintable() else " " for c in str(error))
        print("error:", line, file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}; try --precision fp32", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        said = resume and (always or isinstance(interrupt, Kept))
        print("\ninterrupted" + (f"; to go on: {resume}" if said else ""), file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`: nobody reads on
        silence_stdout()
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(
            "error: not enough memory: --tile 128 where it denoises, a smaller --dim (--width), "
            "--precision bf16, or a smaller picture"
            + (f"; what is done is kept, go on by: {resume}" if resume and always else ""),
            file=sys.stderr,
        )
        return 1


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory did not suffice: Python's way, torch's, oneDNN's or C++'s."""
    words = ("out of memory", "allocate memory", "enough memory", "bad_alloc")
    words += ("could not create a primitive",)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def say(line: str) -> None:
    """Print a line; where nobody reads on, as behind `| head`, the work goes on without."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        silence_stdout()


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def silence_stdout() -> None:
    """Send what is still printed nowhere, after the reader of a pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
