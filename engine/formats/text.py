"""Text normalisation shared by training and serving. Knows nothing of tokens or models."""

import unicodedata

MAX_QUERY_BYTES = 256


def normalise(text: str) -> str:
    """Returns the canonical form of a query: NFKC, lower case, single spaces, no edge spaces.

    Idempotent. Control characters other than white space are kept, so that a caller can still
    see and refuse them (`has_control_characters`).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(folded.split())


def normalise_prefix(text: str) -> str:
    """Returns `normalise(text)`, plus one trailing space if `text` ends in white space.

    A trailing space tells "ipad " (the next word is wanted) from "ipad" (perhaps "ipads").
    """
    normalised = normalise(text)
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


def match_key(text: str) -> str:
    """Returns the key under which two suggestions count as the same: letters and digits only.

    Texts without letters or digits (emoji, symbols) are their own key.
    """
    normalised = normalise(text)
    words = "".join(
        c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in normalised
    )
    return " ".join(words.split()) or normalised
