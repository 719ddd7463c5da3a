"""What the mined log says about a query: what follows it, what completes it, what resembles it.

Looks texts up by row of queries.parquet. Knows nothing of tokens, prompts or models.
"""

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.formats.words import words_of
from train.retrieval.pairs import (
    BEFORE_CUT,
    EVER,
    Pairs,
    edge_lists,
    read_pairs,
    read_queries,
)
from train.settings import IndexConfig

_MAX_NEXT = 32  # recommended queries kept per query
_MAX_EDGES = IndexConfig().max_edges
_WORDS_SIZE = 200  # most searched queries kept per word
_PRIOR_IMPRESSIONS = 5.0  # pulls click rates of few impressions towards 0


class Scored(NamedTuple):
    """A text and how strongly it is associated."""

    text: str
    score: float


class Clicks(NamedTuple):
    """How a text did for a query of a scenario."""

    query: str
    text: str
    num_clicks: float
    num_seen: float  # impressions, each by how likely its position is to be looked at


class Associations:
    """Look-ups over the mined queries and pairs. Immutable."""

    def __init__(
        self,
        texts: Sequence[str],
        num_searches: NDArray[np.int64],
        pairs: Pairs,
        clicks: Iterable[Clicks] = (),
        *,
        max_edges: int = _MAX_EDGES,
    ) -> None:
        """Takes the queries.

        Args:
            texts: sorted by their UTF-8 bytes.
            num_searches: of each.
            pairs: by row of `texts`.
            clicks: of the training time.
            max_edges: following queries kept per query, as `index.max_edges`.
        """
        self.texts = list(texts)
        self._bytes = [t.encode("utf-8") for t in self.texts]
        self.num_searches = num_searches
        self._row = {t: i for i, t in enumerate(self.texts)}
        self._edges = edge_lists(pairs, len(self.texts), max_edges)
        self._next = self._best_by_query(pairs, clicks)
        self._by_word = self._rows_by_word()
        self._completions: dict[tuple[str, int], list[str]] = {}

    @classmethod
    def load(
        cls,
        mined: Path,
        clicks: Iterable[Clicks] = (),
        *,
        max_edges: int = _MAX_EDGES,
        only_training: bool = False,
    ) -> "Associations":
        """Reads the mined tables.

        Args:
            mined: their directory.
            clicks: of the training time.
            max_edges: following queries kept per query, as `index.max_edges`.
            only_training: as the log was before the validation cut; else as an index has it.

        Raises:
            ValueError: a pair names a query that was not mined, or an older release mined.
        """
        searches = BEFORE_CUT if only_training else EVER
        queries = read_queries(mined, searches)
        pairs = read_pairs(mined, queries["text"].to_pylist())
        if only_training:
            is_known_Q = queries[BEFORE_CUT].to_numpy() > 0
            queries, pairs = queries.filter(pa.array(is_known_Q)), pairs.among(is_known_Q)
        texts, counts = queries["text"].to_pylist(), queries[searches].to_numpy()
        return cls(texts, counts, pairs, clicks, max_edges=max_edges)

    def following(self, query: str, k: int | None = None) -> list[str]:
        """Returns up to k queries that follow `query`, best association first, as served.

        None: as many as the index holds.
        """
        row = self._row.get(query)
        if row is None:
            return []
        first, end = self._edges.offsets[row : row + 2]
        return [self.texts[r] for r in self._edges.rows[first:end][:k]]

    def best_next(self, query: str) -> list[Scored]:
        """Returns what to recommend after `query` by num_users * npmi and clicks, best first."""
        return self._next.get(query, [])

    def starting_with(self, prefix: str, k: int) -> list[str]:
        """Returns up to k queries that start with `prefix`, most searched first."""
        known = self._completions.get((prefix, k))
        if known is not None:
            return known
        first, end = self._range_of(prefix)
        counts = self.num_searches[first:end]
        if len(counts) > 4 * k:
            rows = np.argpartition(-counts, k)[:k]
            rows = rows[np.lexsort((rows, -counts[rows]))]
        else:
            rows = np.argsort(-counts, kind="stable")[:k]
        found = [self.texts[first + i] for i in rows]
        if len(prefix.encode("utf-8")) <= 4:  # short prefixes have long ranges and come often
            self._completions[prefix, k] = found
        return found

    def sample_starting_with(self, prefix: str, k: int, rng: random.Random) -> list[str]:
        """Returns up to k different queries that start with `prefix`, each equally likely."""
        rows = range(*self._range_of(prefix))
        return [self.texts[row] for row in rng.sample(rows, min(k, len(rows)))]

    def similar(self, query: str, k: int) -> list[str]:
        """Returns up to k other queries that share words with `query`, most similar first.

        Similarity is the share of common words, weighted by how rare a word is; ties go to the
        more searched query.
        """
        words = set(words_of(query))
        shared: dict[int, float] = defaultdict(float)
        for word in words:
            rows, rarity = self._by_word.get(word, ((), 0.0))
            for row in rows:
                shared[row] += rarity
        own = self._row.get(query)
        scored = [
            (score / (len(words) + len(words_of(self.texts[row]))), row)
            for row, score in shared.items()
            if row != own
        ]
        scored.sort(key=lambda s: (-s[0], -self.num_searches[s[1]], s[1]))
        return [self.texts[row] for _, row in scored[:k]]

    def specialisations(self, query: str, k: int) -> list[str]:
        """Returns up to k queries that add words to `query`, most searched first."""
        words = words_of(query)
        if not words:
            return []
        rarest = min(words, key=lambda w: len(self._by_word.get(w, ((), 0.0))[0]))
        wanted = set(words)
        rows = self._by_word.get(rarest, ((), 0.0))[0]
        found = [self.texts[r] for r in rows if wanted < set(words_of(self.texts[r]))]
        return found[:k]

    def _range_of(self, prefix: str) -> tuple[int, int]:
        """Returns the first row that starts with `prefix` and the first after it that does not."""
        encoded = prefix.encode("utf-8")
        first = bisect_left(self._bytes, encoded)
        end = bisect_left(self._bytes, True, lo=first, key=lambda b: not b.startswith(encoded))
        return first, end

    def _best_by_query(self, pairs: Pairs, clicks: Iterable[Clicks]) -> dict[str, list[Scored]]:
        scores: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        worth = pairs.num_users * pairs.npmi
        good = np.flatnonzero(worth > 0)
        ends = pairs.sources[good].tolist(), pairs.targets[good].tolist()
        for source, target, score in zip(*ends, worth[good].tolist(), strict=True):
            scores[self.texts[source]][self.texts[target]] += score
        for query, text, num_clicks, num_seen in clicks:
            # Like num_users * npmi: how many people, times a rate in [0, 1].
            scores[query][text] += num_clicks * num_clicks / (num_seen + _PRIOR_IMPRESSIONS)
        return {
            source: [
                Scored(t, s)
                for t, s in sorted(found.items(), key=lambda f: (-f[1], f[0]))[:_MAX_NEXT]
            ]
            for source, found in scores.items()
        }

    def _rows_by_word(self) -> dict[str, tuple[list[int], float]]:
        """Returns per word its most searched queries (best first) and its rarity."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row in np.argsort(-self.num_searches, kind="stable").tolist():
            for word in set(words_of(self.texts[row])):
                rows[word].append(row)
        total = len(self.texts)
        return {
            word: (found[:_WORDS_SIZE], float(np.log(1 + total / len(found))))
            for word, found in rows.items()
        }


def known_in_training(mined: Path) -> list[str]:
    """Returns the mined queries that were searched before the validation cut, sorted."""
    queries = read_queries(mined, BEFORE_CUT)
    return queries["text"].filter(pa.array(queries[BEFORE_CUT].to_numpy() > 0)).to_pylist()
