"""How hard an index is searched: the least effort that finds enough of the nearest queries.

The larger an index, the more effort the same recall takes, so a number that suits one is wrong for
another. Knows nothing of texts' meaning or of how they are embedded.
"""

# Q queries of the index, H probes, K nearest, D dimensions
import random
from collections.abc import Sequence
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray

from engine.formats.index import Report

_EFFORTS = (16, 24, 32, 48, 64, 96, 144, 192, 288, 384, 512)
_K = 10
_NUM_PROBES = 1000
_CHUNK = 20_000  # queries compared with all probes at once: 240 MB
_EQUAL = 1e-6  # similarities closer than this are one
Floats = NDArray[np.float32]


def probe_texts(texts: Sequence[str], *, seed: int) -> list[str]:
    """Returns up to 1,000 texts to search with: queries whose last word is that of another.

    Queries of the index itself would be found too easily: each of them is linked.
    """
    rng = random.Random(seed)
    known, probes = set(texts), dict[str, None]()
    for text in rng.sample(texts, min(_NUM_PROBES, len(texts))):
        words, other = text.split(), rng.choice(texts).split()
        if (probe := " ".join([*(words[:-1] or words), *other[-1:]])) not in known:
            probes[probe] = None
    return list(probes)


def least_effort(
    graph_file: Path,
    embeddings_QD: Floats,
    probes_HD: Floats,
    *,
    min_recall: float,
    report: Report = lambda _: None,
) -> int:
    """Returns the least `ef_search` with which the graph finds the share of the ten nearest.

    Args:
        graph_file: hnswlib graph over the embeddings.
        embeddings_QD: float32, of unit norm.
        probes_HD: embeddings to search with.
        min_recall: share of the ten nearest by exact search that has to be found, of all probes
            together. Queries as near as the tenth count as found.
        report: called with a line that says what was found, and with a warning if even the most
            effort, which is returned then, finds less.
    """
    graph = hnswlib.Index(space="ip", dim=embeddings_QD.shape[1])
    graph.load_index(str(graph_file))
    k = min(_K, len(embeddings_QD))
    tenth_H = exact_similarities(embeddings_QD, probes_HD, k)[:, -1]
    effort, recall = 0, 0.0
    for effort in _EFFORTS:
        graph.set_ef(effort)
        _, distances_HK = graph.knn_query(probes_HD, k=k, num_threads=1)
        recall = float((1 - distances_HK >= tenth_H[:, None] - _EQUAL).mean())
        if recall >= min_recall:
            break
    report(f"index: ef_search {effort} finds {recall:.3f} of the {k} nearest queries")
    if recall < min_recall:
        report(
            f"warning: index.min_recall {min_recall} is out of reach of ef_search {effort}: raise "
            "index.m or index.ef_construction, or lower it"
        )
    return effort


def exact_similarities(embeddings_QD: Floats, asked_HD: Floats, k: int = _K) -> Floats:
    """Returns float32 (H, k): similarities of the nearest by exact search, best first."""
    best_HK = np.full((len(asked_HD), k), -np.inf, np.float32)
    for start in range(0, len(embeddings_QD), _CHUNK):
        part_HX = asked_HD @ embeddings_QD[start : start + _CHUNK].T
        both_HX = np.concatenate([best_HK, part_HX], 1)
        best_HK = np.partition(both_HX, -k, axis=1)[:, -k:]
    return -np.sort(-best_HK, axis=1)
