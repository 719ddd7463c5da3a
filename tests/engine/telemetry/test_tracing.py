"""Traces of a real server: what is sampled, whose trace it continues, what it holds."""

from collections import Counter

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode

from engine.config import Config, FeedbackConfig, ModelsConfig, ServerConfig
from engine.scheduling.stages import Probe, Stage
from engine.serving.server import Server
from engine.telemetry.tracing import Tracer, _IntervalProbe, connect
from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub

QUERY = "zanzibar xylophone"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flag}") for flag in ("01", "00"))

on_one_loop = pytest.mark.asyncio(loop_scope="module")


def traced(sample_rate: float) -> tuple[Tracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sample_rate), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(provider), exporter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ask(tiny_bundle, tmp_path_factory):
    """Asks a server that samples nothing of its own accord; gives the spans that it exported."""
    tracer, exporter = traced(0.0)
    config = Config(
        server=ServerConfig(port=0),
        models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=1),
        feedback=FeedbackConfig(directory=str(tmp_path_factory.mktemp("feedback"))),
    )
    server = Server(config, tracer=tracer)
    channel = aio.insecure_channel(f"127.0.0.1:{await server.start()}")
    await server.load(tiny_bundle)

    async def asked(*metadata: tuple[str, str], query: str = QUERY):
        exporter.clear()
        message = pb.RecommendRequest(scenario="suggestion", query=query)
        try:
            await QueryRecommenderServiceStub(channel).Recommend(
                message, timeout=30, metadata=metadata
            )
        except aio.AioRpcError:
            assert query == ""
        return exporter.get_finished_spans()

    yield asked
    await channel.close()
    await server.drain()


@on_one_loop
async def test_a_call_that_is_not_sampled_makes_no_stage_spans(ask, monkeypatch):
    probes = Counter()
    make = Probe.__init__

    def counted(self, *arguments):
        probes[type(self)] += 1
        make(self, *arguments)

    monkeypatch.setattr(Probe, "__init__", counted)
    assert await ask() == ()
    assert await ask(UNSAMPLED) == ()
    assert probes == {Probe: 2}, "when stages ran is not even remembered"


@on_one_loop
async def test_a_sampled_trace_is_continued_with_a_child_per_stage(ask):
    *stages, call = await ask(SAMPLED, ("x-request-id", "abc-1"), query="not in a cache")
    assert f"{call.context.trace_id:032x}" == TRACE_ID
    assert f"{call.parent.span_id:016x}" == PARENT_ID
    assert call.name == "queryrec.v1.QueryRecommenderService/Recommend"
    assert call.kind is SpanKind.SERVER
    assert call.attributes["queryrec.request_id"] == "abc-1"
    assert call.attributes["queryrec.scenario"] == "suggestion"
    assert call.attributes["queryrec.effort"] == "full"
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert all(s.parent.span_id == call.context.span_id for s in stages)
    assert {"normalise", "retrieve", "generate", "score", "rerank"} <= {s.name for s in stages}
    assert all(s.start_time <= s.end_time for s in stages)


@on_one_loop
async def test_no_span_holds_text_of_the_user(ask):
    for query in (QUERY, ""):
        spans = await ask(SAMPLED, query=query)
        told = " ".join(span.to_json() for span in spans)
        assert told
        assert not any(word in told for word in QUERY.split())


@on_one_loop
async def test_a_callers_mistake_is_no_error_of_the_server(ask):
    (*_, call) = await ask(SAMPLED, query="")
    assert call.status.status_code is StatusCode.UNSET
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.mark.parametrize("status", grpc.StatusCode)
def test_spans_are_errors_by_opentelemetrys_rule_for_servers(status):
    tracer, exporter = traced(1.0)
    trace = tracer.begin("Recommend", {})
    assert trace is not None
    trace.end(status, {})
    [span] = exporter.get_finished_spans()
    if status.name in (
        *("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"),
        *("INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    ):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == status.name
    else:
        assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("traceparent", ["nonsense", "00-0-0-01", f"00-{'0' * 32}-{PARENT_ID}-01"])
def test_a_broken_traceparent_is_ignored(traceparent):
    tracer, _ = traced(0.0)
    assert tracer.begin("Recommend", {"traceparent": traceparent}) is None


def test_the_sample_rate_decides_where_the_caller_has_not():
    assert traced(0.0)[0].begin("Recommend", {}) is None
    assert traced(1.0)[0].begin("Recommend", {}) is not None
    assert traced(1.0)[0].begin("Recommend", dict([UNSAMPLED])) is None


def test_waiting_lies_before_the_run_that_it_was_for(clock):
    trace = traced(1.0)[0].begin("Recommend", {})
    assert trace is not None
    probe = trace.probe(clock)
    assert isinstance(probe, _IntervalProbe)
    clock.advance(0.030)  # 10 ms of waiting, then a run of 20 ms
    probe.add(Stage.QUEUE, 0.010, ago_s=0.020)
    probe.add(Stage.GENERATE, 0.020)
    (_, started_ns, ended_ns), (_, run_ns, run_end_ns) = probe.intervals_ns()
    assert ended_ns == pytest.approx(run_ns, abs=1000)
    assert (ended_ns - started_ns, run_end_ns - run_ns) == pytest.approx((10e6, 20e6), abs=1000)


@pytest.mark.parametrize(
    "endpoint", ["localhost:4317", "http://", "http://:4317", "http://[", "http://localhost:x"]
)
def test_an_endpoint_that_is_no_url_is_refused_with_an_example(endpoint):
    with pytest.raises(ValueError, match="must be a URL, such as http://localhost:4317"):
        connect(endpoint, 0.1)
