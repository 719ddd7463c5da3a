"""The engine with a real Milvus (milvus-lite): the same answers, and what happens when it fails."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import msgspec
import numpy as np
import psutil
import pytest

# What a server needs of pymilvus is not in typings/, where the engine's calls are.
from pymilvus.grpc_gen import schema_pb2  # pyright: ignore[reportAttributeAccessIssue]
from pymilvus.grpc_gen.common_pb2 import Status  # pyright: ignore[reportAttributeAccessIssue]
from pymilvus.grpc_gen.milvus_pb2 import (
    SearchResults,  # pyright: ignore[reportAttributeAccessIssue]
)
from pymilvus.grpc_gen.milvus_pb2_grpc import (
    MilvusServiceServicer,  # pyright: ignore[reportAttributeAccessIssue]
    add_MilvusServiceServicer_to_server,  # pyright: ignore[reportAttributeAccessIssue]
)

from engine.answering.answer import Answer, Question
from engine.answering.pipeline import Pipeline
from engine.config import CacheConfig, Config, MilvusConfig, ModelsConfig
from engine.execution.milvus import Access, MilvusNeighbours, collection_name
from engine.execution.runtime import Runtime
from engine.formats.manifest import read_manifest
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Left, Omission, Probe, Stage, Why
from engine.serving.loading import load_pipeline
from export.milvus import load_vectors
from tests.ipv6 import needs_ipv6

EXAMPLE = Path(__file__).parents[3] / "examples/bundle"
CLOCK = MonotonicClock()
LOCAL = Config(
    models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2),
    cache=CacheConfig(max_bytes=0),
)
AMPLE_S = 30.0
START_TIMEOUT_S = 120
FAILED = Omission(Stage.RETRIEVE, Left.DEGRADED, Why.FAILURE)
LATE = Omission(Stage.RETRIEVE, Left.DEGRADED, Why.BUDGET)


class MilvusServer:
    """A milvus-lite process on a port of its own, which keeps its data between starts."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._directory = directory
        self.uri = f"http://127.0.0.1:{self._port}"
        self.access = Access(self.uri, "", "")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        with (self._directory / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "milvus_lite", "server", f"--port={self._port}"),
                    *("--host=127.0.0.1", f"--data-dir={self._directory / 'data'}"),
                ],
                stdout=log,
                stderr=log,
            )
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            grpc.channel_ready_future(channel).result(START_TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        """Returns once a SIGSTOP has stopped it."""
        assert self._process is not None
        self._process.send_signal(number)
        process = psutil.Process(self._process.pid)
        while number == signal.SIGSTOP and process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(START_TIMEOUT_S)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory, tiny_bundle) -> Iterator[MilvusServer]:
    """A server that holds the tiny bundle's vectors."""
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    try:
        server.start()
        load_vectors(tiny_bundle, server.access)
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def patience(monkeypatch) -> None:
    """Connecting may take long on a busy machine."""
    monkeypatch.setattr("engine.execution.milvus._START_TIMEOUT_S", 60.0)


def remote(uri: str, timeout_ms: float = 5000.0, **settings: str) -> Config:
    config = MilvusConfig(uri=uri, timeout_ms=timeout_ms, **settings)
    return msgspec.structs.replace(LOCAL, milvus=config)


@asynccontextmanager
async def loaded(directory: Path, runtime: Runtime, config: Config) -> AsyncIterator[Pipeline]:
    pipeline = await load_pipeline(directory, runtime, config, CLOCK)
    try:
        yield pipeline
    finally:
        await pipeline.close()


async def ask(pipeline: Pipeline, query: str, *, budget_s: float = AMPLE_S) -> Answer:
    question = Question(
        scenario=pipeline.bundle.scenarios["suggestion"],
        query=query,
        deadline=Deadline.after(budget_s, CLOCK),
        num_suggestions=6,
    )
    return await pipeline.recommend(question, Probe(CLOCK))


def num_connections(port: int) -> int:
    """Connections of this process to a port."""
    own = psutil.Process().net_connections("tcp")
    return sum(c.status == "ESTABLISHED" and c.raddr.port == port for c in own if c.raddr)


def texts(answer: Answer) -> list[str]:
    return [s.text for s in answer.suggestions]


async def test_answers_are_those_of_the_bundles_own_graph(milvus, tiny_bundle, runtime):
    queries = ["never searched", *(f"odd thing {i}" for i in range(8)), "wireless earbuds"]
    async with (
        loaded(tiny_bundle, runtime, LOCAL) as here,
        loaded(tiny_bundle, runtime, remote(milvus.uri)) as there,
    ):
        together = await asyncio.gather(*(ask(there, q) for q in queries))
        for query, got in zip(queries, together, strict=True):
            expected = await ask(here, query)
            assert got.omissions == expected.omissions == ()
            assert texts(got) == texts(expected)


@pytest.mark.slow
async def test_rows_found_are_those_of_the_example_bundle_up_to_recall(tmp_path, runtime):
    server = MilvusServer(tmp_path)
    server.start()
    try:
        load_vectors(EXAMPLE, server.access)
        async with (
            loaded(EXAMPLE, runtime, LOCAL) as here,
            loaded(EXAMPLE, runtime, remote(server.uri)) as there,
        ):
            index, encoder = here.bundle.index, here.bundle.encoder
            assert index is not None
            assert encoder is not None
            num_equal = 0
            for number in range(50):
                query = f"{index.text(600 * number)} for my sister"
                (embedding_D,) = encoder.run([here.bundle.encoder_ids(query)])
                expected, _ = index.nearest(embedding_D, 16)
                finish_by_s = CLOCK.now_s() + AMPLE_S
                neighbours = there._lookup._neighbours
                assert neighbours is not None
                found, similarity = await neighbours.nearest(embedding_D, 16, finish_by_s)
                num_equal += len(set(found.tolist()) & set(expected.tolist()))
                assert similarity.tolist() == sorted(similarity, reverse=True)
                assert similarity[0] <= 1.001
            assert num_equal / (50 * 16) > 0.9
            shared = total = 0
            for number in range(12):
                query = f"{index.text(2500 * number)} for my sister"
                mine, theirs = texts(await ask(here, query)), texts(await ask(there, query))
                shared += len(set(mine) & set(theirs))
                total += len(mine)
            assert shared / total > 0.9
    finally:
        server.stop()


async def test_a_server_that_is_away_costs_the_neighbours_only_until_it_is_back(
    tmp_path, tiny_bundle, runtime, caplog
):
    server = MilvusServer(tmp_path)
    server.start()
    try:
        load_vectors(tiny_bundle, server.access)
        async with loaded(tiny_bundle, runtime, remote(server.uri)) as pipeline:
            full = await ask(pipeline, "never searched")
            assert full.omissions == ()
            server.stop()
            for _ in range(3):
                answer = await ask(pipeline, "never searched")
                assert answer.omissions == (FAILED,)
                assert len(answer.suggestions) == 6
            told = [r.message for r in caplog.records if server.uri in r.message]
            assert len(told) == 1, "an outage is logged once"
            server.start()
            # A Milvus loads its collections again by itself, milvus-lite does not.
            client = server.access.client()
            client.load_collection(collection_name(read_manifest(tiny_bundle)))
            client.close()
            until_s = time.monotonic() + START_TIMEOUT_S
            while (answer := await ask(pipeline, "never searched")).omissions:
                assert time.monotonic() < until_s, answer.omissions
                await asyncio.sleep(0.1)
            assert texts(answer) == texts(full)
            assert f"{server.uri}: answers again" in caplog.text
    finally:
        server.stop()


async def test_a_server_that_hangs_does_not_make_an_answer_late(milvus, tiny_bundle, runtime):
    async with loaded(tiny_bundle, runtime, remote(milvus.uri, timeout_ms=60_000)) as pipeline:
        milvus.signal(signal.SIGSTOP)
        try:
            started_s = CLOCK.now_s()
            answer = await ask(pipeline, "never searched", budget_s=10.0)
            elapsed_s = CLOCK.now_s() - started_s
        finally:
            milvus.signal(signal.SIGCONT)
        assert elapsed_s < 30  # its own limit is 60
        assert LATE in answer.omissions
        assert Stage.GENERATE not in {o.stage for o in answer.omissions}, "time was kept for it"
        assert len(answer.suggestions) == 6


async def test_a_search_takes_no_longer_than_its_setting(milvus, tiny_bundle, runtime):
    async with loaded(tiny_bundle, runtime, remote(milvus.uri, timeout_ms=50)) as pipeline:
        milvus.signal(signal.SIGSTOP)
        try:
            answer = await ask(pipeline, "never searched")
        finally:
            milvus.signal(signal.SIGCONT)
        assert answer.omissions == (LATE,)


async def test_a_server_that_hangs_is_told_of_once_and_when_it_answers_again(
    milvus, tiny_bundle, runtime, caplog
):
    async with loaded(tiny_bundle, runtime, remote(milvus.uri, timeout_ms=1000)) as pipeline:
        milvus.signal(signal.SIGSTOP)
        try:
            omissions = (LATE,)
            while "in time" not in caplog.text:
                assert omissions == (LATE,)
                omissions = (await ask(pipeline, "never searched")).omissions
            assert omissions == (FAILED,), "no lack of time, but an outage"
            assert (await ask(pipeline, "never searched")).omissions == (FAILED,)
        finally:
            milvus.signal(signal.SIGCONT)
        while f"{milvus.uri}: answers again" not in caplog.text:
            await ask(pipeline, "never searched")
    told = [r.message for r in caplog.records if milvus.uri in r.message]
    assert len(told) == 2


async def test_no_connection_outlives_the_pipeline(milvus, tiny_bundle, runtime):
    port = int(milvus.uri.rpartition(":")[2])
    async with loaded(tiny_bundle, runtime, remote(milvus.uri)) as pipeline:
        await ask(pipeline, "never searched")
        while num_connections(port) > 1:  # noqa: ASYNC110 - closing tells nobody when it is done
            await asyncio.sleep(0.01)
        assert num_connections(port) == 1  # what looked the collection over has ended its own
    while num_connections(port):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_the_bundles_own_graph_need_not_be_there(milvus, tiny_bundle, runtime, tmp_path):
    bare = shutil.copytree(tiny_bundle, tmp_path / "bare")
    (bare / "index/hnsw.faiss").unlink()
    async with loaded(bare, runtime, remote(milvus.uri)) as pipeline:
        assert (await ask(pipeline, "never searched")).omissions == ()


async def test_without_the_bundles_collection_loading_fails_and_names_the_way_out(
    milvus, other_bundle, runtime
):
    with pytest.raises(ValueError, match="has no collection queryrec_") as failure:
        await load_pipeline(other_bundle, runtime, remote(milvus.uri), CLOCK)
    assert f"queryrec-export milvus --bundle {other_bundle} --uri {milvus.uri}" in str(
        failure.value
    )


async def test_a_collection_that_is_not_complete_is_refused(milvus, other_bundle, runtime):
    name = load_vectors(other_bundle, milvus.access)
    client = milvus.access.client()
    client.delete(name, ids=[3, 5])
    with pytest.raises(ValueError, match=r"holds \d+ vectors, the bundle \d+ queries"):
        await load_pipeline(other_bundle, runtime, remote(milvus.uri), CLOCK)
    load_vectors(other_bundle, milvus.access, replace=True)
    async with loaded(other_bundle, runtime, remote(milvus.uri)) as pipeline:
        assert (await ask(pipeline, "never searched")).omissions == ()
    client.drop_collection(name)
    client.close()


async def test_a_server_that_does_not_load_the_collection_is_not_waited_for(
    milvus, tiny_bundle, runtime, monkeypatch
):
    monkeypatch.setattr("engine.execution.milvus._LOAD_TIMEOUT_S", -1.0)  # over already
    with pytest.raises(ValueError, match="cannot be used"):
        await load_pipeline(tiny_bundle, runtime, remote(milvus.uri), CLOCK)


class StrictServicer(MilvusServiceServicer):
    """Refuses, as a Milvus does and milvus-lite does not, less effort than there are results."""

    async def Search(self, request, context):
        params = {pair.key: pair.value for pair in request.search_params}
        num = int(params["topk"])
        if json.loads(params["params"])["ef"] < num:
            return SearchResults(status=Status(code=65535, reason="ef"))
        ids = schema_pb2.IDs(int_id=schema_pb2.LongArray(data=range(num)))
        return SearchResults(results=schema_pb2.SearchResultData(ids=ids, scores=[1.0] * num))


async def test_no_search_makes_less_effort_than_it_wants_results(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert manifest.index is not None
    index = msgspec.structs.replace(manifest.index, ef_search=2)
    hasty = msgspec.structs.replace(manifest, index=index)
    async with listening("127.0.0.1", StrictServicer()) as uri:
        neighbours = MilvusNeighbours(Access(uri, "", ""), hasty, CLOCK, timeout_s=AMPLE_S)
        embedding_D = np.ones(index.embedding_dim, np.float32)
        rows, _ = await neighbours.nearest(embedding_D, 16, CLOCK.now_s() + AMPLE_S)
        await neighbours.close()
    assert rows.tolist() == list(range(16))


@needs_ipv6
async def test_a_server_may_have_an_address_of_ipv6():
    async with listening("[::1]", StrictServicer()) as uri:
        channel = Access.of(uri, "", "").channel()
        async with asyncio.timeout(AMPLE_S):
            await channel.channel_ready()
        await channel.close()


@asynccontextmanager
async def listening(host: str, servicer: MilvusServiceServicer) -> AsyncIterator[str]:
    """Serves in this process and gives the URI."""
    server = grpc.aio.server()
    add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    try:
        yield f"http://{host}:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:1", "no Milvus server answers there"),
        ("http://127.0.0.1:abc", "it has to be http://HOST:PORT"),
        ("http://[::1", "it has to be http://HOST:PORT"),
        ("127.0.0.1:19530", "it has to be http://HOST:PORT"),
        ("./local.db", "it has to be http://HOST:PORT"),
    ],
)
async def test_an_address_without_a_server_is_refused(
    tiny_bundle, runtime, monkeypatch, uri, message
):
    monkeypatch.setattr("engine.execution.milvus._START_TIMEOUT_S", 1.0)
    with pytest.raises(ValueError, match=message):
        await load_pipeline(tiny_bundle, runtime, remote(uri), CLOCK)


async def test_a_token_file_that_is_not_there_is_named(milvus, tiny_bundle, runtime):
    with pytest.raises(ValueError, match=r"nowhere\.txt: the Milvus token cannot be read"):
        await load_pipeline(
            tiny_bundle, runtime, remote(milvus.uri, token_file="nowhere.txt"), CLOCK
        )


def test_a_bundle_without_an_index_has_nothing_to_load(milvus, tiny_bundle, changed_bundle):
    bare = changed_bundle(tiny_bundle, "bare", index=None)
    with pytest.raises(ValueError, match="has no index"):
        load_vectors(bare, milvus.access)
