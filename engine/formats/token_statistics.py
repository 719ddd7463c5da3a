"""How tokens occur in the log's queries: what follows what, what stands with what, what comes next.

A click model has seen few of the pairs (query, candidate) that it will judge, but the log holds
most of their pairs of tokens. From these come figures of any candidate, for any language that the
vocabulary writes, also of texts that nobody ever searched:

- fluency: log P(token | token before), a bigram model of queries with Dirichlet smoothing (MacKay
  and Peto 1995): `(n(a, b) + 2 P(b)) / (n(a) + 2)`;
- association of two tokens in one query, and of a token of a query with one of a query that
  followed it in a session and that the first did not have: `log((n + 1) / (e + 1))`, where n
  counts distinct queries (pairs of queries) and e is what chance would give.

Of very large logs only the most frequent pairs are kept; others count as never seen. Only queries
above k are counted. Knows nothing of models.
"""

# V tokens, E pairs of a table, C candidates, U distinct tokens, Q distinct tokens of the query,
# N tokens of all candidates
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engine.formats.manifest import MAX_QUERY_TOKENS, BundleError
from engine.formats.vocabulary import EOS_ID

TOKEN_STATISTICS = "token_statistics.npz"  # of a click model, in a run and in a bundle
START_ID = 0  # padding: it stands before the first token
SMOOTHING = 2.0  # searches' worth of the unigram model
# Association of new tokens with the query's best one in queries that follow one another, / 5.
SEQUEL_MEAN, SEQUEL_LEAST = "new_sequel_mean", "new_sequel_least"
FIGURES = (
    "fluency",  # mean log P(token | token before) over the text and its end, / 10
    "least_fluency",  # the smallest of them
    "ending",  # that of the end
    # Mean association of the pairs of tokens of the text, / 5. A token that comes twice was never
    # counted with itself, and tells against the text.
    "coherence",
    "new_association_mean",  # of tokens that the query lacks, each with the query's best token, / 5
    "new_association_least",
    SEQUEL_MEAN,
    SEQUEL_LEAST,
    "new_frequency_mean",  # log(1 + queries with the token), of tokens that the query lacks, / 10
    "new_frequency_least",
)
_NUM_OWN = 4  # the first, of the text itself; the others are of text and query
_REMEMBERED = 32_768  # texts' own figures; about 15 MB
_PROBABILITY_SCALE, _ASSOCIATION_SCALE, _FREQUENCY_SCALE = 0.1, 0.2, 0.1
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class PairTable(NamedTuple):
    """A number for each of E pairs of tokens."""

    keys: NDArray[np.unsignedinteger]  # (E), `a * V + b`, increasing
    values: Floats  # (E)

    def look_up(self, keys: Ids, otherwise: Floats) -> Floats:
        """Returns the values of keys, any shape, and `otherwise` where the table has none."""
        if not len(self.keys):
            return otherwise
        wanted = keys.astype(self.keys.dtype)
        at = np.minimum(self.keys.searchsorted(wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.values[at], otherwise)


class TokenStatistics:
    """Statistics of one vocabulary. Thread-safe."""

    def __init__(
        self,
        *,
        num_queries: int,
        num_with: Floats,
        log_probability: Floats,
        log_backoff: Floats,
        leads: Floats,
        trails: Floats,
        follows: PairTable,
        together: PairTable,
        sequels: PairTable,
    ) -> None:
        """Takes what was counted.

        Args:
            num_queries: distinct queries.
            num_with: float32 (V), queries with each token.
            log_probability: float32 (V), of the unigram model.
            log_backoff: float32 (V), `log(2 / (n(a) + 2))`.
            leads: float32 (V): the chance that a pair of tokens of consecutive queries has this
                one first, times the root of the number of such pairs.
            trails: the same of the second.
            follows: log P(b | a) of pairs that occur.
            together: association of pairs a < b that occur in one query.
            sequels: association of pairs (token of a query, new token of the next) that occur.
        """
        self.num_queries, self.num_with = num_queries, num_with
        self.log_probability, self.log_backoff = log_probability, log_backoff
        self.leads, self.trails = leads, trails
        self.follows, self.together, self.sequels = follows, together, sequels
        self._own: dict[tuple[int, ...], list[float]] = {}
        self._frequency = np.log1p(num_with) * np.float32(_FREQUENCY_SCALE)

    @property
    def size(self) -> int:
        """Returns V."""
        return len(self.num_with)

    def figures(self, query_ids: Sequence[int], candidates: Sequence[Sequence[int]]) -> Floats:
        """Returns float32 (C, len(FIGURES)) figures of candidates for a query.

        Args:
            query_ids: token ids of the query or prefix; of many, the last `MAX_QUERY_TOKENS`.
            candidates: C of them, at least one token id each.
        """
        num_candidates = len(candidates)
        figures = np.zeros((num_candidates, len(FIGURES)), np.float32)
        if not candidates:
            return figures
        figures[:, :_NUM_OWN] = self._own_figures(candidates)
        known = dict.fromkeys(query_ids[-MAX_QUERY_TOKENS:])
        place_of: dict[int, int] = {}  # of tokens that the query lacks
        places: list[int] = []  # of those of all candidates
        rows: list[int] = []  # the candidates that have some
        starts: list[int] = []  # of theirs among the places
        counts: list[int] = []
        for row, ids in enumerate(candidates):
            new = [place_of.setdefault(i, len(place_of)) for i in ids if i not in known]
            if new:
                rows.append(row)
                starts.append(len(places))
                counts.append(len(new))
                places += new
        if places:
            new_UF = self._new_figures(np.array([*known], np.int64), np.array([*place_of]))
            new_NF = new_UF[places]
            mean_RF = np.add.reduceat(new_NF, starts) / np.array(counts)[:, None]
            figures[rows, _NUM_OWN::2] = mean_RF
            figures[rows, _NUM_OWN + 1 :: 2] = np.minimum.reduceat(new_NF, starts)
        return figures

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        arrays = {
            f"{name}_{part}": getattr(table, part)
            for name, table in (
                ("follows", self.follows),
                ("together", self.together),
                ("sequels", self.sequels),
            )
            for part in PairTable._fields
        }
        with path.open("wb") as stream:
            np.savez(
                stream,
                num_queries=self.num_queries,
                num_with=self.num_with,
                log_probability=self.log_probability,
                log_backoff=self.log_backoff,
                leads=self.leads,
                trails=self.trails,
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> "TokenStatistics":
        """Reads what `save` wrote.

        Raises:
            BundleError: it cannot be read, or its parts do not belong together.
        """
        try:
            with path.open("rb") as stream, np.load(stream) as arrays:
                follows, together, sequels = (
                    PairTable(arrays[f"{name}_keys"], arrays[f"{name}_values"])
                    for name in ("follows", "together", "sequels")
                )
                loaded = cls(
                    num_queries=int(arrays["num_queries"]),
                    num_with=arrays["num_with"],
                    log_probability=arrays["log_probability"],
                    log_backoff=arrays["log_backoff"],
                    leads=arrays["leads"],
                    trails=arrays["trails"],
                    follows=follows,
                    together=together,
                    sequels=sequels,
                )
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise BundleError(f"{path}: token statistics cannot be read: {error}") from error
        vectors = (loaded.log_probability, loaded.log_backoff, loaded.leads, loaded.trails)
        tables = (follows, together, sequels)
        if {len(v) for v in vectors} != {loaded.size} or any(
            len(table.keys) != len(table.values) for table in tables
        ):
            raise BundleError(f"{path}: token statistics of several sizes do not belong together")
        return loaded

    def _own_figures(self, candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns the first `_NUM_OWN` figures of candidates, which no query changes."""
        keys = [tuple(ids) for ids in candidates]
        own = {key: figures for key in keys if (figures := self._own.get(key))}
        if new := [key for key in dict.fromkeys(keys) if key not in own]:
            parts = [self._fluency(new), self._coherence(new)]
            found = dict(zip(new, np.column_stack(parts).tolist(), strict=True))
            if len(self._own) >= _REMEMBERED:
                self._own.clear()
            self._own |= found
            own |= found
        return [own[key] for key in keys]

    def _new_figures(self, query_Q: Ids, new_U: Ids) -> Floats:
        """Returns of tokens that the query lacks what `figures` takes mean and least of, (U, 3)."""
        figures_UF = np.zeros((len(new_U), 3), np.float32)
        if len(query_Q):
            figures_UF[:, 0] = self._together(new_U[:, None], query_Q).max(axis=1)
            figures_UF[:, 1] = self._sequels(query_Q, new_U[:, None]).max(axis=1)
        figures_UF[:, 2] = self._frequency[new_U]
        return figures_UF

    def _fluency(self, candidates: Sequence[Sequence[int]]) -> Floats:
        """Returns mean, least, and that of the end, (C, 3)."""
        before: list[int] = []
        then: list[int] = []
        starts: list[int] = []
        for ids in candidates:
            starts.append(len(then))
            before += (START_ID, *ids)
            then += (*ids, EOS_ID)
        before_N, then_N = np.array(before), np.array(then)
        unseen_N = self.log_probability[then_N] + self.log_backoff[before_N]
        log_p_N = self.follows.look_up(before_N * self.size + then_N, unseen_N)
        log_p_N *= np.float32(_PROBABILITY_SCALE)
        ends = np.array([*starts[1:], len(then)])
        figures = np.empty((len(starts), 3), np.float32)
        figures[:, 0] = np.add.reduceat(log_p_N, starts) / (ends - starts)
        figures[:, 1] = np.minimum.reduceat(log_p_N, starts)
        figures[:, 2] = log_p_N[ends - 1]
        return figures

    def _coherence(self, candidates: Sequence[Sequence[int]]) -> Floats:
        """Returns the mean association of the pairs of tokens of each candidate, (C)."""
        pairs: list[tuple[int, int]] = []
        rows: list[int] = []  # those that have pairs
        starts: list[int] = []
        counts: list[int] = []
        for row, ids in enumerate(candidates):
            if len(ids) > 1:
                rows.append(row)
                starts.append(len(pairs))
                counts.append(len(ids) * (len(ids) - 1) // 2)
                pairs += combinations(ids, 2)
        coherence_C = np.zeros(len(candidates), np.float32)
        if pairs:
            flat = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(pairs))
            together = self._together(flat[::2], flat[1::2])
            coherence_C[rows] = np.add.reduceat(together, starts) / counts
        return coherence_C

    def _together(self, a: Ids, b: Ids) -> Floats:
        """Returns scaled associations in one query, of ids that broadcast."""
        expected = self.num_with[a] * self.num_with[b] / np.float32(max(self.num_queries, 1))
        keys = np.minimum(a, b) * self.size + np.maximum(a, b)
        return self.together.look_up(keys, -np.log1p(expected)) * np.float32(_ASSOCIATION_SCALE)

    def _sequels(self, a: Ids, b: Ids) -> Floats:
        """Returns scaled associations in consecutive queries, of ids that broadcast."""
        expected = self.leads[a] * self.trails[b]
        keys = a * self.size + b
        return self.sequels.look_up(keys, -np.log1p(expected)) * np.float32(_ASSOCIATION_SCALE)
