"""The features of logged impressions, computed by the engine's own code from what was mined.

Knows nothing of clicks and of batches.
"""

# R requests, N impressions (rows), D distinct pairs of question and text, F features
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES, candidate_features
from engine.formats.manifest import ScenarioSpec
from engine.formats.token_statistics import TokenStatistics
from engine.formats.vocabulary import Vocabulary
from train.retrieval.pairs import BEFORE_CUT, read_edges, read_queries

Ids = NDArray[np.int64]


class FeatureReader:
    """Computes the features of impressions from what was mined."""

    def __init__(
        self,
        run: Path,
        vocabulary: Vocabulary,
        statistics: TokenStatistics,
        max_edges: int,
        searches: str = BEFORE_CUT,
    ) -> None:
        """Reads what the log knows.

        Args:
            run: run directory, mined.
            vocabulary: of its tokenizer.
            statistics: of its tokens.
            max_edges: see `train.clicks.data.RequestReader`.
            searches: `BEFORE_CUT` for clicks to learn from or to predict, since later searches may
                come of held-out clicks (as earlier ones may of those to learn from, see
                docs/training.md); `EVER` for features as a bundle of the run has them.

        Raises:
            ValueError: an older release mined the run, and did not count searches before the cut.
        """
        mined = read_queries(run / "mined", searches)
        known: list[str] = mined["text"].to_pylist()
        self._vocabulary, self._statistics = vocabulary, statistics
        self._row_of = {text: row for row, text in enumerate(known)}
        self._searches = mined[searches].to_numpy().astype(np.float32)
        edges = read_edges(run, known, max_edges)
        sources = np.repeat(np.arange(len(known)), np.diff(edges.offsets))
        keys = sources * len(known) + edges.rows
        by_key = np.argsort(keys)
        self._keys, self._npmi = keys[by_key], edges.npmi[by_key]

    def of(
        self,
        scenarios: list[ScenarioSpec],
        queries: list[str],
        texts: list[str],
        candidates: Sequence[Sequence[int]],
        candidate_N: Ids,
        offsets: Ids,
    ) -> NDArray[np.float32]:
        """Returns features float32 (N, F) of impressions.

        Args:
            scenarios: of each of R requests.
            queries: of each.
            texts: distinct ones.
            candidates: token ids of each text.
            candidate_N: index into `texts`, by row.
            offsets: int64 (R + 1): rows of request r are offsets[r] to offsets[r + 1].
        """
        text_rows = np.array([self._row_of.get(t, -1) for t in texts])
        popularity_N = np.where(text_rows >= 0, self._searches[text_rows], 0)[candidate_N]
        query_N = np.repeat([self._row_of.get(q, -1) for q in queries], np.diff(offsets))
        npmi_N = self._associations(query_N, text_rows[candidate_N])
        # What is asked again has the same features: each is computed once, a question at a time.
        asked = list(zip((s.name for s in scenarios), queries, strict=True))
        number_of = {question: number for number, question in enumerate(dict.fromkeys(asked))}
        question_R = np.array([number_of[question] for question in asked], np.int64)
        key_N = np.repeat(question_R, np.diff(offsets)) * len(texts) + candidate_N
        key_D, first_D, distinct_N = np.unique(key_N, return_index=True, return_inverse=True)
        features_DF = np.zeros((len(key_D), len(FEATURE_NAMES)), np.float32)
        starts = np.flatnonzero(np.diff(key_D // max(1, len(texts)), prepend=-1))
        _, first_R = np.unique(question_R, return_index=True)
        for start, end in zip(starts, [*starts[1:], len(key_D)], strict=True):
            request = int(first_R[key_D[start] // len(texts)])
            rows = first_D[start:end]
            shown = candidate_N[rows].tolist()
            figures_CT = self._statistics.figures(
                self._vocabulary.ids_of(queries[request]), [candidates[c] for c in shown]
            )
            features_DF[start:end] = candidate_features(
                scenarios[request],
                queries[request],
                [texts[c] for c in shown],
                popularity_N[rows],
                npmi_N[rows],
                figures_CT,
            )
        return features_DF[distinct_N]

    def _associations(self, query_N: Ids, text_N: Ids) -> NDArray[np.float32]:
        """Returns NPMI of pairs of rows of the log, 0 where it does not know the pair."""
        npmi_N = np.zeros(len(query_N), np.float32)
        if len(self._keys):
            wanted_N = query_N * len(self._row_of) + text_N
            found_N = np.minimum(np.searchsorted(self._keys, wanted_N), len(self._keys) - 1)
            hit_N = (self._keys[found_N] == wanted_N) & (query_N >= 0) & (text_N >= 0)
            npmi_N[hit_N] = self._npmi[found_N[hit_N]]
        return npmi_N
