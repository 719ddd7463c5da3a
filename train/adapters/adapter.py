"""What an adapter gives: searches and impressions, and a count of what it left out.

Times are microseconds since 1970 in UTC. Knows nothing of any format, nor of files.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol


class Search(NamedTuple):
    """A row of the table of searches."""

    session_id: str
    time_us: int
    query: str
    user_key: str | None


class Impression(NamedTuple):
    """A row of the table of impressions: one suggestion that was shown."""

    request_id: str
    time_us: int
    session_id: str
    scenario: str
    query: str
    position: int  # from 1
    text: str
    clicked: bool
    auxiliary_text: str | None


class BadRow(Exception):
    """A row that cannot be used. Its text is the reason: one of few, without content of the row."""


class LeftOut:
    """Counts rows that were left out, by reason, with the first place of each."""

    def __init__(self) -> None:
        """Starts with none."""
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # reason -> "FILE:LINE"

    def add(self, reason: str, path: Path, number: int) -> None:
        """Counts a row; `number` is that of its line, or row, from 1."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{path.name}:{number}")

    def lines(self) -> list[str]:
        """Returns a line per reason, the most frequent first."""
        return [
            f"{count} {reason} (first at {self.first[reason]})"
            for reason, count in self.counts.most_common()
        ]


class Adapter(Protocol):
    """A format; modules of this folder are of this type."""

    @property
    def DESCRIPTION(self) -> str:
        """What the files are, in one line."""
        ...

    @property
    def NOTES(self) -> tuple[str, ...]:
        """What was assumed or left away; for the one who imports, and kept with the tables."""
        ...

    @property
    def IS_RECONSTRUCTED(self) -> bool:
        """Whether rows are made up from aggregates or with nominal times, rather than logged."""
        ...

    def rows(self, path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
        """Returns the rows of one file, in its order, holding few of them at a time.

        Raises:
            ValueError: the file cannot be read or is not of this format.
        """
        ...
