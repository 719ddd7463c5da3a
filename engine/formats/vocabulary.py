"""Token ids of a bundle: control tokens first, then text tokens sorted by their bytes.

Layout of the ids, which the decode graph relies on:

    0 .. 127        control tokens; read by models, never generated
    128, 129        <|eos|> and <|sep|>; generated, not text
    130 .. V - 1    text tokens in bytewise order, so that all tokens that start with given
                    bytes are one range of ids

User text is always encoded as text: "<|sep|>" typed by a user becomes ordinary characters.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

NUM_CONTROL_IDS = 128
MAX_SLOTS = 16
PAD = "<|pad|>"
QUERY = "<|query|>"
RESPOND = "<|respond|>"
LIST = "<|list|>"
EOS = "<|eos|>"
SEP = "<|sep|>"
EOS_ID = NUM_CONTROL_IDS
SEP_ID = NUM_CONTROL_IDS + 1
FIRST_TEXT_ID = NUM_CONTROL_IDS + 2
_BATCH = 8192  # texts
_REMEMBERED = 32_768  # words; about 10 MB of usual ones, 45 at worst
_LONGEST_REMEMBERED = 32  # characters: clients send these words, too


def slot_token(slot: int) -> str:
    """Returns the control token that starts slot `slot`; slot 0 is the auxiliary text."""
    return f"<|slot_{slot}|>"


def scenario_token(scenario: str) -> str:
    """Returns the control token of a scenario."""
    return f"<|scenario:{scenario}|>"


def kind_token(kind: str) -> str:
    """Returns the control token that introduces side information of a kind."""
    return f"<|kind:{kind}|>"


def control_tokens(scenarios: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """Returns the 128 control tokens and <|eos|>, <|sep|>, in id order.

    Raises:
        ValueError: more scenarios and kinds than the block has room for.
    """
    tokens = [PAD, QUERY, RESPOND, LIST, *(slot_token(i) for i in range(MAX_SLOTS))]
    tokens += [scenario_token(s) for s in scenarios] + [kind_token(k) for k in kinds]
    if len(tokens) > NUM_CONTROL_IDS:
        raise ValueError(
            f"{len(tokens)} control tokens do not fit the {NUM_CONTROL_IDS} reserved ids: "
            "define fewer scenarios or kinds of side information"
        )
    tokens += [f"<|spare_{i}|>" for i in range(len(tokens), NUM_CONTROL_IDS)]
    return [*tokens, EOS, SEP]


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte behind each character of the byte-level BPE alphabet (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(characters, printable + others, strict=True))


_BYTE_OF = _byte_alphabet()


def token_bytes(token: str) -> bytes:
    """Returns the bytes that a byte-level BPE token stands for."""
    return bytes(_BYTE_OF[c] for c in token)


def _remembering(tokenizer: Tokenizer) -> Callable[[str], tuple[int, ...]]:
    """Returns a function that encodes words and remembers those of late.

    Tuples of numbers, unlike lists, are nothing to Python's garbage collector.
    """

    @lru_cache(_REMEMBERED)
    def ids_of(word: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(" " + word, add_special_tokens=False).ids)

    return ids_of


def _holds_a_gap(token: bytes) -> bool:
    """Returns whether a token has a space after something else."""
    return b" " in token.lstrip(b" ")


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json file, whoever made it.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has nothing narrower
        raise ValueError(f"{path}: cannot be read: {error}") from error


class Vocabulary:
    """A tokenizer whose ids follow the layout above. Thread-safe after construction."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps `tokenizer` and checks its id layout.

        Raises:
            ValueError: control tokens are missing, text tokens are not in bytewise order, or the
                size is not a multiple of 128 (the decode graph takes maxima over groups of 128).
        """
        tokenizer.encode_special_tokens = True  # user text never becomes a control token
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.size = len(vocab)
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[t] for t in tokens] != list(range(self.size)):
            raise ValueError("tokenizer ids are not 0 to V - 1 without gaps")
        for token, expected in ((PAD, 0), (EOS, EOS_ID), (SEP, SEP_ID)):
            if vocab.get(token) != expected:
                raise ValueError(
                    f"tokenizer has {token} at id {vocab.get(token)}, expected {expected}: "
                    "it was not made by queryrec-train"
                )
        if self.size % NUM_CONTROL_IDS:
            raise ValueError(
                f"vocabulary of {self.size} tokens is not a multiple of {NUM_CONTROL_IDS}"
            )
        self._control_ids = {t: i for i, t in enumerate(tokens[:FIRST_TEXT_ID])}
        self._bytes = [b""] * FIRST_TEXT_ID + [token_bytes(t) for t in tokens[FIRST_TEXT_ID:]]
        self._sorted_bytes = self._bytes[FIRST_TEXT_ID:]
        if self._sorted_bytes != sorted(self._sorted_bytes):
            raise ValueError("tokenizer's text tokens are not in bytewise order")
        self._ids_of = _remembering(tokenizer)
        # Then no merge of byte pairs leads from one word into the next.
        self._goes_word_by_word = not any(map(_holds_a_gap, self._sorted_bytes))

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads a tokenizer.json file.

        Raises:
            ValueError: it cannot be read, or is not what the engine reads.
        """
        tokenizer = read_tokenizer_file(path)
        try:
            return cls(tokenizer)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Writes the tokenizer.json file."""
        self._tokenizer.save(str(path), pretty=False)

    def control_id(self, token: str) -> int:
        """Returns the id of a control token.

        Raises:
            ValueError: the vocabulary has no such control token.
        """
        try:
            return self._control_ids[token]
        except KeyError:
            raise ValueError(f"vocabulary has no control token {token}") from None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, read as if a space stood before it. Never control ids."""
        return self._tokenizer.encode(" " + text, add_special_tokens=False).ids

    def ids_of(self, text: str) -> tuple[int, ...]:
        """Returns `encode` of a normalised text or prefix, sooner: most words came lately."""
        if not self._goes_word_by_word:
            return tuple(self.encode(text))
        ids: list[int] = []
        for word in text.split(" "):
            ids += self._ids_of(word) if len(word) <= _LONGEST_REMEMBERED else self.encode(word)
        return tuple(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns `encode` of each text."""
        ids: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):  # an encoding takes a kilobyte
            batch = [" " + t for t in texts[start : start + _BATCH]]
            ids += [e.ids for e in self._tokenizer.encode_batch(batch, add_special_tokens=False)]
        return ids

    def encode_continuation(self, data: bytes) -> list[int]:
        """Returns ids whose bytes are exactly `data`, which may start inside a word.

        Bytes that are not UTF-8 on their own (a cut inside a character) become byte tokens up
        to the next character boundary.
        """
        for start in range(min(4, len(data)) + 1):
            try:
                text = data[start:].decode("utf-8")
            except UnicodeDecodeError:
                continue
            head = [self.id_of_bytes(data[i : i + 1]) for i in range(start)]
            tail = self._tokenizer.encode(text, add_special_tokens=False).ids if text else []
            return head + tail
        return [self.id_of_bytes(data[i : i + 1]) for i in range(len(data))]

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """Returns the bytes that ids stand for; control ids stand for none."""
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: Sequence[int]) -> str | None:
        """Returns the text of ids, or None if their bytes are not UTF-8."""
        try:
            return self.bytes_of(ids).decode("utf-8").removeprefix(" ")
        except UnicodeDecodeError:
            return None

    def id_of_bytes(self, data: bytes) -> int:
        """Returns the id of the token that stands for exactly `data`.

        Raises:
            ValueError: there is no such token.
        """
        position = bisect_left(self._sorted_bytes, data)
        if position == len(self._sorted_bytes) or self._sorted_bytes[position] != data:
            raise ValueError(f"vocabulary has no token for the bytes {data!r}")
        return FIRST_TEXT_ID + position

    def prefix_range(self, data: bytes) -> tuple[int, int]:
        """Returns the range [first, end) of the ids whose bytes start with `data`; may be empty."""
        first = bisect_left(self._sorted_bytes, data)
        end = bisect_left(self._sorted_bytes, True, lo=first, key=lambda b: not b.startswith(data))
        return FIRST_TEXT_ID + first, FIRST_TEXT_ID + end

    def longest_match(self, data: bytes, minimum: int) -> int | None:
        """Returns the longest token that `data` starts with, of at least `minimum` bytes."""
        for length in range(min(len(data), 64), minimum - 1, -1):
            position = bisect_left(self._sorted_bytes, data[:length])
            if position < len(self._sorted_bytes) and self._sorted_bytes[position] == data[:length]:
                return FIRST_TEXT_ID + position
        return None
