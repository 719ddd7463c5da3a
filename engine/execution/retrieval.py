"""Retrieval: what past users searched that fits a query. Knows nothing of tokens or models.

Three ways in: the exact table (a query that the log knows has co-occurrence lists of its own),
the nearest known queries by embedding (whose lists are merged), and, for completion, the known
queries that start with what was typed; where there are few, with its last words.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np

from engine.formats.graph import Floats, Rows
from engine.formats.index import CooccurrenceIndex
from engine.formats.text import MAX_QUERY_BYTES

_OWN_SHARE = 0.4  # an association of a nearest query with itself, on the scale of NPMI
_SHARPNESS = 4  # weight of a nearest query: similarity to this power, so that close ones count
_MEMOISED_PREFIXES = 4096
_MAX_SUFFIX_WORDS = 8  # of a prefix: a known query that continues more of them is rare


class Retrieved(NamedTuple):
    """Known queries that fit, best first."""

    texts: list[str]
    popularity: list[float]  # searches of each
    npmi: list[float]  # of each with the query itself; 0 where the log does not know the pair
    cooccurring: list[str]  # side information: the best that co-occur with the query or extend it


NOTHING = Retrieved([], [], [], [])


class Neighbours(Protocol):
    """Finds the nearest known queries on a server. To be used from one event loop."""

    async def nearest(self, embedding_D: Floats, k: int, finish_by_s: float) -> tuple[Rows, Floats]:
        """Returns up to k rows by cosine similarity with a unit embedding, best first.

        Raises:
            TooLate: `finish_by_s`, on the clock, came first.
            EngineError: the server failed; it has been logged.
        """
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


class Retrieval:
    """Looks queries up in one index. Thread-safe."""

    def __init__(
        self,
        index: CooccurrenceIndex,
        *,
        max_candidates: int,
        max_cooccurring: int,
        num_nearest: int,
    ) -> None:
        """Wraps an index; see `Retrieved` for what the limits apply to."""
        self.index = index
        self._max_candidates = max_candidates
        self._max_cooccurring = max_cooccurring
        self.num_nearest = num_nearest
        # Of the index, not of this object, which would keep itself and the index alive for ever.
        most_searched = partial(index.starting_with, k=2 * max_candidates)
        self._starting_with = lru_cache(_MEMOISED_PREFIXES)(most_searched)

    def exact(self, query: str) -> Retrieved | None:
        """Returns what co-occurs with a query that the log knows well, else None.

        "Well" means that its own lists fill half of the candidates, so that nearest queries could
        add little.
        """
        row = self.index.find(query)
        if row is None:
            return None
        rows, _ = self.index.neighbours(row)
        if 2 * len(rows) < self._max_candidates:
            return None
        return self._retrieved(rows[: self._max_candidates], row, len(rows))

    def nearby(self, query: str, embedding_D: Floats | None) -> Retrieved:
        """Returns what co-occurs with a query and with the known queries nearest to it.

        Args:
            query: Normalised query.
            embedding_D: Its embedding; None leaves only its own lists and popular queries.
        """
        if embedding_D is None:
            return self.around(query, None)
        return self.around(query, self.index.nearest(embedding_D, self.num_nearest))

    def around(self, query: str, found: tuple[Rows, Floats] | None) -> Retrieved:
        """Returns what `nearby` does, with the nearest rows and their similarity given."""
        own = self.index.find(query)
        lists: list[Rows] = []
        associations: list[Floats] = []
        if own is not None:
            rows, npmi = self.index.neighbours(own)
            lists.append(rows)
            associations.append(npmi)
        if found is not None:
            nearest, similarity = found
            weight = np.maximum(similarity, 0.0) ** _SHARPNESS
            lists.append(nearest)
            associations.append(weight * np.float32(_OWN_SHARE))
            # Weights sum to 1 where several lists agree, as if one query had them all.
            share = weight / max(float(weight.sum()), 1e-6)
            for row, part in zip(nearest.tolist(), share.tolist(), strict=True):
                if row != own:
                    rows, npmi = self.index.neighbours(row)
                    lists.append(rows)
                    associations.append(npmi * np.float32(part))
        rows, association = _merged(lists, associations)
        rows = rows[rows != own] if own is not None else rows
        num_associated = min(len(rows), int((association > 0).sum()))
        rows = rows[: self._max_candidates]
        missing = self._max_candidates - len(rows)
        if missing > 0:
            popular = self.index.popular(missing + len(rows))
            rows = np.concatenate([rows, popular[~np.isin(popular, rows)][:missing]])
        return self._retrieved(rows, own, num_associated)

    def completions(self, prefix: str, session_queries: Sequence[str]) -> Retrieved:
        """Returns known queries that start with `prefix`.

        What follows the session's last query comes first, then the most searched. Where these are
        few, suffix completions follow: the first words as typed, and a known query in place of
        the last ones (after Mitra and Craswell, CIKM 2015, "Query Auto-Completion for Rare
        Prefixes").
        """
        rows: Rows = self._starting_with(prefix)
        last = self.index.find(session_queries[-1]) if session_queries else None
        if last is not None:
            neighbours, _ = self.index.neighbours(last)
            following = [r for r in neighbours.tolist() if self.index.text(r).startswith(prefix)]
            if following:
                rows = np.array(list(dict.fromkeys([*following, *rows.tolist()])), np.int32)
        own = self.index.find(prefix)
        rows = rows[rows != own] if own is not None else rows
        found = self._retrieved(rows[: self._max_candidates], own, len(rows))
        missing = self._max_candidates // 2 - len(found.texts)
        return found if missing <= 0 else _extended(found, self.by_suffix(prefix, missing))

    def by_suffix(self, prefix: str, num: int) -> list[str]:
        """Returns up to `num` completions of the last words of a prefix, longest match first.

        Of at most eight of them, so that a prefix of many words costs no more than others.
        """
        typed = prefix.split(" ")
        texts: dict[str, None] = {}
        for first in range(max(1, len(typed) - _MAX_SUFFIX_WORDS), len(typed)):
            head, tail = " ".join(typed[:first]), " ".join(typed[first:])
            if not tail:
                break
            for known in self.index.texts(self._starting_with(tail)):
                text = f"{head} {known}"
                if known != tail and len(text.encode("utf-8")) <= MAX_QUERY_BYTES:
                    texts.setdefault(text)
            if len(texts) >= num:
                break
        return list(texts)[:num]

    def known(self, query: str, texts: Sequence[str]) -> tuple[list[float], list[float]]:
        """Returns the popularity of each text and its NPMI with the query; 0 where unknown."""
        rows = [self.index.find(t) for t in texts]
        popularity = [0.0 if r is None else self.index.popularity(r) for r in rows]
        return popularity, self._npmi(self.index.find(query), rows)

    def _retrieved(self, rows: Rows, own: int | None, num_cooccurring: int) -> Retrieved:
        texts = self.index.texts(rows)
        return Retrieved(
            texts,
            self.index.popularities(rows),
            self._npmi(own, rows.tolist()),
            texts[: min(num_cooccurring, self._max_cooccurring)],
        )

    def _npmi(self, own: int | None, rows: Sequence[int | None]) -> list[float]:
        if own is None:
            return [0.0] * len(rows)
        neighbours, npmi = self.index.neighbours(own)
        known = dict(zip(neighbours.tolist(), npmi.tolist(), strict=True))
        return [known.get(r, 0.0) if r is not None else 0.0 for r in rows]


def _extended(found: Retrieved, texts: list[str]) -> Retrieved:
    """Returns what was found and further texts, which the log as a whole does not know."""
    new = [t for t in texts if t not in found.texts]
    zeros = [0.0] * len(new)
    return Retrieved(
        found.texts + new, found.popularity + zeros, found.npmi + zeros, found.cooccurring
    )


def _merged(lists: Sequence[Rows], associations: Sequence[Floats]) -> tuple[Rows, Floats]:
    """Returns distinct rows and the sums of their associations, highest first; ties by row."""
    if not lists:
        return np.empty(0, np.int32), np.empty(0, np.float32)
    rows, places = np.unique(np.concatenate(lists), return_inverse=True)
    sums = np.bincount(places, np.concatenate(associations), len(rows))
    order = np.argsort(-sums, kind="stable")
    return rows[order], sums[order].astype(np.float32)
