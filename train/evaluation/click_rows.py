"""Held-out impressions of a simulated log, scored as the engine would and by the truth.

All rows that were shown in the time kept for validation, also those whose text or query is below
k: they will be served, too. Features, context, calibration and position are the engine's own code
on the bundle's index and graph. Knows nothing of measures.
"""

# N impressions (rows), U requests
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.answering.candidates import Candidate
from engine.answering.ranking import click_probability, seen_probabilities
from engine.answering.scoring import CandidateInputs
from engine.execution.bundle import Bundle
from engine.execution.models import ClickModel, ScoreRow
from engine.execution.retrieval import Retrieval
from engine.feedback.attribution import Source
from engine.formats.features import FEATURE_NAMES
from engine.formats.prompt import SESSION, SideInformation
from engine.formats.text import normalise, normalise_prefix
from train.evaluation.click_measures import Flags, Ids
from train.evaluation.intervals import Floats
from train.evaluation.lists import ListTruth
from train.evaluation.served import LeftOut

_BATCH_SIZE = 32  # requests a run of the graph


class ClickTruth(ListTruth, Protocol):
    """A truth that tells attraction from position, such as `train.simulator.Truth`."""

    def attraction_after_fatigue(
        self,
        scenario: str,
        queries: Sequence[str],
        listings: Sequence[Sequence[str]],
        *,
        sessions: Sequence[Sequence[str]] | None = None,
        questions: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Returns P(click | seen) within R lists, float64 (R, longest list)."""
        ...


class LoggedRequest(NamedTuple):
    """One panel of a simulated log: the rows that were shown, by position."""

    scenario: str
    query: str
    session_queries: list[str]  # oldest first
    auxiliary_text: str
    texts: list[str]
    sources: list[str]
    clicked: list[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickRows:
    """Impressions of one scenario with what was served and what is true."""

    inputs: list[ScoreRow]  # of each request
    request_N: Ids  # from 0
    query_U: NDArray[np.str_]  # of each request, normalised
    position_N: Ids  # from 1
    source_N: NDArray[np.str_]  # as logged
    clicked_N: Flags
    seen_N: Floats  # served p(click | seen)
    served_N: Floats  # served p(click | shown at its position)
    attraction_N: Floats  # true p(click | seen, in its list)
    true_N: Floats  # true p(click | shown at its position, in its list)
    popularity_N: Floats  # the feature
    overlap_N: Floats  # the feature trigram_overlap


def validation_start(mined: Path) -> datetime.datetime:
    """Returns the time of the first mined impression that is for validation only.

    Raises:
        LeftOut: there is none.
        ValueError: the run was mined without impressions.
    """
    path = mined / "impressions.parquet"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the run was mined without impressions")
    table = pq.read_table(path, columns=["time", "split"])
    times = table.filter(pc.field("split") == "valid")["time"].to_pylist()
    start = min(times, default=None)
    if start is None:
        raise LeftOut("no impressions were held out; see mine.valid_share")
    return start


def read_requests(
    impressions: Path,
    *,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    max_requests: int = 0,
    seed: int = 0,
) -> list[LoggedRequest]:
    """Returns the requests of a simulated impressions table in an interval of time, in its order.

    Args:
        impressions: parquet file.
        since: the first moment that counts, in UTC without saying so, like `validation_start`.
        until: the first moment that does not.
        max_requests: a random choice of so many; 0 for all.
        seed: of the choice.
    """
    table = pq.read_table(impressions)
    table = table.filter(pc.field("shown"))
    time = pc.field("time").cast(pa.timestamp("us"))  # UTC, as mined tables have it
    if since is not None:
        table = table.filter(time >= since)
    if until is not None:
        table = table.filter(time < until)
    table = table.sort_by([("request_id", "ascending"), ("position", "ascending")])
    names = table["request_id"].unique().to_pylist()
    if max_requests and len(names) > max_requests:
        chosen = np.random.default_rng(seed).permutation(len(names))[:max_requests]
        table = table.filter(pc.field("request_id").isin([names[i] for i in chosen.tolist()]))
    columns = ["request_id", "scenario", "query", "side_information", "auxiliary_text", "text"]
    rows = table.select([*columns, "source", "clicked"]).to_pylist()
    requests: list[LoggedRequest] = []
    for _, group in groupby(rows, key=itemgetter("request_id")):
        shown = list(group)
        first = shown[0]
        requests.append(
            LoggedRequest(
                first["scenario"],
                first["query"],
                [i["text"] for i in first["side_information"] or [] if i["kind"] == SESSION],
                first["auxiliary_text"] or "",
                [row["text"] for row in shown],
                [row["source"] for row in shown],
                [row["clicked"] for row in shown],
            )
        )
    return requests


class Scorer:
    """Scores logged requests with a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Takes a loaded bundle.

        Raises:
            ValueError: it has no click model.
        """
        if bundle.click_model is None or bundle.manifest.click_model is None:
            raise ValueError(
                f"bundle {bundle.manifest.bundle_id} has no click model: nothing to evaluate"
            )
        self._bundle = bundle
        self._graph: ClickModel = bundle.click_model
        self._spec = bundle.manifest.click_model
        self._inputs = CandidateInputs(bundle.vocabulary, bundle.statistics)
        self._retrieval = (
            Retrieval(bundle.index, max_candidates=1, max_cooccurring=0, num_nearest=1)
            if bundle.index
            else None
        )

    def candidates(self, request: LoggedRequest) -> list[Candidate]:
        """Returns the texts with their figures from the index and their features."""
        spec = self._bundle.scenarios[request.scenario]
        query = (normalise_prefix if spec.completes_prefix else normalise)(request.query)
        texts = [normalise(t) for t in request.texts]
        popularity, npmi = [0.0] * len(texts), [0.0] * len(texts)
        if self._retrieval is not None:
            popularity, npmi = self._retrieval.known(query, texts)
        candidates = [
            Candidate(text, text, Source.LOG, count, association)
            for text, count, association in zip(texts, popularity, npmi, strict=True)
        ]
        self._inputs.attach(spec, query, candidates)
        return candidates

    def row(self, request: LoggedRequest, candidates: list[Candidate]) -> ScoreRow:
        """Returns the graph's input."""
        spec = self._bundle.scenarios[request.scenario]
        query = (normalise_prefix if spec.completes_prefix else normalise)(request.query)
        side = [SideInformation(SESSION, normalise(q)) for q in request.session_queries]
        context_ids = self._bundle.renderer.click_context(request.scenario, query, side)
        return self._inputs.row(spec, query, context_ids, candidates)

    def logits(self, rows: list[ScoreRow]) -> list[NDArray[np.float32]]:
        """Returns the graph's logits, float32 (C) each, in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].context_ids))
        logits: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _BATCH_SIZE):
            part = order[start : start + _BATCH_SIZE]
            width = max(len(rows[i].candidate_ids) for i in part)
            found = self._graph.run([rows[i] for i in part], width)
            logits.update(zip(part, found, strict=True))
        return [logits[i] for i in range(len(rows))]

    def features(self, requests: list[LoggedRequest]) -> dict[str, Floats]:
        """Returns position, popularity and overlap of all rows, as in `ClickRows`."""
        shown = [c for r in requests for c in self.candidates(r)]
        features_NF = np.array([c.features_F for c in shown], np.float64)
        return {
            "position": np.concatenate([np.arange(1.0, len(r.texts) + 1) for r in requests]),
            "popularity": features_NF[:, FEATURE_NAMES.index("log_popularity")],
            "overlap": features_NF[:, FEATURE_NAMES.index("trigram_overlap")],
        }

    def scored(self, scenario: str, requests: list[LoggedRequest], truth: ClickTruth) -> ClickRows:
        """Returns the rows of the requests of one scenario."""
        spec = self._bundle.scenarios[scenario]
        candidates = [self.candidates(r) for r in requests]
        rows = [self.row(r, c) for r, c in zip(requests, candidates, strict=True)]
        logits = self.logits(rows)
        seen = [
            seen_probabilities(
                self._spec, scenario, logits_C, np.array([c.popularity > 0 for c in shown])
            )
            for logits_C, shown in zip(logits, candidates, strict=True)
        ]
        asked, listed = [r.query for r in requests], [r.texts for r in requests]
        sessions = [r.session_queries for r in requests]
        questions = [r.auxiliary_text for r in requests]
        true = truth.list_click_probabilities(
            scenario, asked, listed, sessions=sessions, questions=questions
        )
        attraction = truth.attraction_after_fatigue(
            scenario, asked, listed, sessions=sessions, questions=questions
        )
        seen_N = np.concatenate(seen).astype(np.float64)
        num_shown = [len(r.texts) for r in requests]
        position_N = np.concatenate([np.arange(1, n + 1) for n in num_shown])
        features_NF = np.concatenate([row.features_CF for row in rows]).astype(np.float64)
        pairs = zip(seen_N.tolist(), position_N.tolist(), strict=True)
        attraction_C = zip(attraction, num_shown, strict=True)
        return ClickRows(
            inputs=rows,
            request_N=np.repeat(np.arange(len(requests)), num_shown),
            query_U=np.array([normalise(query) for query in asked]),
            position_N=position_N,
            source_N=np.array([s for r in requests for s in r.sources]),
            clicked_N=np.array([c for r in requests for c in r.clicked]),
            seen_N=seen_N,
            served_N=np.array([click_probability(p, spec, place) for p, place in pairs]),
            attraction_N=np.concatenate([a[:n] for a, n in attraction_C]),
            true_N=np.concatenate(true),
            popularity_N=features_NF[:, FEATURE_NAMES.index("log_popularity")],
            overlap_N=features_NF[:, FEATURE_NAMES.index("trigram_overlap")],
        )
