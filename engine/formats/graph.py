"""The graph of an index: HNSW over query embeddings in half precision, by faiss.

Rows are numbered as they were added. Knows nothing of queries. Immutable while serving: the file
is mapped, so all processes that serve one bundle share its pages.
"""

# X rows, D dimensions, K nearest
from pathlib import Path
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int32]


class Graph:
    """Vectors and the links between them. Searches may run in several threads at once."""

    def __init__(self, index: faiss.IndexHNSW) -> None:
        """Wraps faiss's own object; see `empty` and `load`."""
        self._index = index

    @classmethod
    def empty(cls, dim: int, *, m: int, ef_construction: int) -> Self:
        """Returns a graph to add vectors to.

        Args:
            dim: Of a vector.
            m: Links of a vector on every layer but the lowest, which has twice as many.
            ef_construction: Effort when adding.
        """
        kind = faiss.ScalarQuantizer.QT_fp16
        # faiss's own types know another constructor only.
        index = faiss.IndexHNSWSQ(dim, kind, m, faiss.METRIC_INNER_PRODUCT)  # pyright: ignore[reportArgumentType]
        index.hnsw.efConstruction = ef_construction
        return cls(index)

    @classmethod
    def load(cls, path: Path, *, dim: int, ef_search: int) -> Self:
        """Maps a file that `save` wrote. Lets other threads run meanwhile.

        Raises:
            ValueError: it is no such file, or holds vectors of another dimension.
            OSError: it cannot be read.
        """
        path.open("rb").close()  # whose error says what is wrong
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"{path}: is no graph of faiss, or a damaged one") from error
        wanted = (faiss.METRIC_INNER_PRODUCT, dim)
        if not isinstance(index, faiss.IndexHNSWSQ) or (index.metric_type, index.d) != wanted:
            raise ValueError(
                f"{path}: holds {type(index).__name__}, metric {index.metric_type}, {index.d} "
                f"dimensions; should be IndexHNSWSQ, metric {wanted[0]}, {dim}"
            )
        index.hnsw.efSearch = ef_search
        return cls(index)

    def __len__(self) -> int:
        """Returns the number of vectors."""
        return self._index.ntotal

    def add(self, embeddings_XD: Floats, *, num_threads: int) -> None:
        """Adds vectors of unit norm; with more than one thread, no two graphs are the same."""
        faiss.omp_set_num_threads(num_threads)
        self._index.add(embeddings_XD)

    def save(self, path: Path) -> None:
        """Writes the file that `load` maps.

        Raises:
            OSError: it cannot be written, as on a full disk.
        """
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written: {error}") from error

    def nearest(self, embedding_D: Floats, k: int) -> tuple[Rows, Floats]:
        """Returns up to k rows by cosine similarity with a unit embedding, best first."""
        similarity_1K, rows_1K = self._index.search(embedding_D[None], min(k, len(self)))
        is_found_K = rows_1K[0] >= 0  # a damaged graph may find fewer
        return rows_1K[0][is_found_K].astype(np.int32), similarity_1K[0][is_found_K]

    def vectors(self, rows: NDArray[np.int64]) -> Floats:
        """Returns the embeddings of rows, float32 (rows, D), as precise as half precision is."""
        return self._index.reconstruct_batch(rows)
