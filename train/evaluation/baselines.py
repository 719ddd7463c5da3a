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
"""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

_GRAM_SIZES = (3, 4)
_MAX_DF_SHARE = 0.05  # a gram in more than a twentieth of all queries tells nothing apart
_INACTIVITY = datetime.timedelta(minutes=30)


class SearchLog:
    """Counts of a searches table, from which the baselines are built.

    Args:
        rows: (session id, time, query) of each search, any order.

    Raises:
        ValueError: if there is no search.
    """

    def __init__(self, rows: Iterable[tuple[str, datetime.datetime, str]]) -> None:
        self.counts: Counter[str] = Counter()
        self.followers: dict[str, Counter[str]] = defaultdict(Counter)
        before: tuple[str, datetime.datetime, str] | None = None
        for row in sorted(rows):
            self.counts[row[2]] += 1
            is_same = before is not None and before[0] == row[0]
            if before is not None and is_same and row[1] - before[1] <= _INACTIVITY:
                self.followers[before[2]][row[2]] += 1
            before = row
        if not self.counts:
            raise ValueError("the searches table is empty: baselines need at least one search")

    @classmethod
    def read(cls, searches_path: Path) -> SearchLog:
        """Reads a searches parquet file."""
        table = pq.read_table(searches_path, columns=["session_id", "time", "query"])
        columns = (table[name].to_pylist() for name in ("session_id", "time", "query"))
        return cls(zip(*columns, strict=True))


class MostPopular:
    """The most popular queries, or completions; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        ranked = sorted(log.counts, key=lambda q: (-log.counts[q], q))
        self._ranked = ranked
        self._counts = log.counts
        self._sorted = sorted(ranked)

    def suggest(self, scenario: str, query: str, num: int) -> list[str]:
        """Returns up to `num` distinct queries, most popular first."""
        if scenario != "completion":
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

    def suggest(self, scenario: str, query: str, num: int) -> list[str]:
        """Returns up to `num` distinct queries, nearest first; fewer if fewer share a gram."""
        scores = np.zeros(len(self._queries))
        for gram, count in _grams(query.strip()).items():
            column = self._gram_id.get(gram)
            if column is not None:
                low, high = self._bounds[column], self._bounds[column + 1]
                weight = (1.0 + np.log(count)) * self._idf[column]
                scores[self._rows[low:high]] += weight * self._weights[low:high]
        if scenario == "completion":
            prefix = query.lstrip()
            low = bisect_left(self._queries, prefix)
            high = bisect_left(self._queries, prefix + "\U0010ffff")
            near = np.arange(low, high)
        else:
            near = np.flatnonzero(scores > 0)
        order = near[np.lexsort((-self._popularity[near], -scores[near]))]
        found = [self._queries[i] for i in order[: num + 1].tolist()]
        return [q for q in found if q != query.strip()][:num]


class Adjacency:
    """What followed the query in past sessions; see the module's text."""

    def __init__(self, log: SearchLog) -> None:
        self._followers = log.followers

    def suggest(self, scenario: str, query: str, num: int) -> list[str]:
        """Returns up to `num` distinct queries, most frequent first, or none for a new query."""
        del scenario
        following = self._followers.get(query.strip(), Counter())
        ranked = sorted(following, key=lambda q: (-following[q], q))
        return [q for q in ranked if q != query.strip()][:num]


def most_popular(log: SearchLog, scenario: str, query: str, num: int) -> list[str]:
    """Returns `MostPopular` for a single query; build the class once for many."""
    return MostPopular(log).suggest(scenario, query, num)


def nearest_neighbour(log: SearchLog, scenario: str, query: str, num: int) -> list[str]:
    """Returns `NearestNeighbour` for a single query; build the class once for many."""
    return NearestNeighbour(log).suggest(scenario, query, num)


def _grams(query: str) -> Counter[str]:
    grams: Counter[str] = Counter()
    words: Sequence[str] = query.split()
    for word in words:
        padded = f" {word} "
        for size in _GRAM_SIZES:
            grams.update(padded[i : i + size] for i in range(max(1, len(padded) - size + 1)))
    return grams
