import pytest

from engine.answering.safety import Blocklist
from engine.formats.text import match_key

BLOCKLIST = Blocklist(["Bad", "very ugly", "gross*", "  "])


@pytest.mark.parametrize(
    "text", ["bad", "so BAD!", "a very-ugly thing", "grossest thing", "the gross"]
)
def test_blocked_words_and_phrases_are_found(text):
    assert BLOCKLIST.blocks(match_key(text))


@pytest.mark.parametrize("text", ["badge", "very nice", "ugly very", "engross", ""])
def test_only_whole_words_count(text):
    assert not BLOCKLIST.blocks(match_key(text))


def test_an_empty_list_blocks_nothing():
    assert not Blocklist.load("").blocks("bad")


def test_comments_and_excuses_in_a_file_do_not_count(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# bad\n+nice\n~odd\nevil\n", "utf-8")
    blocklist = Blocklist.load(str(path))
    assert [w for w in ("bad", "nice", "odd", "evil") if blocklist.blocks(w)] == ["odd", "evil"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nosuch"):
        Blocklist.load(str(tmp_path / "nosuch"))
