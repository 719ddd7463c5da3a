import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.formats.blocklist import WITHOUT_SPACES, Blocklist, read_phrases
from engine.formats.text import visible, words_only

BLOCKLIST = Blocklist(
    ["Bad", "very ugly", "gross*", "色情", "av", "セックス", "โป๊", "ဖာ", "🖕", "☠️*", "  ", "*"]
)


@pytest.mark.parametrize(
    "text",
    [
        *("bad", "so BAD!", "a very-ugly thing", "grossest thing", "the gross", "bad_thing"),
        *("b\u00adad", "ba\u200bd", "b\u034fad", "bad\ufe0f"),  # displayed as "bad"
        *("免费色情电影", "色情", "free 色情", "免费AV电影"),
        *("無料セックス動画", "คลิปโป๊ไทย", "ဒီဖာက", "\uff7e\uff6f\uff78\uff7d"),  # halfwidth
        *("🖕", "you 🖕", "you🖕🏽there", "a ☠ b", "☠\ufe0f"),
    ],
)
def test_blocked_words_phrases_and_symbols_are_found(text):
    assert BLOCKLIST.blocks(text)


@pytest.mark.parametrize(
    "text",
    [
        *("badge", "very nice", "ugly very", "engross", "savvy", "ab ad", "", "**"),
        *("b ad", "免费电影", "色", "情色", "vitamin c ❤\ufe0f"),
    ],
)
def test_only_whole_words_count(text):
    assert not BLOCKLIST.blocks(text)


@pytest.mark.parametrize("word", ["कुत", "сек", "섹"])
def test_words_of_scripts_with_spaces_are_whole_ones(word):
    blocklist = Blocklist([word])
    assert blocklist.blocks(f"a {word} b")
    assert not blocklist.blocks(f"{word}\u094d{word}")
    assert Blocklist([word + "*"]).blocks(f"a {word}\u094d{word}")


def slowly_blocks(phrases: list[str], text: str) -> bool:
    """The slow, obvious reference: every entry at every word."""
    return any(_is_in(phrase.strip(), text) for phrase in phrases)


def _is_in(phrase: str, text: str) -> bool:
    blocked = phrase.rstrip("*")
    if not (wanted := _words(blocked)):
        return bool(visible(blocked)) and visible(blocked) in visible(text)
    words = _words(text)
    for i in range(len(words) - len(wanted) + 1):
        found = words[i : i + len(wanted)]
        if phrase.endswith("*"):
            found[-1] = found[-1][: len(wanted[-1])]
        if found == wanted:
            return True
    return False


def _words(text: str) -> list[str]:
    return "".join(f" {c} " if WITHOUT_SPACES.match(c) else c for c in words_only(text)).split()


texts = st.text("aabbB   *-1色情โป๊🖕☠\ufe0f\u00ad\u200bकु\u0301", max_size=10)


@given(st.lists(texts, max_size=8), st.lists(st.tuples(texts, texts), max_size=8))
def test_what_is_blocked_is_what_a_look_for_every_entry_finds(phrases, pairs):
    blocklist = Blocklist(phrases)
    for text in ["".join(pair) for pair in pairs] + [f"b {p} a" for p in phrases] + phrases:
        assert blocklist.blocks(text) == slowly_blocks(phrases, text)


def test_a_phrase_is_found_beside_others_that_begin_alike():
    blocklist = Blocklist(["red", "red hot chili*", "hot", "hot dog", "ho* ho", "chil*", "z"])
    for text in ("a red b", "hot", "xred hot", "a ho ho", "chilly", "red hot chilies"):
        assert blocklist.blocks(text), text
    for text in ("redhot", "ho", "hotel", "a hoho b", "dog", "chi", "zz"):
        assert not blocklist.blocks(text), text


def test_an_empty_list_blocks_nothing():
    assert read_phrases("", "ranking.blocklist") == []
    assert not Blocklist().blocks("bad")


def test_comments_and_excuses_in_a_file_do_not_count(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# bad\n+nice\n~odd\n\n  evil\n", "utf-8")
    blocklist = Blocklist(read_phrases(str(path), "ranking.blocklist"))
    assert [w for w in ("bad", "nice", "odd", "evil") if blocklist.blocks(w)] == ["odd", "evil"]


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path, content):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.unsafe_words: .*words\.txt cannot be read"):
        read_phrases(str(path), "mine.unsafe_words")
