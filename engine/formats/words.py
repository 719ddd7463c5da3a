"""The words of a text, for what compares texts by those that they share, or changes some."""

import re
import unicodedata
from itertools import pairwise

from engine.formats.blocklist import WITHOUT_SPACES

_RUN = re.compile(f"{WITHOUT_SPACES.pattern}+")


def words_of(text: str) -> list[str]:
    """Returns what stands between spaces; in scripts without them, pairs of neighbours.

    There (Chinese, Japanese, Thai) a text is one word otherwise, and shares it with no other. A
    character that stands alone is a word.
    """
    if text.isascii() or not WITHOUT_SPACES.search(text):
        return text.split()
    return _RUN.sub(lambda run: f" {_pairs(run[0])} ", text).split()


def parts_of(text: str) -> tuple[list[str], str]:
    """Returns the words of a text, and what joins them to it again: a space, or "" without any.

    A text without spaces, of a script that has none, is cut after every second character.
    """
    if " " in text or not WITHOUT_SPACES.search(text):
        return text.split(" "), " "
    return _RUN.sub(lambda run: f" {_cut(run[0])} ", text).split(), ""


def _pairs(run: str) -> str:
    return " ".join(run[i : i + 2] for i in range(max(1, len(run) - 1)))


def _cut(run: str) -> str:
    """Returns a run with spaces between its parts; signs stay with the character they are on."""
    starts = [i for i, c in enumerate(run) if i == 0 or not unicodedata.category(c).startswith("M")]
    return " ".join(run[i:j] for i, j in pairwise([*starts[::2], len(run)]))
