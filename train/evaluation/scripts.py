"""The script that a text is written in: a rough stand-in for its language. Knows no words."""

import unicodedata

ASCII, LATIN, CJK, OTHER = "ascii", "latin", "cjk", "other"
SCRIPTS = (ASCII, LATIN, CJK, OTHER)
_CJK_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "HANGUL", "IDEOGRAPHIC")


def script_of(text: str) -> str:
    """Returns the script of a text's letters.

    `cjk` if any of them is Chinese, Japanese or Korean, else `other` if any is not Latin, else
    `latin` if any has an accent or is otherwise beyond ASCII, else `ascii`.
    """
    if text.isascii():
        return ASCII
    names = [unicodedata.name(c, "") for c in text if not c.isascii() and c.isalpha()]
    if any(name.startswith(_CJK_NAMES) for name in names):
        return CJK
    if any(not name.startswith(("LATIN", "FULLWIDTH LATIN")) for name in names):
        return OTHER
    return LATIN if names else ASCII
