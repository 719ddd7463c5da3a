"""Counts tokens in mined queries, for `engine.formats.token_statistics`.

Knows nothing of clicks.
"""

# V tokens, N tokens of all queries, M queries, P pairs of queries
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.formats.token_statistics import (
    SMOOTHING,
    START_ID,
    PairTable,
    TokenStatistics,
)
from engine.formats.vocabulary import EOS_ID, Vocabulary
from train.generation.associations import known_in_training
from train.mining.mine import PAIRS
from train.retrieval.pairs import rows_of

_MAX_PAIRS = 2_000_000  # of a table; the most frequent stay
_CHUNK = 100_000  # queries, or pairs of queries, at once
Ids = NDArray[np.int64]
T = TypeVar("T")


def count_tokens(run: Path, vocabulary: Vocabulary) -> TokenStatistics:
    """Returns the statistics of a mined run's queries and of the pairs that followed one another.

    Of those searched before the validation cut: later ones may come of clicks to be predicted.

    Args:
        run: run directory, mined.
        vocabulary: of its tokenizer.

    Raises:
        ValueError: an older release mined the run, and did not count searches before the cut.
    """
    mined = run / "mined"
    texts = known_in_training(mined)
    pairs = pq.read_table(mined / PAIRS, columns=["source", "target"])
    sources, targets = rows_of(pairs["source"], texts), rows_of(pairs["target"], texts)
    is_known = (sources >= 0) & (targets >= 0)
    ids = vocabulary.encode_batch(texts)
    return statistics_of(ids, sources[is_known], targets[is_known], size=vocabulary.size)


def statistics_of(
    queries: Sequence[Sequence[int]], sources: Ids, targets: Ids, *, size: int
) -> TokenStatistics:
    """Returns the statistics of queries given as token ids.

    Args:
        queries: M distinct ones.
        sources: int64 (P), rows of queries that others followed.
        targets: int64 (P), rows of these.
        size: V.
    """
    unigrams, before = np.zeros(size), np.zeros(size)
    num_with = np.zeros(size)
    follows, together = _Counter(), _Counter()
    for part in _parts(queries):
        first = np.array([i for ids in part for i in (START_ID, *ids)], np.int64)
        then = np.array([i for ids in part for i in (*ids, EOS_ID)], np.int64)
        unigrams += np.bincount(then, minlength=size)
        before += np.bincount(first, minlength=size)
        follows.add(first * size + then)
        distinct = [sorted(set(ids)) for ids in part]
        num_with += np.bincount([i for ids in distinct for i in ids], minlength=size)
        together.add(
            np.array(
                [a * size + b for ids in distinct for n, a in enumerate(ids) for b in ids[n + 1 :]],
                np.int64,
            )
        )
    log_probability = np.log((unigrams + 0.5) / (unigrams.sum() + 0.5 * size))
    keys, counts = follows.most(_MAX_PAIRS)
    a, b = keys // size, keys % size
    log_follows = np.log(
        (counts + SMOOTHING * np.exp(log_probability[b])) / (before[a] + SMOOTHING)
    )
    expected = num_with / np.sqrt(max(len(queries), 1))
    sets = [frozenset(ids) for ids in queries]
    sequels = _Counter()
    for rows in _parts(range(len(sources))):
        sequels.add(
            np.array(
                [
                    a * size + b
                    for s, t in zip(sources[rows].tolist(), targets[rows].tolist(), strict=True)
                    for b in sets[t] - sets[s]
                    for a in sets[s]
                ],
                np.int64,
            )
        )
    leads, trails = sequels.margins(size)
    root = np.sqrt(max(float(leads.sum()), 1.0))
    return TokenStatistics(
        num_queries=len(queries),
        num_with=num_with.astype(np.float32),
        log_probability=log_probability.astype(np.float32),
        log_backoff=np.log(SMOOTHING / (before + SMOOTHING)).astype(np.float32),
        leads=(leads / root).astype(np.float32),
        trails=(trails / root).astype(np.float32),
        follows=PairTable(_narrow(keys, size), log_follows.astype(np.float32)),
        together=_associations(together, expected, expected, size),
        sequels=_associations(sequels, leads / root, trails / root, size),
    )


class _Counter:
    """Counts keys in parts, so that memory goes with the distinct ones."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)

    def add(self, keys: Ids) -> None:
        """Counts each key once more."""
        new, counts = np.unique(keys, return_counts=True)
        self._keys, place = np.unique(np.concatenate([self._keys, new]), return_inverse=True)
        self._counts = np.bincount(place, np.concatenate([self._counts, counts])).astype(np.int64)

    def margins(self, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the counts of the first and of the second tokens, (V) each."""
        weights = self._counts.astype(np.float64)
        first, second = np.divmod(self._keys, size)
        return (
            np.asarray(np.bincount(first, weights, size), np.float64),
            np.asarray(np.bincount(second, weights, size), np.float64),
        )

    def most(self, num: int) -> tuple[Ids, Ids]:
        """Returns the keys that occur most, at most `num` and in increasing order, with counts."""
        kept = np.sort(np.argsort(-self._counts, kind="stable")[:num])
        return self._keys[kept], self._counts[kept]


def _associations(
    counter: _Counter, first: NDArray[np.float64], second: NDArray[np.float64], size: int
) -> PairTable:
    """Returns `log((n + 1) / (e + 1))`, e the product of a number of each token."""
    keys, counts = counter.most(_MAX_PAIRS)
    expected = first[keys // size] * second[keys % size]
    values = np.log((counts + 1) / (expected + 1))
    return PairTable(_narrow(keys, size), values.astype(np.float32))


def _narrow(keys: Ids, size: int) -> NDArray[np.unsignedinteger]:
    return keys.astype(np.uint32 if size**2 <= 1 << 32 else np.uint64)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
