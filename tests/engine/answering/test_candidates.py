"""Merging candidates, and turning ids into them."""

import pytest

from engine.answering.candidates import (
    Candidate,
    WrittenTexts,
    gathered,
    key_of,
    merged,
    written_texts,
)
from engine.execution.models import Sequences
from engine.feedback.attribution import Source
from engine.formats.blocklist import Blocklist
from engine.formats.completion import continuation, heal
from engine.formats.vocabulary import SEP_ID, Vocabulary


def log(text: str, **figures) -> Candidate:
    return Candidate(text, key_of(text), Source.LOG, **figures)


def generated(text: str) -> Candidate:
    return Candidate(text, key_of(text), Source.GENERATED)


def merge(written, past, *, excluded=(), is_blocked=lambda _: False, limit=32):
    return merged(
        written,
        past,
        excluded_keys=frozenset(map(key_of, excluded)),
        is_blocked=is_blocked,
        limit=limit,
    )


def test_sources_take_turns():
    result = merge([generated("a"), generated("b")], [log("c"), log("d"), log("e")])
    assert [c.text for c in result] == ["a", "c", "b", "d", "e"]


def test_a_text_from_both_sources_is_one_candidate_with_the_figures_of_the_log():
    result = merge([generated("usb c cable")], [log("x"), log("usb-c cable", popularity=7.0)])
    assert [c.text for c in result] == ["usb-c cable", "x"]
    assert result[0].source == Source.LOG | Source.GENERATED
    assert result[0].popularity == 7


def test_candidates_know_their_place_among_what_was_written():
    texts = WrittenTexts([generated("b"), generated("a"), generated("b")], [generated("c")], None)
    found = gathered(
        texts,
        [log("a"), log("d")],
        excluded_keys=frozenset(),
        is_blocked=lambda _: False,
        num_wanted=4,
        limit=32,
    )
    assert {c.text: c.place for c in found} == {"b": 0, "a": 1, "d": None, "c": 3}
    further = WrittenTexts([generated("d"), generated("e")], [], None)
    found = gathered(
        texts.joined(further),
        [log("a"), log("d"), log("f")],
        excluded_keys=frozenset(),
        is_blocked=lambda _: False,
        num_wanted=4,
        limit=32,
    )
    assert {c.text: c.place for c in found} == {"b": 0, "a": 1, "d": 3, "e": 4, "f": None}


def test_candidates_know_how_probable_the_generator_found_them(vocabulary):
    ids = [vocabulary.encode(t) for t in ("red shoes", "blue shoes", "hat")]
    texts = texts_of(vocabulary, Sequences(ids, [True, True, False], [-0.5, None, -2.0]))
    assert [c.logprob for c in (*texts.finished, *texts.cut)] == [-0.5, None, None]  # cut
    found = merge(texts.finished, [log("red shoes", popularity=3.0), log("scarf")])
    assert {c.text: c.logprob for c in found} == {
        "red shoes": -0.5,
        "blue shoes": None,
        "scarf": None,
    }
    # What is written for another prompt is no part of the same distribution.
    further = texts_of(vocabulary, Sequences([vocabulary.encode("cap")], [True], [-0.1]))
    assert [c.logprob for c in texts.joined(further).finished] == [-0.5, None, None]


def test_spelling_variants_count_once():
    result = merge([generated("wi-fi router"), generated("wi fi router!")], [])
    assert [c.text for c in result] == ["wi-fi router"]


def test_excluded_and_blocked_texts_are_left_out():
    result = merge(
        [generated("red hat"), generated("bad")],
        [log("RED  hat".lower()), log("ok")],
        excluded=["red hat"],
        is_blocked=Blocklist(["bad"]).blocks,
    )
    assert [c.text for c in result] == ["ok"]


def test_a_text_is_blocked_for_signs_that_its_key_lacks():
    written, past = [generated("you 🖕"), generated("tea")], [log("tea 🖕")]
    assert [c.text for c in merge(written, [], is_blocked=Blocklist(["🖕"]).blocks)] == ["tea"]
    assert merge(written, past, is_blocked=Blocklist(["🖕"]).blocks) == []


def test_the_limit_holds():
    assert len(merge([generated(str(i)) for i in range(40)], [], limit=32)) == 32


@pytest.fixture(scope="module")
def vocabulary(tiny_bundle) -> Vocabulary:
    return Vocabulary.load(tiny_bundle / "tokenizer.json")


def texts_of(vocabulary, sequences, **options):
    defaults = {"is_list": False, "has_auxiliary_text": False, "healed": None}
    return written_texts(vocabulary, sequences, **{**defaults, **options})


def test_slots_become_candidates_and_cut_ones_are_kept_apart(vocabulary):
    ids = [vocabulary.encode(t) for t in ("red shoes", "blue sh", "")]
    texts = texts_of(vocabulary, Sequences(ids, [True, False, True]))
    assert [c.text for c in texts.finished] == ["red shoes"]
    assert [c.text for c in texts.cut] == ["blue sh"]


def test_a_separator_ends_the_text_of_a_slot(vocabulary):
    first, second = vocabulary.encode("red shoes"), vocabulary.encode("blue hat")
    texts = texts_of(vocabulary, Sequences([[*first, SEP_ID, *second]], [False]))
    assert [c.text for c in texts.finished] == ["red shoes"]
    assert texts.cut == []


def test_a_list_is_split_and_only_its_last_text_can_be_cut(vocabulary):
    ids = [*vocabulary.encode("red"), SEP_ID, *vocabulary.encode("blue"), SEP_ID]
    whole = texts_of(
        vocabulary, Sequences([[*ids, *vocabulary.encode("gre")]], [False]), is_list=True
    )
    assert [c.text for c in whole.finished] == ["red", "blue"]
    assert [c.text for c in whole.cut] == ["gre"]


def test_the_first_text_is_the_auxiliary_one_where_there_is_one(vocabulary):
    ids = [vocabulary.encode(t) for t in ("what colour?", "red")]
    texts = texts_of(vocabulary, Sequences(ids, [True, True]), has_auxiliary_text=True)
    assert texts.auxiliary is not None
    assert texts.auxiliary.text == "what colour?"
    assert [c.text for c in texts.finished] == ["red"]
    stump = texts_of(vocabulary, Sequences(ids, [False, True]), has_auxiliary_text=True)
    assert stump.auxiliary is None


@pytest.mark.parametrize("prefix", ["wireless e", "wireless ", "größ", "x"])
def test_completions_continue_what_was_typed(vocabulary, prefix):
    healed = heal(vocabulary, prefix)
    ids = continuation(vocabulary, healed, prefix + "arbuds")
    assert ids is not None
    texts = texts_of(vocabulary, Sequences([ids], [True]), healed=healed)
    assert [c.text for c in texts.finished] == [prefix + "arbuds"]


def test_texts_that_no_response_may_hold_are_left_out(vocabulary):
    bad = [
        [vocabulary.id_of_bytes(b"\xff")],  # not UTF-8
        [vocabulary.id_of_bytes(b"\x07")],  # control character
        vocabulary.encode("long " * 60),
    ]
    assert texts_of(vocabulary, Sequences(bad, [True] * 3)).finished == []
