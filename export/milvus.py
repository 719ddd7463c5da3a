"""A bundle's vectors in a Milvus server, for engines whose setting `milvus.uri` names it.

Knows nothing of searches.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from engine.execution.milvus import ROW_FIELD, VECTOR_FIELD, Access, collection_name
from engine.formats.index import CooccurrenceIndex, Report
from engine.formats.manifest import read_manifest, verify_files

_BATCH_SIZE = 5000  # vectors of one insert
_CALL_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 600.0  # to write vectors to disk, and to build their graph and load it
_NUM_DROPS, _PAUSE_S = 5, 1.0  # tries, and seconds between them
_METRIC = "IP"  # of unit vectors, as in the bundle's own graph


def load_vectors(
    bundle: Path, access: Access, *, replace: bool = False, report: Report = lambda _: None
) -> str:
    """Writes a bundle's vectors to a collection of its own and returns the collection's name.

    A collection that could not be filled is removed again.

    Args:
        bundle: Directory of a bundle with an index.
        access: The server.
        replace: Whether a collection that is there already is removed first.
        report: Called with a line of progress.

    Raises:
        ValueError: the bundle is damaged or has no index, pymilvus is not installed, the server
            does not answer in time or refuses, or the collection is there already.
    """
    manifest = read_manifest(bundle)
    spec = manifest.index
    if spec is None:
        raise ValueError(f"{bundle}: has no index, so there are no vectors to load")
    files = {name for name in manifest.files if name.startswith(f"{spec.directory}/")}
    verify_files(bundle, manifest, files)
    index = CooccurrenceIndex(bundle / spec.directory, spec)
    client = access.client()  # says so if pymilvus is not installed
    from pymilvus import DataType, MilvusException

    name = collection_name(manifest)
    is_ours = False
    try:
        if client.has_collection(name, timeout=_CALL_TIMEOUT_S):
            if not replace:
                raise ValueError(
                    f"the Milvus server at {access.uri} has a collection {name} already; "
                    "--replace loads it anew, but engines that search it fail meanwhile"
                )
            client.drop_collection(name, timeout=_CALL_TIMEOUT_S)
        schema = client.create_schema(auto_id=False)
        schema.add_field(ROW_FIELD, DataType.INT64, is_primary=True)
        schema.add_field(VECTOR_FIELD, DataType.FLOAT_VECTOR, dim=spec.embedding_dim)
        is_ours = True  # a call that fails may have done its work
        # Without an index, so that it is not loaded and no engine searches it before it is full.
        client.create_collection(name, schema=schema, timeout=_CALL_TIMEOUT_S)
        for start in range(0, len(index), _BATCH_SIZE):
            rows = np.arange(start, min(start + _BATCH_SIZE, len(index)))
            vectors = index.vectors(rows)
            client.insert(
                name,
                [
                    {ROW_FIELD: row, VECTOR_FIELD: vector}
                    for row, vector in zip(rows.tolist(), vectors, strict=True)
                ],
                timeout=_CALL_TIMEOUT_S,
            )
            report(f"milvus: {rows[-1] + 1} of {len(index)} vectors sent")
        client.flush(name, timeout=_LOAD_TIMEOUT_S)
        graph = client.prepare_index_params()
        params = {"M": spec.m, "efConstruction": spec.ef_construction}
        graph.add_index(VECTOR_FIELD, index_type="HNSW", metric_type=_METRIC, params=params)
        client.create_index(name, graph, timeout=_LOAD_TIMEOUT_S)
        client.load_collection(name, timeout=_LOAD_TIMEOUT_S)
    except BaseException as error:  # interrupted, too
        if is_ours:
            _drop(client, name)
        if not isinstance(error, (MilvusException, grpc.RpcError)):
            raise
        # pymilvus passes a deadline on as it is
        reason = error.message if isinstance(error, MilvusException) else error.code().name
        raise ValueError(
            f"the Milvus server at {access.uri} cannot take {name}: {reason}"
        ) from None
    finally:
        client.close()
    return name


def _drop(client: Any, name: str) -> None:
    """Drops what a failed load has left, if the server lets it.

    More than once: a flush that was given up goes on there, and stands in the way for a moment.
    A server that hangs costs `_CALL_TIMEOUT_S` in all.
    """
    from pymilvus import MilvusException

    until_s = time.monotonic() + _CALL_TIMEOUT_S
    for _ in range(_NUM_DROPS):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return
        with contextlib.suppress(MilvusException, grpc.RpcError):
            client.drop_collection(name, timeout=left_s)
            return
        time.sleep(_PAUSE_S)
