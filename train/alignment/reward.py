"""What a list is worth: the click probabilities of its texts, examined from the top down.

Knows nothing of models: probabilities come as arguments.
"""

# C texts of a list, P positions
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.answering.ranking import QUERY_WORD_WEIGHT
from engine.formats.words import words_of
from train.clicks.calibration import seen_at

_SIMILAR, _SAME = 0.35, 0.9  # similarity from which a text repeats another, and wholly does
Floats = NDArray[np.float64]


def list_reward(
    p_seen_C: Floats, texts: Sequence[str], query: str, seen_P: Sequence[float], num_shown: int
) -> float:
    """Returns the expected number of clicks on a list, as the engine would show it.

    Texts are taken best first; each is worth p(seen at its position) * p(click | seen) * (1 -
    how much of it a better one says already). What repeats another wholly adds nothing.

    Args:
        p_seen_C: p(click | seen) of each text; 0 for one that must not be shown.
        texts: normalised.
        query: normalised query or prefix; its words say little about how texts differ.
        seen_P: p(seen) by position; beyond its end the last value. Empty: 1 everywhere.
        num_shown: texts that fit the panel.
    """
    if not len(p_seen_C):
        return 0.0
    fresh_C = p_seen_C * freshness(p_seen_C, texts, query)
    best = np.sort(fresh_C)[::-1][:num_shown]
    return float(seen_at(seen_P, np.arange(len(best))) @ best)


def ranking(p_seen_C: Floats, texts: Sequence[str], query: str) -> list[int]:
    """Returns all places of texts, picked one by one by what they add to those before.

    Ties go to the earlier text.
    """
    return [place for place, _ in picks(p_seen_C, texts, query)]


def picks(p_seen_C: Floats, texts: Sequence[str], query: str) -> list[tuple[int, float]]:
    """Returns the same with what each text adds, which never rises."""
    added_C = p_seen_C.astype(np.float64, copy=True)
    kept_CC = 1 - _repeats(texts, query)
    picked: list[tuple[int, float]] = []
    for _ in texts:
        pick = int(added_C.argmax())
        picked.append((pick, float(added_C[pick])))
        added_C[pick] = -1.0
        added_C = np.where(added_C < 0, added_C, added_C * kept_CC[pick])
    return picked


def freshness(p_seen_C: Floats, texts: Sequence[str], query: str) -> Floats:
    """Returns the share of its worth that each text keeps beside the better ones, (C)."""
    order = np.argsort(-p_seen_C, kind="stable")
    repeats_CC = _repeats([texts[int(i)] for i in order], query)
    is_better_CC = np.tri(len(texts), k=-1, dtype=bool)  # column before row
    kept_C = np.empty(len(texts))
    kept_C[order] = np.where(is_better_CC, 1 - repeats_CC, 1.0).prod(1)
    return kept_C


def _repeats(texts: Sequence[str], query: str) -> Floats:
    """Returns how much of each text another one says, (C, C) in [0, 1]."""
    return np.clip((_similarities(texts, query) - _SIMILAR) / (_SAME - _SIMILAR), 0, 1)


def _similarities(texts: Sequence[str], query: str) -> Floats:
    """Returns (C, C): Jaccard similarity of the sets of words, weighted as in serving."""
    columns: dict[str, int] = {}
    rows = [[columns.setdefault(w, len(columns)) for w in set(words_of(t))] for t in texts]
    incidence_CW = np.zeros((len(rows), len(columns)))
    for row, words in zip(incidence_CW, rows, strict=True):
        row[words] = 1
    weights_W = np.ones(len(columns))
    weights_W[[columns[w] for w in set(words_of(query)) if w in columns]] = QUERY_WORD_WEIGHT
    shared_CC = (incidence_CW * weights_W) @ incidence_CW.T
    size_C = incidence_CW @ weights_W
    return shared_CC / np.maximum(size_C[:, None] + size_C[None, :] - shared_CC, 1e-6)
