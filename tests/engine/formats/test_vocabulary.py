"""A tokenizer that the engine's layout does not fit is refused, and the message says why."""

import json
import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.execution.bundle import load_bundle
from engine.formats.manifest import BundleError, sha256_of
from engine.formats.text import normalise_prefix
from engine.formats.vocabulary import (
    EOS_ID,
    FIRST_TEXT_ID,
    NUM_CONTROL_IDS,
    SEP,
    Vocabulary,
    token_bytes,
)


@pytest.fixture
def content(tiny_bundle) -> dict:
    return json.loads((tiny_bundle / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def vocabulary(tiny_bundle) -> Vocabulary:
    return Vocabulary.load(tiny_bundle / "tokenizer.json")


def tokens_by_id(content: dict) -> list[str]:
    ids = content["model"]["vocab"]
    return sorted(ids, key=ids.__getitem__)


def with_ids(content: dict, tokens: list[str]) -> dict:
    """Returns the tokenizer with these tokens as ids 0, 1, ... and nothing merged."""
    ids = {token: i for i, token in enumerate(tokens)}
    added = [
        {**token, "id": ids[token["content"]]}
        for token in content["added_tokens"]
        if token["content"] in ids
    ]
    model = {**content["model"], "vocab": ids, "merges": []}
    return {**content, "model": model, "added_tokens": added}


def read(content: dict) -> Vocabulary:
    return Vocabulary(Tokenizer.from_str(json.dumps(content)))


def test_the_tokenizer_of_a_bundle_is_read(content):
    assert read(content).size % NUM_CONTROL_IDS == 0


def test_missing_special_tokens_are_named(content):
    tokens = [t for t in tokens_by_id(content) if t != SEP]
    with pytest.raises(ValueError, match=r"<\|sep\|> at id None, expected 129.*queryrec-train"):
        read(with_ids(content, tokens))
    with pytest.raises(ValueError, match=r"<\|pad\|> at id None"):
        read(with_ids(content, tokens[FIRST_TEXT_ID - 1 :]))


def test_special_tokens_in_another_place_are_named(content):
    tokens = tokens_by_id(content)
    tokens[EOS_ID], tokens[EOS_ID + 1] = tokens[EOS_ID + 1], tokens[EOS_ID]
    with pytest.raises(ValueError, match=r"<\|eos\|> at id 129, expected 128"):
        read(with_ids(content, tokens))


def test_text_tokens_must_be_sorted_by_their_bytes(content):
    tokens = tokens_by_id(content)
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    with pytest.raises(ValueError, match="not in bytewise order"):
        read(with_ids(content, tokens))


def test_the_size_must_be_a_multiple_of_128(content):
    with pytest.raises(ValueError, match=r"vocabulary of \d+ tokens is not a multiple of 128"):
        read(with_ids(content, tokens_by_id(content)[:-1]))


def test_a_scenario_without_its_token_is_named(tiny_bundle, tmp_path):
    """A bundle whose tokenizer was made for other scenarios is refused as a whole."""
    copy = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("<|scenario:suggestion|>", "<|scenario:other|>"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"] = sha256_of(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError, match=r"tokenizer\.json: .*no control token <\|scenario:suggestion\|>"
    ):
        load_bundle(copy, None)


@given(st.text().map(normalise_prefix))
@example("wi-fi router ")
@example("don't 12,5 ½ ① naïve 東京 タワー 👍🏽 <|sep|> ")
@example("a" * 40 + " b")
def test_word_by_word_gives_the_same_ids(vocabulary, text):
    assert list(vocabulary.ids_of(text)) == vocabulary.encode(text)


def test_tokens_that_go_from_one_word_into_the_next_are_found(content):
    content["pre_tokenizer"]["use_regex"] = False  # then merges may cross spaces
    tokens = tokens_by_id(content)
    crossing = "aĠ"  # "a ": in place of another of the same first byte
    place = next(i for i, t in enumerate(tokens) if i >= FIRST_TEXT_ID and t > "a")
    tokens = sorted({*tokens[FIRST_TEXT_ID:], crossing} - {tokens[place]}, key=token_bytes)
    whole = with_ids(content, [*tokens_by_id(content)[:FIRST_TEXT_ID], *tokens])
    whole["model"]["merges"] = [["a", "Ġ"]]
    vocabulary = read(whole)
    assert vocabulary.id_of_bytes(b"a ") in vocabulary.encode("a b")
    assert list(vocabulary.ids_of("a b")) == vocabulary.encode("a b")
