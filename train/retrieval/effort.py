"""How hard an index is searched: the least effort that finds enough of the nearest queries.

The larger an index, the more effort the same recall takes, so a number that suits one is wrong for
another. Knows nothing of texts' meaning or of how they are embedded.
"""

# Q queries of the index, H probes, K nearest, D dimensions
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.formats.graph import Floats, Graph, Rows
from engine.formats.index import Report
from engine.formats.words import parts_of

_EFFORTS = (16, 24, 32, 48, 64, 96, 144, 192, 288, 384, 512)
_K = 10
_NUM_PROBES = 1000
_CHUNK = 20_000  # queries compared with all probes at once: 240 MB
_EQUAL = 1e-6  # similarities closer than this are one


def probe_texts(texts: Sequence[str], *, seed: int) -> list[str]:
    """Returns up to 1,000 texts to search with: queries whose last word is that of another.

    Queries of the index itself would be found too easily: each of them is linked.
    """
    rng = random.Random(seed)
    known, probes = set(texts), dict[str, None]()
    for text in rng.sample(texts, min(_NUM_PROBES, len(texts))):
        (words, space), (other, _) = parts_of(text), parts_of(rng.choice(texts))
        if (probe := space.join([*(words[:-1] or words), *other[-1:]])) not in known:
            probes[probe] = None
    return list(probes)


def least_effort(
    graph_file: Path,
    embeddings_QD: Floats,
    probes_HD: Floats,
    *,
    min_recall: float,
    otherwise: int = _EFFORTS[-1],
    report: Report = lambda _: None,
) -> int:
    """Returns the least `ef_search` with which the graph finds the share of the ten nearest.

    Args:
        graph_file: graph over the embeddings.
        embeddings_QD: float32, of unit norm.
        probes_HD: embeddings to search with.
        min_recall: share of the ten nearest by exact search that has to be found, of all probes
            together. Queries as near as the tenth count as found.
        otherwise: what is returned if there are no probes and more queries than the least effort
            looks at.
        report: called with a line that says what was found, and with a warning if even the most
            effort, which is returned then, finds less.
    """
    if not len(probes_HD):
        effort = _EFFORTS[0] if len(embeddings_QD) <= _EFFORTS[0] else otherwise
        report(f"index: ef_search {effort}: no probes could be made of the queries")
        return effort
    k = min(_K, len(embeddings_QD))
    exact_HK = exact_similarities(embeddings_QD, probes_HD, k)
    effort, recall = 0, 0.0
    for effort in _EFFORTS:
        graph = Graph.load(graph_file, dim=embeddings_QD.shape[1], ef_search=effort)
        found_H = [graph.nearest(probe_D, k)[0] for probe_D in probes_HD]
        recall = recall_of(found_H, embeddings_QD, probes_HD, exact_HK)
        if recall >= min_recall:
            break
    report(f"index: ef_search {effort} finds {recall:.3f} of the {k} nearest queries")
    if recall < min_recall:
        report(
            f"warning: index.min_recall {min_recall} is out of reach of ef_search {effort}: raise "
            "index.m or index.ef_construction, or lower it"
        )
    return effort


def recall_of(
    found_H: Sequence[Rows], embeddings_QD: Floats, asked_HD: Floats, exact_HK: Floats
) -> float:
    """Returns the share of the K nearest that was found.

    Args:
        found_H: up to K rows for each that was asked for.
        embeddings_QD: what was searched.
        asked_HD: what was searched for.
        exact_HK: `exact_similarities` of both. Rows as near as the last of them count.
    """
    num_found = 0
    for rows, asked_D, exact_K in zip(found_H, asked_HD, exact_HK, strict=True):
        num_found += int((embeddings_QD[rows] @ asked_D >= exact_K[-1] - _EQUAL).sum())
    return num_found / exact_HK.size


def exact_similarities(embeddings_QD: Floats, asked_HD: Floats, k: int = _K) -> Floats:
    """Returns float32 (H, k): similarities of the nearest by exact search, best first."""
    best_HK = np.full((len(asked_HD), k), -np.inf, np.float32)
    for start in range(0, len(embeddings_QD), _CHUNK):
        part_HX = asked_HD @ embeddings_QD[start : start + _CHUNK].T
        both_HX = np.concatenate([best_HK, part_HX], 1)
        best_HK = np.partition(both_HX, -k, axis=1)[:, -k:]
    return -np.sort(-best_HK, axis=1)
