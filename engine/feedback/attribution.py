"""The attribution token: all that is needed to join a click to what was shown, signed.

Knows nothing of storage or of serving. Whoever holds the keys can open a token, so no server needs
to remember what it returned.

On the wire a token is URL-safe base64 without padding, at most 2048 characters, of

    version u8 | size u16 | key id size u8 | key id | zlib(body) | first 16 bytes of HMAC-SHA256

where the size counts all these bytes, so that a cut token is told from a forged one, and the
signature covers everything before it. A body that would make the token longer loses the
texts of its last suggestions: whole texts, as few as possible, from the last backwards. What is
then left out is ``None``; request id, query and the number of positions always survive, so a click
on a cut position still joins by (request_id, position).
"""

import base64
import enum
import hashlib
import hmac
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from engine.errors import TokenForged, TokenKeyUnknown, TokenMalformed

MAX_TOKEN_BYTES = 2048
"""No token is longer than this many ASCII characters."""
MAX_POSITIONS = 32
"""No token holds more suggestions than this."""

_VERSION = 1
_MAC_BYTES = 16
_MAX_BODY_BYTES = 16_384  # far above 32 texts of 256 bytes and all ids: bounds decompression
_MIN_SECRET_BYTES = 16
_CONTEXT = b"queryrec.v1 attribution token\0"  # keeps the key's other uses, if any, apart
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_PREFIX = struct.Struct(">BHB")  # version, size of the whole, size of the key id
_HEAD = struct.Struct(">QBB")  # time_unix_ms, num positions and flags, num texts kept
_PUBLIC, _LED_IN = 0x80, 0x40  # flags: is public, has an auxiliary text
_SPOT = struct.Struct(">Bf")  # sources, propensity

# The limits of the contract. Together with 32 positions and an auxiliary text they come to at most
# 1,160 bytes, so a token always fits once enough suggestions' texts are cut.
_MAX_BYTES = {"request_id": 64, "bundle_id": 128, "scenario": 64, "session_id": 128, "query": 256}
_MAX_TEXT_BYTES = 256


class Source(enum.IntFlag):
    """Where a suggestion came from; the flags combine."""

    LOG = 1
    """Past searches."""
    GENERATED = 2
    """The generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One suggestion as returned; its position is its place in ``AttributionToken.suggestions``.

    Attributes:
        text: The suggestion, at most 256 bytes of UTF-8; None if it was cut from the token.
        sources: Where it came from.
        propensity: Probability with which the serving policy put it at this position, in (0, 1].
            Kept as float32.
    """

    text: str | None
    sources: Source
    propensity: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRing:
    """The signing keys: one makes tokens, all open them.

    To rotate, add the new key everywhere, make it active, and drop the old one when no more
    feedback signed with it can arrive.

    Attributes:
        active_key_id: Key that signs new tokens.
        secrets: Secret by key id. At least 16 bytes each, from a random source.

    Raises:
        ValueError: On construction, if a key id or secret is unusable.
    """

    active_key_id: str
    secrets: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if self.active_key_id not in self.secrets:
            known = ", ".join(sorted(self.secrets)) or "none"
            raise ValueError(
                f"active key {self.active_key_id!r} has no secret; known keys: {known}"
            )
        for key_id, secret in self.secrets.items():
            if not _KEY_ID.fullmatch(key_id):
                raise ValueError(f"key id {key_id!r} must be 1 to 32 of letters, digits and ._-")
            if len(secret) < _MIN_SECRET_BYTES:
                raise ValueError(
                    f"secret of key {key_id!r} has {len(secret)} bytes; "
                    f"at least {_MIN_SECRET_BYTES} are needed"
                )

    def __repr__(self) -> str:
        return f"KeyRing(active_key_id={self.active_key_id!r}, keys={sorted(self.secrets)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionToken:
    """What one response showed, as logs need it.

    Attributes:
        request_id: The response's id, 1 to 64 bytes.
        bundle_id: The bundle that made it, at most 128 bytes.
        time_unix_ms: When it was made, in milliseconds since 1970.
        scenario: The panel, at most 64 bytes.
        query: The normalised query, at most 256 bytes.
        session_id: The caller's session, at most 128 bytes; empty if unknown.
        auxiliary_text: What led in, at most 256 bytes; empty if nothing did.
        is_public: Whether models read nothing but the query and what the bundle's log holds: then
            suggestions say nothing of anyone.
        suggestions: What was returned, position 1 first; at most 32.
    """

    request_id: str
    bundle_id: str
    time_unix_ms: int
    scenario: str
    query: str
    session_id: str
    auxiliary_text: str = ""
    is_public: bool = False
    suggestions: tuple[Shown, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the texts of the last suggestions were left out to keep the token short."""
        return any(shown.text is None for shown in self.suggestions)

    def seal(self, keys: KeyRing) -> str:
        """Returns the signed token, at most 2048 ASCII characters.

        Texts are cut from the last suggestion backwards, as few as it takes.

        Raises:
            ValueError: A field breaks its limit, which validation must have prevented.
        """
        self._check()
        key_id = keys.active_key_id.encode()
        # Base64 without padding turns n bytes into ceil(4n / 3) characters.
        overhead = _PREFIX.size + len(key_id) + _MAC_BYTES
        room = MAX_TOKEN_BYTES * 3 // 4 - overhead
        num_texts = next(
            (i for i, shown in enumerate(self.suggestions) if shown.text is None),
            len(self.suggestions),
        )
        packed = _compressed(self._body(num_texts))
        if len(packed) > room:
            low, high = 0, num_texts  # low texts fit, high do not
            packed = _compressed(self._body(low))
            while high - low > 1:
                middle = (low + high) // 2
                attempt = _compressed(self._body(middle))
                if len(attempt) <= room:
                    low, packed = middle, attempt
                else:
                    high = middle
        assert len(packed) <= room, "limits are set so that a token without texts fits"
        signed = _PREFIX.pack(_VERSION, overhead + len(packed), len(key_id)) + key_id + packed
        mac = _mac(keys.secrets[keys.active_key_id], signed)
        return base64.urlsafe_b64encode(signed + mac).rstrip(b"=").decode("ascii")

    @classmethod
    def open(cls, token: str, keys: KeyRing) -> Self:
        """Returns the content of a token after checking its signature, in constant time.

        Raises:
            TokenMalformed: It is empty, too long, cut, or not a token of this version.
            TokenKeyUnknown: It is signed with a key that ``keys`` does not hold.
            TokenForged: The signature does not match.
        """
        key_id, signed, mac = _split(token)
        secret = keys.secrets.get(key_id)
        if secret is None:
            raise TokenKeyUnknown(key_id)
        if not hmac.compare_digest(mac, _mac(secret, signed)):
            raise TokenForged(key_id)
        return cls._parse(signed[_PREFIX.size + len(key_id) :])

    @classmethod
    def open_unverified(cls, token: str) -> Self:
        """Returns the content of a token without checking who made it.

        Only for tokens that were verified when they were stored: reading them back then needs no
        keys, which may have been retired since.

        Raises:
            TokenMalformed: It is not a token of this version.
        """
        key_id, signed, _ = _split(token)
        return cls._parse(signed[_PREFIX.size + len(key_id) :])

    def _check(self) -> None:
        for name, limit in _MAX_BYTES.items():
            size = len(getattr(self, name).encode())
            if size > limit:
                raise ValueError(f"{name} has {size} bytes; at most {limit} fit a token")
        if (size := len(self.auxiliary_text.encode())) > _MAX_TEXT_BYTES:
            raise ValueError(f"auxiliary_text has {size} bytes; at most {_MAX_TEXT_BYTES} fit")
        if not self.request_id:
            raise ValueError("request_id is empty; every response needs one")
        if not 0 <= self.time_unix_ms < 1 << 63:
            raise ValueError(f"time_unix_ms is {self.time_unix_ms}; it must be since 1970")
        if len(self.suggestions) > MAX_POSITIONS:
            raise ValueError(f"{len(self.suggestions)} suggestions; at most {MAX_POSITIONS} fit")
        for position, shown in enumerate(self.suggestions, start=1):
            if shown.text is not None and len(shown.text.encode()) > _MAX_TEXT_BYTES:
                raise ValueError(f"text {position} has more than {_MAX_TEXT_BYTES} bytes")
            if not 0.0 < shown.propensity <= 1.0:
                raise ValueError(
                    f"propensity {position} is {shown.propensity}; it must be in (0, 1]"
                )

    def _body(self, num_texts: int) -> bytes:
        """Returns the uncompressed content with the first ``num_texts`` texts."""
        flags = self.is_public * _PUBLIC | bool(self.auxiliary_text) * _LED_IN
        parts = [_HEAD.pack(self.time_unix_ms, len(self.suggestions) | flags, num_texts)]
        parts += (_SPOT.pack(shown.sources, shown.propensity) for shown in self.suggestions)
        texts = [getattr(self, name) for name in _MAX_BYTES]
        texts += [self.auxiliary_text] if self.auxiliary_text else []
        texts += (shown.text or "" for shown in self.suggestions[:num_texts])
        for text in texts:
            encoded = text.encode()
            parts.append(struct.pack(">H", len(encoded)))
            parts.append(encoded)
        return b"".join(parts)

    @classmethod
    def _parse(cls, packed: bytes) -> Self:
        inflater = zlib.decompressobj()
        try:
            body = inflater.decompress(packed, _MAX_BODY_BYTES)
            if not inflater.eof or inflater.unused_data:
                raise TokenMalformed("does not hold one complete body")
            time_unix_ms, flagged, num_texts = _HEAD.unpack_from(body)
            num_positions = flagged & ~(_PUBLIC | _LED_IN)
            num_leading = len(_MAX_BYTES) + bool(flagged & _LED_IN)
            offset = _HEAD.size
            spots: list[tuple[Source, float]] = []
            for _ in range(num_positions):
                sources, propensity = _SPOT.unpack_from(body, offset)
                spots.append((Source(sources), propensity))
                offset += _SPOT.size
            texts: list[str] = []
            for _ in range(num_leading + num_texts):
                (size,) = struct.unpack_from(">H", body, offset)
                offset += 2
                if offset + size > len(body):
                    raise TokenMalformed("ends inside a text")
                texts.append(body[offset : offset + size].decode())
                offset += size
        except (zlib.error, struct.error, UnicodeDecodeError) as error:
            raise TokenMalformed("does not hold a readable body") from error
        if offset != len(body) or num_texts > num_positions:
            raise TokenMalformed("holds a body of the wrong size")
        request_id, bundle_id, scenario, session_id, query, *auxiliary = texts[:num_leading]
        kept: list[str | None] = [*texts[num_leading:], *[None] * (num_positions - num_texts)]
        return cls(
            request_id=request_id,
            bundle_id=bundle_id,
            time_unix_ms=time_unix_ms,
            scenario=scenario,
            query=query,
            session_id=session_id,
            auxiliary_text="".join(auxiliary),
            is_public=bool(flagged & _PUBLIC),
            suggestions=tuple(
                Shown(text=text, sources=sources, propensity=propensity)
                for text, (sources, propensity) in zip(kept, spots, strict=True)
            ),
        )


def _compressed(body: bytes) -> bytes:
    # With the default's tables of 256 KB, setting them up takes five times as long as all else.
    deflater = zlib.compressobj(6, zlib.DEFLATED, 12, 4)
    return deflater.compress(body) + deflater.flush()


def _mac(secret: bytes, signed: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + signed, hashlib.sha256)[:_MAC_BYTES]


def _split(token: str) -> tuple[str, bytes, bytes]:
    """Returns (key id, all bytes that are signed, signature) of a token."""
    if not token:
        raise TokenMalformed("is empty")
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenMalformed(f"has {len(token)} characters, more than {MAX_TOKEN_BYTES}")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", token) or len(token) % 4 == 1:
        raise TokenMalformed("is not URL-safe base64 without padding")
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != token.encode():
        raise TokenMalformed("is not canonical base64")
    if raw[0] != _VERSION:
        raise TokenMalformed(f"has version {raw[0]}, not {_VERSION}")
    if len(raw) < _PREFIX.size:
        raise TokenMalformed("is cut")
    _, size, key_id_size = _PREFIX.unpack_from(raw)
    if len(raw) != size or size < _PREFIX.size + key_id_size + _MAC_BYTES:
        raise TokenMalformed(f"is cut or changed: {len(raw)} of {size} bytes are there")
    key_id = raw[_PREFIX.size : _PREFIX.size + key_id_size].decode("latin-1")
    if not _KEY_ID.fullmatch(key_id):
        raise TokenMalformed("names no possible key")
    return key_id, raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
