import pytest

from engine.formats.blocklist import Blocklist, read_phrases

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
