"""What callers rely on, over real gRPC against an engine in a process of its own."""

import subprocess
import sys
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.stage_pb2 import OmissionReason
from queryrec.v1.suggestion_pb2 import SuggestionSource
from tests.blocking import blocking_health_stub

TIMEOUT_S = 10


@pytest.mark.parametrize(
    ("scenario", "query"),
    [
        ("suggestion", "wireless mouse"),
        ("suggestion", "something nobody ever searched for"),
        ("suggestion", "ベルト"),
        ("suggestion", "😀"),
        ("completion", "wireless m"),
        ("clarification", "leather jacket"),
    ],
)
def test_answers_are_distinct_positioned_and_never_the_query(stub, scenario, query):
    response = stub.Recommend(
        pb.RecommendRequest(scenario=scenario, query=query), timeout=TIMEOUT_S
    )
    texts = [s.text for s in response.suggestions]
    assert len(texts) >= 5
    assert len(set(texts)) == len(texts)
    assert query not in texts
    assert [s.position for s in response.suggestions] == list(range(1, len(texts) + 1))
    assert all(0 <= s.click_probability <= 1 and s.sources for s in response.suggestions)
    if scenario == "completion":
        assert all(t.startswith(query) for t in texts)


def test_scenarios_say_which_side_information_models_read_of_that_callers_may_send(stub):
    response = stub.ListScenarios(pb.ListScenariosRequest(), timeout=TIMEOUT_S)
    assert {s.name: list(s.side_information_kinds) for s in response.scenarios} == {
        name: ["answer", "session"] for name in ("clarification", "completion", "suggestion")
    }


def test_timings_start_with_the_total_and_nothing_is_left_out_in_ample_time(stub):
    response = stub.Recommend(
        pb.RecommendRequest(scenario="suggestion", query="no such query in any log"),
        timeout=TIMEOUT_S,
    )
    stages = {t.stage: t.duration_us for t in response.stage_timings}
    assert response.stage_timings[0].stage == "total"
    assert {"encode", "generate", "score", "retrieve", "merge", "rerank"} <= set(stages)
    assert all(us <= stages["total"] for us in stages.values())
    assert not response.omissions


def test_the_same_question_again_is_answered_from_the_cache_with_a_token_of_its_own(stub):
    question = pb.RecommendRequest(scenario="suggestion", query="asked twice in a row")
    first = stub.Recommend(question, timeout=TIMEOUT_S)
    second = stub.Recommend(question, timeout=TIMEOUT_S)
    assert [s.text for s in first.suggestions] == [s.text for s in second.suggestions]
    assert [(o.stage, o.reason) for o in second.omissions] == [
        ("generate", OmissionReason.OMISSION_REASON_CACHED)
    ]
    assert first.attribution_token != second.attribution_token


def test_excluded_texts_do_not_come_back_in_any_case_or_spacing(stub):
    question = pb.RecommendRequest(scenario="suggestion", query="kitchen lamp")
    before = [s.text for s in stub.Recommend(question, timeout=TIMEOUT_S).suggestions]
    question.exclude.extend(t.upper().replace(" ", "  ") for t in before[:3])
    after = [s.text for s in stub.Recommend(question, timeout=TIMEOUT_S).suggestions]
    assert not set(after) & set(before[:3])
    assert len(after) == len(before)


@pytest.mark.parametrize("num_wanted", [1, 3, 20])
def test_as_many_suggestions_come_as_were_asked_for(stub, num_wanted):
    response = stub.Recommend(
        pb.RecommendRequest(
            scenario="suggestion", query="garden chair", max_suggestions=num_wanted
        ),
        timeout=TIMEOUT_S,
    )
    assert len(response.suggestions) == num_wanted


def test_generated_text_completes_a_prefix_that_the_log_does_not_know(stub):
    response = stub.Recommend(
        pb.RecommendRequest(scenario="completion", query="zxq unheard of pre"), timeout=TIMEOUT_S
    )
    assert response.suggestions
    for suggestion in response.suggestions:
        assert suggestion.text.startswith("zxq unheard of pre")
        assert list(suggestion.sources) == [SuggestionSource.SUGGESTION_SOURCE_GENERATED]


def test_scenarios_are_listed_by_name(stub):
    response = stub.ListScenarios(pb.ListScenariosRequest(), timeout=TIMEOUT_S)
    names = [s.name for s in response.scenarios]
    assert names == ["clarification", "completion", "suggestion"]
    assert response.scenarios[0].has_auxiliary_text
    assert response.bundle_id


@pytest.mark.parametrize("service", ["", "queryrec.v1.QueryRecommenderService"])
def test_health_says_serving(channel, service):
    health = blocking_health_stub(channel)
    response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_names_the_service(channel):
    stub = cast(Any, reflection_pb2_grpc.ServerReflectionStub(channel))  # its types name no call
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (response,) = stub.ServerReflectionInfo(requests, timeout=TIMEOUT_S)
    names = {s.name for s in response.list_services_response.service}
    assert "queryrec.v1.QueryRecommenderService" in names


def test_ask_prints_suggestions_and_reports_clicks(live_engine):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "ask", "wireless earbuds"),
            *("--target", live_engine.target, "--clicks", "1", "--timeout-ms", "10000"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "p(click)" in run.stdout
    assert "7 events stored" in run.stdout


def test_ask_reports_nothing_if_a_click_is_on_no_position(live_engine):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "ask", "wireless earbuds"),
            *("--target", live_engine.target, "--timeout-ms", "10000"),
            *("--clicks", "1", "--clicks", "77"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    told = "no feedback was sent: --clicks 77 is not a position of the answer (1 to 6)"
    assert run.stderr.splitlines() == [told]
    assert "p(click)" in run.stdout
    assert "stored" not in run.stdout


def test_ask_says_why_a_call_failed(live_engine):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "ask", " "),
            *("--target", live_engine.target, "--timeout-ms", "10000"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert "ERROR_REASON_QUERY_EMPTY" in run.stderr
