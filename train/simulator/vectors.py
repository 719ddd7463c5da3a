"""Hidden word space: which words belong together in real queries, learned by counting.

It knows nothing of scenarios or clicks and shares no model with training.

Association of two stems is positive pointwise mutual information over the hidden queries,
`ppmi(a, s) = max(0, log(n_as * N / (n_a * n_s)))`, with context counts raised to 0.75. Word
vectors are a randomised truncated SVD of that matrix (Halko et al. 2011), `U * sqrt(S)`, rows
scaled to unit length. A query's vector is the idf-weighted mean of its words', unit length.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from train.simulator import text

MIN_QUERIES = 3  # a word seen in fewer real queries has no vector: it is noise to the truth
DIM = 48

# V words known, E pairs, D vector dim


@dataclass(frozen=True, slots=True)
class WordSpace:
    """Word statistics; row V (the last) stands for every unknown word.

    Attributes:
        stems: the V known stems, sorted.
        idf: float64 (V+1,), `log(N / n)`, unknown words get the largest.
        vectors: float32 (V+1, D), unit rows, the unknown word is 0.
        pair_keys: int64 (E,), sorted `a * V + b` of co-occurring pairs, both orders.
        pair_ppmi: float32 (E,).
    """

    stems: list[str]
    idf: np.ndarray
    vectors: np.ndarray
    pair_keys: np.ndarray
    pair_ppmi: np.ndarray

    def ppmi(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns float32 ppmi of word ids of any equal shape; 0 where a pair was never seen."""
        num_words = len(self.stems)
        if not len(self.pair_keys):
            return np.zeros(a.shape, dtype=np.float32)
        keys = a * num_words + b
        at = np.minimum(np.searchsorted(self.pair_keys, keys), len(self.pair_keys) - 1)
        is_known = (self.pair_keys[at] == keys) & (a < num_words) & (b < num_words)
        return np.where(is_known, self.pair_ppmi[at], np.float32(0))


def learn(queries: list[str], *, seed: int) -> WordSpace:
    """Returns the word space of real queries; the seed only starts the SVD."""
    stems_of = [text.content_stems(query) for query in queries]
    counts: Counter[str] = Counter()
    for stems in stems_of:
        counts.update(stems)
    stems = sorted(stem for stem, count in counts.items() if count >= MIN_QUERIES)
    id_of = {stem: index for index, stem in enumerate(stems)}
    num_words = len(stems)
    keys: list[int] = []
    for query_stems in stems_of:
        ids = [id_of[s] for s in query_stems if s in id_of]
        keys.extend(a * num_words + b for a in ids for b in ids if a != b)
    pair_keys, pair_counts = np.unique(np.array(keys, dtype=np.int64), return_counts=True)
    count = np.array([counts[stem] for stem in stems], dtype=np.float64)
    num_queries = len(queries)
    rows, columns = pair_keys // max(num_words, 1), pair_keys % max(num_words, 1)
    smooth = count**0.75
    context_share = smooth / smooth.sum() * count.sum() / num_queries if num_words else smooth
    # One count is subtracted in part: a pair seen once is weak evidence for rare words.
    pmi = np.log(
        (pair_counts - 0.4) / (count[rows] * np.minimum(context_share[columns], 1.0) + 1e-12)
    )
    ppmi = np.maximum(pmi, 0.0).astype(np.float32)
    idf = np.append(np.log(num_queries / count), np.log(max(num_queries, 2)))
    vectors = _svd_rows(rows, columns, ppmi, num_words, seed)
    vectors = np.vstack([vectors, np.zeros((1, DIM), dtype=np.float32)])
    return WordSpace(stems, idf, vectors, pair_keys, ppmi)


def _svd_rows(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, num_words: int, seed: int
) -> np.ndarray:
    # Rows are sorted, so a sparse product is a gather and a segmented sum.
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    present = rows[starts]

    def product(dense: np.ndarray) -> np.ndarray:
        result = np.zeros((num_words, dense.shape[1]), dtype=np.float32)
        if len(starts):
            gathered = dense[columns] * values[:, None]
            result[present] = np.add.reduceat(gathered, starts, axis=0)
        return result

    # The matrix is nearly symmetric, so its product stands for that of its transpose.
    rng = np.random.default_rng([seed, 2])
    basis = rng.standard_normal((num_words, DIM + 12)).astype(np.float32)
    for _ in range(4):
        basis = np.linalg.qr(product(basis))[0]
    small = basis.T @ product(basis)
    small = (small + small.T) / 2
    values_d, vectors_d = np.linalg.eigh(small.astype(np.float64))
    top = np.argsort(-np.abs(values_d))[:DIM]
    result = (basis @ vectors_d[:, top]) * np.sqrt(np.abs(values_d[top]))
    signs = np.sign(result[np.abs(result).argmax(axis=0), np.arange(result.shape[1])])
    result *= np.where(signs == 0, 1, signs)
    if result.shape[1] < DIM:
        result = np.pad(result, ((0, 0), (0, DIM - result.shape[1])))
    lengths = np.linalg.norm(result, axis=1, keepdims=True)
    return np.where(lengths > 1e-9, result / np.maximum(lengths, 1e-9), 0).astype(np.float32)
