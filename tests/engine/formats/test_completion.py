"""Healing of typed prefixes, and the parts of a range of first tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.formats.completion import completed, continuation, heal, other_ranges
from engine.formats.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(tiny_bundle) -> Vocabulary:
    return Vocabulary.load(tiny_bundle / "tokenizer.json")


@given(
    prefix=st.text(min_size=1, max_size=8).filter(lambda t: t.encode("utf-8", "ignore").strip()),
    rest=st.text(max_size=12),
)
def test_a_continuation_gives_the_whole_text_back(vocabulary: Vocabulary, prefix, rest):
    healed = heal(vocabulary, prefix)
    ids = continuation(vocabulary, healed, prefix + rest)
    assert ids is not None
    first, end = healed.first_token_range
    assert first <= ids[0] < end
    assert completed(vocabulary, healed, ids) == prefix + rest


def test_what_does_not_start_with_the_prefix_has_no_continuation(vocabulary: Vocabulary):
    assert continuation(vocabulary, heal(vocabulary, "red sh"), "red hat") is None


@pytest.mark.parametrize("prefix", ["e", "größ", "靴", "😀", "wireless ear", "ipad "])
def test_every_token_of_the_range_starts_with_the_remainder(vocabulary: Vocabulary, prefix: str):
    healed = heal(vocabulary, prefix)
    first, end = healed.first_token_range
    assert first < end
    for token in range(130, vocabulary.size):
        starts = vocabulary.bytes_of([token]).startswith(healed.remainder)
        assert starts == (first <= token < end)


@given(
    first=st.integers(130, 140),
    size=st.integers(1, 30),
    used=st.lists(st.integers(0, 29), max_size=10),
    num=st.integers(1, 40),
)
def test_other_ranges_are_the_widest_that_hold_no_used_id(first, size, used, num):
    end = first + size
    ids = [first + u for u in used if first + u < end]
    parts = other_ranges((first, end), ids, num)
    covered = [i for a, b in parts for i in range(a, b)]
    assert len(covered) == len(set(covered))
    assert not set(covered) & set(ids)
    if num == 40:
        assert set(covered) == set(range(first, end)) - set(ids)
    widths = [b - a for a, b in parts]
    assert widths == sorted(widths, reverse=True)
    assert len(parts) <= num
