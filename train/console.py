"""What a command says: lines for people, and one line for what they can mend themselves.

Knows nothing of commands.
"""

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from train.stages import is_first_process

console = Console(highlight=False, soft_wrap=True, quiet=not is_first_process())
_errors = Console(stderr=True, highlight=False, soft_wrap=True)

_FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)
# What NumPy, torch and libraries in Rust say of it, without an errno.
_SAYS_FULL = re.compile(
    r"^\d+ requested and \d+ written$|unexpected pos \d+ vs \d+|\(os error (?:27|28|122)\)"
)
_HINDERED = {
    errno.EEXIST: "written",
    errno.EROFS: "written",
    errno.ENOENT: "read",
    **dict.fromkeys(
        (
            errno.EACCES,
            errno.EIO,
            errno.EISDIR,
            errno.ELOOP,
            errno.ENAMETOOLONG,
            errno.ENOTDIR,
            errno.EPERM,
            errno.ESTALE,
            errno.ETIMEDOUT,
        ),
        "read or written",
    ),
}


def report(message: str) -> None:
    """Prints what a stage is doing."""
    console.print(f"  {message}", markup=False)


@contextmanager
def user_errors(
    place: Path,
    *,
    interrupted: str = "the same command goes on from here",
    doing: str = "training",
) -> Iterator[None]:
    """Turns the user's mistakes into one line and exit code 2; SIGINT and SIGTERM into 130.

    Those are ValueErrors, packages that are missing, and files and disks that cannot be read or
    written. Other errors are ours and pass.

    Args:
        place: what is written to; named where a disk is full, as that error names no file.
        interrupted: what an interruption means.
        doing: what packages are needed for.
    """
    # As Ctrl-C does, so that what has to be cleaned up is.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _errors.print(f"interrupted; {interrupted}", markup=False)
        raise typer.Exit(130) from None
    except Exception as error:
        told = _told(error, place, doing)
        if told is None:
            raise
        _errors.print(f"error: {' '.join(told.split())}", markup=False)
        raise typer.Exit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(error: Exception, place: Path, doing: str) -> str | None:
    """Returns what to tell of an error; None: it is ours."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        ours = missing in ("engine", "export", "train")
        return None if ours else f"{doing} needs more packages ({missing}): run `make setup`"
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return f"{place}: cannot be written ({os.strerror(number)})"
    if _SAYS_FULL.search(str(error)):
        return f"{place}: cannot be written (is the disk full?)"
    if not isinstance(error, OSError):
        return None
    if number is None:  # a library's own words, such as of a checkpoint that it cannot use
        return str(error)
    if number not in _HINDERED:
        return None
    if error.filename is None:  # pyarrow's words, which name the file
        return str(error)
    named = os.fsdecode(error.filename)
    return f"{named}: cannot be {_HINDERED[number]} ({os.strerror(number)})"
