"""A bundle's index, searched with faiss. Knows nothing of how vectors were made."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from engine.formats.index import CooccurrenceIndex, Rows
from engine.formats.manifest import IndexSpec

Floats = NDArray[np.float32]


class FaissIndex(CooccurrenceIndex):
    """The same queries, vectors and lists."""

    def __init__(self, directory: Path, spec: IndexSpec) -> None:
        """Reads the index and builds faiss's graph of its vectors, with the same parameters.

        Raises:
            BundleError: a file is missing or does not fit the others.
        """
        super().__init__(directory, spec)
        self._hnsw = faiss.IndexHNSWFlat(spec.embedding_dim, spec.m, faiss.METRIC_INNER_PRODUCT)
        self._hnsw.hnsw.efConstruction = spec.ef_construction
        self._hnsw.add(self.vectors(np.arange(len(self))))
        self._hnsw.hnsw.efSearch = spec.ef_search

    def nearest(self, embedding_D: Floats, k: int) -> tuple[Rows, Floats]:
        """Returns up to k rows by cosine similarity with a unit embedding, best first."""
        similarity_1K, rows_1K = self._hnsw.search(embedding_D[None], min(k, len(self)))
        is_found_K = rows_1K[0] >= 0
        return rows_1K[0][is_found_K].astype(np.int32), similarity_1K[0][is_found_K]
