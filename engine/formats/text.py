"""Text normalisation shared by training and serving. Knows nothing of tokens or models."""

import re
import unicodedata
from functools import lru_cache

MAX_QUERY_BYTES = 256
# What keyboards and copied text leave behind: soft hyphen, zero-width space and no-break space,
# word joiner, marks of direction, annotations. Joiners stay: Persian, Hindi and emoji need them.
_STRAY = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]+"
)
# Unlike format characters (soft hyphen, joiners) no category of their own: a grapheme joiner,
# fillers, inherent vowels, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

_ASCII_WORDS = {c: " " for c in range(128) if not chr(c).isalnum()}


def normalise(text: str) -> str:
    """Returns the canonical form of a query: NFKC, lower case, single spaces, no edge spaces.

    Invisible characters that no script needs are taken out. Control characters other than white
    space are kept, so that a caller can still see and refuse them (`has_control_characters`).
    Idempotent.
    """
    if not text.isascii():
        text = _STRAY.sub("", text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(folded.split())


def normalise_prefix(text: str) -> str:
    """Returns `normalise(text)` of what may go on: with what its end tells of the next character.

    One trailing space if `text` ends in white space: "ipad " (the next word is wanted) is not
    "ipad" (perhaps "ipads"). A last capital sigma becomes the small one of inside words: where
    the word ends there, a space comes next. Idempotent.
    """
    normalised, text = normalise(text), _STRAY.sub("", text)
    if normalised.endswith("ς") and text.endswith("Σ"):
        return normalised[:-1] + "Σ".lower()  # on its own it is not final
    return normalised + " " if normalised and text[-1:].isspace() else normalised


def has_control_characters(text: str) -> bool:
    """Returns whether `text` holds control characters, surrogates or noncharacters (U+FFFF).

    White space (tab, newline) does not count: normalisation collapses it. Format characters
    such as zero-width joiners do not count either: several scripts need them. Nor do unassigned
    ones: Python 3.11 knows Unicode 14 of 2021, and people type emoji that are younger.
    """
    return any(
        (unicodedata.category(c) in ("Cc", "Cs") and not c.isspace())
        or 0xFDD0 <= ord(c) <= 0xFDEF
        or ord(c) & 0xFFFE == 0xFFFE
        for c in text
    )


def visible(text: str) -> str:
    """Returns `normalise(text)` without characters that cannot be seen, such as soft hyphens."""
    normalised = normalise(text)
    if normalised.isascii():
        return normalised
    return normalise("".join(c for c in normalised if not _is_unseen(c)))


def words_only(text: str) -> str:
    """Returns the letters and digits of `visible(text)`, single spaces between words."""
    seen = visible(text)
    if seen.isascii():
        words = seen.translate(_ASCII_WORDS)
    else:
        words = "".join(c if _is_in_words(c) else " " for c in seen)
    return " ".join(words.split())


def match_key(text: str) -> str:
    """Returns the key under which two suggestions count as the same: `words_only(text)`.

    Texts without letters or digits (emoji, symbols) are their own key.
    """
    return words_only(text) or normalise(text)


@lru_cache(8192)
def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or _UNSEEN.match(character) is not None


@lru_cache(8192)
def _is_in_words(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"
