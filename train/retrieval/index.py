"""Builds the co-occurrence index: embeds the mined queries and writes what the engine reads.

Knows nothing of how queries were mined or the encoder trained.
"""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import torch

from engine.formats.index import GRAPH, Report, write_index
from engine.formats.manifest import IndexSpec, sha256_of
from train.mining.mine import read_summary
from train.retrieval.effort import least_effort, probe_texts
from train.retrieval.encoder import Encoder
from train.retrieval.pairs import read_edges
from train.settings import IndexConfig


def build_index(
    run: Path,
    config: IndexConfig,
    *,
    seed: int,
    output: Path,
    report: Report = lambda _: None,
) -> IndexSpec:
    """Writes the index files and index.json of a run into `output`.

    The encoder hash in index.json is that of the run's checkpoint; the export of a bundle
    replaces it by the hash of the exported file. `report` is called with lines of progress.

    Raises:
        ValueError: there are no mined queries, or a pair names a query that is not one.
    """
    queries = pq.read_table(run / "mined/queries.parquet")
    texts: list[str] = queries["text"].to_pylist()
    encoder = Encoder.load(run)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    embeddings_QD = encoder.embed(texts, report=report)
    write_index(
        output,
        texts=texts,
        popularity=queries["num_searches"].to_numpy().astype(np.float32),
        edges=read_edges(run, texts, config.max_edges),
        embeddings=embeddings_QD,
        m=config.m,
        ef_construction=config.ef_construction,
        num_threads=config.num_threads,
        report=report,
    )
    ef_search = config.ef_search or least_effort(
        output / GRAPH,
        embeddings_QD,
        encoder.embed(probe_texts(texts, seed=seed)),
        min_recall=config.min_recall,
        report=report,
    )
    summary = read_summary(run)
    spec = IndexSpec(
        num_queries=len(texts),
        embedding_dim=encoder.embedding_dim,
        m=config.m,
        ef_construction=config.ef_construction,
        ef_search=ef_search,
        min_recall=0.0 if config.ef_search else config.min_recall,
        encoder_sha256=sha256_of(run / "encoder/model.safetensors"),
        min_users=summary.min_users,
        counted=summary.counted,
    )
    (output / "index.json").write_bytes(msgspec.json.format(msgspec.json.encode(spec)))
    return spec
