"""The mined queries, their pairs by row, and these as the co-occurrence lists that are served.

Index, click model and generator read them here, so that all are trained on what will be served.
Knows nothing of models.
"""

# Q queries, P pairs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.formats.index import Edges
from train.mining.mine import PAIRS, QUERIES

# How often a query was searched: in the whole log, or before the validation cut.
EVER, BEFORE_CUT = "num_searches", "num_searches_before_cut"
Ids = NDArray[np.int64]


class Pairs(NamedTuple):
    """Ordered pairs of queries; (P) each."""

    sources: Ids  # rows
    targets: Ids
    npmi: NDArray[np.float32]  # or what `mine.association` says
    num_pairs: Ids  # occurrences
    num_users: Ids

    def among(self, is_kept_Q: NDArray[np.bool_]) -> "Pairs":
        """Returns those of which both queries are kept, by row among the kept ones."""
        row_Q = np.cumsum(is_kept_Q) - 1
        is_kept_P = is_kept_Q[self.sources] & is_kept_Q[self.targets]
        return Pairs(
            row_Q[self.sources[is_kept_P]],
            row_Q[self.targets[is_kept_P]],
            self.npmi[is_kept_P],
            self.num_pairs[is_kept_P],
            self.num_users[is_kept_P],
        )


def read_queries(mined: Path, searches: str) -> pa.Table:
    """Returns the mined queries (`text`) and how often they were searched, `EVER` or `BEFORE_CUT`.

    Raises:
        ValueError: an older release mined them, and did not count that.
    """
    path = mined / QUERIES
    if searches not in pq.read_schema(path).names:
        raise ValueError(
            f"{path}: lacks the column {searches}: an older release wrote it; run "
            "`queryrec-train mine --force`"
        )
    return pq.read_table(path, columns=["text", searches])


def read_pairs(mined: Path, texts: Sequence[str]) -> Pairs:
    """Returns the mined pairs between rows of `texts`.

    Raises:
        ValueError: a pair names a query that is not in `texts`.
    """
    table = pq.read_table(mined / PAIRS)
    ends: list[Ids] = []
    for name in ("source", "target"):
        rows = rows_of(table[name], texts)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            length = len(table[name][int(unknown[0])].as_py())
            raise ValueError(
                f"{mined / PAIRS} has the query {length} characters long that queries.parquet "
                "lacks: mine again"
            )
        ends.append(rows)
    return Pairs(
        *ends,
        npmi=table["association"].to_numpy().astype(np.float32),
        num_pairs=table["num_pairs"].to_numpy(),
        num_users=table["num_users"].to_numpy(),
    )


def rows_of(column: pa.ChunkedArray, texts: Sequence[str]) -> Ids:
    """Returns the row in `texts` of each value of a column, -1 where there is none."""
    known = pa.array(texts, column.type)
    places: Any = pc.index_in(column, value_set=known)  # pyright: ignore[reportAttributeAccessIssue]
    return pc.fill_null(places, -1).to_numpy().astype(np.int64)


def read_edges(run: Path, texts: Sequence[str], max_edges: int) -> Edges:
    """Returns the mined pairs of a run as co-occurrence lists; see `edge_lists`, `read_pairs`."""
    return edge_lists(read_pairs(run / "mined", texts), len(texts), max_edges)


def edge_lists(pairs: Pairs, num_queries: int, max_edges: int) -> Edges:
    """Returns up to `max_edges` targets per source: best NPMI first, ties by count, then row."""
    order = np.lexsort((pairs.targets, -pairs.num_pairs, -pairs.npmi, pairs.sources))
    sources, targets, npmi = pairs.sources[order], pairs.targets[order], pairs.npmi[order]
    first = np.searchsorted(sources, np.arange(num_queries + 1))
    kept = np.arange(len(sources)) - first[sources] < max_edges
    counts = np.bincount(sources[kept], minlength=num_queries)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Edges(offsets, targets[kept].astype(np.int32), npmi[kept])
