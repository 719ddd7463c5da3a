"""Files that people give: one that turns out to be damaged is named."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Covers the opening and reading of a file, plain or gzip.

    Raises:
        ValueError: the file cannot be read, is cut or damaged, or is not UTF-8.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
