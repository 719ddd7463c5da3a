"""A bundle's vectors on their way into a real Milvus (milvus-lite)."""

from collections.abc import Iterator

import pytest

from engine.execution.milvus import collection_name
from engine.formats.manifest import read_manifest
from export import milvus
from tests.engine.execution.test_milvus import MilvusServer


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.stop()


def test_a_server_that_does_not_load_in_time_is_named_and_keeps_nothing(
    server, tiny_bundle, monkeypatch
):
    monkeypatch.setattr(milvus, "_LOAD_TIMEOUT_S", -1.0)  # over already
    with pytest.raises(ValueError, match=rf"{server.uri} cannot take queryrec_.*DEADLINE_EXCEEDED"):
        milvus.load_vectors(tiny_bundle, server.access)
    client = server.access.client()
    assert not client.has_collection(collection_name(read_manifest(tiny_bundle)))
    client.close()


def test_an_interrupted_load_keeps_nothing(server, tiny_bundle):
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        milvus.load_vectors(tiny_bundle, server.access, report=interrupted)
    client = server.access.client()
    assert not client.has_collection(collection_name(read_manifest(tiny_bundle)))
    client.close()
