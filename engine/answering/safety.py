"""The blocklist: words and phrases that no suggestion may contain. Knows nothing of models.

Words are compared by their letters and digits in lower case, whole words only: a blocked "ass"
does not touch "glass". An entry that ends in * blocks every word that starts like it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from engine.formats.text import match_key


class Blocklist:
    """A set of blocked phrases of one or more words. Immutable."""

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        """Takes phrases in any case and form; empty ones are ignored."""
        self._by_length: dict[int, set[str]] = {}
        stems: set[str] = set()
        for phrase in phrases:
            key = match_key(phrase)
            if key and phrase.rstrip().endswith("*"):
                stems.add(key)
            elif key:
                self._by_length.setdefault(len(key.split()), set()).add(key)
        alternatives = "|".join(re.escape(s) for s in sorted(stems))
        self._stem = re.compile(rf"(?:^| )(?:{alternatives})") if stems else None

    @classmethod
    def load(cls, path: str) -> "Blocklist":
        """Reads a UTF-8 file of one phrase a line. An empty path gives an empty list.

        Lines that start with # (comments) or + (words that excuse others in the lists that data
        are filtered with) do not count.

        Raises:
            ValueError: the file cannot be read.
        """
        if not path:
            return cls()
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: blocklist cannot be read: {error}") from None
        return cls(line for line in lines if not line.lstrip().startswith(("#", "+")))

    def blocks(self, key: str) -> bool:
        """Returns whether the text with this `match_key` contains a blocked phrase."""
        if self._stem and self._stem.search(key):
            return True
        if not self._by_length:
            return False
        words = key.split()
        for length, phrases in self._by_length.items():
            for start in range(len(words) - length + 1):
                if " ".join(words[start : start + length]) in phrases:
                    return True
        return False
