import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.formats.text import match_key, normalise, normalise_prefix

texts = st.text(
    st.one_of(
        st.characters(), st.sampled_from("aΣς\u03c3 e\u0301\u00ad\u200b\u200e\u200d\u200c\ufe0f❤")
    ),
    max_size=8,
)


@given(texts)
def test_normal_forms_do_not_change_any_more(text):
    for form in (normalise, normalise_prefix, match_key):
        assert form(form(text)) == form(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("b\u00adad", "bad"),
        ("ba\u200bd wo\ufeffrd", "bad word"),
        ("می\u200cشود", "میشود"),
        ("e\u200d\u0301", "é"),
        ("I ❤\ufe0f Tea!", "i tea"),
        ("1\ufe0f\u20e3", "1\u20e3"),
        ("कुत्ता", "कुत्ता"),
    ],
)
def test_what_cannot_be_seen_does_not_tell_texts_apart(text, key):
    assert match_key(text) == key


def test_invisible_characters_that_no_script_needs_are_taken_out():
    assert normalise("\ufeff\u200ePho\u00adne \u202atest\u202c\u200b") == "phone test"
    assert normalise("e\u200b\u0301") == "é"
    assert normalise_prefix("phone\u200e") == "phone"
    assert normalise_prefix("phone \u200e") == "phone "
    assert normalise("\u200b") == normalise_prefix("\u200f") == ""


def test_joiners_that_scripts_and_emoji_need_are_kept():
    for text in ("می\u200cشود", "क्\u200dष", "👩\u200d🚀"):
        assert normalise(text) == text


def test_symbols_without_letters_are_told_apart():
    assert match_key("❤\ufe0f") != match_key("☀\ufe0f")


@pytest.mark.parametrize(
    ("typed", "prefix"),
    [
        ("ΟΔΟΣ", "οδοσ"),  # of οδοσημανση
        ("οδος", "οδος"),
        ("οδοσ", "οδοσ"),
        ("ΟΔΟΣ ", "οδος "),
        ("ΟΔΟΣ Π", "οδος π"),
        ("Σ", "\u03c3"),
        ("Ipad\t", "ipad "),
        ("  ", ""),
    ],
)
def test_a_typed_prefix_is_one_of_what_it_may_become(typed, prefix):
    assert normalise_prefix(typed) == prefix


def test_a_whole_query_in_capitals_ends_in_a_final_sigma():
    assert normalise("ΟΔΟΣ") == "οδος"
