"""Dense features of the click model, computed by the same code in training and serving.

Knows nothing of index and vocabulary: what they say of a text comes as arguments.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.formats.manifest import ScenarioSpec
from engine.formats.token_statistics import FIGURES
from engine.formats.words import words_of

_TEXT_FEATURES = (
    "log_popularity",  # log(1 + searches) / 10; 0 for texts the log does not know
    "npmi",  # association with the query in sessions, 0 where unknown
    "is_known",  # 1 if the log knows the text
    "word_overlap",  # Jaccard similarity of the sets of words
    "query_coverage",  # share of the query's words that the text repeats
    "trigram_overlap",  # Jaccard similarity of the sets of character trigrams
    "num_words",  # / 8
    "num_new_words",  # / 8; words that the query does not have
    "extends_query",  # 1 if the text starts with the query
    "num_characters",  # / 64
    "completes_prefix",  # 1 in scenarios that complete what is being typed
    "has_auxiliary_text",  # 1 in scenarios whose suggestions answer a question
)
FEATURE_NAMES = (*_TEXT_FEATURES, *FIGURES)

NUM_LOG_FEATURES = 3  # the first: what the log knows of the text itself; all 0 if it does not


def candidate_features(
    scenario: ScenarioSpec,
    query: str,
    candidates: Sequence[str],
    popularity: Sequence[float] | NDArray[np.float32],
    npmi: Sequence[float] | NDArray[np.float32],
    figures_CT: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Returns float32 (C, F) features of C candidates for one query; F = len(FEATURE_NAMES).

    Args:
        scenario: of the question.
        query: normalised query, or typed prefix.
        candidates: normalised texts.
        popularity: searches per candidate; 0 where the log does not know it.
        npmi: association of query and candidate in [-1, 1]; 0 where unknown.
        figures_CT: what `TokenStatistics.figures` says of them, float32 (C, T); None where there
            are no statistics: zeros.
    """
    features = np.zeros((len(candidates), len(FEATURE_NAMES)), np.float32)
    if not candidates:
        return features
    query_words = set(words_of(query))
    query_trigrams = trigrams(query)
    counts = np.asarray(popularity, np.float32)
    features[:, 0] = np.log1p(counts) / 10
    features[:, 1] = np.asarray(npmi, np.float32)
    features[:, 2] = counts > 0
    rows: list[tuple[float, ...]] = []
    for text in candidates:
        word_list = words_of(text)
        words = set(word_list)
        shared = len(words & query_words)
        text_trigrams = trigrams(text)
        num_shared_trigrams = len(text_trigrams & query_trigrams)
        rows.append(
            (
                shared / max(1, len(words) + len(query_words) - shared),
                shared / max(1, len(query_words)),
                num_shared_trigrams
                / max(1, len(text_trigrams) + len(query_trigrams) - num_shared_trigrams),
                len(word_list) / 8,
                (len(words) - shared) / 8,
                float(text.startswith(query)),
                len(text) / 64,
                scenario.completes_prefix,
                scenario.has_auxiliary_text,
            )
        )
    features[:, 3 : len(_TEXT_FEATURES)] = rows
    if figures_CT is not None:
        features[:, len(_TEXT_FEATURES) :] = figures_CT
    return features


def trigrams(text: str) -> set[str]:
    """Returns the character trigrams of a text with a space on either side."""
    padded = f" {text} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}
