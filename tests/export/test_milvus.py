"""A bundle's vectors on their way into a real Milvus (milvus-lite)."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from pymilvus import MilvusClient, MilvusException
from typer.testing import CliRunner

from engine.execution.milvus import VECTOR_FIELD, collection_name
from engine.formats.manifest import read_manifest
from export import milvus
from export.cli import app
from tests.engine.execution.test_milvus import MilvusServer


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    try:
        server.start()
        yield server
    finally:
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


def test_the_command_loads_once_and_again_only_if_told_to(server, tiny_bundle):
    name = collection_name(read_manifest(tiny_bundle))
    command = ["milvus", f"--bundle={tiny_bundle}", f"--uri={server.uri}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "already" in done.output
    assert "--replace" in done.output
    done = CliRunner().invoke(app, [*command, "--replace"])
    assert done.exit_code == 0, done.output
    assert name in done.output


def test_an_interrupted_load_keeps_nothing(server, tiny_bundle):
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        milvus.load_vectors(tiny_bundle, server.access, report=interrupted)
    client = server.access.client()
    assert not client.has_collection(collection_name(read_manifest(tiny_bundle)))
    client.close()


def test_a_collection_that_was_made_although_the_call_failed_is_removed(
    server, tiny_bundle, monkeypatch
):
    create = MilvusClient.create_collection

    def create_and_fail(*arguments: Any, **options: Any) -> None:
        create(*arguments, **options)
        raise MilvusException(message="the answer was lost")

    monkeypatch.setattr(MilvusClient, "create_collection", create_and_fail)
    with pytest.raises(ValueError, match=r"cannot take queryrec_.*: the answer was lost"):
        milvus.load_vectors(tiny_bundle, server.access)
    client = server.access.client()
    assert not client.has_collection(collection_name(read_manifest(tiny_bundle)))
    client.close()


def test_a_collection_has_no_index_before_it_is_full(server, tiny_bundle):
    # Without one a Milvus loads no collection, so that nothing searches a part of it.
    name = collection_name(read_manifest(tiny_bundle))
    client, found = server.access.client(), list[list[str]]()
    milvus.load_vectors(
        tiny_bundle, server.access, report=lambda _: found.append(client.list_indexes(name))
    )
    assert found == [[]]
    assert client.list_indexes(name) == [VECTOR_FIELD]
    client.close()


def test_a_server_that_hangs_is_asked_to_remove_for_the_time_of_one_call(
    server, tiny_bundle, monkeypatch
):
    drop, asked = MilvusClient.drop_collection, list[float]()

    def noted(client: MilvusClient, name: str, timeout: float, **options: Any) -> None:
        asked.append(timeout)
        drop(client, name, timeout=timeout, **options)

    def hang(line: str) -> None:
        monkeypatch.setattr(milvus, "_CALL_TIMEOUT_S", 1.0)
        server.signal(signal.SIGSTOP)
        raise KeyboardInterrupt

    monkeypatch.setattr(MilvusClient, "drop_collection", noted)
    with pytest.raises(KeyboardInterrupt):
        milvus.load_vectors(tiny_bundle, server.access, report=hang)
    assert sum(asked) < 2  # the first takes all of it, and leaves the others next to nothing
