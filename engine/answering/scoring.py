"""What the click model reads of each candidate: token ids and features.

Knows nothing of when it runs; what is known early (candidates from the log) is made early.
"""

from collections.abc import Sequence

import numpy as np

from engine.answering.candidates import Candidate
from engine.execution.models import ScoreRow
from engine.formats.features import candidate_features
from engine.formats.vocabulary import Vocabulary


class CandidateInputs:
    """Makes the click model's inputs."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Encodes with that vocabulary."""
        self._vocabulary = vocabulary

    def attach(self, query: str, candidates: Sequence[Candidate]) -> None:
        """Sets ids and features of those candidates that lack them; all have their figures."""
        new = [c for c in candidates if c.features_F is None]
        if not new:
            return
        features_CF = candidate_features(
            query, [c.text for c in new], [c.popularity for c in new], [c.npmi for c in new]
        )
        for candidate, features_F in zip(new, features_CF, strict=True):
            candidate.ids = self._vocabulary.ids_of(candidate.text)
            candidate.features_F = features_F

    def row(
        self, query: str, context_ids: Sequence[int], candidates: Sequence[Candidate]
    ) -> ScoreRow:
        """Returns the click model's input for candidates, at least one."""
        self.attach(query, candidates)
        return ScoreRow(
            context_ids,
            [c.ids or () for c in candidates],
            np.array([c.features_F for c in candidates], np.float32),
        )
