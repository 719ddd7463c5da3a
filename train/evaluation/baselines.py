"""Lists that need only the log: the rivals that a generative model has to beat.

They know no model and no truth. All are built from the `searches` table, answer any string, and
never return the query itself.

- *most popular*: the most searched queries; for a completion those that start with the prefix, then
  those that start with its last word after its earlier words were dropped, one by one.
- *nearest neighbour*: the nearest searched queries by cosine of TF-IDF weighted character 3- and
  4-grams within word boundaries, `(1 + log tf) * log((1 + N) / (1 + df))`; ties go to the more
  popular. For a completion, only queries that start with the prefix count, nearest first.
- *adjacency* (ADJ): what most often followed the query within a session; nothing for a query that
  was never searched.
- *suffix completion* (Mitra and Craswell, CIKM 2015, "Query Auto-Completion for Rare Prefixes"):
  the ends of searched queries, one word and longer, whole queries included, that start with the
  last word of the prefix, put in its place; ranked by how many searches end so. Their learnt
  ranking, which needs completion logs, is not part of it.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

_GRAM_SIZES = (3, 4)
_MAX_DF_SHARE = 0.05  # a gram in more than a twentieth of all queries tells nothing apart
_INACTIVITY = datetime.timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class SearchLog:
    """Counts of searches, from which the baselines are built.

    Attributes:
        counts: query -> searches.
        followers: query -> what was searched next in the session -> how often.

    Raises:
        ValueError: if there is no search.
    """

    counts: Counter[str]
    followers: Mapping[str, Counter[str]]

    def __post_init__(self) -> None:
        """Checks that there is something to count."""
        if not self.counts:
            raise ValueError("the searches table is empty: baselines need at least one search")

    @classmethod
    def of(cls, rows: Iterable[tuple[str, datetime.datetime, str]]) -> SearchLog:
        """Counts (session id, time, query) of each search, any order."""
        counts: Counter[str] = Counter()
        followers: dict[str, Counter[str]] = defaultdict(Counter)
        before: tuple[str, datetime.datetime, str] | None = None
        for row in sorted(rows):
            counts[row[2]] += 1
            is_same = before is not None and before[0] == row[0]
            if before is not None and is_same and row[1] - before[1] <= _INACTIVITY:
                followers[before[2]][row[2]] += 1
            before = row
        return cls(counts, followers)

    @classmethod
    def read(cls, searches_path: Path) -> SearchLog:
        """Reads a searches parquet file."""
        table = pq.read_table(searches_path, columns=["session_id", "time", "query"])
        columns = (table[name].to_pylist() for name in ("session_id", "time", "query"))
        return cls.of(zip(*columns, strict=True))


class MostPopular:
    """The most popular queries, or completions; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        ranked = sorted(log.counts, key=lambda q: (-log.counts[q], q))
        self._ranked = ranked
        self._counts = log.counts
        self._sorted = sorted(ranked)

    def suggest(self, query: str, num: int, *, completes_prefix: bool = False) -> list[str]:
        """Returns up to `num` distinct queries, most popular first."""
        if not completes_prefix:
            return [q for q in self._ranked[: num + 1] if q != query.strip()][:num]
        tokens = query.lstrip().split(" ")
        found: dict[str, None] = {}
        for dropped in range(len(tokens)):
            head = " ".join(tokens[:dropped])
            prefix = " ".join(tokens[dropped:])
            if not prefix or len(found) >= num:
                break
            low = bisect_left(self._sorted, prefix)
            high = bisect_left(self._sorted, prefix + "\U0010ffff")
            matching = sorted(self._sorted[low:high], key=lambda q: (-self._counts[q], q))
            completed = [f"{head} {q}".strip() for q in matching[: num + 1]]
            found.update(dict.fromkeys(q for q in completed if q != query.strip()))
        return list(found)[:num]


class NearestNeighbour:
    """The nearest searched queries by character n-grams; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        self._queries = sorted(log.counts)
        self._popularity = np.array([log.counts[q] for q in self._queries], dtype=np.float64)
        gram_id: dict[str, int] = {}
        rows, columns, weights = [], [], []
        for row, query in enumerate(self._queries):
            for gram, count in _grams(query).items():
                rows.append(row)
                columns.append(gram_id.setdefault(gram, len(gram_id)))
                weights.append(1.0 + np.log(count))
        row_of, column_of = np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)
        num_queries = len(self._queries)
        document_count = np.bincount(column_of, minlength=len(gram_id))
        self._idf = np.log((1 + num_queries) / (1 + document_count))
        self._idf[document_count > max(_MAX_DF_SHARE * num_queries, 50)] = 0.0
        weight = np.array(weights) * self._idf[column_of]
        norms = np.sqrt(np.bincount(row_of, weight**2, num_queries))
        weight = weight / np.maximum(norms[row_of], 1e-9)
        order = np.argsort(column_of, kind="stable")
        self._gram_id = gram_id
        self._rows, self._weights = row_of[order], weight[order]
        self._bounds = np.searchsorted(column_of[order], np.arange(len(gram_id) + 1))

    def suggest(self, query: str, num: int, *, completes_prefix: bool = False) -> list[str]:
        """Returns up to `num` distinct queries, nearest first; fewer if fewer share a gram."""
        scores = np.zeros(len(self._queries))
        for gram, count in _grams(query.strip()).items():
            column = self._gram_id.get(gram)
            if column is not None:
                low, high = self._bounds[column], self._bounds[column + 1]
                weight = (1.0 + np.log(count)) * self._idf[column]
                scores[self._rows[low:high]] += weight * self._weights[low:high]
        if completes_prefix:
            prefix = query.lstrip()
            low = bisect_left(self._queries, prefix)
            high = bisect_left(self._queries, prefix + "\U0010ffff")
            near = np.arange(low, high)
        else:
            near = np.flatnonzero(scores > 0)
        order = near[np.lexsort((-self._popularity[near], -scores[near]))]
        found = [self._queries[i] for i in order[: num + 1].tolist()]
        return [q for q in found if q != query.strip()][:num]

    def similarities(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """Returns the cosine of the query and each text, float64 (C,); texts may be new."""
        vectors = [self._vector(text) for text in texts]
        wanted = self._vector(query)
        return np.array([sum(w * v.get(g, 0.0) for g, w in wanted.items()) for v in vectors])

    def _vector(self, text: str) -> dict[str, float]:
        """Returns the weights of the text's grams, of unit norm."""
        idf_unknown = np.log(1 + len(self._queries))
        vector: dict[str, float] = {}
        for gram, count in _grams(text).items():
            column = self._gram_id.get(gram)
            idf = idf_unknown if column is None else self._idf[column]
            vector[gram] = (1.0 + np.log(count)) * float(idf)
        norm = max(float(np.sqrt(sum(w * w for w in vector.values()))), 1e-9)
        return {gram: weight / norm for gram, weight in vector.items()}


class Adjacency:
    """What followed the query in past sessions; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        self._followers = log.followers

    def suggest(self, query: str, num: int) -> list[str]:
        """Returns up to `num` distinct queries, most frequent first, or none for a new query."""
        following = self._followers.get(query.strip(), Counter())
        ranked = sorted(following, key=lambda q: (-following[q], q))
        return [q for q in ranked if q != query.strip()][:num]


class SuffixCompletion:
    """Popular ends of queries after the first words of a prefix; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        counts: Counter[str] = Counter()
        for query, count in log.counts.items():
            words = query.split(" ")
            for first in range(len(words)):
                counts[" ".join(words[first:])] += count
        self._counts = counts
        self._sorted = sorted(counts)
        self._ends = lru_cache(4096)(self._ranked)

    def suggest(self, query: str, num: int) -> list[str]:
        """Returns up to `num` completions of `query`, by popularity of their end.

        The last word is the end term, with the space after it if one was typed.
        """
        start = query.rstrip(" ").rfind(" ") + 1
        head, end_term = query[:start], query[start:]
        found = [head + end for end in self._ends(end_term, num + 1)]
        return [text for text in found if text != query.strip()][:num]

    def _ranked(self, end_term: str, num: int) -> list[str]:
        low = bisect_left(self._sorted, end_term)
        high = bisect_left(self._sorted, end_term + "\U0010ffff")
        return sorted(self._sorted[low:high], key=lambda s: (-self._counts[s], s))[:num]


def _grams(query: str) -> Counter[str]:
    grams: Counter[str] = Counter()
    words: Sequence[str] = query.split()
    for word in words:
        padded = f" {word} "
        for size in _GRAM_SIZES:
            grams.update(padded[i : i + size] for i in range(max(1, len(padded) - size + 1)))
    return grams
