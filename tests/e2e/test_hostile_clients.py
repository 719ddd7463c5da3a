"""Clients that hold connections and never read: others must not notice."""

import asyncio
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest

from queryrec.v1.query_recommender_service_pb2 import RecommendRequest
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub
from tests.blocking import BlockingStub, blocking_stub, status_of

pytestmark = pytest.mark.slow

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_RECOMMEND = "/queryrec.v1.QueryRecommenderService/Recommend"
_WATCH = "/grpc.health.v1.Health/Watch"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(window_size: int) -> bytes:
    """Returns how a client opens a connection; streams may get that many bytes unasked."""
    setting = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window_size)
    return _PREFACE + frame(_SETTINGS, 0, 0, setting)


def call(stream: int, path: str, request: Message) -> bytes:
    """Returns a call without a deadline, its headers as literals."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\0" + b"".join(bytes([len(s)]) + s.encode() for s in header) for header in headers.items()
    )
    message = request.SerializeToString()
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frame(_HEADERS, _END_HEADERS, stream, block) + frame(_DATA, _END_STREAM, stream, body)


def connect(target: str) -> socket.socket:
    host, port = target.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def show_life(connection: socket.socket) -> None:
    """Answers settings and pings until the connection ends; who does not is hung up on."""
    connection.settimeout(None)
    with suppress(ConnectionError), connection.makefile("rb") as frames:
        while head := frames.read(9):
            kind, is_answer = head[3], head[4] & _ACK
            payload = frames.read(int.from_bytes(head[:3]))
            if kind in (_SETTINGS, _PING) and not is_answer:
                connection.sendall(frame(kind, _ACK, 0, payload if kind == _PING else b""))


@contextmanager
def asking(target: str) -> Iterator[BlockingStub]:
    with grpc.insecure_channel(target) as channel:
        yield blocking_stub(channel)


def ask(stub: BlockingStub, number: int) -> int:
    request = RecommendRequest(scenario="suggestion", query=f"shoes {number}")
    return len(stub.Recommend(request, timeout=20).suggestions)


def assert_answers_again(stub: BlockingStub) -> None:
    """Has every call of many answered, once what came before is worked off."""
    until_s = time.monotonic() + 60
    while True:
        try:
            assert all(ask(stub, i) for i in range(50))
        except grpc.RpcError:
            assert time.monotonic() < until_s
        else:
            return


def reason_of(error: Exception | None) -> str:
    assert isinstance(error, grpc.RpcError)
    found = error_details_pb2.ErrorInfo()
    assert status_of(error).details[0].Unpack(found)
    return found.reason


@pytest.fixture
def engine(tiny_bundle, tmp_path, start_engine, stop_engine):
    engine = start_engine(tiny_bundle, tmp_path)
    yield engine
    stop_engine(engine)


def test_clients_that_never_read_their_responses_hold_up_nobody_else(engine):
    request = RecommendRequest(scenario="suggestion", query="running shoes")
    with ExitStack() as stack, asking(engine.target) as stub:
        for _ in range(2):  # as many calls together as are worked on at the same time
            hostile = stack.enter_context(connect(engine.target))
            hostile.sendall(opening(window_size=0))
            hostile.sendall(b"".join(call(2 * i + 1, _RECOMMEND, request) for i in range(500)))
        assert_answers_again(stub)


def test_ten_thousand_idle_connections_hold_up_nobody(engine):
    num = 10_000
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < num + 500:
        pytest.skip(f"a process may open {limit} files here")
    before_bytes = psutil.Process(engine.process.pid).memory_info().rss
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        with ExitStack() as stack, asking(engine.target) as stub:
            for _ in range(num):
                stack.enter_context(connect(engine.target)).sendall(opening(window_size=65_535))
            assert_answers_again(stub)
            held_bytes = psutil.Process(engine.process.pid).memory_info().rss - before_bytes
            assert held_bytes < num * 100_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, limit))


def test_calls_beyond_the_limit_are_refused_with_a_reason_wave_after_wave(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    limit = {
        "QUERYREC_SERVER_MAX_CONCURRENT_CALLS": "4",
        "QUERYREC_SERVER_DEFAULT_BUDGET_MS": "10000",  # none is refused for being late
    }
    engine = start_engine(tiny_bundle, tmp_path, environment=limit)
    try:
        with asking(engine.target) as stub:
            for wave in range(3):  # a refused call must not make room for others
                queries = [f"shoes {wave} {i}" for i in range(100)]
                calls = [
                    stub.Recommend.future(
                        RecommendRequest(scenario="suggestion", query=query), timeout=10
                    )
                    for query in queries
                ]
                refused = [c.exception() for c in calls if c.code() != grpc.StatusCode.OK]
                assert 0 < len(refused) < len(calls)
                assert {reason_of(error) for error in refused} == {"ERROR_REASON_QUEUE_FULL"}
            assert ask(stub, 0)
    finally:
        stop_engine(engine)


def test_a_flood_is_refused_with_a_reason_and_leaves_nothing_behind(engine):
    codes: Counter[grpc.StatusCode] = Counter()
    reasons: set[str] = set()

    async def call_on(stub: QueryRecommenderServiceStub, ends_s: float, number: int) -> None:
        while time.monotonic() < ends_s:
            number += 1_000
            request = RecommendRequest(scenario="suggestion", query=f"shoes {number}")
            try:
                await stub.Recommend(request, timeout=10)
                codes[grpc.StatusCode.OK] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
                reasons.add(reason_of(error))

    async def flood() -> None:
        """Has hundreds ask again and again: no engine answers that many within a budget."""
        async with grpc.aio.insecure_channel(engine.target) as channel:
            stub = QueryRecommenderServiceStub(channel)
            ends_s = time.monotonic() + 4
            await asyncio.gather(*(call_on(stub, ends_s, i) for i in range(600)))

    resident = psutil.Process(engine.process.pid).memory_info().rss
    asyncio.run(flood())
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert reasons == {"ERROR_REASON_QUEUE_FULL"}
    assert psutil.Process(engine.process.pid).memory_info().rss < resident + (100 << 20)
    with asking(engine.target) as stub:
        assert_answers_again(stub)


def test_watchers_of_health_that_never_read_do_not_keep_an_engine_from_ending(engine):
    request = HealthCheckRequest()
    with connect(engine.target) as hostile:
        hostile.sendall(opening(window_size=0))
        hostile.sendall(b"".join(call(2 * i + 1, _WATCH, request) for i in range(100)))
        answering = threading.Thread(target=show_life, args=(hostile,))
        answering.start()
        with asking(engine.target) as stub:
            assert_answers_again(stub)
        engine.process.terminate()
        assert engine.process.wait(120) == 0
        answering.join()
