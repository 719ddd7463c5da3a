"""The words of a text, for what compares texts by the words that they share."""

import re

from engine.formats.blocklist import WITHOUT_SPACES

_RUN = re.compile(f"{WITHOUT_SPACES.pattern}+")


def words_of(text: str) -> list[str]:
    """Returns what stands between spaces; in scripts without them, pairs of neighbours.

    There (Chinese, Japanese, Thai) a text is one word otherwise, and shares it with no other. A
    character that stands alone is a word.
    """
    if text.isascii():
        return text.split()
    return _RUN.sub(lambda run: f" {_pairs(run[0])} ", text).split()


def _pairs(run: str) -> str:
    return " ".join(run[i : i + 2] for i in range(max(1, len(run) - 1)))
