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
import pyarrow.parquet as pq
from numpy.typing import NDArray

from train.mining.mine import PAIRS, QUERIES

_MAX_NEXT = 32
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
        pairs: Iterable[tuple[str, str, int, float]],
        clicks: Iterable[Clicks] = (),
    ) -> None:
        """Takes queries sorted by their UTF-8 bytes, pairs with (num_users, npmi), and clicks."""
        self.texts = list(texts)
        self._bytes = [t.encode("utf-8") for t in self.texts]
        self.num_searches = num_searches
        self._row = {t: i for i, t in enumerate(self.texts)}
        following: dict[str, list[tuple[float, str]]] = defaultdict(list)
        scores: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source, target, num_users, npmi in pairs:
            following[source].append((npmi, target))
            if npmi > 0:
                scores[source][target] += num_users * npmi
        for query, text, num_clicks, num_seen in clicks:
            # Like num_users * npmi: how many people, times a rate in [0, 1].
            scores[query][text] += num_clicks * num_clicks / (num_seen + _PRIOR_IMPRESSIONS)
        self._following = {
            source: [t for _, t in sorted(found, key=lambda f: (-f[0], f[1]))[:_MAX_NEXT]]
            for source, found in following.items()
        }
        self._next = {
            source: [
                Scored(t, s)
                for t, s in sorted(found.items(), key=lambda f: (-f[1], f[0]))[:_MAX_NEXT]
                if s > 0
            ]
            for source, found in scores.items()
        }
        self._by_word = self._rows_by_word()
        self._completions: dict[tuple[str, int], list[str]] = {}

    @classmethod
    def load(cls, mined: Path, clicks: Iterable[Clicks] = ()) -> "Associations":
        """Reads the mined tables."""
        queries = pq.read_table(mined / QUERIES, columns=["text", "num_searches"])
        pairs = pq.read_table(
            mined / PAIRS, columns=["source", "target", "num_users", "association"]
        )
        columns = (c.to_pylist() for c in pairs.columns)
        return cls(
            queries["text"].to_pylist(),
            queries["num_searches"].to_numpy(),
            zip(*columns, strict=True),
            clicks,
        )

    def __contains__(self, text: str) -> bool:
        """Returns whether the text is a k-anonymous query."""
        return text in self._row

    def popularity(self, text: str) -> int:
        """Returns how often a text was searched; 0 if it is no k-anonymous query."""
        row = self._row.get(text)
        return 0 if row is None else int(self.num_searches[row])

    def following(self, query: str, k: int) -> list[str]:
        """Returns up to k queries that follow `query`, best association first, as served."""
        return self._following.get(query, [])[:k]

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
        words = set(query.split())
        shared: dict[int, float] = defaultdict(float)
        for word in words:
            rows, rarity = self._by_word.get(word, ((), 0.0))
            for row in rows:
                shared[row] += rarity
        own = self._row.get(query)
        scored = [
            (score / (len(words) + len(self.texts[row].split())), row)
            for row, score in shared.items()
            if row != own
        ]
        scored.sort(key=lambda s: (-s[0], -self.num_searches[s[1]], s[1]))
        return [self.texts[row] for _, row in scored[:k]]

    def specialisations(self, query: str, k: int) -> list[str]:
        """Returns up to k queries that add words to `query`, most searched first."""
        words = query.split()
        if not words:
            return []
        rarest = min(words, key=lambda w: len(self._by_word.get(w, ((), 0.0))[0]))
        wanted = set(words)
        rows = self._by_word.get(rarest, ((), 0.0))[0]
        found = [self.texts[r] for r in rows if wanted < set(self.texts[r].split())]
        return found[:k]

    def _range_of(self, prefix: str) -> tuple[int, int]:
        """Returns the first row that starts with `prefix` and the first after it that does not."""
        encoded = prefix.encode("utf-8")
        first = bisect_left(self._bytes, encoded)
        end = bisect_left(self._bytes, True, lo=first, key=lambda b: not b.startswith(encoded))
        return first, end

    def _rows_by_word(self) -> dict[str, tuple[list[int], float]]:
        """Returns per word its most searched queries (best first) and its rarity."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row in np.argsort(-self.num_searches, kind="stable").tolist():
            for word in set(self.texts[row].split()):
                rows[word].append(row)
        total = len(self.texts)
        return {
            word: (found[:_WORDS_SIZE], float(np.log(1 + total / len(found))))
            for word, found in rows.items()
        }
