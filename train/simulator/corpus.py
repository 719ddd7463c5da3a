"""Real queries, split into those that simulated users type and those that only the truth reads.

It knows nothing of intents or clicks. Popularity is not here: no source carries it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.simulator import text


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A split of real queries; `logged` and `hidden` share no query and hold no held-out one.

    Attributes:
        logged: what simulated users type and what panels show, sorted.
        hidden: what defines the truth (co-occurrence of words, well-formedness), sorted.
        barred: the held-out queries as tuples of words.
        source_sha256: hash of the query file's bytes.
    """

    logged: list[str]
    hidden: list[str]
    barred: set[tuple[str, ...]]
    source_sha256: str


def read_heldout(path: Path) -> list[str]:
    """Returns the queries of a held-out list, one a line, plain or gzip."""
    lines = _read(path).decode("utf-8").splitlines()
    heldout = [line.strip() for line in lines if line.strip()]
    if not heldout:
        raise ValueError(f"{path} holds no query: a held-out list needs one query a line")
    return heldout


def read(path: Path, *, heldout: list[str], num_logged: int, seed: int) -> Corpus:
    """Reads `query, source, slice` rows and splits them at random, by the seed alone.

    A logged query has at most 7 words, each content word known from at least 4 queries, because
    simulated users have to reach it from others; 3 % are exempt, so that rare words occur too.
    Queries that another one narrows down by one word, or that do so, are six times as likely.
    Japanese queries are left out: the truth reads words between spaces.

    Args:
        path: TSV with a header, plain or gzip.
        heldout: queries to leave out of both halves; compared normalised, punctuation removed.
        num_logged: size of `Corpus.logged`.
        seed: of the split.

    Raises:
        ValueError: if a column is missing or fewer queries qualify than `num_logged`.
    """
    raw = _read(path)
    rows = [line.split("\t") for line in raw.decode("utf-8").splitlines()]
    header = rows[0] if rows else []
    missing = [name for name in ("query", "slice") if name not in header]
    if missing:
        raise ValueError(f"{path} lacks column(s) {', '.join(missing)}; it has {header}")
    query_column, slice_column = header.index("query"), header.index("slice")
    barred = {text.words(text.normalised(query)) for query in heldout}
    queries = sorted(
        {
            text.normalised(row[query_column])
            for row in rows[1:]
            if row[slice_column] in ("ascii", "latin")
            and text.words(text.normalised(row[query_column])) not in barred
        }
        - {""}
    )
    num_queries_of: Counter[str] = Counter()
    for query in queries:
        num_queries_of.update(text.content_stems(query))
    rng = np.random.default_rng([seed, 1])
    exempt = rng.random(len(queries)) < 0.03
    eligible = [
        index
        for index, query in enumerate(queries)
        if 1 <= len(text.words(query)) <= 7
        and text.content_stems(query)
        and (exempt[index] or min(num_queries_of[s] for s in text.content_stems(query)) >= 4)
    ]
    if len(eligible) < num_logged:
        raise ValueError(
            f"{path} has {len(eligible)} queries that simulated users could type, "
            f"but num_logged is {num_logged}: ask for fewer or bring more queries"
        )
    weights = _family_weights([queries[index] for index in eligible])
    # The largest u ** (1 / weight): weighted sampling without replacement (Efraimidis & Spirakis).
    keys = np.log(rng.random(len(eligible))) / weights
    chosen = set(np.array(eligible)[np.argsort(-keys, kind="stable")[:num_logged]].tolist())
    return Corpus(
        logged=[query for index, query in enumerate(queries) if index in chosen],
        hidden=[query for index, query in enumerate(queries) if index not in chosen],
        barred=barred,
        source_sha256=hashlib.sha256(raw).hexdigest(),
    )


def _family_weights(queries: list[str]) -> np.ndarray:
    """Returns 6 for a query that narrows down another one or is narrowed down, otherwise 1."""
    stems_of = [tuple(sorted(text.content_stems(query))) for query in queries]
    known = set(stems_of)
    parents: set[tuple[str, ...]] = set()
    has_parent = np.zeros(len(queries), dtype=bool)
    for index, stems in enumerate(stems_of):
        for left_out in range(len(stems) if len(stems) > 1 else 0):
            parent = stems[:left_out] + stems[left_out + 1 :]
            if parent in known:
                parents.add(parent)
                has_parent[index] = True
    is_parent = np.array([stems in parents for stems in stems_of])
    return np.where(has_parent | is_parent, 6.0, 1.0)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        with gzip.open(io.BytesIO(raw)) as file:
            return file.read()
    return raw
