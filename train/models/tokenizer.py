"""Trains the byte-level BPE tokenizer; brings any such tokenizer into the engine's layout.

Knows nothing of models: `Layout.old_ids` says how a checkpoint's embedding rows must move.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.formats.vocabulary import FIRST_TEXT_ID, Vocabulary, control_tokens, token_bytes

SIZE_MULTIPLE = 128  # the decode graph chooses tokens by two-level maxima over blocks of 128
MIN_SIZE = 512  # 130 control ids, 256 bytes, and at least some merges
_MAX_TOKEN_BYTES = 32
_MAX_REPEATS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A tokenizer in engine.formats.vocabulary's layout and where its ids were before."""

    vocabulary: Vocabulary
    old_ids: list[int | None]  # per new id; None: new, or a control token


def train_tokenizer(
    texts: Sequence[str],
    num_searches: Sequence[int],
    *,
    size: int,
    scenarios: Sequence[str],
    kinds: Sequence[str],
) -> Vocabulary:
    """Returns a vocabulary of at most `size` ids trained on normalised k-anonymous texts.

    Its size is the largest multiple of 128 that the texts give tokens for. Deterministic.

    Args:
        texts: normalised texts, distinct.
        num_searches: per text; popular texts count more, by the logarithm.
        size: number of ids asked for, control tokens included; a multiple of 128.
        scenarios: names that get a control token.
        kinds: kinds of side information that get a control token.

    Raises:
        ValueError: `size` is no multiple of 128, or there are too few texts.
    """
    if size % SIZE_MULTIPLE or size < MIN_SIZE:
        raise ValueError(f"vocabulary size is {size}, must be a multiple of 128, at least 512")
    tokenizer = _trained(texts, num_searches, size - FIRST_TEXT_ID)
    reached = tokenizer.get_vocab_size() + FIRST_TEXT_ID
    if reached < MIN_SIZE:
        raise ValueError(
            f"{len(texts)} distinct texts give a vocabulary of {reached} ids, at least {MIN_SIZE} "
            "are needed: bring more logs or lower mine.min_users"
        )
    if reached % SIZE_MULTIPLE:
        reached -= reached % SIZE_MULTIPLE
        tokenizer = _trained(texts, num_searches, reached - FIRST_TEXT_ID)
    return arrange(tokenizer, size=reached, scenarios=scenarios, kinds=kinds).vocabulary


def arrange(
    tokenizer: Tokenizer, *, size: int, scenarios: Sequence[str], kinds: Sequence[str]
) -> Layout:
    """Returns a byte-level BPE tokenizer with its ids in engine.formats.vocabulary's layout.

    Its own special tokens go. If it has more text tokens than fit `size`, the last merges go;
    texts that used them become more tokens, others stay the same. Bytes without a token get one.

    Raises:
        ValueError: not byte-level BPE, or it does not fill `size` ids.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        raise ValueError(
            f"tokenizer is {model['type']} with pre-tokenizer "
            f"{(content['pre_tokenizer'] or {}).get('type')}: only byte-level BPE will do"
        )
    special = {t["content"] for t in content["added_tokens"]}
    vocab: dict[str, int] = {t: i for t, i in model["vocab"].items() if t not in special}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    text = sorted({*vocab, *alphabet}, key=lambda t: vocab.get(t, -1))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    num_text = size - FIRST_TEXT_ID
    if len(text) < num_text:
        raise ValueError(f"tokenizer has {len(text)} text tokens, {num_text} are needed")
    kept = _first_tokens(text, merges, alphabet, num_text)
    merges = [(a, b) for a, b in merges if a in kept and b in kept and a + b in kept]
    tokens = [*control_tokens(scenarios, kinds), *sorted(kept, key=token_bytes)]
    arranged = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    arranged.pre_tokenizer = tokenizer.pre_tokenizer
    arranged.decoder = decoders.ByteLevel()
    arranged.add_special_tokens(tokens[:FIRST_TEXT_ID])
    old_ids = [None] * FIRST_TEXT_ID + [vocab.get(t) for t in tokens[FIRST_TEXT_ID:]]
    return Layout(vocabulary=Vocabulary(arranged), old_ids=old_ids)


def _trained(texts: Sequence[str], num_searches: Sequence[int], num_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_BYTES,
    )
    tokenizer.train_from_iterator(_weighted(texts, num_searches), trainer)
    return tokenizer


def _weighted(texts: Sequence[str], num_searches: Sequence[int]) -> Iterator[str]:
    for text, count in zip(texts, num_searches, strict=True):
        for _ in range(min(_MAX_REPEATS, 1 + int(math.log2(max(1, count))))):
            yield " " + text  # as Vocabulary.encode reads it


def _first_tokens(
    text: list[str], merges: list[tuple[str, str]], alphabet: set[str], num_kept: int
) -> set[str]:
    """Returns `num_kept` of the tokens: the bytes, then in the order in which merges make them.

    Parts are made before they are used, so no kept token needs one that has gone. Tokens that no
    merge makes can never occur; they go first.
    """
    made: dict[str, int] = {}
    for position, (a, b) in enumerate(merges):
        made.setdefault(a + b, position)
    order = sorted(text, key=lambda t: -1 if t in alphabet else made.get(t, len(merges)))
    return set(order[:num_kept])
