"""The co-occurrence index: what people searched, how often, and what they searched next.

Files of the index directory, all written by `write_index` (Q queries sorted by their UTF-8
bytes, E co-occurrence edges):

    texts.bin, text_offsets.npy     int64 (Q + 1): UTF-8 texts, end to end
    popularity.npy                  float32 (Q): searches per query
    edge_offsets.npy                int64 (Q + 1), edges.npy int32 (E), npmi.npy float32 (E):
                                    per query the rows searched next, best association first
    by_popularity.npy               int32 (min(Q, 1000)): the most searched rows
    hnsw.faiss                      graph over the query embeddings: see graph.py

Sorted texts make an exact look-up, and a look-up by prefix, a binary search on a memory map.
Knows nothing of how texts were mined or embedded. Immutable while serving.
"""

import mmap
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.formats.graph import Floats, Graph, Rows
from engine.formats.manifest import BundleError, IndexSpec

GRAPH = "hnsw.faiss"
_NUM_POPULAR = 1000
_NUM_FENCES = 4096  # texts held as bytes objects: searching among them takes a microsecond
_BEYOND = b"\xff"  # in no UTF-8: after all texts that start alike
_BLOCK = 64  # rows whose highest and summed popularity are held
_CHUNK = 20_000  # vectors added between two lines of progress
_ROUNDING = 1e-3  # of a similarity, in half precision
Report = Callable[[str], None]


class Edges(NamedTuple):
    """Co-occurrence lists of Q queries as flat arrays (CSR)."""

    offsets: NDArray[np.int64]  # (Q + 1)
    rows: Rows  # (E), best association first within a query
    npmi: Floats  # (E)


def write_index(
    directory: Path,
    *,
    texts: Sequence[str],
    popularity: Floats,
    edges: Edges,
    embeddings: Floats,
    m: int = 16,
    ef_construction: int = 100,
    num_threads: int = 1,
    report: Report = lambda _: None,
) -> None:
    """Writes the index files.

    Args:
        directory: Made if it is not there.
        texts: (Q) queries, sorted.
        popularity: (Q) searches of each.
        edges: What was searched next.
        embeddings: float32 (Q, D) of unit norm.
        m: Of HNSW, as the next one: links of a vector.
        ef_construction: Effort when building.
        num_threads: With more than one, vectors are inserted in another order every time, so the
            graph differs from build to build.
        report: Called with a line of progress.

    Raises:
        ValueError: texts are not strictly increasing in their UTF-8 bytes, or lengths differ.
    """
    encoded = [t.encode("utf-8") for t in texts]
    if any(a >= b for a, b in pairwise(encoded)):
        raise ValueError("index texts must be distinct and sorted by their UTF-8 bytes")
    num_queries = len(encoded)
    if not (len(popularity) == len(embeddings) == len(edges.offsets) - 1 == num_queries):
        raise ValueError(
            f"{num_queries} texts, {len(popularity)} popularities, {len(embeddings)} embeddings "
            f"and {len(edges.offsets) - 1} co-occurrence lists do not belong together"
        )
    if num_queries == 0:
        raise ValueError("an index needs at least one query")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "texts.bin").write_bytes(b"".join(encoded))
    lengths = np.fromiter((len(t) for t in encoded), np.int64, num_queries)
    np.save(directory / "text_offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(directory / "popularity.npy", popularity.astype(np.float32))
    np.save(directory / "edge_offsets.npy", edges.offsets.astype(np.int64))
    np.save(directory / "edges.npy", edges.rows.astype(np.int32))
    np.save(directory / "npmi.npy", edges.npmi.astype(np.float32))
    order = np.argsort(-popularity, kind="stable")[:_NUM_POPULAR]
    np.save(directory / "by_popularity.npy", order.astype(np.int32))
    graph = Graph.empty(embeddings.shape[1], m=m, ef_construction=ef_construction)
    for start in range(0, num_queries, _CHUNK):
        graph.add(embeddings[start : start + _CHUNK], num_threads=num_threads)
        report(f"index: {len(graph)} of {num_queries} vectors linked")
    graph.save(directory / GRAPH)


class CooccurrenceIndex:
    """A loaded index. All methods are safe to call from several threads."""

    def __init__(self, directory: Path, spec: IndexSpec, *, has_graph: bool = True) -> None:
        """Maps the files.

        Args:
            directory: Where they are.
            spec: Of the manifest.
            has_graph: False leaves the graph where it is, as when nearest queries are found
                elsewhere; then `nearest`, `vectors` and `lost_rows` must not be called.

        Raises:
            BundleError: a file is missing or does not fit the manifest.
        """
        self._spec = spec
        try:
            self._texts = _mapped_bytes(directory / "texts.bin")
            self._text_offsets: NDArray[np.int64] = _mapped(directory / "text_offsets.npy")
            self._popularity: Floats = _mapped(directory / "popularity.npy")
            self._edge_offsets: NDArray[np.int64] = _mapped(directory / "edge_offsets.npy")
            self._edges: Rows = _mapped(directory / "edges.npy")
            self._npmi: Floats = _mapped(directory / "npmi.npy")
            self._by_popularity: Rows = _mapped(directory / "by_popularity.npy")
            self._graph: Graph | None = None
            if has_graph:
                self._graph = Graph.load(
                    directory / GRAPH, dim=spec.embedding_dim, ef_search=spec.ef_search
                )
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{directory}: index cannot be loaded: {error}") from error
        num_vectors = spec.num_queries if self._graph is None else len(self._graph)
        sizes = (len(self._text_offsets) - 1, len(self._popularity), len(self._edge_offsets) - 1)
        if {*sizes, num_vectors} != {spec.num_queries}:
            raise BundleError(
                f"{directory}: holds {sizes} rows and {num_vectors} vectors, "
                f"the manifest says {spec.num_queries} queries"
            )
        blocks = np.arange(0, spec.num_queries, _BLOCK)
        self._peaks = np.maximum.reduceat(self._popularity, blocks)
        sums = np.add.reduceat(self._popularity, blocks, dtype=np.float64)
        self._sums = np.concatenate([[0.0], np.cumsum(sums)])
        self._stride = -(-spec.num_queries // _NUM_FENCES)
        self._fences = [bytes(self._bytes(r)) for r in range(0, len(self), self._stride)]

    def __len__(self) -> int:
        """Returns the number of queries."""
        return self._spec.num_queries

    def text(self, row: int) -> str:
        """Returns the text of a row."""
        return str(self._bytes(row), "utf-8")

    def texts(self, rows: Rows) -> list[str]:
        """Returns the texts of rows."""
        starts, ends = self._text_offsets[rows].tolist(), self._text_offsets[rows + 1].tolist()
        return [str(self._texts[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    def popularities(self, rows: Rows) -> list[float]:
        """Returns how often the queries of rows were searched."""
        return self._popularity[rows].tolist()

    def popularity(self, row: int) -> float:
        """Returns how often the row's query was searched."""
        return float(self._popularity[row])

    def find(self, text: str) -> int | None:
        """Returns the row of an exact (normalised) text, or None."""
        encoded = text.encode("utf-8")
        row = self._first_at_least(encoded)
        return row if row < len(self) and bytes(self._bytes(row)) == encoded else None

    def neighbours(self, row: int) -> tuple[Rows, Floats]:
        """Returns the rows searched after `row`'s query and their NPMI, best first."""
        start, end = int(self._edge_offsets[row]), int(self._edge_offsets[row + 1])
        return self._edges[start:end], self._npmi[start:end]

    def nearest(self, embedding_D: Floats, k: int) -> tuple[Rows, Floats]:
        """Returns up to k rows by cosine similarity with a unit embedding, best first."""
        assert self._graph is not None
        return self._graph.nearest(embedding_D, k)

    def vectors(self, rows: NDArray[np.int64]) -> Floats:
        """Returns the embeddings of rows, float32 (rows, D)."""
        assert self._graph is not None
        return self._graph.vectors(rows)

    def lost_rows(self, num_rows: int) -> list[int]:
        """Returns those of `num_rows` evenly spaced rows that a search for themselves misses.

        A sound graph finds nearly all, or another row with the same vector; a damaged one does not.
        """
        assert self._graph is not None
        rows = np.unique(np.linspace(0, len(self) - 1, min(num_rows, len(self))).astype(np.int64))
        vectors_XD = self._graph.vectors(rows)
        lost: list[int] = []
        for row, vector_D in zip(rows.tolist(), vectors_XD, strict=True):
            _, similarities = self._graph.nearest(vector_D, 10)
            if not similarities.max(initial=-1) >= vector_D @ vector_D - _ROUNDING:
                lost.append(row)
        return lost

    def starting_with(self, prefix: str, k: int) -> Rows:
        """Returns up to k rows whose text starts with `prefix`, most searched first.

        The query equal to the prefix counts too. Ties go to the lower row. Of a short prefix's many
        rows only the k blocks with the highest peaks are looked at: were one of the k most searched
        elsewhere, each of those blocks would hold a row that goes before it.
        """
        start, end = self._range(prefix)
        first, last = -(-start // _BLOCK), end // _BLOCK  # blocks that lie within
        if last - first <= 2 * k:
            return (start + _largest(self._popularity[start:end], k)).astype(np.int32)
        blocks = first + np.sort(_largest(self._peaks[first:last], k))
        within = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        parts = np.arange(start, first * _BLOCK), within, np.arange(last * _BLOCK, end)
        rows = np.concatenate(parts)
        return rows[_largest(self._popularity[rows], k)].astype(np.int32)

    def num_searches(self, prefix: str) -> float:
        """Returns how often queries that start with `prefix` were searched."""
        start, end = self._range(prefix)
        return self._searches_before(end) - self._searches_before(start)

    def popular(self, k: int) -> Rows:
        """Returns the k most searched rows; at most 1000."""
        return self._by_popularity[:k]

    def _bytes(self, row: int) -> memoryview:
        return self._texts[int(self._text_offsets[row]) : int(self._text_offsets[row + 1])]

    def _range(self, prefix: str) -> tuple[int, int]:
        """Returns the rows [start, end) whose text starts with `prefix`."""
        encoded = prefix.encode("utf-8")
        return self._first_at_least(encoded), self._first_at_least(encoded + _BEYOND)

    def _searches_before(self, row: int) -> float:
        block = row // _BLOCK
        rest = self._popularity[block * _BLOCK : row]
        return float(self._sums[block] + rest.sum(dtype=np.float64))

    def _first_at_least(self, encoded: bytes) -> int:
        """Returns the first row whose text is not less than some bytes."""
        fence = bisect_left(self._fences, encoded)
        low, high = max(0, (fence - 1) * self._stride), min(len(self), fence * self._stride)
        while low < high:
            middle = (low + high) // 2
            if bytes(self._bytes(middle)) < encoded:
                low = middle + 1
            else:
                high = middle
        return low


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """Returns where up to k of the largest values are, best first; ties go to the lower place."""
    kept = np.arange(len(values))
    if len(values) > k:
        least = np.partition(values, len(values) - k)[len(values) - k]
        above = np.flatnonzero(values > least)
        kept = np.sort(np.append(above, np.flatnonzero(values == least)[: k - len(above)]))
    return kept[np.argsort(-values[kept], kind="stable")]


def _mapped(path: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped.view(np.ndarray)  # slices of np.memmap cost 25 times as much


def _mapped_bytes(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
