"""What an engine in a process of its own tells Prometheus, a trace collector and its log."""

import json
import os
import re
import socket
import time
import urllib.request
from collections.abc import Iterable
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import grpc
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.feedback_pb2 import FeedbackEvent, FeedbackKind
from tests.blocking import blocking_stub
from tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
WORDS = ("zanzibar", "xylophone", "quokka")
QUERY = " ".join(WORDS)
SAMPLED = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
RECOMMEND = "/queryrec.v1.QueryRecommenderService/Recommend"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        self.spans: list = []

    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class Told:
    """All that an engine said while it was asked."""

    metrics: str = ""
    log: str = ""
    spans: list = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)  # that came back

    def value(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.metrics):
            for sample in family.samples:
                if sample.name == f"queryrec_{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0


def ask(channel: grpc.Channel, told: Told) -> None:
    """Asks in every way that has a user's text in it."""
    stub = blocking_stub(channel)

    def recommend(**fields) -> pb.RecommendResponse | None:
        request = pb.RecommendRequest(**{"scenario": "suggestion", "query": QUERY, **fields})
        metadata = (SAMPLED, ("x-request-id", f"call-{len(told.request_ids)}"))
        try:
            response, call = stub.Recommend.with_call(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            response, call = None, error
        # The stubs of grpc are wrong about what comes with an error.
        trailing = cast(Iterable[tuple[str, str]], call.trailing_metadata())
        told.request_ids.append(dict(trailing)["x-request-id"])
        return response

    answer = recommend(session_queries=[QUERY], answer=QUERY, session_id=QUERY, user_key=QUERY)
    assert answer is not None
    assert recommend(session_queries=[QUERY], answer=QUERY)
    assert recommend(scenario="completion")
    recommend(latency_budget=Duration(nanos=1))
    recommend(scenario=QUERY)
    recommend(query=f"{QUERY}\x00")
    recommend(query=QUERY * 30)
    good = pb.RecommendRequest(scenario="suggestion", query=QUERY).SerializeToString()
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(RECOMMEND)(good.replace(b"xylo", b"\xff\xfelo"), timeout=20)
    event = FeedbackEvent(
        event_id=QUERY,
        attribution_token=answer.attribution_token,
        kind=FeedbackKind.FEEDBACK_KIND_CLICK,
        position=1,
    )
    event.time.GetCurrentTime()
    forged = FeedbackEvent(event_id=QUERY, attribution_token=QUERY, kind=event.kind, position=1)
    forged.time.GetCurrentTime()
    stub.RecordFeedback(pb.RecordFeedbackRequest(events=[event, forged]), timeout=20)


@pytest.fixture(scope="module")
def told(tiny_bundle, tmp_path_factory, start_engine, stop_engine) -> Told:
    collector, told, directory = Collector(), Told(), tmp_path_factory.mktemp("observed")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    traces_port, metrics_port = server.add_insecure_port("127.0.0.1:0"), free_port()
    server.start()
    engine = start_engine(
        tiny_bundle,
        directory,
        environment={
            "QUERYREC_METRICS_PORT": str(metrics_port),
            "QUERYREC_TRACING_ENDPOINT": f"http://127.0.0.1:{traces_port}",
            "QUERYREC_TRACING_SAMPLE_RATE": "0",
            "QUERYREC_LOG_LEVEL": "debug",
        },
    )
    try:
        with grpc.insecure_channel(engine.target) as channel:
            ask(channel, told)
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as page:
            told.metrics = page.read().decode()
    finally:
        assert stop_engine(engine) == 0
        server.stop(grace=None)
    told.log = (directory / "stderr.txt").read_text()
    told.spans = collector.spans
    return told


def test_nothing_that_is_told_holds_text_of_the_user(told):
    traces = " ".join(map(str, told.spans))
    for told_text in (told.metrics, told.log, traces):
        assert "suggestion" in told_text, "something was told"
        assert not [word for word in WORDS if word in told_text.lower()]


def test_metrics_count_what_was_asked(told):
    ok = {"method": "Recommend", "status": "OK", "scenario": "suggestion", "side": "bundle"}
    assert told.value("request_duration_seconds_count", **ok) >= 2
    assert told.value("request_duration_seconds_count", status="NOT_FOUND", scenario="unknown") == 1
    for reason in ("scenario_unknown", "query_too_long", "deadline_unreachable"):
        assert told.value("errors_total", method="Recommend", reason=reason) == 1
    assert told.value("errors_total", reason="text_invalid") == 2
    assert told.value("budget_misses_total", scenario="suggestion") >= 1
    assert told.value("answers_total", scenario="suggestion", effort="full") == 2
    assert told.value("cache_lookups_total", cache="generation", result="hit") >= 1
    assert told.value("cache_lookups_total", cache="generation", result="miss") >= 1
    assert told.value("omissions_total", stage="generate", reason="cached") >= 1
    assert told.value("feedback_events_total", result="accepted") == 1
    assert told.value("feedback_events_total", result="token_malformed") == 1
    assert 1 <= told.value("batch_rows_count", stage="generate") < 20, "warming up does not count"
    assert told.value("stage_duration_seconds_count", stage="generate") >= 1
    assert told.value("ready") == 1
    assert told.value("bundle_info") == 1
    assert told.value("requests_in_flight") == 0
    assert "queryrec_call_wait_seconds " in told.metrics
    assert "process_resident_memory_bytes" in told.metrics
    assert "_created" not in told.metrics


def test_names_follow_the_conventions_of_prometheus(told):
    for family in text_string_to_metric_families(told.metrics):
        if family.name.startswith("queryrec_"):
            assert re.fullmatch(r"[a-z][a-z_]*[a-z]", family.name)
            assert family.documentation.endswith(".")
            if family.type == "histogram":
                assert family.name.endswith(("_seconds", "_rows"))


def test_the_log_is_json_and_has_a_line_per_call_with_its_request_id(told):
    lines = [json.loads(line) for line in told.log.splitlines()]
    assert all({"time", "level", "event", "logger"} <= line.keys() for line in lines)
    assert {"listening", "bundle loaded", "draining"} <= {line["event"] for line in lines}
    calls = [line for line in lines if line["event"] == "call ended"]
    assert [c["request_id"] for c in calls if c["request_id"].startswith("call-")] == (
        told.request_ids
    )
    assert {"OK", "NOT_FOUND", "INVALID_ARGUMENT"} <= {c["status"] for c in calls}


def test_request_ids_come_back_also_with_errors(told):
    assert told.request_ids == [f"call-{i}" for i in range(len(told.request_ids))]


def test_traces_reach_the_collector_with_their_stages(told):
    by_name = {span.name: span for span in told.spans}
    call = by_name["queryrec.v1.QueryRecommenderService/Recommend"]
    assert call.trace_id.hex() == SAMPLED[1].split("-")[1]
    assert {"generate", "score"} <= by_name.keys()
    assert "queryrec.v1.QueryRecommenderService/RecordFeedback" not in by_name, "not sampled"


def expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        panels = json.loads(path.read_text())["panels"]
        return [target["expr"] for p in panels for target in p.get("targets", ())]
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("name", ["grafana/queryrec.json", "prometheus/alerts.yml"])
def test_dashboard_and_alerts_name_only_what_is_exported(told, name):
    samples = [
        sample
        for family in text_string_to_metric_families(told.metrics)
        for sample in family.samples
    ]
    exported = {s.name for s in samples} | {"up"}  # Prometheus' own
    labels = {label for s in samples for label in s.labels} | {"job", "instance"}
    found = expressions(DEPLOY / name)
    assert found
    for expression in found:
        named = set(re.findall(r"\b(?:(?:queryrec|process|python)_\w+|up\b)", expression))
        assert named, expression
        assert named <= exported, expression
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        selected = re.findall(r"(\w+)\s*=~?\s*\"", expression)
        used = {label.strip() for group in grouped for label in group.split(",")} | set(selected)
        assert used <= labels, expression


def test_workers_have_metrics_and_log_lines_of_their_own(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    port = free_port(2)
    engine = start_engine(
        tiny_bundle,
        tmp_path,
        environment={"QUERYREC_METRICS_PORT": str(port), "QUERYREC_SERVER_WORKERS": "2"},
    )
    try:
        for number in (1, 2):
            url = f"http://127.0.0.1:{port + number - 1}/metrics"
            with urllib.request.urlopen(url, timeout=20) as page:
                assert "queryrec_ready 1.0" in page.read().decode()
    finally:
        stop_engine(engine)
    lines = map(json.loads, (tmp_path / "stderr.txt").read_text().splitlines())
    assert {line["worker"] for line in lines if line["event"] == "bundle loaded"} == {1, 2}


def test_a_worker_that_is_loading_says_so(tiny_bundle, tmp_path, start_engine, stop_engine):
    port, blocklist = free_port(2), tmp_path / "blocklist"
    os.mkfifo(blocklist)  # whoever reads it waits until somebody writes to it
    environment = {
        "QUERYREC_METRICS_PORT": str(port),
        "QUERYREC_SERVER_WORKERS": "2",
        "QUERYREC_RANKING_BLOCKLIST": str(blocklist),
    }

    def metrics() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
            return page.read().decode()

    with futures.ThreadPoolExecutor(1) as starter:
        starting = starter.submit(start_engine, tiny_bundle, tmp_path, environment=environment)
        loading = ""
        while not loading and not starting.done():
            with suppress(OSError):
                loading = metrics()
            time.sleep(0.05)
        while not starting.done():
            with suppress(OSError):  # nobody is reading
                os.close(os.open(blocklist, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.05)
    try:
        assert "queryrec_ready 0.0" in loading
        assert "queryrec_ready 1.0" in metrics()
    finally:
        stop_engine(starting.result())


def test_metrics_on_a_port_in_use_end_the_start_with_a_message(tiny_bundle, tmp_path, start_engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            pytest.fail.Exception, match=f"cannot serve metrics on 127.0.0.1:{port}"
        ):
            start_engine(tiny_bundle, tmp_path, environment={"QUERYREC_METRICS_PORT": str(port)})
