"""Words and phrases that no text may contain: queries that are learnt from, and suggestions.

Words are compared by their letters and digits in lower case, whole words only: a blocked "ass"
does not touch "glass". Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) have no whole words to compare: theirs are found anywhere. An entry that ends in * blocks
every word that starts like it; one without letters and digits (emoji, symbols) every text with it.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from engine.formats.text import visible, words_only

WITHOUT_SPACES = re.compile(
    "(["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3041-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # kana
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "])"
)


class Blocklist:
    """A set of blocked words and phrases. Immutable."""

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        """Takes phrases in any case and form; empty ones are ignored."""
        starts: set[str] = set()  # of what stands after a space in a text with spaces around it
        self._symbols: set[str] = set()
        for phrase in map(str.strip, phrases):
            text = phrase.rstrip("*")
            if words := _spaced(text):
                starts.add(words if phrase.endswith("*") else words + " ")
            elif symbols := visible(text):
                self._symbols.add(symbols)
        # By first character: a pattern tries one alternative after the other.
        groups = groupby(sorted(starts), key=itemgetter(0))
        alternatives = "|".join(
            f"{re.escape(first)}(?:{'|'.join(re.escape(s[1:]) for s in group)})"
            for first, group in groups
        )
        self._words = re.compile(f" (?:{alternatives})") if starts else None

    def blocks(self, text: str) -> bool:
        """Returns whether a text contains a blocked phrase."""
        if self._words and self._words.search(f" {_spaced(text)} "):
            return True
        if not self._symbols:
            return False
        seen = visible(text)
        return any(symbols in seen for symbols in self._symbols)


def read_phrases(path: str, setting: str) -> list[str]:
    """Returns the phrases of a UTF-8 file, one a line. No path, no phrases.

    Lines that start with # (comments) or + (words that excuse others in the lists that data are
    filtered with) do not count.

    Args:
        path: Of the file.
        setting: Which names it, for messages.

    Raises:
        ValueError: the file cannot be read.
    """
    if not path:
        return []
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {path} cannot be read: {error}") from None
    return [s for s in map(str.strip, lines) if s and not s.startswith(("#", "+"))]


def _spaced(text: str) -> str:
    """Returns the words of a text; in scripts without spaces, every character as a word."""
    words = words_only(text)
    return words if words.isascii() else " ".join(WITHOUT_SPACES.sub(r" \1 ", words).split())
