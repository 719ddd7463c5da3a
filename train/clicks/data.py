"""Shown suggestions and their clicks as what the click model reads: ids, features, positions.

Rows are impressions, grouped into requests: one context and all candidates shown with it. Only
rows that were shown count. Knows nothing of the model.
"""

# R requests, N impressions (rows), C candidates of a request, F features, X runs of moved rows
import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from engine.formats.manifest import MAX_CANDIDATE_TOKENS, PromptSpec, ScenarioSpec
from engine.formats.prompt import ANSWER, SESSION, PromptRenderer, SideInformation
from engine.formats.token_statistics import TokenStatistics
from engine.formats.vocabulary import Vocabulary
from train.clicks.feature_reader import FeatureReader
from train.clicks.token_statistics import count_tokens
from train.models.shared_prefix import PackedBatch
from train.retrieval.pairs import BEFORE_CUT

Ids = NDArray[np.int64]
_EXPLORED = 0.5  # rows of a lower propensity were put where they are by a random swap
_LAST_KINDS = {ANSWER: 1, SESSION: 2}  # of side information: after all others, in this order


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickRequests:
    """Requests with their impressions; rows of request r are offsets[r] to offsets[r + 1]."""

    scenarios: list[str]
    scenario_R: Ids  # index into `scenarios`
    query_R: Ids  # number of the request's query, equal where queries are
    is_valid_R: NDArray[np.bool_]  # held out
    contexts: Sequence[Sequence[int]]  # per request: token ids; see `packed_ids`
    offsets: Ids  # (R + 1)
    candidates: Sequence[Sequence[int]]  # token ids per distinct text
    candidate_N: Ids  # index into `candidates`
    features_NF: NDArray[np.float32]
    position_N: Ids  # shown at, from 0
    rank_N: Ids  # meant for by the logging policy, from 0: differs from position where swapped
    clicked_N: NDArray[np.bool_]

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.contexts)

    @property
    def request_N(self) -> Ids:
        """The request of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def rows(self, requests: Ids) -> Ids:
        """Returns the rows of some requests, in their order."""
        starts, counts = self.offsets[requests], np.diff(self.offsets)[requests]
        before = np.cumsum(counts) - counts
        return np.repeat(starts - before, counts) + np.arange(counts.sum())

    def num_tokens(self, request: int) -> int:
        """Returns the length of a request's packed sequence."""
        rows = slice(self.offsets[request], self.offsets[request + 1])
        lengths = (len(self.candidates[c]) for c in self.candidate_N[rows])
        return len(self.contexts[request]) + sum(lengths)


class ClickBatch(NamedTuple):
    """Requests of a batch; C is the largest number of candidates, missing ones are masked."""

    packed: PackedBatch
    features: Tensor  # float32 (B, C, F)
    position: Tensor  # int64 (B, C)
    clicked: Tensor  # float32 (B, C)
    scenario: Tensor  # int64 (B)


class RequestReader:
    """Reads tables of impressions as a run's click model reads them."""

    def __init__(
        self,
        run: Path,
        *,
        max_edges: int,
        statistics: TokenStatistics | None = None,
        searches: str = BEFORE_CUT,
    ) -> None:
        """Reads what was mined.

        Args:
            run: run directory, mined, with its tokenizer.
            max_edges: co-occurrence lists are cut as in the index, so that NPMI is known in
                training where it will be known in serving.
            statistics: of the run's tokens; None: they are counted.
            searches: what popularity is, see `train.clicks.feature_reader.FeatureReader`.

        Raises:
            ValueError: an older release mined the run.
        """
        content = (run / "mined/scenarios.json").read_bytes()
        scenarios = msgspec.json.decode(content, type=list[ScenarioSpec])
        self._specs = {s.name: s for s in scenarios}
        self._vocabulary = Vocabulary.load(run / "tokenizer.json")
        prompt = msgspec.json.decode((run / "mined/prompt.json").read_bytes(), type=PromptSpec)
        self._renderer = PromptRenderer(self._vocabulary, prompt, scenarios)
        statistics = statistics or count_tokens(run, self._vocabulary)
        self._features = FeatureReader(run, self._vocabulary, statistics, max_edges, searches)

    def of(self, table: pa.Table) -> ClickRequests:
        """Returns the requests of a table that looks like the mined impressions.

        Raises:
            ValueError: an impression has a scenario that scenarios.json lacks.
        """
        table = table.sort_by([("request_id", "ascending"), ("position", "ascending")])
        codes = table["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        is_first = np.concatenate([[True], codes[1:] != codes[:-1]])
        offsets = np.concatenate([np.flatnonzero(is_first), [table.num_rows]]).astype(np.int64)
        heads = table.take(pa.array(offsets[:-1]))
        names = list(self._specs)
        scenarios: list[str] = heads["scenario"].to_pylist()
        unknown = set(scenarios) - set(names)
        if unknown:
            raise ValueError(
                f"there are impressions of {sorted(unknown)}, scenarios.json knows {names}"
            )
        queries: list[str] = heads["query"].to_pylist()
        contexts = packed_ids(
            self._renderer.click_context(scenario, query, _as_served(items))
            for scenario, query, items in zip(
                scenarios, queries, heads["side_information"].to_pylist(), strict=True
            )
        )
        encoded = table["text"].combine_chunks().dictionary_encode()
        texts: list[str] = encoded.dictionary.to_pylist()
        candidate_N = encoded.indices.to_numpy().astype(np.int64)
        candidates = packed_ids(
            ids[:MAX_CANDIDATE_TOKENS] for ids in self._vocabulary.encode_batch(texts)
        )
        specs = [self._specs[name] for name in scenarios]
        position_N = table["position"].to_numpy().astype(np.int64) - 1
        return ClickRequests(
            scenarios=names,
            scenario_R=np.array([names.index(name) for name in scenarios]),
            query_R=np.unique(queries, return_inverse=True)[1],
            is_valid_R=np.array([s == "valid" for s in heads["split"].to_pylist()]),
            contexts=contexts,
            offsets=offsets,
            candidates=candidates,
            candidate_N=candidate_N,
            features_NF=self._features.of(specs, queries, texts, candidates, candidate_N, offsets),
            position_N=position_N,
            rank_N=intended_ranks(position_N, _propensities(table), offsets),
            clicked_N=table["clicked"].to_numpy(zero_copy_only=False),
        )


def read_requests(
    run: Path,
    *,
    max_edges: int,
    statistics: TokenStatistics | None = None,
    max_requests: int = 0,
    report: Callable[[str], None] = print,
) -> ClickRequests | None:
    """Returns the mined impressions, or None if there are none.

    Args:
        run: see `RequestReader`.
        max_edges: see `RequestReader`.
        statistics: see `RequestReader`.
        max_requests: so many at most, drawn by their ids; 0: all.
        report: told if there are more.

    Raises:
        ValueError: an impression has a scenario that scenarios.json lacks, or an older release
            mined the run.
    """
    path = run / "mined/impressions.parquet"
    if not path.exists() or not pq.read_metadata(path).num_rows:
        return None
    chosen = None
    if max_requests:
        ids = pq.read_table(path, columns=["request_id"])["request_id"].unique()
        if len(ids) > max_requests:
            report(
                f"click_model.max_requests is {max_requests}: so many of {len(ids)} requests are "
                "read"
            )
            by_hash = sorted(ids.to_pylist(), key=lambda i: hashlib.md5(i.encode()).digest())
            chosen = pc.field("request_id").isin(by_hash[:max_requests])
    table = pq.read_table(path, filters=chosen)
    return RequestReader(run, max_edges=max_edges, statistics=statistics).of(table)


def _as_served(items: Sequence[dict[str, str]] | None) -> list[SideInformation]:
    """Returns side information by kind as a served request has it: what matters most last."""
    side = [SideInformation(item["kind"], item["text"]) for item in items or []]
    return sorted(side, key=lambda item: _LAST_KINDS.get(item.kind, 0))


def packed_ids(rows: Iterable[Sequence[int]]) -> "list[array[int]]":
    """Returns rows of token ids; lists of them take twice (4 ids) to six times (40) as much."""
    return [array("i", ids) for ids in rows]


def intended_ranks(position_N: Ids, propensity_N: NDArray[np.float64], offsets: Ids) -> Ids:
    """Returns the position each row would have without exploration.

    Exploration swaps disjoint pairs of neighbours and logs how likely each row was to stand
    where it stands; rows that were moved were unlikely to. Moved rows at consecutive positions
    are pairs, counted from where the run of them is known to begin or to end: at the first
    position, or beside a row that stayed. Of other runs a half pair may be missing from the table
    at both ends; they are taken as they are, as is half a pair.
    """
    request_N = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    is_moved_N = propensity_N < _EXPLORED
    rank_N, rows = position_N.copy(), np.flatnonzero(is_moved_N)
    if not len(rows):
        return rank_N
    follows_N = np.zeros(len(position_N) + 1, np.bool_)  # a row, the one above it in the panel
    follows_N[1:-1] = (np.diff(request_N) == 0) & (np.diff(position_N) == 1)
    goes_on = follows_N[rows] & is_moved_N[rows - 1]
    run = np.cumsum(~goes_on) - 1
    size_X = np.bincount(run)
    start_X = rows[~goes_on]
    has_start_X = (position_N[start_X] == 0) | follows_N[start_X]
    has_end_X = follows_N[start_X + size_X]
    is_odd_X = size_X % 2 == 1
    is_sure_X = np.where(is_odd_X, has_start_X ^ has_end_X, has_start_X | has_end_X)
    half_first_X = is_odd_X & has_end_X  # the first row's partner is missing, not the last one's
    place = rows - start_X[run] - half_first_X[run]
    has_next = rows + 1 < (start_X + size_X)[run]
    first = rows[is_sure_X[run] & (place % 2 == 0) & has_next]
    rank_N[first], rank_N[first + 1] = position_N[first + 1], position_N[first]
    return rank_N


def _propensities(table: pa.Table) -> NDArray[np.float64]:
    if "propensity" not in table.column_names:
        return np.ones(table.num_rows)
    values = table["propensity"].cast(pa.float64()).to_numpy()  # nan where null
    return np.where(np.isnan(values), 1.0, values)
