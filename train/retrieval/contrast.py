"""What the encoder learns from: the contrastive loss, who co-occurs with whom, hard negatives.

Knows nothing of models or of the order of training.
"""

# B batch of pairs, N columns of candidates, H negatives, Q queries, D model dim
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.formats.words import words_of

_NEGATIVES_PER_QUERY = 4
_MAX_WORD_QUERIES = 1000  # words in more queries than this do not make two queries similar
Ids = NDArray[np.int64]


def info_nce(
    anchors_BD: Tensor,
    positives_BD: Tensor,
    negatives_HD: Tensor,
    *,
    ignored_BN: Tensor,
    weights_B: Tensor,
    temperature: float,
) -> Tensor:
    """Returns the symmetric contrastive loss of B pairs, a scalar.

    SimCSE's l_i = -log(exp(sim(a_i, p_i) / t) / sum_n exp(sim(a_i, n) / t)), where n runs over
    all positives and negatives of the batch; averaged with the same in the other direction
    (p_i against all anchors). Computed in float32, also under autocast.

    Args:
        anchors_BD: unit norm.
        positives_BD: unit norm; row i belongs to anchor i.
        negatives_HD: unit norm, H >= 0 further candidates for all anchors.
        ignored_BN: bool, N = B + H: columns that are no negatives of anchor i because they are
            in truth its neighbours or itself. The diagonal is never ignored.
        weights_B: weight of each pair; the loss is the weighted mean.
        temperature: t.
    """
    num_pairs = len(anchors_BD)
    labels_B = torch.arange(num_pairs, device=anchors_BD.device)
    diagonal_BB = torch.eye(num_pairs, dtype=torch.bool, device=anchors_BD.device)
    ignored_BN = ignored_BN & ~F.pad(diagonal_BB, (0, ignored_BN.shape[1] - num_pairs))
    candidates_ND = torch.cat([positives_BD, negatives_HD])
    with torch.autocast(anchors_BD.device.type, enabled=False):
        logits_BN = anchors_BD.float() @ candidates_ND.float().T / temperature
    logits_BN = logits_BN.masked_fill(ignored_BN, -torch.inf)
    forward_B = F.cross_entropy(logits_BN, labels_B, reduction="none")
    backward_B = F.cross_entropy(logits_BN[:, :num_pairs].T, labels_B, reduction="none")
    return ((forward_B + backward_B) * weights_B).sum() / (2 * weights_B.sum())


class CooccurrenceGraph:
    """Which of Q queries co-occur, in either direction. Immutable."""

    def __init__(self, sources: Ids, targets: Ids, npmi: NDArray[np.float32], num_queries: int):
        """Joins both directions of each pair; the better association counts."""
        self._num_queries = num_queries
        low, high = np.minimum(sources, targets), np.maximum(sources, targets)
        keys = low * num_queries + high
        order = np.lexsort((-npmi, keys))
        keys, first = np.unique(keys[order], return_index=True)
        self.npmi = npmi[order][first]
        self.pairs = np.stack([keys // num_queries, keys % num_queries], axis=1)  # (pairs, 2)
        self._keys = keys

    def are_linked(self, a: Ids, b: Ids) -> NDArray[np.bool_]:
        """Returns, element by element, whether two queries co-occur or are the same."""
        keys = np.minimum(a, b) * self._num_queries + np.maximum(a, b)
        if len(self._keys) == 0:
            return a == b
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return (self._keys[positions] == keys) | (a == b)


def hard_negatives(texts: Sequence[str], graph: CooccurrenceGraph, seed: int) -> Ids:
    """Returns int64 (Q, 4): per query others that share a word but were never searched with it.

    Queries of the same words (in another order) are not taken. Where no other query shares a
    word, queries next to it in the order of `texts` are taken, and in the last resort random
    ones.
    """
    random = np.random.default_rng(seed)
    num_queries = len(texts)
    word_sets = [frozenset(words_of(t)) for t in texts]
    set_ids: dict[frozenset[str], int] = {}
    signatures = np.array([set_ids.setdefault(words, len(set_ids)) for words in word_sets])
    word_ids: dict[str, int] = {}
    flat = [word_ids.setdefault(w, len(word_ids)) for words in word_sets for w in sorted(words)]
    owners = np.repeat(np.arange(num_queries), [len(words) for words in word_sets])
    words = np.array(flat, np.int64)
    num_owners = np.bincount(words, minlength=len(word_ids))
    useful = (num_owners[words] >= 2) & (num_owners[words] <= _MAX_WORD_QUERIES)
    owners, words = owners[useful], words[useful]
    words_start = np.searchsorted(owners, np.arange(num_queries + 1))
    by_word = np.argsort(words, kind="stable")
    word_start = np.searchsorted(words[by_word], np.arange(len(word_ids) + 1))

    rows = np.repeat(np.arange(num_queries), _NEGATIVES_PER_QUERY)
    found = random.integers(num_queries, size=len(rows))
    is_open = np.ones(len(rows), np.bool_)
    for attempt in range(6):
        at = np.flatnonzero(is_open)
        row = rows[at]
        if attempt < 4:
            num_words = words_start[row + 1] - words_start[row]
            at, row, num_words = at[num_words > 0], row[num_words > 0], num_words[num_words > 0]
            word = words[words_start[row] + random.integers(num_words)]
            posting = word_start[word] + random.integers(word_start[word + 1] - word_start[word])
            candidates = owners[by_word[posting]]
        else:
            candidates = (row + random.integers(-8, 9, size=len(row))) % num_queries
        good = ~graph.are_linked(row, candidates) & (signatures[row] != signatures[candidates])
        found[at[good]] = candidates[good]
        is_open[at[good]] = False
    return found.reshape(num_queries, _NEGATIVES_PER_QUERY)
