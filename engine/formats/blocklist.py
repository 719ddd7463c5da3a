"""Words and phrases that no text may contain: queries that are learnt from, and suggestions.

Words are compared by their letters and digits in lower case, whole words only: a blocked "ass"
does not touch "glass". Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) have no whole words to compare: theirs are found anywhere. An entry that ends in * blocks
every word that starts like it; one without letters and digits (emoji, symbols) every text with it.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
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
        phrases_by_word: defaultdict[str, list[str]] = defaultdict(list)
        parts_by_character: defaultdict[str, list[str]] = defaultdict(list)
        self._symbols: set[str] = set()
        for phrase in map(str.strip, phrases):
            text = phrase.rstrip("*")
            if words := _spaced(text):
                # A whole word ends with the space behind it.
                start = words if phrase.endswith("*") else words + " "
                first, space, _ = start.partition(" ")
                if space:
                    phrases_by_word[first].append(start)
                else:
                    parts_by_character[start[0]].append(start)
            elif symbols := visible(text):
                self._symbols.add(symbols)
        self._phrases = {first: _shortest(group) for first, group in phrases_by_word.items()}
        self._parts = {first: _shortest(group) for first, group in parts_by_character.items()}

    def blocks(self, text: str) -> bool:
        """Returns whether a text contains a blocked phrase."""
        if self._phrases or self._parts:
            words = _spaced(text).split()
            if not self._phrases.keys().isdisjoint(words) and self._has_phrase(words):
                return True
            if self._parts and self._has_part(words):
                return True
        if not self._symbols:
            return False
        seen = visible(text)
        return any(symbols in seen for symbols in self._symbols)

    def _has_phrase(self, words: list[str]) -> bool:
        text = " ".join(words) + " "
        at = 0
        for word in words:
            if group := self._phrases.get(word):
                rest = text[at:]
                if rest.startswith(_candidate(group, rest)):
                    return True
            at += len(word) + 1
        return False

    def _has_part(self, words: list[str]) -> bool:
        for word in words:
            group = self._parts.get(word[0])
            if group and word.startswith(_candidate(group, word)):
                return True
        return False


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


def _shortest(starts: Iterable[str]) -> list[str]:
    """Returns, sorted, those that start with no other."""
    kept: list[str] = []
    for start in sorted(starts):
        if not kept or not start.startswith(kept[-1]):
            kept.append(start)
    return kept


def _candidate(shortest: list[str], text: str) -> str:
    """Returns the only one of `_shortest` that a text may start with: the last not after it."""
    return shortest[bisect_right(shortest, text) - 1]


def _spaced(text: str) -> str:
    """Returns the words of a text; in scripts without spaces, every character as a word."""
    words = words_only(text)
    return words if words.isascii() else " ".join(WITHOUT_SPACES.sub(r" \1 ", words).split())
