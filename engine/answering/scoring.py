"""What the click model reads of each candidate: token ids and features.

Knows nothing of when it runs; what is known early (candidates from the log) is made early.
"""

from collections.abc import Sequence

import numpy as np

from engine.answering.candidates import Candidate
from engine.execution.models import ScoreRow
from engine.formats.features import candidate_features
from engine.formats.manifest import MAX_CANDIDATE_TOKENS, ScenarioSpec
from engine.formats.token_statistics import TokenStatistics
from engine.formats.vocabulary import Vocabulary


class CandidateInputs:
    """Makes the click model's inputs."""

    def __init__(self, vocabulary: Vocabulary, statistics: TokenStatistics | None) -> None:
        """Encodes with that vocabulary, whose tokens were counted; None without a click model."""
        self._vocabulary = vocabulary
        self._statistics = statistics

    def attach(self, scenario: ScenarioSpec, query: str, candidates: Sequence[Candidate]) -> None:
        """Sets ids and features of those candidates that lack them; all have their figures."""
        new = [c for c in candidates if c.features_F is None]
        if not new:
            return
        ids_of = self._vocabulary.ids_of
        ids = [ids_of(c.text)[:MAX_CANDIDATE_TOKENS] for c in new]
        figures_CT = self._statistics.figures(ids_of(query), ids) if self._statistics else None
        features_CF = candidate_features(
            scenario,
            query,
            [c.text for c in new],
            [c.popularity for c in new],
            [c.npmi for c in new],
            figures_CT,
        )
        for candidate, ids_T, features_F in zip(new, ids, features_CF, strict=True):
            candidate.ids, candidate.features_F = ids_T, features_F

    def row(
        self,
        scenario: ScenarioSpec,
        query: str,
        context_ids: Sequence[int],
        candidates: Sequence[Candidate],
    ) -> ScoreRow:
        """Returns the click model's input for candidates, at least one."""
        self.attach(scenario, query, candidates)
        return ScoreRow(
            context_ids,
            [c.ids or () for c in candidates],
            np.array([c.features_F for c in candidates], np.float32),
        )
