"""Files that people give: plain or gzip, and one that turns out to be damaged is named."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_GZIP = b"\x1f\x8b"


def opened_text(path: Path) -> TextIO:
    """Opens a text file, plain or gzip whatever its name, for reading."""
    with path.open("rb") as stream:
        is_gzip = stream.read(len(_GZIP)) == _GZIP
    return gzip.open(path, "rt", encoding="utf-8") if is_gzip else path.open(encoding="utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Covers the opening and reading of a file.

    Raises:
        ValueError: the file cannot be read, is cut or damaged, or is not UTF-8.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{path}: cannot be read ({why})") from None
