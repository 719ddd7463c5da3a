"""A fresh index for a bundle that is there: new logs every hour, new models every week.

The queries are embedded by the bundle's own encoder graph, so that they lie where its searches
look. Models, prompts and scenarios stay byte for byte as they are.
"""

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import pyarrow.parquet as pq

from engine.execution.bundle import load_bundle
from engine.execution.models import Encoder, Floats
from engine.formats.index import GRAPH, CooccurrenceIndex, Edges, Report, write_index
from engine.formats.manifest import MAX_ENCODER_TOKENS, IndexSpec, Manifest
from export.checkpoint import unchanged
from export.packing import packed, sealed
from export.parity import session_of
from train.config import read_config
from train.mining.mine import PAIRS, QUERIES, SUMMARY, MineSummary, read_summary
from train.retrieval.effort import least_effort, probe_texts
from train.retrieval.index import read_edges

_BATCH_SIZE = 256
_BATCHES_A_LINE = 100  # of progress
_MAX_RATIO = 2.0  # of searches in the new index to those in the old one, without a warning


class _Mined(NamedTuple):
    """What a refresh takes from a run: Q queries."""

    texts: list[str]  # (Q), sorted
    popularity: Floats  # (Q) searches of each
    edges: Edges
    summary: MineSummary


def refresh_index(
    bundle: Path,
    run_directory: Path,
    target: Path,
    *,
    num_threads: int = 1,
    report: Report = lambda _: None,
) -> Manifest:
    """Writes `bundle` with an index of newly mined logs to `target` and returns its manifest.

    Files that stay are hard links where the file system has them, so a refresh costs the index.

    Args:
        bundle: a bundle with an encoder and an index, whose HNSW parameters are kept.
        run_directory: a run in which `queryrec-train mine` is done; of the rest only the setting
            `index.max_edges` is read.
        target: must not exist.
        num_threads: of embedding and building; with more than one, no two builds are the same.
        report: called with a line of progress.

    Raises:
        ValueError: `target` exists, the bundle is damaged or has no encoder or index, or the run
            is not mined, changes meanwhile, or measures pairs otherwise than the bundle's.
    """
    mined = _read_mined(run_directory)
    loaded = load_bundle(bundle, None, has_graph=False)  # verified; only the encoder runs here
    old = loaded.manifest
    if old.encoder is None or old.index is None:
        raise ValueError(f"{bundle}: has no encoder and index to refresh; export a whole bundle")
    session = session_of(onnx.load(bundle / old.encoder.file), num_threads)
    encoder = Encoder(session, MAX_ENCODER_TOKENS)
    _check_association(mined, run_directory, old.index, bundle)
    assert loaded.index is not None
    _compare_size(mined, loaded.index, report)
    with packed(target) as directory:
        for name in old.files:
            if not name.startswith(f"{old.index.directory}/"):
                _link(bundle / name, directory / name)
        embeddings_QD = embed(encoder, [loaded.encoder_ids(t) for t in mined.texts], report)
        folder = directory / old.index.directory
        write_index(
            folder,
            texts=mined.texts,
            popularity=mined.popularity,
            edges=mined.edges,
            embeddings=embeddings_QD,
            m=old.index.m,
            ef_construction=old.index.ef_construction,
            num_threads=num_threads,
            report=report,
        )
        ef_search = old.index.ef_search
        if old.index.min_recall:  # another number of queries may need another effort
            probes = [loaded.encoder_ids(t) for t in probe_texts(mined.texts, seed=0)]
            ef_search = least_effort(
                folder / GRAPH,
                embeddings_QD,
                embed(encoder, probes, report),
                min_recall=old.index.min_recall,
                otherwise=old.index.ef_search,
                report=report,
            )
        index = msgspec.structs.replace(
            old.index,
            ef_search=ef_search,
            num_queries=len(mined.texts),
            min_users=mined.summary.min_users,
            counted=mined.summary.counted,
            association=mined.summary.association or old.index.association,
        )
        provenance = {**old.provenance, "models_of_bundle": old.bundle_id}
        manifest = msgspec.structs.replace(
            old,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            index=index,
            provenance=provenance,
        )
        manifest = sealed(directory, manifest)
        load_bundle(directory, None)  # what the engine refuses is no bundle
        return manifest


def _read_mined(run: Path) -> _Mined:
    """Reads all that a refresh needs of a run at once: another mining may end any time.

    Raises:
        ValueError: the run is not mined, or it is mined again meanwhile.
    """
    mined = run / "mined"
    for name in (QUERIES, PAIRS, SUMMARY):
        if not (mined / name).is_file():
            raise ValueError(f"{run}: has no mined/{name}: run `queryrec-train mine` there first")
    config = run / "config.toml"
    max_edges = read_config(config if config.is_file() else None).index.max_edges
    with unchanged(run):
        queries = pq.read_table(mined / QUERIES)
        texts: list[str] = queries["text"].to_pylist()
        return _Mined(
            texts=texts,
            popularity=queries["num_searches"].to_numpy().astype(np.float32),
            edges=read_edges(run, texts, max_edges),
            summary=read_summary(run),
        )


def _check_association(mined: _Mined, run: Path, old: IndexSpec, bundle: Path) -> None:
    """Checks that values of pairs mean what the click model was trained on, where both say it."""
    now = mined.summary.association
    if now and old.association and now != old.association:
        raise ValueError(
            f"{run}: was mined with mine.association {now!r}, the models of {bundle} were trained "
            f"with {old.association!r}: mine with that, or train and export a whole bundle"
        )


def _compare_size(mined: _Mined, old: CooccurrenceIndex, report: Report) -> None:
    """Warns if the click model, which reads how often, would take all queries for rare ones."""
    before, now = old.num_searches(""), float(mined.popularity.sum(dtype=np.float64))
    if not before / _MAX_RATIO <= now <= before * _MAX_RATIO:
        report(
            f"warning: the new logs hold {now:.0f} searches of their queries, the old index "
            f"{before:.0f}: the click model judges by such numbers, so mine about as many as it "
            "was trained on"
        )


def embed(encoder: Encoder, ids: Sequence[Sequence[int]], report: Report) -> Floats:
    """Returns float32 (Q, D), row i for ids i; computed in batches of similar length."""
    order = np.argsort([len(i) for i in ids], kind="stable")
    parts: list[Floats] = []
    for number, start in enumerate(range(0, len(order), _BATCH_SIZE), 1):
        rows = order[start : start + _BATCH_SIZE]
        parts.append(encoder.run([ids[r] for r in rows]))
        if number % _BATCHES_A_LINE == 0:
            report(f"index: {start + len(rows)} of {len(ids)} queries embedded")
    if not parts:
        return encoder.run([()])[:0]
    embeddings_QD = np.empty((len(ids), parts[0].shape[1]), np.float32)
    embeddings_QD[order] = np.concatenate(parts)
    return embeddings_QD


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
