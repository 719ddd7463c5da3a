"""Token healing: how a typed prefix meets the token boundary. Knows nothing of models.

A prefix may end inside a token ("wireless ea" + "rbuds"). All of its tokens but the last are
kept in the prompt; the bytes of the last one, the remainder, must begin the first generated
token. Because text tokens are sorted by their bytes, the tokens that do so are one range of ids,
and the prefix holds by construction. Training makes its targets with the same functions.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from engine.formats.vocabulary import Vocabulary


class HealedPrefix(NamedTuple):
    """A typed prefix, cut at a token boundary."""

    kept_ids: list[int]
    remainder: bytes
    first_token_range: tuple[int, int]  # [first, end) of the ids that start with the remainder


def heal(vocabulary: Vocabulary, prefix: str) -> HealedPrefix:
    """Returns `prefix` (normalised, not empty) cut before its last token."""
    *kept_ids, last = vocabulary.ids_of(prefix)
    remainder = vocabulary.bytes_of([last])
    return HealedPrefix(kept_ids, remainder, vocabulary.prefix_range(remainder))


def continuation(vocabulary: Vocabulary, healed: HealedPrefix, target: str) -> list[int] | None:
    """Returns the ids to generate after `healed.kept_ids` so that the whole reads `target`.

    None if `target` does not start with the prefix. The first id is the longest token that
    covers the remainder, which keeps it in `healed.first_token_range`.
    """
    kept = vocabulary.bytes_of(healed.kept_ids)
    whole = b" " + target.encode("utf-8")
    if not whole.startswith(kept + healed.remainder):
        return None
    rest = whole[len(kept) :]
    first = vocabulary.longest_match(rest, minimum=len(healed.remainder))
    assert first is not None, "the remainder is itself a token"
    return [first, *vocabulary.encode_continuation(rest[len(vocabulary.bytes_of([first])) :])]


def other_ranges(
    token_range: tuple[int, int], used: Sequence[int], num: int
) -> list[tuple[int, int]]:
    """Returns the `num` widest parts of a range of ids between used ones; empty parts do not count.

    Texts that begin with a token of such a part differ from all that begin with a used one.
    """
    bounds = [token_range[0] - 1, *sorted({*used}), token_range[1]]
    parts = [(a + 1, b) for a, b in pairwise(bounds) if a + 1 < b]
    return sorted(parts, key=lambda p: (p[0] - p[1], p[0]))[:num]


def completed(vocabulary: Vocabulary, healed: HealedPrefix, ids: Sequence[int]) -> str | None:
    """Returns the text of the prefix with generated `ids`, or None if it is not UTF-8."""
    return vocabulary.decode([*healed.kept_ids, *ids])
