import base64
import hashlib
import hmac
import random
import string
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import TokenForged, TokenKeyUnknown, TokenMalformed
from engine.feedback.attribution import MAX_TOKEN_BYTES, AttributionToken, KeyRing, Shown, Source

KEYS = KeyRing(active_key_id="b", secrets={"a": b"a" * 32, "b": b"b" * 32})


def text(max_bytes: int, min_size: int = 0) -> st.SearchStrategy[str]:
    return st.text(min_size=min_size, max_size=max_bytes).map(
        lambda s: s.encode()[:max_bytes].decode(errors="ignore")
    )


shown = st.builds(
    Shown,
    text=text(256),
    sources=st.sampled_from([Source.LOG, Source.GENERATED, Source.LOG | Source.GENERATED]),
    propensity=st.floats(min_value=2.0**-20, max_value=1.0, width=32),
)
tokens = st.builds(
    AttributionToken,
    request_id=st.text(string.hexdigits, min_size=1, max_size=64),
    bundle_id=text(128),
    time_unix_ms=st.integers(0, 2**63 - 1),
    scenario=text(64),
    query=text(256),
    session_id=text(128),
    auxiliary_text=text(256),
    is_public=st.booleans(),
    suggestions=st.lists(shown, max_size=32).map(tuple),
)

EXAMPLE = AttributionToken(
    request_id="0f8fad5bd9cb469fa16570867728950e",
    bundle_id="2026-03-01-small",
    time_unix_ms=1_772_323_200_000,
    scenario="suggestion",
    query="wireless earbuds",
    session_id="s-1",
    suggestions=(
        Shown(text="wireless earbuds for running", sources=Source.LOG, propensity=0.5),
        Shown(text="earbuds with long battery", sources=Source.GENERATED),
    ),
)


@settings(deadline=None)
@given(tokens)
def test_a_token_is_at_most_2048_safe_characters_and_opens_to_what_was_sealed(token):
    sealed = token.seal(KEYS)

    assert len(sealed) <= MAX_TOKEN_BYTES
    assert set(sealed) <= set(string.ascii_letters + string.digits + "-_")
    opened = AttributionToken.open(sealed, KEYS)
    kept = sum(s.text is not None for s in opened.suggestions)
    cut = (*token.suggestions[:kept], *(replace(s, text=None) for s in token.suggestions[kept:]))
    assert opened == replace(token, suggestions=cut)
    assert AttributionToken.open_unverified(sealed) == opened


def test_the_largest_token_with_incompressible_text_still_fits_and_keeps_every_position():
    rng = random.Random(0)

    def noise(num_bytes: int) -> str:
        return "".join(rng.choice(string.printable[:94]) for _ in range(num_bytes))

    token = AttributionToken(
        request_id=noise(64),
        bundle_id=noise(128),
        time_unix_ms=2**63 - 1,
        scenario=noise(64),
        query=noise(256),
        session_id=noise(128),
        auxiliary_text=noise(256),
        suggestions=tuple(
            Shown(text=noise(256), sources=Source.LOG, propensity=rng.random()) for _ in range(32)
        ),
    )
    keys = KeyRing(active_key_id="k" * 32, secrets={"k" * 32: bytes(32)})

    opened = AttributionToken.open(token.seal(keys), keys)

    assert opened.is_cut
    assert (opened.query, opened.auxiliary_text) == (token.query, token.auxiliary_text)
    assert len(opened.suggestions) == 32
    texts = [s.text for s in opened.suggestions]
    num_kept = sum(t is not None for t in texts)
    assert texts == [s.text for s in token.suggestions[:num_kept]] + [None] * (32 - num_kept)
    assert num_kept >= 1


def test_a_typical_answer_is_not_cut():
    assert not AttributionToken.open(EXAMPLE.seal(KEYS), KEYS).is_cut
    assert len(EXAMPLE.seal(KEYS)) < 400


@settings(deadline=None)
@given(st.data())
def test_a_token_with_any_changed_character_is_refused(data):
    sealed = EXAMPLE.seal(KEYS)
    where = data.draw(st.integers(0, len(sealed) - 1))
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_="))
    changed = sealed[:where] + other + sealed[where + 1 :]
    if changed == sealed:
        return

    with pytest.raises((TokenMalformed, TokenForged, TokenKeyUnknown)):
        AttributionToken.open(changed, KEYS)


def test_every_truncation_of_a_token_is_malformed_rather_than_forged():
    sealed = EXAMPLE.seal(KEYS)
    for size in range(len(sealed)):
        with pytest.raises(TokenMalformed):
            AttributionToken.open(sealed[:size], KEYS)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=3000), st.binary(max_size=1600).map(lambda b: safe(b))))
def test_arbitrary_strings_are_refused_with_a_typed_error(token):
    with pytest.raises((TokenMalformed, TokenForged, TokenKeyUnknown)):
        AttributionToken.open(token, KEYS)


def safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed_with_b(packed: bytes) -> str:
    """The token format once more, with any content."""
    signed = struct.pack(">BHB", 1, 4 + 1 + len(packed) + 16, 1) + b"b" + packed
    mac = hmac.digest(
        KEYS.secrets["b"], b"queryrec.v1 attribution token\0" + signed, hashlib.sha256
    )
    return safe(signed + mac[:16])


def test_tokens_of_a_retired_key_open_until_the_key_is_dropped():
    sealed = EXAMPLE.seal(replace(KEYS, active_key_id="a"))

    assert AttributionToken.open(sealed, KEYS) == EXAMPLE
    with pytest.raises(TokenKeyUnknown, match="'a'"):
        AttributionToken.open(sealed, KeyRing(active_key_id="b", secrets={"b": b"b" * 32}))


def test_a_token_signed_with_another_secret_under_a_known_key_id_is_forged():
    sealed = EXAMPLE.seal(KeyRing(active_key_id="b", secrets={"b": b"x" * 32}))

    with pytest.raises(TokenForged):
        AttributionToken.open(sealed, KEYS)


def test_a_decompression_bomb_is_refused_even_with_a_valid_signature():
    bomb = signed_with_b(zlib.compress(bytes(1_000_000), 9))
    assert len(bomb) <= MAX_TOKEN_BYTES

    with pytest.raises(TokenMalformed, match="complete body"):
        AttributionToken.open(bomb, KEYS)


@pytest.mark.parametrize(
    "body",
    [b"", bytes(9), struct.pack(">QBB", 0, 0, 3) + b"\0\0" * 8, struct.pack(">QBB", 0, 200, 0)],
)
def test_a_signed_body_of_the_wrong_shape_is_malformed(body):
    with pytest.raises(TokenMalformed, match=r"body|inside a text"):
        AttributionToken.open(signed_with_b(zlib.compress(body)), KEYS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "q" * 257}, "query has 257 bytes"),
        ({"request_id": ""}, "request_id is empty"),
        ({"suggestions": EXAMPLE.suggestions * 17}, "34 suggestions"),
        ({"suggestions": (replace(EXAMPLE.suggestions[0], propensity=0.0),)}, "propensity 1"),
    ],
)
def test_sealing_what_breaks_a_limit_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(EXAMPLE, **change).seal(KEYS)


@pytest.mark.parametrize(
    ("active", "secrets", "message"),
    [
        ("c", {"a": bytes(32)}, "active key 'c' has no secret"),
        ("a", {"a": b"short"}, "has 5 bytes"),
        ("ü", {"ü": bytes(32)}, "letters, digits"),
    ],
)
def test_unusable_keys_are_refused_by_name(active, secrets, message):
    with pytest.raises(ValueError, match=message):
        KeyRing(active_key_id=active, secrets=secrets)


def test_secrets_do_not_appear_when_keys_are_printed():
    assert "bbbb" not in repr(KEYS)
