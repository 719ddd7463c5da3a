"""What the click model reads of each candidate: token ids and features.

Knows nothing of when it runs; what is known early (candidates from the log) is made early.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from engine.answering.candidates import Candidate
from engine.execution.models import ScoreRow
from engine.formats.features import candidate_features
from engine.formats.vocabulary import Vocabulary

_REMEMBERED = 65_536  # texts; about 20 MB


class CandidateInputs:
    """Makes the click model's inputs; remembers the ids of texts. To be used from one thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Starts without any text."""

        # One by one: `encode_batch` takes twice as long for so few (10 against 5 us a text). The
        # garbage collector does not look at tuples of numbers; at lists it does.
        @lru_cache(_REMEMBERED)
        def ids_of(text: str) -> tuple[int, ...]:
            return tuple(vocabulary.encode(text))

        self._ids_of = ids_of

    def attach(self, query: str, candidates: Sequence[Candidate]) -> None:
        """Sets ids and features of those candidates that lack them; all have their figures."""
        new = [c for c in candidates if c.features_F is None]
        if not new:
            return
        features_CF = candidate_features(
            query, [c.text for c in new], [c.popularity for c in new], [c.npmi for c in new]
        )
        for candidate, features_F in zip(new, features_CF, strict=True):
            candidate.ids = self._ids_of(candidate.text)
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
