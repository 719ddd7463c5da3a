"""Which files a place of a log table stands for.

Everything that looks at a place asks here: reading, checks, and what a run remembers of its logs.
So none of them sees a file that another does not. Knows nothing of what files hold.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

_SIGNS = "*?["


def files_of(place: str) -> list[Path]:
    """Returns the files of a place, sorted, each once whatever links lead to it.

    None where there is nothing; a link that leads nowhere, or to itself, is a file that cannot be
    read. Inside directories and globs, names that start with "." or "_" are left out: what systems
    and engines put beside the data. A glob's "**" is any number of directories, and links are
    followed.

    Args:
        place: a file, a directory of parquet files, or a glob.
    """
    path = Path(place)
    if path.is_dir():
        found: Iterable[Path] = (f for f in path.glob("*.parquet") if not _is_hidden(f.name))
    elif path.exists():
        found = [path]
    else:
        parts = path.parts
        num_fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
        matches = map(Path, glob.iglob(place, recursive=True))
        found = (f for f in matches if not any(map(_is_hidden, f.parts[num_fixed:])))
    # Of several links to one file, the first name counts.
    unique = {os.path.realpath(f): f for f in sorted(found, reverse=True) if not f.is_dir()}
    return sorted(unique.values())


def files_of_several(places: Sequence[str]) -> list[Path]:
    """Returns the files that are in more than one place, sorted; links are what they lead to.

    Args:
        places: see `files_of`.
    """
    num_places = Counter(os.path.realpath(file) for place in places for file in files_of(place))
    return sorted(Path(file) for file, num in num_places.items() if num > 1)


def missing(place: str) -> str:
    """Returns what to say of a place without files."""
    if Path(place).is_dir():
        return f"there is no *.parquet file in {place}"
    return f"no file fits {place}" if _is_pattern(place) else f"there is no {place}"


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in _SIGNS)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))
