"""BM25 over queries as documents: nearest by the words they share. Knows no session and no model.

    score(q, d) = sum over words w of q of  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean)),
    idf(w) = log(1 + (N - df + 0.5) / (df + 0.5)),

tf the number of times w is in d (Robertson and Zaragoza, 2009, "The Probabilistic Relevance
Framework: BM25 and Beyond", equation 3.15; idf as in Lucene, never negative).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import log

import numpy as np

from engine.formats.words import words_of

_K1, _B = 1.2, 0.75


class Bm25:
    """An index of queries; ties go to the more popular, then by text."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Takes query -> searches; at least one."""
        self._queries = sorted(counts, key=lambda q: (-counts[q], q))
        lengths = [len(words_of(q)) for q in self._queries]
        self._mean_length = sum(lengths) / len(lengths)
        rows_of: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row, query in enumerate(self._queries):
            for word, weight in self._weights(query).items():
                rows_of[word].append((row, weight))
        self._postings = {
            word: (np.array([r for r, _ in pairs]), np.array([w for _, w in pairs]))
            for word, pairs in rows_of.items()
        }

    def suggest(self, query: str, num: int) -> list[str]:
        """Returns up to `num` queries that share a word with `query`, best first; never itself."""
        scores = np.zeros(len(self._queries))
        for word in words_of(query):
            if word in self._postings:
                rows, weights = self._postings[word]
                scores[rows] += self._idf(word) * weights
        near = np.flatnonzero(scores > 0)
        order = near[np.argsort(-scores[near], kind="stable")][: num + 1]
        found = [self._queries[row] for row in order.tolist()]
        return [q for q in found if q != query][:num]

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """Returns the score of each text for the query, float64 (C,); texts may be new."""
        weights = [self._weights(text) for text in texts]
        words = [(w, self._idf(w)) for w in words_of(query)]
        return np.array([sum(idf * v.get(w, 0.0) for w, idf in words) for v in weights])

    def _idf(self, word: str) -> float:
        num_with = len(self._postings[word][0]) if word in self._postings else 0
        return log(1 + (len(self._queries) - num_with + 0.5) / (num_with + 0.5))

    def _weights(self, text: str) -> dict[str, float]:
        """Returns word -> what it is worth in this text, but for its idf."""
        words = words_of(text)
        norm = _K1 * (1 - _B + _B * len(words) / self._mean_length)
        return {w: n * (_K1 + 1) / (n + norm) for w, n in Counter(words).items()}
